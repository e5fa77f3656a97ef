"""Faults: the reported outcome is true, whatever happens to the transport at whatever exchange.

Each operation runs once in peace, to learn its exchanges and what it does; then once for every
exchange and every way in which that exchange may fail. Between a store and its transport on all of them,
and on the line to the servers.

The file is over 400 lines because the operations and what is compared are shared by all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from random import Random
from typing import Any
from typing import TypeVar
from typing import get_args
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import settings
from late import Late
from marks import STORES
from proxy import Proxy
from proxy import Strike
from waiting import retried
from waiting import until

from catga_store import Appended
from catga_store import AsyncNatsStore
from catga_store import AsyncSQLiteStore
from catga_store import CommitUncertainError
from catga_store import Completion
from catga_store import FlowExistsError
from catga_store import FlowSnapshot
from catga_store import FlowStatus
from catga_store import ForEachProgress
from catga_store import NatsStore
from catga_store import NotSupportedError
from catga_store import Part
from catga_store import Receipt
from catga_store import SessionClosedError
from catga_store import SQLiteStore
from catga_store import StaleFlowError
from catga_store import StoreUnavailableError
from catga_store import UsageError
from catga_store import WaitCondition
from catga_store import WaitOutcome
from catga_store import open_async_store
from catga_store import open_store
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Resolve
from catga_store.stores.nats import NatsProtocol
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.redis import RedisProtocol
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import Faults
from catga_store.testing import ManualClock
from catga_store.testing import StoreAPI
from catga_store.testing.faults import ExchangeFault
from catga_store.testing.hooks import wrap_protocol

T = TypeVar("T")

LEASE = timedelta(seconds=30)
SOON = timedelta(seconds=2)
FOR_GOOD = 10_000
"""More tries than any operation makes."""
APIS = ("blocking", "asyncio", "trio")
LOST: list[Strike] = ["drop the request", "drop the reply", "cut the reply"]


@pytest.fixture
def faults() -> Faults:
    """Inject nothing until asked to."""
    return Faults()


BOTH = [f"{kind} {api}" for kind in ("memory", "sqlite") for api in APIS]
SERVERS = [f"{kind} {api}" for kind in ("redis-8.2", "nats") for api in APIS]
AT_EVERY_EXCHANGE = [
    name
    if name == "memory asyncio" or name.endswith("blocking")
    else pytest.param(name, marks=pytest.mark.soak)
    for name in [*BOTH, *SERVERS]
]
"""Exchanges are below the APIs: behind the async ones, all but memory on asyncio are left to `tox -e soak`."""


def opened(
    name: str, url: str, clock: ManualClock, faults: Faults, *, hurried: bool = False
) -> StoreAPI:
    """Open a store behind an API, with the faults attached."""
    options: dict[str, Any] = {"clock": clock, "owner": "me"}

    def ready(store: Any) -> Any:
        if hurried:
            wrap_protocol(store, in_a_hurry)

        return faults.attach(store)

    api = name.split()[1]
    if api == "blocking":
        return BlockingAPI(lambda: ready(open_store(url, **options)))

    return AsyncAPI(lambda: ready(open_async_store(url, **options)), backend=api)


def in_a_hurry(protocol: Any) -> Any:
    """Shorten the time after which a store gives up an exchange; nothing else changes.

    What is lost between a store protocol and its transport is lost at once: no time is needed to see it.
    """
    if isinstance(protocol, RedisProtocol):
        protocol._exchange.timeout = 0.05
    elif isinstance(protocol, NatsProtocol):
        protocol._exchange.deadline = lambda: Deadline(0.05)  # type: ignore[method-assign]

    return protocol


@pytest.fixture
def api(
    request: pytest.FixtureRequest,
    url_of: Callable[[str], str],
    clock: ManualClock,
    faults: Faults,
) -> Iterator[StoreAPI]:
    """Open the store and API that the test names, with the faults attached."""
    name: str = request.param
    hurried = request.node.get_closest_marker("hurried") is not None
    kind = name.split(maxsplit=1)[0]
    url = url_of(kind)
    if kind not in ("memory", "sqlite"):
        # Laid out by a store that has time, whatever the machine is busy with.
        with open_store(url) as first:
            first.ping()

    with opened(name, url, clock, faults, hurried=hurried) as api:
        api.ping()
        faults.reset()
        yield api


everywhere = pytest.mark.parametrize("api", [*BOTH, *SERVERS], indirect=True)


def at_every_exchange(test: Any) -> Any:
    """Run a test through these APIs, on stores that give up soon."""
    return pytest.mark.hurried(
        pytest.mark.parametrize("api", AT_EVERY_EXCHANGE, indirect=True)(test)
    )


# --- on_commit --------------------------------------------------------------------------------------


@everywhere
def test_a_lost_reply_is_asked_for_again(api: StoreAPI, faults: Faults) -> None:
    """The caller of a commit whose first reply is lost sees success, once."""
    faults.on_commit("reply-lost")
    flow = FlowSnapshot("order-1", state={})
    api.create(flow)
    assert flow.version == 1
    assert api.get("order-1").revision == flow.revision


@pytest.mark.parametrize("api", BOTH, indirect=True)
def test_no_test_waits_for_another_try(api: StoreAPI, faults: Faults) -> None:
    """The pause before an embedded store tries again is noted, and takes no time."""
    faults.on_commit("reply-lost")
    api.create(FlowSnapshot("order-1", state={}))
    assert faults.pauses


@everywhere
def test_a_lost_reply_does_not_complete_twice(api: StoreAPI, faults: Faults) -> None:
    """A completion whose reply is lost is reported as accepted, with its `now_satisfied`."""
    api.set_wait_condition(WaitCondition("ship", flow_ids=["s-1"]))
    faults.on_commit("reply-lost")
    completion = api.complete_child("ship", "s-1")
    assert (completion.accepted, completion.duplicate, completion.now_satisfied) == (
        True,
        False,
        True,
    )


@everywhere
def test_a_lost_reply_does_not_complete_several_twice(api: StoreAPI, faults: Faults) -> None:
    """Completions of one commit are reported as accepted, with what they satisfied, by the second try."""
    api.set_wait_condition(WaitCondition("{o}ship", flow_ids=["s-1", "s-2"]))
    api.set_wait_condition(WaitCondition("{o}bill", flow_ids=["b-1"]))
    faults.on_commit("reply-lost")
    session = api.session()
    for wait, child in (("{o}ship", "s-1"), ("{o}ship", "s-2"), ("{o}bill", "b-1")):
        session.complete_child(wait, child)

    receipt = session.commit()
    assert all(completion.accepted for completion in receipt.completions.values())
    assert sorted(receipt.satisfied) == ["{o}bill", "{o}ship"]


@everywhere
def test_an_unknown_commit_that_was_applied_has_a_receipt(api: StoreAPI, faults: Faults) -> None:
    """`resolve_commit` returns the receipt of a commit that was applied unseen."""
    faults.on_commit("unknown-applied")
    with pytest.raises(CommitUncertainError) as caught:
        api.create(FlowSnapshot("order-1", state={}))

    receipt = api.resolve_commit(caught.value)
    assert list(receipt.versions.values()) == [1]
    assert api.get("order-1").version == 1


@everywhere
def test_an_unknown_commit_that_was_not_applied_never_is(api: StoreAPI, faults: Faults) -> None:
    """`resolve_commit` returns `None` for a commit that did not arrive."""
    faults.on_commit("unknown-not-applied")
    with pytest.raises(CommitUncertainError) as caught:
        api.create(FlowSnapshot("order-1", state={}))

    assert api.resolve_commit(caught.value) is None
    assert api.get("order-1") is None


@everywhere
def test_an_uncertain_commit_closes_its_session(api: StoreAPI, faults: Faults) -> None:
    """After a commit whose outcome is lost, its session cannot be used."""
    faults.on_commit("unknown-applied")
    session = api.session()
    session.add(FlowSnapshot("order-1", state={}))
    with pytest.raises(CommitUncertainError):
        session.commit()

    with pytest.raises(SessionClosedError):
        session.get("order-1")


@everywhere
def test_an_unavailable_store_has_written_nothing(api: StoreAPI, faults: Faults) -> None:
    """`StoreUnavailableError` says that nothing was written, and the object can be sent again."""
    faults.on_commit("unavailable")
    flow = FlowSnapshot("order-1", state={})
    with pytest.raises(StoreUnavailableError):
        api.create(flow)

    assert api.get("order-1") is None
    api.create(flow)
    assert flow.version == 1


@everywhere
def test_a_conflict_leaves_the_object_as_it_was(api: StoreAPI, faults: Faults) -> None:
    """A reported conflict is the error of the record, and nothing was written."""
    flow = FlowSnapshot("order-1", state={"n": 1})
    api.create(flow)
    faults.on_commit("conflict")
    flow.state["n"] = 2
    with pytest.raises(StaleFlowError) as caught:
        api.update(flow)

    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert (flow.version, api.get("order-1").state) == (1, {"n": 1})
    api.update(flow)
    assert api.get("order-1").state == {"n": 2}


@everywhere
def test_a_conflict_on_a_new_flow_says_that_it_exists(api: StoreAPI, faults: Faults) -> None:
    """A reported conflict on a create is `FlowExistsError`."""
    faults.on_commit("conflict")
    with pytest.raises(FlowExistsError):
        api.create(FlowSnapshot("order-1", state={}))


@everywhere
def test_completions_pass_an_armed_conflict(api: StoreAPI, faults: Faults) -> None:
    """Completions never conflict, so the fault waits for a commit that can."""
    faults.on_commit("conflict")
    assert api.complete_child("ship", "s-1").accepted
    with pytest.raises(FlowExistsError):
        api.create(FlowSnapshot("order-1", state={}))


@everywhere
@pytest.mark.parametrize(
    "kind", ["reply-lost", "unknown-applied", "unknown-not-applied", "conflict"]
)
def test_transact_gets_through(api: StoreAPI, faults: Faults, kind: Any) -> None:
    """`transact` applies its function exactly once, whatever becomes of its first commits."""
    api.create(FlowSnapshot("counter", state={"n": 0}))
    faults.on_commit(kind, times=1 if kind == "unknown-applied" else 3)

    def add(flow: FlowSnapshot[Any]) -> FlowSnapshot[Any]:
        flow.state["n"] += 1
        return flow

    answered = api.transact_one("counter", add)
    flow = api.get("counter")
    assert (flow.state, flow.version) == ({"n": 1}, 2)
    assert (answered.version, answered.revision) == (2, flow.revision), "it is what was stored"
    assert api.delete(answered), "so the caller may continue with it"


@everywhere
def test_after_and_times_count_commits(api: StoreAPI, faults: Faults) -> None:
    """`after` commits pass, `times` fail, and the next pass again; reads and tries do not count."""
    faults.on_commit("unavailable", after=1, times=2)
    unavailable = []
    for number in range(5):
        api.get("nobody")
        try:
            api.create(FlowSnapshot(f"order-{number}", state={}))
        except StoreUnavailableError:
            unavailable.append(number)

    assert unavailable == [1, 2]


def test_an_unknown_fault_is_refused(faults: Faults) -> None:
    """A kind that does not exist is a `UsageError`, not a fault that never strikes."""
    with pytest.raises(UsageError):
        faults.on_commit("slow")  # type: ignore[arg-type]

    with pytest.raises(UsageError):
        faults.at_exchange(1, "slow")  # type: ignore[arg-type]


def test_only_stores_take_faults(faults: Faults) -> None:
    """What has no transport to stand before is refused by name."""
    with pytest.raises(NotSupportedError):
        faults.attach(object())


# --- every operation, every exchange ------------------------------------------------------------------

Operation = Callable[[StoreAPI], Any]


def prepare(api: StoreAPI) -> None:
    """Store what the operations work on."""
    api.create(FlowSnapshot("a", state={"n": 1}))
    api.create(FlowSnapshot("b", state={"n": 2}, due_at=None))
    api.create(FlowSnapshot("gone", state={}, status=FlowStatus.COMPLETED))
    api.set_wait_condition(WaitCondition("pending", flow_ids=["s-1", "s-2"], timeout=timedelta(0)))
    api.set_wait_condition(WaitCondition("last", flow_ids=["s-1"], parent_flow_id="b"))
    api.save_for_each_progress("a", 1, ForEachProgress(range(3)))
    api.put_part(Part("a", "p", {"n": 1}, tag="t"))
    api.put_part(Part("a", "q", b"1"))
    api.append("a", "first", key="k")
    api.append("a", "second")


def update(api: StoreAPI) -> Any:
    """Change a flow."""
    flow = api.get_one("a")
    flow.state["n"] = 5
    return api.update(flow)


def update_wait(api: StoreAPI) -> Any:
    """Close a condition."""
    wait = api.get_wait_condition("pending")
    wait.outcome = WaitOutcome.TIMED_OUT
    return api.update_wait_condition(wait)


def save_progress(api: StoreAPI) -> Any:
    """Go on with a progress."""
    progress = api.get_for_each_progress("a", 1)
    progress.mark(7)
    return api.save_for_each_progress("a", 1, progress)


def commit(api: StoreAPI) -> Any:
    """Write records of every kind in one commit."""
    session = api.session()
    flow = session.get("a")
    flow.state["n"] = 6
    session.delete(session.get("b"))
    session.add(FlowSnapshot("new", state={}))
    session.suspend(flow, WaitCondition("fresh", flow_ids=["x"]))
    session.save_for_each_progress("new", 0, ForEachProgress([1]))
    session.complete_child("last", "s-1")
    return session.commit()


def transact(api: StoreAPI) -> Any:
    """Change a flow, again if need be."""

    def change(flow: FlowSnapshot[Any]) -> None:
        flow.state["n"] = 8

    return api.transact_one("a", change)


def put_part(api: StoreAPI) -> Any:
    """Change a part."""
    part = api.get_part("a", "p")
    part.body["n"] = 5
    return api.put_part(part)


def commit_parts(api: StoreAPI) -> Any:
    """Write a flow, parts and entries in one commit."""
    session = api.session()
    session.get("a").state["n"] = 6
    session.get_part("a", "p").tag = "new"
    session.delete_part(session.get_part("a", "q"))
    session.add_part(Part("a", "r", b"r"))
    session.add_part(Part("a", "s", b"s"), exists="keep")
    session.append("a", "with its flow", key="k")
    session.append("a", "with its flow")
    return session.commit()


def keep_and_append(api: StoreAPI) -> Any:
    """Write a part and an entry only if they are not there, and nothing else."""
    session = api.session()
    session.add_part(Part("a", "p", b"no"), exists="keep")
    session.add_part(Part("a", "r", b"r"), exists="overwrite")
    session.append("a", "third", key="l")
    return session.commit()


def replace_with_parts(api: StoreAPI) -> Any:
    """Put another flow in the place of one, with a part and an entry."""
    session = api.session()
    session.delete(session.get("a"))
    session.add(FlowSnapshot("a", state={"n": 9}))
    session.add_part(Part("a", "p", b"new"))
    session.append("a", "first again", key="k")
    return session.commit()


def extend(api: StoreAPI) -> Any:
    """Extend a claim."""
    return api.extend(api.claimed, timedelta(seconds=99))


def release(api: StoreAPI) -> Any:
    """Give a claim back."""
    return api.release(api.claimed, due_at=None)


OPERATIONS: dict[str, Operation] = {
    "create": lambda api: api.create(FlowSnapshot("new", state={})),
    "get": lambda api: api.get("a"),
    "get_or_create": lambda api: api.get_or_create(FlowSnapshot("new", state={})),
    "get_or_create, taken": lambda api: api.get_or_create(FlowSnapshot("a", state={})),
    "update": update,
    "delete": lambda api: api.delete("a"),
    "delete, checked": lambda api: api.delete("a", version=1),
    "get_many": lambda api: api.get_many(["a", "b"]),
    "query_flows": lambda api: api.query_flows(),
    "count_flows": lambda api: api.count_flows(),
    "set_wait_condition": lambda api: api.set_wait_condition(WaitCondition("new", flow_ids=["x"])),
    "get_wait_condition": lambda api: api.get_wait_condition("pending"),
    "update_wait_condition": update_wait,
    "clear_wait_condition": lambda api: api.clear_wait_condition("pending"),
    "get_timed_out_wait_conditions": lambda api: api.get_timed_out_wait_conditions(),
    "query_wait_conditions": lambda api: api.query_wait_conditions(),
    "complete_child": lambda api: api.complete_child("last", "s-1"),
    "complete_child, early": lambda api: api.complete_child("later", "s-1"),
    "save_for_each_progress": save_progress,
    "clear_for_each_progress": lambda api: api.clear_for_each_progress("a", 1),
    "list_for_each_progress": lambda api: api.list_for_each_progress("a"),
    "claim_due": lambda api: api.claim_due(lease=LEASE, limit=5),
    "claim": lambda api: api.claim("b", lease=LEASE),
    "extend": extend,
    "release": release,
    "commit": commit,
    "transact": transact,
    "sweep": lambda api: api.sweep(),
    "clear": lambda api: api.clear(),
    "ping": lambda api: api.ping(),
    "put_part": lambda api: api.put_part(Part("a", "r", b"r")),
    "put_part, read": put_part,
    "put_part, kept": lambda api: api.put_part(Part("a", "p", b"r"), exists="keep"),
    "put_part, overwritten": lambda api: api.put_part(Part("a", "p", b"r"), exists="overwrite"),
    "put_part, orphaned": lambda api: api.put_part(Part("new", "p", b"r")),
    "get_part": lambda api: api.get_part("a", "p"),
    "get_parts": lambda api: api.get_parts("a", ["p", "x"]),
    "list_parts": lambda api: api.list_parts("a", bodies=True),
    "delete_part": lambda api: api.delete_part("a", "p"),
    "delete_parts": lambda api: api.delete_parts("a", "p"),
    "append": lambda api: api.append("a", "third"),
    "append, keyed": lambda api: api.append("a", "third", key="l"),
    "append, again": lambda api: api.append("a", "third", key="k"),
    "append, first": lambda api: api.append("new", "first", key="k"),
    "read_log": lambda api: api.read_log("a"),
    "trim_log": lambda api: api.trim_log("a", before=2),
    "commit, of parts": commit_parts,
    "commit, of parts alone": keep_and_append,
    "commit, in the place of a flow": replace_with_parts,
}


def everything(api: StoreAPI) -> Any:
    """Return all that can be read, but for what is unique to each write."""
    flows = {
        flow_id: flow
        and (flow.state, flow.status, flow.version, flow.owner, flow.due_at, flow.attempts)
        for flow_id, flow in api.get_many(["a", "b", "new", "gone"]).items()
    }
    waits = {
        wait.correlation_id: (wait.outcome, wait.version, dict(wait.results))
        for wait in api.query_wait_conditions()
    }
    progress = {
        (flow_id, step): (list(progress.processed_indices), progress.version)
        for flow_id in ("a", "new")
        for step, progress in api.list_for_each_progress(flow_id).items()
    }
    return flows, waits, progress, parts_and_logs(api)


def parts_and_logs(api: StoreAPI) -> Any:
    """Likewise of parts and logs, and what the next append would be."""
    parts = {
        (flow_id, part.name): (part.body, part.tag, part.version)
        for flow_id in ("a", "new")
        for part in api.list_parts(flow_id, bodies=True)
    }
    entries = {
        flow_id: [(one.sequence, one.key, one.body, one.version) for one in api.read_log(flow_id)]
        for flow_id in ("a", "new")
    }
    return parts, entries


def start_again(api: StoreAPI, faults: Faults, name: str) -> None:
    """Clear the store and store the same again."""
    faults.reset()
    api.clear()
    prepare(api)
    if name in ("extend", "release"):
        api.__dict__["claimed"] = api.claim("a", lease=LEASE)

    faults.reset()


@at_every_exchange
def test_unreadable_results_are_not_shown_as_none_at_an_exchange(
    api: StoreAPI, faults: Faults, clock: ManualClock
) -> None:
    """A wait is closed by its claim and the store goes away: to look at its results is an error."""
    taken: list[Any] = []
    asked: list[str] = []
    for number in (0, 1, 2):  # the first is alone in setting up what it needs
        api.create(FlowSnapshot(f"p-{number}", state={}, due_at=None))
        wait = WaitCondition(
            f"w-{number}",
            flow_ids=["a", "b"],
            timeout=timedelta(seconds=1),
            parent_flow_id=f"p-{number}",
        )
        api.set_wait_condition(wait)
        api.complete_child(f"w-{number}", "a", result=number)
        clock.advance(timedelta(seconds=1))
        faults.reset()
        if number == 2:
            faults.at_exchange(len(asked), "not sent", FOR_GOOD)

        taken += api.claim_due()
        asked = list(faults.exchanges) if number < 2 else asked
        assert asked[-1] == "Read", "the last is a look at what was closed"
        faults.reset()

    assert [flow.flow_id for flow in taken] == ["p-0", "p-1", "p-2"]
    _, first, second = (flow.wait_condition for flow in taken)
    assert first.results["a"].result == 1
    assert "? of 2" in repr(second)
    for look in (len, list, dict):
        with pytest.raises(StoreUnavailableError, match=r"w-2.*could not be read"):
            look(second.results)

    found = api.get_wait_condition("w-2")
    assert found is not None
    assert found.results["a"].result == 2


@at_every_exchange
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_reported_outcome_is_true_at_every_exchange(
    api: StoreAPI, faults: Faults, name: str
) -> None:
    """Done, not done or uncertain: at each exchange, each fault is reported as what it was."""
    operation = OPERATIONS[name]
    start_again(api, faults, name)
    before = everything(api)
    faults.reset()
    operation(api)
    exchanges = list(faults.exchanges)
    done = everything(api)

    for number, how, times in cases_of(api, name, len(exchanges)):
        start_again(api, faults, name)
        faults.at_exchange(number, how, times)
        outcome = outcome_of(api, faults, lambda: operation(api), for_good=times > 1)
        found = everything(api)
        where = f"{how} {times} times at exchange {number} of {exchanges}: {outcome}"
        in_part = name == "clear" and outcome == "not done" and found != before  # as it documents
        if outcome == "ask again" or in_part:
            operation(api)
            outcome, found = "done", everything(api)

        assert found == (done if outcome == "done" else before), where


def cases_of(api: StoreAPI, name: str, exchanges: int) -> list[tuple[int, ExchangeFault, int]]:
    """Every exchange, every fault, once and for good.

    The quick run takes a few on NATS, whose exchanges are slow, and on SQLite, where the same code as on
    memory decides what a fault means.
    """
    cases = list(product(range(1, exchanges + 1), get_args(ExchangeFault), (1, FOR_GOOD)))
    is_slow = isinstance(api.store, NatsStore | AsyncNatsStore | SQLiteStore | AsyncSQLiteStore)
    return a_few_of(cases, name, 3) if is_slow else cases


def a_few_of(cases: list[T], name: str, some: int) -> list[T]:
    """So many of them in the quick run, and all in longer ones."""
    quick = settings.get_profile("quick").max_examples
    if settings().max_examples > quick:
        return cases

    return Random(name).sample(cases, min(some, len(cases)))


def outcome_of(api: StoreAPI, faults: Faults, call: Callable[[], Any], *, for_good: bool) -> str:
    """Return the reported outcome, after resolving what is uncertain."""
    try:
        call()
    except StoreUnavailableError as error:
        faults.reset()
        return "ask again" if "ask again" in str(error) else "not done"
    except CommitUncertainError as error:
        if for_good:
            with pytest.raises(CommitUncertainError):
                api.resolve_commit(error)  # the transport is still broken

        faults.reset()
        return "not done" if settled(api, error) is None else "done"

    faults.reset()
    return "done"


def settled(api: StoreAPI, error: CommitUncertainError) -> Any:
    """Return what `resolve_commit` returns; a clear on NATS is settled after twice the timeout."""
    return retried(lambda: api.resolve_commit(error), CommitUncertainError)


@at_every_exchange
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_was_lost_once_stays_uncertain(api: StoreAPI, faults: Faults, name: str) -> None:
    """A reply that is lost before the store goes away is not reported as "nothing was written"."""
    operation = OPERATIONS[name]
    start_again(api, faults, name)
    before = everything(api)
    faults.reset()
    operation(api)
    number = len(faults.exchanges)
    done = everything(api)

    start_again(api, faults, name)
    faults.at_exchange(number, "lost after applying", 1)
    faults.at_exchange(number + 1, "not sent", FOR_GOOD)
    outcome = outcome_of(api, faults, lambda: operation(api), for_good=True)
    in_part = (
        name == "clear" and outcome == "not done" and everything(api) != before
    )  # as it documents
    if outcome == "ask again" or in_part:
        operation(api)
        outcome = "done"

    assert everything(api) == (done if outcome == "done" else before), outcome


@pytest.mark.parametrize("name", [*BOTH, *SERVERS])
def test_a_store_that_was_away_at_first_use_can_be_used_later(
    name: str, url_of: Callable[[str], str], clock: ManualClock, faults: Faults
) -> None:
    """A fault while the store is laid out leaves nothing behind that stands in the way."""
    url = url_of(name.split(maxsplit=1)[0])
    with opened(name, url, clock, faults, hurried=True) as api:
        for number in (1, 2):
            for how in get_args(ExchangeFault):
                faults.reset()
                faults.at_exchange(number, how, times=FOR_GOOD)
                with pytest.raises((StoreUnavailableError, CommitUncertainError)):
                    api.create(FlowSnapshot("order-1", state={}))

        faults.reset()
        api.ping()


def shown(result: Any) -> Any:
    """Return what an operation has returned, without what is unique to each write."""
    if isinstance(result, FlowSnapshot):
        return result.flow_id, result.version, result.status, result.due_at, result.attempts

    if isinstance(result, WaitCondition):
        return result.correlation_id, result.version, result.outcome

    if isinstance(result, Receipt):
        known = result.versions, result.completions, result.satisfied
        return *known, result.entries, result.kept

    if isinstance(result, list):
        return list(map(shown, result))

    return result if isinstance(result, (int, Appended, Completion)) else type(result)


LATER = range(6)
"""After how many requests a write arrives; more than any attempt makes after one."""


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", ["redis-8.2", "nats"])
def test_a_write_that_arrives_late_is_reported_as_what_it_did(
    kind: str, name: str, url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """Its reply is lost, and between two requests of the next attempt the server has it after all.

    What the next attempt reads may then be its own work: it must not take that for another's.
    """
    operation, quiet, late = OPERATIONS[name], Faults(), Late()
    url = url_of(kind)

    def between() -> Any:
        store = open_store(url, clock=clock, owner="me")
        wrap_protocol(store, late.attach)
        return store

    with BlockingAPI(lambda: open_store(url, clock=clock)) as direct, BlockingAPI(between) as api:
        start_again(api, quiet, name)
        late.delay(0, 0)
        returned, writes = shown(operation(api)), late.writes
        done = everything(direct)

        for number, after in product(range(1, writes + 1), LATER):
            start_again(api, quiet, name)
            late.delay(after, number)
            where = f"write {number} of {writes}, {after} requests late"
            assert shown(operation(api)) == returned, where
            late.stop()
            assert everything(direct) == done, where


# --- the line itself --------------------------------------------------------------------------------


class Nth:
    """Counts requests, and strikes at one of them."""

    def __init__(self, number: int = 0) -> None:
        """Strike at none, if no number is given."""
        self.seen = 0
        self._number = number

    def __call__(self, _data: bytes) -> bool:
        """Count one, and say whether it is to be struck at."""
        self.seen += 1
        return self.seen == self._number


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", ["redis-8.2", "nats"])
def test_the_reported_outcome_is_true_whatever_the_line_does(
    kind: str, name: str, url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """A connection that breaks at any request: before it, before its reply, or within that.

    The client connects again and continues; here the bytes themselves are lost, and not what a
    conversation learns of them.
    """
    operation, quiet = OPERATIONS[name], Faults()
    url = url_of(kind)
    port = urlsplit(url).port or 0
    with (
        Proxy(port) as proxy,
        BlockingAPI(lambda: open_store(url, clock=clock)) as direct,
        BlockingAPI(
            lambda: open_store(
                url.replace(str(port), str(proxy.port), 1), clock=clock, owner="me", timeout=SOON
            )
        ) as api,
    ):
        counted = Nth()
        start_again(api, quiet, name)
        before = everything(direct)
        proxy.strike("drop the reply", when=counted)
        operation(api)
        done = everything(direct)

        for number, strike in a_few_of(list(product(range(1, counted.seen + 1), LOST)), name, 1):
            proxy.calm()
            start_again(api, quiet, name)
            proxy.strike(strike, when=Nth(number))
            outcome = outcome_of(api, quiet, lambda: operation(api), for_good=False)
            where = f"{strike} at request {number} of {counted.seen}: {outcome}"
            assert everything(direct) == (done if outcome == "done" else before), where


# --- what was given up, and what is remembered ------------------------------------------------------


def a_commit(commit_id: str, clock: ManualClock) -> Commit:
    """Return a commit that creates the flow "late", as it stands before it is sent."""
    now_ms = int(clock().timestamp() * 1000)
    head = Head(1, FlowStatus.CREATED.value, now_ms, now_ms, due_ms=now_ms)
    return Commit(commit_id, now_ms, (Put(flow_key("late"), head, b"{}", None),), None)


@pytest.mark.parametrize("kind", STORES)
def test_what_was_given_up_is_not_applied_when_it_comes_at_last(
    kind: str, url_of: Callable[[str], str], clock: ManualClock, faults: Faults
) -> None:
    """`resolve_commit` answered `None`: a commit that was still on its way is refused by the store."""
    with opened(f"{kind} blocking", url_of(kind), clock, faults, hurried=True) as api:
        commit = a_commit("a" * 31, clock)
        assert api.run(ask(Resolve(commit.id, (flow_key("late"),)))) is None
        with pytest.raises((StoreUnavailableError, CommitUncertainError)):
            api.run(ask(commit))

        assert api.run(ask(Read((flow_key("late"),), commit.now_ms))) == (None,)
        assert api.run(ask(Resolve(commit.id, (flow_key("late"),)))) is None


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis-8.2", "nats"])
def test_a_record_remembers_what_the_log_has_forgotten(
    kind: str, alone: bool, url_of: Callable[[str], str], clock: ManualClock
) -> None:
    """The last eight commits of a record are reported as applied, long after their replies are gone."""
    url = url_of(kind)
    with open_store(url, clock=clock) as store:
        flow, other = (FlowSnapshot(name, state={"n": 0}) for name in ("order-1", "order-2"))
        store.create(flow)
        store.create(other)
        ids = [flow.revision.partition("@")[0]]
        for n in range(7):
            with store.begin() as session:
                for one in (flow,) if alone else (flow, other):
                    session.add(one)
                    one.state["n"] = n + 1

            ids.append(flow.revision.partition("@")[0])

        forget_the_log(store, url)
        for commit_id in ids:
            assert store._run(ask(Resolve(commit_id, (flow.key,)))) is not None


def forget_the_log(store: Any, url: str) -> None:
    """Remove the replies of commits that a store keeps; NATS keeps none of commits of one record."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url.partition("?")[0]) as client:
            prefix = url.partition("prefix=")[2].removesuffix(":")
            gone = list(client.scan_iter(f"{{{prefix}:*commit:*"))
            assert gone
            client.unlink(*gone)
    elif not url.startswith("nats"):
        store._driver.transport(Call(lambda tables: tables.forget_log(1 << 60, 1000), writes=True))


def test_the_memory_store_forgets_its_log() -> None:
    """A process that commits for months keeps the outcomes of twice its timeout."""
    store: Any = open_store("memory://", timeout=timedelta(milliseconds=1))
    number = 0

    def has_forgotten() -> bool:
        nonlocal number
        number += 1
        with store.begin() as session:
            session.add(FlowSnapshot(f"a-{number}", state={}))
            session.add(FlowSnapshot(f"b-{number}", state={}))

        kept: int = store._driver.transport(Call(lambda tables: len(tables._log), writes=False))
        return kept < number

    until(has_forgotten)
