"""The report of `catga-store verify`: what was checked, and what was found."""

from __future__ import annotations

import json

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from catga_store.testing.scratch import scratch_url

__all__ = ["print_verification"]


def print_verification(url: str, *, examples: int, seed: int, as_json: bool) -> bool:
    """Verify a store and print the findings; whether everything holds."""
    with scratch_url(url, lambda _: None):
        pass  # a URL of no store is an error before anything is imported

    from catga_store.testing.verify import verify  # noqa: PLC0415  needs Hypothesis

    console = Console(highlight=False, soft_wrap=as_json)
    if as_json:
        findings = verify(url, examples=examples, seed=seed)
        report = {
            "url": url,
            "examples": examples,
            "seed": seed,
            "holds": all(finding.holds for finding in findings),
            "checks": [{**finding._asdict(), "holds": finding.holds} for finding in findings],
        }
        console.print_json(json.dumps(report))
        return bool(report["holds"])

    with console.status("verifying") as status:
        findings = verify(
            url,
            examples=examples,
            seed=seed,
            on_finding=lambda finding: status.update(f"{finding.face}: {finding.claim}"),
        )

    table = Table(box=box.SIMPLE)
    for name in ("", "face", "checked", "times", "seconds"):
        table.add_column(name, justify="right" if name in ("times", "seconds") else "left")

    for finding in findings:
        mark = Text("ok", "green") if finding.holds else Text("OFF", "bold red")
        seconds = f"{finding.seconds:.1f}"
        table.add_row(mark, finding.face, Text(finding.claim), str(finding.times), seconds)

    console.print(table)
    for finding in findings:
        if not finding.holds:
            console.print(
                Text(f"{finding.face}: {finding.claim}\n{finding.found}\n"), soft_wrap=True
            )

    off = sum(not finding.holds for finding in findings)
    console.print(
        Text(
            f"{off} of {len(findings)} checks are off" if off else "Everything is as it should be."
        )
    )
    return not off
