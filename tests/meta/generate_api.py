"""Generate the blocking API, `store.py`, `session.py` and `bulk.py`, from the async one, `aio.py`.

Each class of `aio.py` becomes its blocking twin: `async` and `await` go, names change by `NAMES`, the
examples in docstrings lose their `anyio.run(main)`, and `TEXTS` replaces what is true of one API only.
`python tests/meta/generate_api.py` writes both files; `test_public_api.py` compares them.

An example in `aio.py` is either flat, or has one function `main` without arguments that prints in its
last statement only. Its statements become statements of the blocking example.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "catga_store"

NAMES = {
    "AsyncBulk": "Bulk",
    "AsyncDriver": "Driver",
    "AsyncGenerator": "Generator",
    "AsyncHolding": "Holding",
    "AsyncIterator": "Iterator",
    "AsyncMemoryStore": "MemoryStore",
    "AsyncRunner": "Runner",
    "AsyncSession": "Session",
    "AsyncStore": "Store",
    "BaseAsyncStore": "BaseBlockingStore",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "async_holding": "holding",
    "asynccontextmanager": "contextmanager",
    "base_async_store": "base_store",
    "check_awaitable": "check_blocking",
}

TEXTS = {
    "A durable store for flow state, with an async API.": "A durable store for flow state.",
    """
    A store belongs to the event loop that first uses it. If you cancel a read, it stops at once. If you
    cancel a write that is already in flight, the write completes first: its result is applied to your
    objects, and then the cancellation is raised again.
""": """
    Threads can share a store, and a store can be opened before a fork.
""",
    "so another task may extend the claim": "so another thread may extend the claim",
    "Await `function(session, *args)`": "Call `function(session, *args)`",
    "in an `async with` statement": "in a `with` statement",
    "while an `async with` block runs": "while a `with` block runs",
    """
        If the claim is lost later, the block is cancelled, and `ClaimLostError` is raised at its end, not in
        an exception group.
""": """
        If the claim is lost later, the block continues, because a thread cannot be stopped. The `lost`
        attribute of the object that the `with` statement returns is then true, and `ClaimLostError` is raised
        at the end of the block, unless the block raises another error.
""",
    "Leaving the `async with` block": "Leaving the `with` block",
    """
        If you cancel a commit in flight, it completes first and updates the objects, so that no commit is
        applied without your knowledge: afterwards, `receipt` shows what was written. If the session then
        raises `SessionClosedError`, the outcome is unknown.
""": "",
    """            for summary in page:
                yield summary

""": "            yield from page\n",
    """            for wait in page:
                yield wait

""": "            yield from page\n",
    "Awaitable[R]": "R",
    "Generator[AsyncSession, None]": "Generator[AsyncSession, None, None]",
}

PUBLIC = {
    "store.py": ["Driver", "Settings", "Store", "StoreOptions"],  # for authors of stores, too
    "session.py": ["Session"],
    "bulk.py": ["Bulk"],
}

HEADERS = {
    "store.py": '"""The blocking API: `Store`. Generated from `aio.py` by `tests/meta/generate_api.py`."""',
    "session.py": '"""The blocking API: `Session`. Generated from `aio.py` by `tests/meta/generate_api.py`."""',
    "bulk.py": '"""The blocking API: `Bulk`. Generated from `aio.py` by `tests/meta/generate_api.py`."""',
}


def generated() -> dict[str, str]:
    """Return the text of each generated file, before formatting."""
    source = (PACKAGE / "aio.py").read_text(encoding="utf-8")
    for old in TEXTS:
        assert old in source, f"no longer in aio.py: {old!r}"

    text = source
    for old, new in TEXTS.items():
        text = text.replace(old, new)

    text = flat_examples(text)
    text = re.sub(r"\basync (?=def |with |for )", "", text)
    text = re.sub(r"\bawait ", "", text)
    text = re.sub(r"\w+", lambda name: NAMES.get(name[0], name[0]), text)

    head, rest = text.split("\nclass Store(", 1)
    store, rest = rest.split("\nclass Session(", 1)
    session, rest = rest.split("\nclass Bulk", 1)
    bulk, _ = rest.split("\nfor _public in ", 1)
    return {
        "store.py": module("store.py", head, "class Store(" + store),
        "session.py": module("session.py", head, "class Session(" + session),
        "bulk.py": module("bulk.py", head, "class Bulk" + bulk),
    }


def flat_examples(text: str) -> str:
    """Turn the examples that run a function `main` into the statements of that function."""
    lines: list[str] = []
    inside = False

    for line in text.splitlines():
        margin, mark, code = re.fullmatch(r"(\s*)(>>> |\.\.\. |)(.*)", line).groups()  # type: ignore[union-attr]
        if mark == ">>> ":
            inside = code == "async def main():"
            if inside or code in ("import anyio", "anyio.run(main)"):
                continue
        elif inside and mark:
            code = code.removeprefix("    ")
            is_first = not code.startswith((" ", "except ", "else:", "finally:"))
            lines.append(f"{margin}{'>>> ' if is_first else '... '}{code}")
            continue

        lines.append(line)

    return "\n".join(lines) + "\n"


def module(name: str, head: str, body: str) -> str:
    """One module: its header, the imports and type variables that its class uses, and the class."""
    kind = re.split(r"\W", body.removeprefix("class "), maxsplit=1)[0]
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    used |= {"annotations", *PUBLIC[name], *(["TypeVarTuple"] if "Ts" in used else [])}
    used |= {"TypeVar"} if used & {"S", "R"} else set()
    if kind == "Store":
        head = head.replace(
            "from catga_store.model.waits import WaitCondition\n",
            "from catga_store.model.waits import WaitCondition\n"
            "from catga_store.bulk import Bulk\n"
            "from catga_store.session import Session\n",
        )

    imports: list[str] = []
    variables: list[str] = []
    for line in head.splitlines():
        imported = re.fullmatch(r"from \S+ import (\w+)", line)
        variable = re.fullmatch(r"(\w+) = TypeVar.*", line)
        if imported and imported[1] in used:
            imports.append(line)
        elif variable and variable[1] in used:
            variables.append(line)
        elif not line:
            imports.append(line)

    # An operation is called through its module, as in `records.update(...)`.
    parts = [
        HEADERS[name],
        "\n".join(imports),
        f"__all__ = {PUBLIC[name]!r}",
        "\n".join(variables),
        body.rstrip(),
        f'{kind}.__module__ = "catga_store"',
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the files, sorted and formatted by ruff."""
    for name, text in generated().items():
        (PACKAGE / name).write_text(text, encoding="utf-8")

    files = [str(PACKAGE / name) for name in HEADERS]
    subprocess.run(["ruff", "check", "--select=I", "--fix", "-q", *files], check=True)
    subprocess.run(["ruff", "format", "-q", *files], check=True)


if __name__ == "__main__":
    main()
