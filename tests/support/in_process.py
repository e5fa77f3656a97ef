"""Commands of `catga-store` that run in the process of the test, which is fast, and sees stores in memory."""

from __future__ import annotations

import io
import json
import shlex
import signal
import sys
from typing import Any

import pytest
from attrs import define

from catga_store.cli.app import run

__all__ = ["Ended", "run_here"]


@define
class Ended:
    """What a command has printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document that it printed."""
        return json.loads(self.out)


def run_here(monkeypatch: pytest.MonkeyPatch, url: str, line: str, **environment: str) -> Ended:
    """Run a command line on a store to its end."""
    out, err = io.StringIO(), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        patch.setattr(sys, "argv", ["catga-store", *shlex.split(line)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        for name, value in {"CATGA_STORE_URL": url, **environment}.items():
            patch.setenv(name, value)

        with pytest.raises(SystemExit) as ended:
            run()

    code = ended.value.code
    return Ended(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())
