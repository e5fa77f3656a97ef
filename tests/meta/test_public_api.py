"""The public names: which there are, what they say of themselves, and that both APIs are one."""

from __future__ import annotations

import ast
import doctest
import enum
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

APIS = [(cs.Store, cs.AsyncStore), (cs.Session, cs.AsyncSession), (cs.Bulk, cs.AsyncBulk)]
PLAIN = {
    cs.Bulk: set(),
    cs.Store: {"session", "begin", "bulk", "holding", "now", "iter_flows", "iter_wait_conditions"},
    cs.Session: {
        "add",
        "delete",
        "delete_by_id",
        "suspend",
        "save_for_each_progress",
        "clear_for_each_progress",
        "complete_child",
        "check",
        "require_unchanged",
        "guard",
        "add_part",
        "delete_part",
        "append",
        "expunge",
        "rollback",
        "close",
    },
}
RENAMED = {"__enter__": "__aenter__", "__exit__": "__aexit__"}

# The operations of the contract, by the table that lists them.
OPERATIONS = {
    cs.Store: {
        "create",
        "get",
        "get_one",
        "get_or_create",
        "update",
        "delete",
        "delete_many",
        "set_wait_condition",
        "get_wait_condition",
        "update_wait_condition",
        "clear_wait_condition",
        "get_timed_out_wait_conditions",
        "query_wait_conditions",
        "iter_wait_conditions",
        "complete_child",
        "save_for_each_progress",
        "get_for_each_progress",
        "clear_for_each_progress",
        "list_for_each_progress",
        "put_part",
        "get_part",
        "get_parts",
        "list_parts",
        "delete_part",
        "delete_parts",
        "append",
        "read_log",
        "trim_log",
        "claim_due",
        "claim",
        "wait_due",
        "watch",
        "watch_log",
        "extend",
        "holding",
        "release",
        "get_many",
        "query_flows",
        "iter_flows",
        "count_flows",
        "query_due",
        "count_due",
        "stats",
        "list_versions",
        "fork",
        "bulk",
        "diagnose",
        "diagnose_all",
        "cancel_flow",
        "retry_flow",
        "wake_flow",
        "release_flow",
        "sweep",
        "resolve_commit",
        "now",
        "clear",
        "ping",
        "close",
        "session",
        "begin",
        "transact",
    },
    cs.Bulk: {"cancel", "retry", "wake", "release", "tag", "purge"},
    cs.Session: {
        "get",
        "get_one",
        "get_many",
        "get_wait_condition",
        "get_for_each_progress",
        "get_part",
        "get_parts",
        "add_part",
        "delete_part",
        "append",
        "add",
        "delete",
        "delete_by_id",
        "suspend",
        "save_for_each_progress",
        "clear_for_each_progress",
        "complete_child",
        "check",
        "require_unchanged",
        "guard",
        "new",
        "dirty",
        "deleted",
        "refresh",
        "claim",
        "claim_due",
        "expunge",
        "rollback",
        "commit",
        "close",
        "receipt",
    },
}


def load_generator() -> Any:
    """Load the script by its path: these tests are no package."""
    path = Path(__file__).with_name("generate_api.py")
    spec = importlib.util.spec_from_file_location("generate_api", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate_api = load_generator()


def parsed(source: str) -> tuple[str, list[str]]:
    """Return what a module does, and its imports in any order."""
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    tree.body = [node for node in tree.body if not isinstance(node, ast.ImportFrom)]
    return ast.dump(tree), sorted(map(ast.dump, imports))


def members(kind: type) -> dict[str, Any]:
    """Return the public members of a class, inherited ones too."""
    return {
        name: inspect.getattr_static(kind, name)
        for name in dir(kind)
        if not name.startswith("_") or name in (*RENAMED, *RENAMED.values())
    }


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Return name, kind and default of each parameter."""
    return [
        (one.name, one.kind, one.default)
        for one in inspect.signature(inspect.unwrap(function)).parameters.values()
    ]


def public() -> Iterator[tuple[str, Any]]:
    """Return every class and function that the package exports, by its name."""
    return ((name, getattr(cs, name)) for name in cs.__all__ if not name.isupper())


def documented() -> Iterator[tuple[str, Any]]:
    """Return everything public by its dotted name."""
    for name in cs.__all__:
        thing = getattr(cs, name)
        yield name, thing
        if inspect.isclass(thing) and not issubclass(thing, BaseException | enum.Enum | tuple):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (
                    inspect.isfunction(value) or isinstance(value, property | classmethod)
                ):
                    yield f"{name}.{member}", value


# --- names --------------------------------------------------------------------------------------


def test_all_is_sorted_and_whole() -> None:
    """`__all__` is sorted, names each thing once, and misses nothing public."""
    assert cs.__all__ == sorted(set(cs.__all__), key=lambda name: (not name.isupper(), name))
    public = {
        name
        for name, value in vars(cs).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public - {"annotations", "TYPE_CHECKING"} <= set(cs.__all__)
    assert all(hasattr(cs, name) for name in cs.__all__)
    assert len(cs.__all__) <= 90


def test_public_names_show_the_package() -> None:
    """A traceback, a pickle and `help` say `catga_store`, not where the code lies."""
    shown = {name: (kind.__module__, kind.__qualname__) for name, kind in public()}
    assert shown == {name: ("catga_store", name) for name, _ in public()}


def test_docstrings_of_the_public_api() -> None:
    """Classes, functions, methods and properties say what they do, in a sentence that ends."""
    first = {name: (inspect.getdoc(thing) or "").split("\n\n")[0] for name, thing in documented()}
    wrong = {name: text for name, text in first.items() if not text.strip().endswith((*".…|`",))}
    assert wrong == {}


def test_the_errors_are_public() -> None:
    """Every error of the library can be caught by a public name."""
    for name in dir(cs.errors):  # type: ignore[attr-defined]
        if name.endswith("Error"):
            assert name in cs.__all__


@pytest.mark.parametrize("kind", OPERATIONS)
def test_the_contracts_operations_are_there(kind: type) -> None:
    """Every operation that the contract lists exists, and none beside them."""
    found = {name for name in members(kind) if not name.startswith("_")}
    assert found == OPERATIONS[kind]


# --- both APIs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocking", "awaiting"), APIS)
def test_both_faces_have_the_same_methods(blocking: type, awaiting: type) -> None:
    """Nothing is on one API only; `with` is `async with`."""
    renamed = {RENAMED.get(name, name) for name in members(blocking)}
    assert renamed == set(members(awaiting))


@pytest.mark.parametrize(("blocking", "awaiting"), APIS)
def test_both_faces_take_the_same_parameters(blocking: type, awaiting: type) -> None:
    """Names, kinds and defaults agree, parameter by parameter."""
    for name, member in members(blocking).items():
        twin = members(awaiting)[RENAMED.get(name, name)]
        if isinstance(member, property):
            assert isinstance(twin, property)
        else:
            assert parameters(member) == parameters(twin), name


@pytest.mark.parametrize(("blocking", "awaiting"), APIS)
def test_what_may_do_io_is_awaited_and_nothing_else(blocking: type, awaiting: type) -> None:
    """Each async method is a coroutine, but for the plain ones that the contract names."""
    for name, member in members(awaiting).items():
        if isinstance(member, property) or name.startswith("_"):
            continue

        function = inspect.unwrap(member)
        assert inspect.iscoroutinefunction(function) == (name not in PLAIN[blocking]), name
        if name.startswith("iter_"):
            assert inspect.isasyncgenfunction(function)


@pytest.mark.parametrize("name", sorted(generate_api.HEADERS))
def test_generated_api_is_up_to_date(name: str) -> None:
    """The blocking API is what the script makes of the async one; formatting does not count."""
    written = (generate_api.PACKAGE / name).read_text(encoding="utf-8")
    assert parsed(generate_api.generated()[name]) == parsed(written)


WORKERS = (cs.Worker, cs.AsyncWorker, cs.Retry)


@pytest.mark.parametrize("kind", [*WORKERS, *(kind for pair in APIS for kind in pair)])
def test_docstring_examples_run(kind: type) -> None:
    """Also those of classes that pytest does not collect, because the package imports them late."""
    found = doctest.DocTestFinder(exclude_empty=True).find(kind, kind.__name__, module=False)  # type: ignore[arg-type]
    examples = [one for one in found if one.examples]
    assert examples
    for example in examples:
        assert doctest.DocTestRunner().run(example).failed == 0, example.name


@pytest.mark.parametrize(("blocking", "awaiting"), APIS)
def test_both_apis_have_full_docstrings(blocking: type, awaiting: type) -> None:
    """No docstring sends the reader to the other API."""
    for kind in (blocking, awaiting):
        for name, member in members(kind).items():
            text = inspect.getdoc(member) or ""
            assert not text.startswith("See "), name


@pytest.mark.parametrize(
    ("blocking", "awaiting", "awaited"),
    [
        (cs.Worker, cs.AsyncWorker, {"run", "run_until_idle"}),
        (cs.Run, cs.AsyncRun, {"once"}),
    ],
)
def test_workers_and_runs_have_twins(blocking: type, awaiting: type, awaited: set[str]) -> None:
    """The same methods with the same parameters; what may do I/O is awaited."""
    assert set(members(blocking)) == set(members(awaiting))
    for name, member in members(blocking).items():
        twin = members(awaiting)[name]
        if inspect.isfunction(member):
            assert parameters(member) == parameters(twin), name
            assert inspect.iscoroutinefunction(twin) == (name in awaited), name


@pytest.mark.parametrize(
    ("blocking", "awaiting"),
    [
        (cs.MemoryStore, cs.AsyncMemoryStore),
        (cs.SQLiteStore, cs.AsyncSQLiteStore),
        (cs.RedisStore, cs.AsyncRedisStore),
    ],
)
def test_each_store_has_a_twin(blocking: Any, awaiting: Any) -> None:
    """Both are opened with the same arguments."""
    assert parameters(blocking.__init__) == parameters(awaiting.__init__)
    assert issubclass(blocking, cs.Store)
    assert issubclass(awaiting, cs.AsyncStore)


def test_options_are_keyword_only() -> None:
    """Beyond what an operation is about, arguments have to be named."""
    allowed = {
        ("get_timed_out_wait_conditions", "now"),
        ("get_timed_out_wait_conditions", "limit"),
        ("sweep", "limit"),
        ("tag", "tags"),
        ("extend", "lease"),
        ("list_parts", "prefix"),
        ("read_log", "log"),
        ("watch_log", "log"),
        ("trim_log", "log"),
    }
    for kind in OPERATIONS:
        for name, member in members(kind).items():
            if isinstance(member, property) or name.startswith("_"):
                continue

            for parameter, how, default in parameters(member):
                if default is not inspect.Parameter.empty and parameter not in (
                    "state_type",
                    "body_type",
                ):
                    assert how is inspect.Parameter.KEYWORD_ONLY or (name, parameter) in allowed


# --- records ------------------------------------------------------------------------------------


def test_records_take_their_id_first() -> None:
    """The id is the only positional argument of a flow and of a condition."""
    for kind in (cs.FlowSnapshot, cs.WaitCondition):
        first, *others = inspect.signature(kind).parameters.values()
        assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert first.name in ("flow_id", "correlation_id")
        assert {one.kind for one in others} == {inspect.Parameter.KEYWORD_ONLY}


def test_small_records_are_frozen() -> None:
    """Positions, summaries, results, completions, pages, receipts and retention cannot be changed."""
    frozen: list[Any] = [
        cs.FlowPosition(),
        cs.ChildResult(success=True),
        cs.Completion(accepted=True, duplicate=False, now_satisfied=False, outcome=None),
        cs.Page((), None),
        cs.Receipt(),
        cs.Retention(),
    ]
    for one in frozen:
        name = attrs.fields(type(one))[0].name
        with pytest.raises(AttributeError):
            setattr(one, name, None)


def test_records_show_themselves(store: cs.Store, clock: ManualClock) -> None:
    """`repr` has id, version and where it is; of a claimed flow the owner too."""
    store.create(cs.FlowSnapshot("f", state={"secret": 1}))
    flow = store.claim("f", owner="w-1")
    assert (
        repr(flow) == "<FlowSnapshot 'f' v2 CREATED at 0 claimed by 'w-1'>"
        or repr(flow) == "<FlowSnapshot 'f' v2 CREATED at 0 claimed by w-1>"
    )
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    store.complete_child("w", "a")
    assert repr(store.get_wait_condition("w")) == "<WaitCondition 'w' v1 WHEN_ALL PENDING: 1 of 2>"
    progress = cs.ForEachProgress([1, 2], [3])
    assert repr(progress) == "<ForEachProgress v0: 2 processed, 1 failed>"


def test_keys_are_plain_tuples() -> None:
    """A key sorts, prints and compares as kind, id and step."""
    key = cs.FlowSnapshot("f", state={}).key
    assert key == ("flow", "f", 0, "")
    assert str(key) == "flow 'f'"
    assert cs.WaitCondition("w", flow_ids=["a"]).key == cs.Key("wait", "w")
