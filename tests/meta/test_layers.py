"""Imports point down only: which folder of the package may import which, and the test that reads the code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

# A layer is a folder of the package, or a module of its root. Layer -> the layers that it may import,
# also for type checking only. Every layer may import itself.
GROUND = {"errors", "protocol"}
LOGIC = GROUND | {"codec", "model", "core"}
API = LOGIC | {"bulk", "session", "store", "aio", "opening", "copying", "rewrapping"}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "protocol": {"errors"},
    "codec": GROUND,
    "model": GROUND | {"codec"},
    "core": GROUND | {"codec", "model"},
    "stores": GROUND,
    "drivers": GROUND | {"stores"},
    "bulk": LOGIC,
    "session": LOGIC,
    "store": LOGIC | {"bulk", "session"},
    "aio": LOGIC | {"session", "store"},
    "opening": LOGIC | {"stores", "drivers", "session", "store", "aio"},
    "copying": LOGIC | {"store"},
    "rewrapping": LOGIC | {"store"},
    "telemetry": LOGIC | {"store", "aio"},
    "worker": LOGIC | {"session", "store", "aio"},
    "": API | {"worker"},  # __init__.py
    "langgraph": LOGIC | {""},
    "console": API | {"stores"},
    "testing": API | {"", "stores", "drivers"},
    "demo": {""},
    "cli": API | {"", "console", "worker", "stores", "drivers", "testing", "demo"},
    "__main__": {"cli"},
}

ON_ASYNCIO = "drivers"
"""The layer whose modules may import asyncio; all others await by anyio, or not at all."""

# Client library -> the folders that may import it. Type checking needs no client at run time, so it is
# left out.
CLIENTS = {"redis": ("drivers", "stores.redis"), "nats": ("drivers", "opening")}

# Imported when they are used, never by `import catga_store`.
HEAVY = [
    "anyio",
    "cattrs",
    "click",
    "cryptography",
    "cronsim",
    "jinja2",
    "msgspec",
    "nats",
    "opentelemetry",
    "prometheus_client",
    "pyroaring",
    "redis",
    "rich",
    "sqlite3",
    "starlette",
    "trio",
    "typer",
    "uvicorn",
    "zstandard",
]


def package_directory() -> Path:
    """Return where the package is that the other tests run against."""
    spec = find_spec("catga_store")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


PACKAGE = package_directory()
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """Name a file's module inside the package: `stores.memory`; the package itself is empty."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """Return the layer that a module is in."""
    return module.partition(".")[0]


MODULES = {module_of(file) for file in FILES}


@cache
def tree_of(file: Path) -> ast.Module:
    """Read a file of the package; several tests look at each."""
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    """Return the absolute dotted name of everything that is imported, at any depth of the code.

    `package` is the full name of the package the file is in, for relative imports.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{name.name}" for name in node.names)


@cache
def imports_of(file: Path) -> list[str]:
    """Return everything that a file of the package imports."""
    package = ".".join(["catga_store", *file.relative_to(PACKAGE).parent.parts])
    return list(imports(ast.walk(tree_of(file)), package))


def modules_imported_by(file: Path) -> set[str]:
    """Return the modules of the package that a file imports; a name in a module is the module."""
    found = set()

    for name in imports_of(file):
        if name.split(".")[0] == "catga_store":
            inside = name.removeprefix("catga_store").removeprefix(".")

            while inside and inside not in MODULES:
                inside = inside.rpartition(".")[0]

            found.add(inside)

    return found


def test_imports_point_down() -> None:
    """A module imports nothing of the package but what its layer may."""
    refused = [
        f"{module_of(file)} imports {name}"
        for file in FILES
        for name in sorted(modules_imported_by(file))
        if layer_of(name) not in ALLOWED[layer_of(module_of(file))] | {layer_of(module_of(file))}
    ]
    assert refused == []


def test_every_layer_has_a_line() -> None:
    """A new folder, or a new module of the root, says what it may import."""
    assert {layer_of(module) for module in MODULES} == ALLOWED.keys()


def test_the_layers_are_in_order() -> None:
    """The allowed edges have no circle, so no layer can import its own importer."""
    left = dict(ALLOWED)

    while left:
        free = {layer for layer, down in left.items() if not down & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {layer: down for layer, down in left.items() if layer not in free}


def test_a_store_imports_no_other_store() -> None:
    """What stores share is in `protocol`, and what their doctors share in `stores/findings`."""
    refused = [
        f"{module_of(file)} imports {name}"
        for file in FILES
        for name in modules_imported_by(file)
        if layer_of(module_of(file)) == layer_of(name) == "stores"
        and store_of(name) not in {store_of(module_of(file)), "embedded", "findings"}
    ]
    assert refused == []


def store_of(module: str) -> str:
    """Return which store a module of `stores` belongs to."""
    return module.split(".")[1]


def test_event_loops_stay_behind_the_drivers() -> None:
    """`asyncio` is imported by drivers only, `trio` nowhere."""
    for file in FILES:
        roots = {name.split(".")[0] for name in imports_of(file)}
        assert "trio" not in roots, file
        assert "asyncio" not in roots or layer_of(module_of(file)) == ON_ASYNCIO, file


def test_no_module_draws_from_the_generator_of_the_program() -> None:
    """Of `random` only generators of one's own are used: see `protocol/chance`."""
    uses = [
        f"{module_of(file)}:{node.lineno} random.{node.attr}"
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr not in {"Random", "SystemRandom"}
    ]
    assert uses == []


@cache
def imported_at_run_time(file: Path) -> set[str]:
    """Return the roots of what a file imports outside of `if TYPE_CHECKING:`."""
    nodes = list(ast.walk(tree_of(file)))
    checks = [
        node for node in nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in names_in(node)
    ]
    unseen = {inside for node in checks for line in node.body for inside in ast.walk(line)}
    seen = [node for node in nodes if node not in unseen]
    return {name.split(".")[0] for name in imports(seen, "catga_store.some.package")}


def names_in(node: ast.If) -> set[str]:
    """Return the names that a condition reads."""
    return {one.id for one in ast.walk(node.test) if isinstance(one, ast.Name)}


@pytest.mark.parametrize("client", CLIENTS)
def test_client_libraries_stay_behind_the_drivers(client: str) -> None:
    """Only the folders in `CLIENTS` import redis and nats."""
    importers = {module_of(file) for file in FILES if client in imported_at_run_time(file)}
    assert importers, "nothing was found, so nothing was checked"
    assert [name for name in importers if not name.startswith(CLIENTS[client])] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import asyncio.events", ["asyncio.events"]),
        ("from . import memory", ["catga_store.stores.memory"]),
        ("from .memory import A", ["catga_store.stores.memory.A"]),
        (
            "from .. import cli, demo",
            ["catga_store.cli", "catga_store.demo"],
        ),
        ("from ..errors import UsageError", ["catga_store.errors.UsageError"]),
        ("def f():\n    from catga_store import cli", ["catga_store.cli"]),
    ],
)
def test_every_form_of_import_is_read(source: str, found: list[str]) -> None:
    """Relative, nested and plain imports come out as the absolute names they import."""
    assert list(imports(ast.walk(ast.parse(source)), "catga_store.stores")) == found


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import catga_store` leaves databases, codecs, event loops and CLI libraries alone."""
    code = f"""
import json, sys, time
before = set(sys.modules)  # what coverage, say, has brought along
start = time.perf_counter()
import catga_store
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules.keys() - before]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    seconds, imported = json.loads(done.stdout)
    print(f"import catga_store took {seconds * 1000:.0f} ms")  # noqa: T201  for who runs it with -s
    assert imported == []


MODELLED = {"testing", "demo"}
"""Layers whose classes may have the names of what they model: an oracle's commit, an example's order."""


def test_no_two_classes_share_a_name() -> None:
    """A name that is found by grep is found once."""
    names = [
        node.name
        for file in FILES
        if layer_of(module_of(file)) not in MODELLED
        for node in tree_of(file).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []
