"""The command `verify`: what was checked of a store, and what was found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from catga_store.cli.guard import NO
from catga_store.cli.guard import guarded
from catga_store.cli.opening import AsJson
from catga_store.cli.opening import StoreArgument
from catga_store.cli.opening import checked
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import stdout
from catga_store.protocol.masking import mask_url

if TYPE_CHECKING:
    from catga_store.testing.verify import Finding

__all__ = ["verify"]


@guarded
def verify(
    store: StoreArgument = None,
    *,
    examples: Annotated[
        int, typer.Option(min=1, help="How many sequences and orders to draw for each check.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="What they are drawn from.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run the parity machine, interleavings and lost replies against a store of yours.

    In a namespace of its own beside yours, which it removes: another file, prefix or bucket. Nothing
    that is there is touched. Needs Hypothesis: `pip install 'catga_store[test]'`. Exits with 1 if
    anything is off.

    `--json`: `{"url", "examples", "seed", "holds": true or false, "checks": [{"claim", "api",
    "times", "found", "seconds", "holds"}, …]}`.
    """
    url = checked(store, "catga-store verify sqlite:///flows.db")
    from catga_store.testing import verify as kit  # noqa: PLC0415  needs Hypothesis

    # On stderr, so that what is printed can be piped.
    with Console(stderr=True).status("verifying") as status:
        findings = kit.verify(
            url,
            examples=examples,
            seed=seed,
            on_finding=lambda finding: status.update(f"{finding.api}: {finding.claim}"),
        )

    off = [finding for finding in findings if not finding.holds]
    if as_json:
        print_json(
            {
                "url": mask_url(url),
                "examples": examples,
                "seed": seed,
                "holds": not off,
                "checks": [{**one._asdict(), "holds": one.holds} for one in findings],
            }
        )
    else:
        _tell(findings, off)

    if off:
        raise typer.Exit(NO)


def _tell(findings: Iterable[Finding], off: list[Finding]) -> None:
    rows = [
        (
            "ok" if one.holds else "problem",
            one.api,
            one.claim,
            str(one.times),
            f"{one.seconds:.1f} s",
        )
        for one in findings
    ]
    print_rows(("", "FACE", "CHECKED", "TIMES", "TOOK"), rows)
    console = stdout()
    for one in off:
        console.print(Text(f"{one.api}: {one.claim}\n{one.found}\n"), soft_wrap=True)

    console.print(
        Text(f"{len(off)} of {len(rows)} checks are off.", "bold red")
        if off
        else Text("Everything is as it should be.", "bold green")
    )
