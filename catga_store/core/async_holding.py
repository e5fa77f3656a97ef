"""Keeping a claim while a step runs, in a task beside the step, which is cancelled when the claim is lost."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import TracebackType
from typing import Any
from typing import Self

import anyio
from anyio.abc import TaskGroup

from catga_store.core import claims
from catga_store.core.base_async_store import AsyncRunner
from catga_store.core.context import Context
from catga_store.core.holding import BaseHolding
from catga_store.core.holding import keep
from catga_store.errors import CatgaStoreError
from catga_store.errors import ClaimLostError
from catga_store.model.flows import FlowSnapshot

__all__ = ["AsyncHolding"]

_log = logging.getLogger(__name__)


class AsyncHolding(BaseHolding):
    """A claim that is kept while an `async with` block runs. `AsyncStore.holding` returns it."""

    def __init__(
        self, run: AsyncRunner, context: Context, flow: FlowSnapshot[Any], lease: timedelta | None
    ) -> None:
        super().__init__(context, flow, lease)
        self._run = run
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        await self._run(claims.extend(self._context, self._flow, self._lease))
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._listen(begin=True)
        self._tasks.start_soon(self._keep)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._tasks is not None, "__aexit__ must follow __aenter__"
        self._listen(begin=False)
        self._rhythm.stop()
        self._tasks.cancel_scope.cancel()
        # The group must not see an error of the block: it would raise a group of exceptions instead.
        is_cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        seen = (kind, error, traceback) if is_cancelled else (None, None, None)
        is_ended = bool(await self._tasks.__aexit__(*seen))
        if self._loss is not None and (error is None or (is_cancelled and is_ended)):
            raise self._loss from None

        return is_cancelled and is_ended

    async def _keep(self) -> None:
        assert self._tasks is not None, "_keep must follow __aenter__"
        try:
            await self._run(keep(self._context, self._flow, self._lease, self._rhythm))
        except ClaimLostError as error:
            self._loss = error
            self._tasks.cancel_scope.cancel()
        except CatgaStoreError as error:
            _log.warning(
                "stopped extending the claim on %s, so the claim ends with its lease: %s",
                self._flow.key,
                error,
            )
