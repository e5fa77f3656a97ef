"""The documentation: what it shows is executed, and what it names is there.

On a page, examples at a `>>>` prompt run as one doctest. A Python block with a caption is a file of
that name, and a block of console lines is typed in the directory of these files: after each `$`
command must come the output that follows it on the page. `...` stands for anything.
"""

from __future__ import annotations

import doctest
import os
import re
import runpy
import shlex
import subprocess
import sys
import uuid
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from forks import run_program
from typer.main import get_command

import catga_store as cs
from catga_store.cli.app import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FILE = re.compile(
    r"^```\{code-block\} python\n:caption: (\S+)\n\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Where the package is installed, pytest finds its plugin by itself; elsewhere it is named.
IS_INSTALLED = bool(entry_points(group="pytest11", name="catga_store"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@define
class Command:
    """What is typed, and what must come out of it."""

    line: str
    output: str


def name_of(page: Path) -> str:
    """Name a page in the test's id."""
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


def commands(text: str) -> list[Command]:
    """The commands of a page, in order."""
    found: list[Command] = []

    for block in CONSOLE.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            found.append(Command(line, output))

    return found


def run(line: str, directory: Path) -> str:
    """Type a command: variables first, then a program of this Python's."""
    words = shlex.split(line)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"}
    # A page is about its own plugins: pytest-asyncio, where it is installed, warns in every run.
    options = "-p no:asyncio" if "pytest-asyncio" not in line else ""
    environment["PYTEST_ADDOPTS"] = options + (
        "" if IS_INSTALLED else " -p catga_store.testing.plugin"
    )

    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value

    if words[0] == "catga-store" or (words[0] == "python" and words[1].endswith(".py")):
        return run_program(words, directory, environment)

    done = subprocess.run(
        words,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_examples_run(page: Path) -> None:
    """Every example at a prompt prints what the page says."""
    failed, _ = doctest.testfile(
        str(page), module_relative=False, optionflags=FLAGS, encoding="utf-8"
    )
    assert failed == 0


@pytest.mark.parametrize(
    "page", [page for page in PAGES if CONSOLE.search(page.read_text("utf-8"))], ids=name_of
)
def test_its_commands_print_what_it_shows(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Typed in their order, next to the page's files, its commands print what stands below them.

    A server that the page has at localhost is one of the tests'.
    """
    text = page.read_text("utf-8")
    for name, source in FILE.findall(text):
        (tmp_path / name).write_text(source, "utf-8")

    typed = commands(text)
    assert typed
    places: dict[str, str] = {}
    name = uuid.uuid4().hex
    if any("redis://localhost" in command.line for command in typed):
        server = request.getfixturevalue("redis_server")("8.2")
        places["redis://localhost"] = f"{server.url}?prefix={name}:"

    if any("nats://localhost" in command.line for command in typed):
        places["nats://localhost"] = f"{request.getfixturevalue('nats_server').url}?bucket={name}"

    for command in typed:
        line = command.line
        for shown, place in places.items():
            line = line.replace(shown, place)

        got = run(line, tmp_path)
        for shown, place in places.items():
            got = got.replace(place, shown)

        right = doctest.OutputChecker().check_output(command.output, got, FLAGS)
        assert right, f"$ {command.line}\nexpected:\n{command.output}\ngot:\n{got}"


def slug(heading: str) -> str:
    """The anchor of a heading, as it is made where the pages are shown."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"],
    ids=name_of,
)
def test_the_files_it_names_are_there(page: Path) -> None:
    """A guarantee is shown by a test that exists; a link leads to a page, a heading, a picture."""
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:tests|catga_store|benchmarks)/[^`:]+?\.(?:py|lua|md))`", text):
        assert ROOT.joinpath(path).is_file(), path

    for path, anchor in re.findall(r"\]\(([^):#]*)(#[^)]*)?\)", text):
        target = page.parent / path if path else page
        assert target.is_file(), path
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor[1:] in {slug(head) for head in heads}, anchor


def test_the_page_of_commands_has_them_all() -> None:
    """Every command is described, with every option that its `--help` has."""
    text = runpy.run_path(str(DOCS / "conf.py"))["describe_commands"]()
    group: Any = get_command(app)
    for name, command in group.commands.items():
        part = text.partition(f"## catga-store {name}\n")[2].partition("\n## ")[0]
        assert command.help.partition("\n")[0] in part
        assert all(option in part for one in command.params for option in one.opts if "-" in option)


def test_every_error_is_in_its_tree() -> None:
    """The tree of errors has a line for each error of the package, and for nothing else."""
    text = (DOCS / "how-to" / "errors.md").read_text("utf-8")
    tree = set(re.findall(r"^[ │├└─]*(\w+Error)\b", text, re.MULTILINE))
    assert tree == {name for name in cs.__all__ if name.endswith("Error")}


def test_every_public_name_is_in_the_reference() -> None:
    """The pages of the reference show each name of the package."""
    text = "".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^\.\. auto\w+:: catga_store\.(\w+)$", text, re.MULTILINE))
    assert ".. automodule:: catga_store.errors" in text
    assert shown >= {name for name in cs.__all__ if not name.endswith("Error")}


def test_a_wrong_example_is_noticed(tmp_path: Path) -> None:
    """The checker of commands can fail."""
    assert run("python -c 'print(1)'", tmp_path) == "1\n"
    assert not doctest.OutputChecker().check_output("2\n", "1\n", FLAGS)
