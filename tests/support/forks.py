"""Processes for tests, forked from one that has imported what they need.

A new interpreter takes half a second of a core to import the library, its clients and the command
line, and the tests want hundreds. So each test process has one more, which runs this file: it reads
a request a line, forks what is wanted, and replies with the exit codes. What it forks is a process of
its own, with its own environment and its own stdout and stderr, and ends as every interpreter does.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

Done = subprocess.CompletedProcess[str]

IMPORTED = ("catga_store.cli.app", "sqlite3", "redis.asyncio", "nats", "anyio._backends._asyncio")
COMMAND_SECONDS, LONG = 120, 300
"""Seconds that only a test that fails would wait: for a command, for processes that work together."""

UNMEASURED = {name: value for name, value in os.environ.items() if "COV" not in name}
"""What measures coverage writes a file at the end of each process, which takes a second."""


# --- the tests' side ------------------------------------------------------------------------------


def run_command(*arguments: str, url: str | None = None, **environment: str) -> Done:
    """Run `catga-store` to its end, the store's URL in its environment, nothing on its stdin."""
    changed = {"CATGA_STORE_URL": url, **environment}
    named = {name: value for name, value in (os.environ | changed).items() if value is not None}
    (done,) = _forked([{"command": arguments}], named, COMMAND_SECONDS)
    return done


def run_program(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run `catga-store …` or `python FILE …` in a folder to its end; return all that it has printed."""
    (done,) = _forked([{"program": words}], environment, COMMAND_SECONDS, folder)
    return done.stdout


def together(work: Callable[..., Any], *each: Sequence[object]) -> list[Any]:
    """Call a test module's function in one process for each list of arguments; return what each returned.

    No call begins before all are there. Arguments and results cross as JSON.
    """
    code = work.__code__
    place = {"module": code.co_filename, "function": code.co_name}
    done = _forked([{**place, "arguments": arguments} for arguments in each], os.environ, LONG)
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * len(each)
    return [json.loads(one.stdout) for one in done]


def _forked(
    jobs: list[dict[str, Any]], environment: Any, seconds: float, folder: Path | None = None
) -> list[Done]:
    with tempfile.TemporaryDirectory() as kept:
        # Both streams of a program are one file, so that its lines are in their order.
        places = [
            [f"{kept}/{number}.{name}" for name in ("out", "out" if "program" in job else "err")]
            for number, job in enumerate(jobs)
        ]
        wanted = [{**job, "streams": streams} for job, streams in zip(jobs, places, strict=True)]
        where = str(folder or Path.cwd())
        request = {"environment": dict(environment), "folder": where, "jobs": wanted}
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], seconds)[0]:
            _end(server)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(str(jobs), seconds)

        codes = json.loads(server.stdout.readline())
        said = [[Path(file).read_text(encoding="utf-8") for file in files] for files in places]
        return [Done(job, code, *texts) for job, code, texts in zip(jobs, codes, said, strict=True)]


@cache
def _server() -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    """Kill it, and whatever it has forked."""
    with server, suppress(ProcessLookupError):  # it was stuck, and is dead already
        os.killpg(server.pid, signal.SIGKILL)


# --- the program ----------------------------------------------------------------------------------


def serve() -> dict[str, Any] | None:
    """Fork on request until the requests end; in a forked child, return its job."""
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        for line in requests:
            request = json.loads(line)
            for file in {job["module"] for job in request["jobs"] if "module" in job}:
                module_of(file)

            gc.freeze()  # else each of them copies what it looks for garbage in: 0.2 s
            gate, all_are_there = os.pipe()
            children: list[int] = []
            for job in request["jobs"]:
                pid = os.fork()
                if pid == 0:
                    os.close(all_are_there)
                    become(request, job)
                    os.read(gate, 1)  # ends when all writers have closed it
                    return job

                children.append(pid)

            os.close(all_are_there)
            os.close(gate)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            answers.write(json.dumps(codes).encode() + b"\n")
            answers.flush()

    return None


@cache
def module_of(file: str) -> ModuleType:
    """Import a test module by its path: tests are not a package."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # attrs and typing look modules up by name
    spec.loader.exec_module(module)
    return module


def become(request: dict[str, Any], job: dict[str, Any]) -> None:
    """Take on the environment, the folder and the streams of a job."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(job["streams"], 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


def work_off(job: dict[str, Any]) -> None:
    """Do what a forked process is there for."""
    if "program" in job and job["program"][0] == "python":
        sys.argv = job["program"][1:]
        sys.path[0] = ""  # the folder of the file
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif "module" not in job:
        sys.argv = job.get("program") or ["catga-store", *job["command"]]
        runpy.run_module("catga_store", run_name="__main__", alter_sys=True)
    else:
        function = getattr(module_of(job["module"]), job["function"])
        print(json.dumps(function(*job["arguments"])))  # noqa: T201  the test reads it


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)

    mine = serve()
    if mine is not None:
        work_off(mine)
