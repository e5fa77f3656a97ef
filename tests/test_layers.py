"""Imports point down only: the table of what may import what, and the test that reads the code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Module -> the modules of the package that it may import, also for type checking only. To add a
# module, add its line; one without a line fails. `testing` stands for all modules under it.
WAIST = {"errors", "keys", "conversation", "records"}
DATA = {"errors", "keys", "indices", "codec", "model"}
PLANS = WAIST | DATA | {"envelope", "plans"}
ASKING = PLANS | {"settings", "checks"}
LOGIC = ASKING | {"unit", "takings", "commits", "claims", "single", "operations"}
HOOKS = {f"_state_hooks.{name}" for name in ("base", "plain", "leaves", "typeforms")} | {
    "_state_hooks.containers",
    "_state_hooks.choices",
    "_state_hooks.records",
    "_state_hooks.classes",
}
NATS = {f"stores.nats.{name}" for name in ("layout", "wire", "tables", "commits", "listings")} | {
    "stores.nats.setup",
    "stores.nats.sweeping",
}
REDIS = {
    f"stores.redis.{name}" for name in ("layout", "scripts", "refusals", "wire", "reads", "words")
} | {f"stores.redis.{name}" for name in ("commits", "index", "listings", "sweeping", "setup")}
STORES = {"stores.memory", "stores.sqlite", "stores.redis", "stores.nats"}
SQLITE = {f"stores.sqlite.{name}" for name in ("rows", "schema", "tables", "wire")}
EMBEDDED = STORES | {"stores.embedded"}
DRIVERS = {f"drivers.{name}" for name in ("local", "redis_blocking", "redis_asyncio")} | {
    "drivers.any_loop",
    "drivers.asyncio_driver",
    "drivers.finishing",
    "drivers.remote",
    "drivers.local",
    "drivers.local_async",
    "drivers.nats_asyncio",
    "drivers.nats_line",
    "drivers.portal",
    "drivers.redis_cluster_asyncio",
    "drivers.redis_lane",
    "drivers.redis_packing",
}
FACES = {"session", "store", "kinds", "aio", "kinds_async", "copying", "urls"}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "keys": {"errors"},
    "indices": {"errors", "keys"},
    # A part of codec, and used by nothing else.
    "_state_hooks.base": set(),
    "_state_hooks.plain": {"_state_hooks.base"},
    "_state_hooks.leaves": {"_state_hooks.base", "_state_hooks.plain"},
    "_state_hooks.typeforms": {"_state_hooks.base"},
    "_state_hooks.containers": {"_state_hooks.base"},
    "_state_hooks.choices": {f"_state_hooks.{name}" for name in ("base", "leaves", "typeforms")},
    "_state_hooks.records": {"_state_hooks.base"},
    "_state_hooks.classes": {f"_state_hooks.{name}" for name in ("base", "records", "typeforms")},
    "_state_hooks.compiler": {"errors"} | HOOKS,
    "_state_hooks": {f"_state_hooks.{name}" for name in ("base", "plain", "typeforms", "compiler")},
    "codec": {"errors", "keys", "indices", "_state_hooks"},
    "schema": set(),
    "evolution": {"errors", "codec"},
    "conversation": {"errors"},
    "records": {"errors", "keys", "conversation"},
    "model": WAIST | {"indices", "codec"},
    "envelope": WAIST | DATA | {"schema", "evolution"},
    "plans": WAIST | DATA | {"envelope"},
    "unit": PLANS,
    "settings": DATA,
    "checks": WAIST | DATA | {"envelope"},
    "commits": ASKING,
    "takings": PLANS,
    "claims": ASKING | {"takings", "commits"},
    "single": ASKING | {"commits", "claims"},
    "operations": ASKING | {"unit", "commits", "claims", "single"},
    "stores": set(),
    "stores.embedded": WAIST,  # the base that the two embedded stores share
    "stores.memory": WAIST | {"stores.embedded"},
    "stores.sqlite": WAIST | {"stores.embedded"} | SQLITE,
    "stores.sqlite.rows": WAIST,
    "stores.sqlite.schema": WAIST,
    "stores.sqlite.tables": WAIST
    | {"stores.embedded", "stores.sqlite.rows", "stores.sqlite.schema"},
    "stores.sqlite.wire": WAIST | {"stores.sqlite.tables"},
    # Parts of redis, and used by nothing else.
    "stores.redis": WAIST | REDIS,
    "stores.redis.layout": WAIST,
    "stores.redis.scripts": WAIST,
    "stores.redis.index": WAIST | {"stores.redis.layout"},
    "stores.redis.refusals": WAIST | {"stores.redis.layout"},
    "stores.redis.wire": WAIST | {"stores.redis.refusals", "stores.redis.scripts"},
    "stores.redis.words": WAIST | {"stores.redis.layout"},
    "stores.redis.setup": WAIST
    | {f"stores.redis.{name}" for name in ("layout", "scripts", "refusals", "wire")},
    "stores.redis.reads": WAIST
    | {f"stores.redis.{name}" for name in ("layout", "scripts", "refusals", "wire", "words")},
    "stores.redis.sweeping": WAIST
    | {"stores.redis.words"}
    | {f"stores.redis.{name}" for name in ("layout", "scripts", "refusals", "wire", "index")},
    "stores.redis.commits": WAIST
    | {f"stores.redis.{name}" for name in ("layout", "scripts", "refusals", "wire", "words")}
    | {"stores.redis.sweeping"},
    "stores.redis.listings": WAIST
    | {f"stores.redis.{name}" for name in ("layout", "scripts", "refusals", "wire", "index")}
    | {"stores.redis.reads", "stores.redis.sweeping"},
    # Parts of nats, and used by nothing else. The rules of the waist are those of the embedded stores.
    "stores.nats.layout": WAIST | {"stores.embedded"},
    "stores.nats.wire": WAIST | {"stores.nats.layout"},
    "stores.nats.tables": WAIST | {"stores.embedded", "stores.nats.layout"},
    "stores.nats.setup": WAIST | {"stores.nats.layout", "stores.nats.wire"},
    "stores.nats.commits": WAIST
    | {"stores.embedded"}
    | {f"stores.nats.{name}" for name in ("layout", "wire", "tables")},
    "stores.nats.listings": WAIST
    | {"stores.embedded"}
    | {f"stores.nats.{name}" for name in ("layout", "wire", "tables", "commits")},
    "stores.nats.sweeping": WAIST
    | {"stores.embedded"}
    | {f"stores.nats.{name}" for name in ("layout", "wire", "tables", "commits", "listings")},
    "stores.nats": WAIST | {"stores.embedded"} | NATS,
    "drivers": set(),
    **{driver: {"errors", "conversation", "records"} for driver in DRIVERS},
    "drivers.local": {"errors", "keys", "conversation", "records"},
    "drivers.local_async": {"conversation", "records", "drivers.finishing", "drivers.local"},
    "drivers.asyncio_driver": WAIST | {"drivers.finishing", "drivers.remote"},
    "drivers.portal": WAIST | {"drivers.asyncio_driver", "drivers.remote"},
    "drivers.any_loop": WAIST
    | {"drivers.asyncio_driver", "drivers.finishing", "drivers.portal", "drivers.remote"},
    "drivers.redis_blocking": {"errors", "conversation", "records", "drivers.redis_packing"},
    "drivers.redis_lane": {"errors", "conversation", "records", "drivers.redis_packing"},
    "drivers.redis_cluster_asyncio": WAIST
    | {"drivers.finishing", "drivers.redis_lane", "drivers.remote"},
    "drivers.redis_asyncio": WAIST
    | {"drivers.finishing", "drivers.remote"}
    | {"drivers.redis_cluster_asyncio", "drivers.redis_lane"},
    "drivers.nats_line": {"conversation"},
    "drivers.nats_asyncio": WAIST | {"drivers.finishing", "drivers.nats_line", "drivers.remote"},
    "session": LOGIC,
    "store": LOGIC | {"session"},
    "kinds": LOGIC | EMBEDDED | DRIVERS | {"store"},
    "aio": LOGIC | {"session", "store"},
    "kinds_async": LOGIC | EMBEDDED | DRIVERS | {"store", "kinds", "aio"},
    "copying": LOGIC | {"store"},
    "urls": LOGIC | STORES | DRIVERS | {"session", "store", "kinds", "aio", "kinds_async"},
    "": LOGIC | STORES | DRIVERS | FACES | {"evolution"},  # __init__.py
    "telemetry": WAIST | {"store", "aio"},
    "testing": LOGIC | STORES | {"stores.embedded"} | DRIVERS | FACES | {""},
    "demo": LOGIC | FACES | {""},
    "cli": LOGIC | STORES | REDIS | NATS | DRIVERS | FACES | {"", "testing", "demo"},
    "__main__": {"cli"},
}

# The modules that may import asyncio; everybody else awaits by anyio, or not at all.
ON_ASYNCIO = {
    "drivers.asyncio_driver",
    "drivers.finishing",
    "drivers.nats_asyncio",
    "drivers.nats_line",
    "drivers.portal",
    "drivers.redis_asyncio",
    "drivers.redis_cluster_asyncio",
    "drivers.redis_lane",
    "drivers.remote",
}

# Packages whose modules share one line.
GROUPS = {"cli", "demo", "testing"}

# Imported when they are used, never by `import catga_store`.
HEAVY = [
    "cattrs",
    "click",
    "msgspec",
    "nats",
    "opentelemetry",
    "redis",
    "rich",
    "sqlite3",
    "trio",
    "typer",
]


def package_directory() -> Path:
    """Answer where the package is that the other tests run against."""
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


def entry_of(module: str) -> str:
    """Answer the line of the table that a module falls under."""
    group = module.partition(".")[0]
    return group if group in GROUPS else module


MODULES = {module_of(file) for file in FILES}


def imports(source: str, package: str) -> Iterator[str]:
    """Answer the absolute dotted name of everything that is imported, at any depth of the code.

    `package` is the full name of the package the file is in, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{name.name}" for name in node.names)


def imports_of(file: Path) -> Iterator[str]:
    """Answer everything that a file of the package imports."""
    package = ".".join(["catga_store", *file.relative_to(PACKAGE).parent.parts])
    return imports(file.read_text(encoding="utf-8"), package)


def modules_imported_by(file: Path) -> set[str]:
    """Answer the modules of the package that a file imports; a name in a module is the module."""
    found = set()

    for name in imports_of(file):
        if name.split(".")[0] == "catga_store":
            inside = name.removeprefix("catga_store").removeprefix(".")

            while inside and inside not in MODULES | ALLOWED.keys():
                inside = inside.rpartition(".")[0]

            found.add(inside)

    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: module_of(file) or "__init__")
def test_imports_point_down(file: Path) -> None:
    """A module imports nothing of the package but what its line in the table names."""
    module = module_of(file)
    entry = entry_of(module)
    assert entry in ALLOWED, f"{module} has no line in the table"

    refused = {entry_of(name) for name in modules_imported_by(file)} - ALLOWED[entry] - {entry}
    assert not refused, f"{module} imports {sorted(refused)}, which its layer may not"


def test_the_table_has_no_circle() -> None:
    """The allowed edges order the modules, so no file can import its own importer."""
    left = {module: {entry_of(name) for name in down} for module, down in ALLOWED.items()}

    while left:
        free = {module for module, down in left.items() if not down & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {module: down for module, down in left.items() if module not in free}


def test_stores_know_neither_each_other_nor_what_is_above_the_waist() -> None:
    """The table lets a store import the waist, the embedded base and its own parts, and no more."""
    for module, down in ALLOWED.items():
        if module.startswith("stores."):
            own = {name for name in down if name.startswith(".".join(module.split(".")[:2]))}
            assert down - own <= WAIST | {"stores.embedded"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: module_of(file) or "__init__")
def test_event_loops_stay_behind_the_drivers(file: Path) -> None:
    """`asyncio` is imported by the drivers that need it only, `trio` nowhere."""
    roots = {name.split(".")[0] for name in imports_of(file)}
    assert "trio" not in roots
    assert "asyncio" not in roots or module_of(file) in ON_ASYNCIO


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import asyncio.events", ["asyncio.events"]),
        ("from . import memory", ["catga_store.stores.memory"]),
        ("from .memory import A", ["catga_store.stores.memory.A"]),
        ("from .. import keys, unit", ["catga_store.keys", "catga_store.unit"]),
        ("from ..keys import Key", ["catga_store.keys.Key"]),
        ("def f():\n    from catga_store import cli", ["catga_store.cli"]),
    ],
)
def test_every_form_of_import_is_read(source: str, found: list[str]) -> None:
    """Relative, nested and plain imports come out as the absolute names they import."""
    assert list(imports(source, "catga_store.stores")) == found


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
