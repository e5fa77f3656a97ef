"""`CatgaSaver`: what LangGraph calls. Each method is here twice, blocking and async, and runs one conversation."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self
from typing import TypeVar

from anyio import to_thread
from attrs import evolve
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base import ChannelVersions
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.base import DeltaChannelHistory
from langgraph.checkpoint.serde.base import SerializerProtocol

import catga_store as cs
from catga_store.langgraph import reading
from catga_store.langgraph import threads
from catga_store.langgraph import writing
from catga_store.langgraph.access import Access
from catga_store.langgraph.access import next_of
from catga_store.protocol.chance import uniform
from catga_store.protocol.conversation import Conversation

__all__ = ["CatgaSaver"]

T = TypeVar("T")


class CatgaSaver(BaseCheckpointSaver[str]):
    """A LangGraph checkpointer that keeps its checkpoints in a store of this library.

    With a blocking store, all methods work, and the async methods run in threads. With an async store, only
    the async methods work. The saver does not close the store.

    `put` and `put_writes` write only if the checkpoint from which they continue is the newest checkpoint in
    the thread's namespace; otherwise, they raise `StaleThreadError`. If two runs of one thread overlap, one
    of them therefore ends with this error, and nothing that was acknowledged is lost. To continue from an
    older checkpoint, name it in the config, as usual in LangGraph; the newest checkpoint must then be the
    same as when the older one was read. A `put` is not checked if its config names no parent and was never
    passed to `get_tuple`.

    `put` and `put_writes` cost one round trip; the first `put` in a namespace costs up to three. `get_tuple`
    costs one round trip, or two for a checkpoint that the config names. Each of these calls is all or
    nothing. `copy_thread`, `prune` and `delete_for_runs` take several commits; after an error, call them
    again. The methods raise the errors of the store. If the outcome of a commit is lost, the method resolves
    it before it returns.

    >>> import catga_store as cs
    >>> from langgraph.checkpoint.base import empty_checkpoint
    >>> saver = CatgaSaver(cs.open_store("memory://"))
    >>> config = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
    >>> stored = saver.put(config, empty_checkpoint(), {"source": "input", "step": -1}, {})
    >>> saver.get_tuple(config).metadata
    {'source': 'input', 'step': -1}
    """

    def __init__(
        self, store: cs.Store | cs.AsyncStore, *, serde: SerializerProtocol | None = None
    ) -> None:
        super().__init__(serde=serde)
        self.store = store
        self._run = None if isinstance(store, cs.AsyncStore) else store._run  # noqa: SLF001  of one package
        self._to = Access(store._context, {})  # noqa: SLF001  of one package

    def under(self, flow: cs.FlowSnapshot[Any]) -> Self:
        """Return a saver on the same store that writes only while the claim on this flow is valid.

        Each commit checks and renews the claim, and raises `ClaimLostError` once the claim is lost. The flow
        itself is not written. In a store with partitions, the flow must be in the partition of the thread:
        the flow's id must be the thread's id, or both must have the same `{tag}`.
        """
        clone = copy.copy(self)
        clone._to = evolve(self._to, claimed=flow)  # noqa: SLF001  its own
        return clone

    def __repr__(self) -> str:
        claimed = self._to.claimed
        under = "" if claimed is None else f" under {claimed.flow_id!r}"
        return f"<{type(self).__name__} on {self.store!r}{under}>"

    def _now(self, conversation: Conversation[T]) -> T:
        if self._run is None:
            conversation.close()
            message = (
                "this saver uses an async store; await its async methods, or create the "
                "saver with a blocking store"
            )
            raise cs.UsageError(message)

        return self._run(conversation)

    async def _later(self, conversation: Conversation[T]) -> T:
        if isinstance(self.store, cs.AsyncStore):
            return await self.store._run(conversation)  # noqa: SLF001  of one package

        return await to_thread.run_sync(self._now, conversation)

    # reading --------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the config names, or the newest one if it names none; `None` if there is none."""
        return self._now(reading.get_tuple(self._to, self.serde, config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the config names, or the newest one if it names none; `None` if there is none."""
        return await self._later(reading.get_tuple(self._to, self.serde, config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  the base class's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Iterate over the checkpoints of a namespace, by descending id.

        Without a namespace, the call lists the checkpoints of all namespaces of the thread, one namespace
        after the other; without a config, it lists the checkpoints of all threads. With a filter, a
        checkpoint that does not match is not read if its metadata takes up to about 200 bytes.
        """
        found = reading.list_tuples(
            self._to, self.serde, config, wanted=filter, before=before, limit=limit
        )
        while (one := self._now(next_of(found))) is not None:
            yield one

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  the base class's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Iterate over checkpoints, as `list` does."""
        found = reading.list_tuples(
            self._to, self.serde, config, wanted=filter, before=before, limit=limit
        )
        while (one := await self._later(next_of(found))) is not None:
            yield one

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return the data from which the values of delta channels are built; parents are read page by page."""
        return self._now(reading.history(self._to, self.serde, config, channels))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return the data from which the values of delta channels are built; parents are read page by page."""
        return await self._later(reading.history(self._to, self.serde, config, channels))

    # writing --------------------------------------------------------------------------------------

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,  # noqa: ARG002  each checkpoint is stored whole
    ) -> RunnableConfig:
        """Write a checkpoint; raise `StaleThreadError` if its parent is no longer the newest checkpoint."""
        return self._now(writing.put(self._to, self.serde, config, checkpoint, metadata))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,  # noqa: ARG002  each checkpoint is stored whole
    ) -> RunnableConfig:
        """Write a checkpoint; raise `StaleThreadError` if its parent is no longer the newest checkpoint."""
        return await self._later(writing.put(self._to, self.serde, config, checkpoint, metadata))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store the writes of a task; raise `StaleThreadError` if another run has written in the meantime."""
        self._now(writing.put_writes(self._to, self.serde, config, writes, (task_id, task_path)))

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store the writes of a task; raise `StaleThreadError` if another run has written in the meantime."""
        await self._later(
            writing.put_writes(self._to, self.serde, config, writes, (task_id, task_path))
        )

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002  the base class's
        """Return a version greater than `current`: a number of 32 digits and a random part."""
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{uniform(0, 1):016}"

    # whole threads ----------------------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread with all its namespaces, in one round trip, however many checkpoints it has."""
        self._now(threads.delete_thread(self._to, thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete a thread with all its namespaces, in one round trip, however many checkpoints it has."""
        await self._later(threads.delete_thread(self._to, thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints whose metadata contains one of these run ids. The call lists all threads.

        The values of delta channels in later checkpoints may depend on checkpoints that are deleted.
        """
        self._now(threads.delete_for_runs(self._to, run_ids))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of these runs, as `delete_for_runs` does."""
        await self._later(threads.delete_for_runs(self._to, run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread, if it exists, to a new thread; raise `FlowExistsError` if the new thread already exists.

        A copy does not have a newest checkpoint until it is complete. After an error, delete the new thread
        and copy again.
        """
        self._now(threads.copy_thread(self._to, source_thread_id, target_thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread, as `copy_thread` does."""
        await self._later(threads.copy_thread(self._to, source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all checkpoints of these threads except the newest one of each namespace.

        The newest checkpoint is kept together with the parents from which its delta channels are built. With
        the strategy `"delete"`, the threads themselves are deleted.
        """
        self._now(threads.prune(self._to, self.serde, thread_ids, strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete checkpoints, as `prune` does."""
        await self._later(threads.prune(self._to, self.serde, thread_ids, strategy))
