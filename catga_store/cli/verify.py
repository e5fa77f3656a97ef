"""The command `verify`: run the conformance tests of this library against a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import guarded
from catga_store.cli.output import print_json
from catga_store.cli.output import print_rows
from catga_store.cli.output import stdout
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreArgument
from catga_store.cli.store_options import checked
from catga_store.protocol.masking import mask_url

if TYPE_CHECKING:
    from catga_store.testing.verify import CheckResult

__all__ = ["verify"]


@guarded
def verify(
    store: StoreArgument = None,
    *,
    examples: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of random sequences of operations in each check.",
        ),
    ] = 20,
    seed: Annotated[int, typer.Option(help="The seed of the random sequences of operations.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Test a store with random operations, interleavings and lost replies, and check the results.

    Runs in a scratch namespace beside your records (another file, prefix or bucket), which is removed at the
    end. Your records are not touched. Needs Hypothesis: `pip install 'catga_store[test]'`. Exits with status 1
    if a check fails.

    `--json`: `{"url", "examples", "seed", "holds": true or false, "checks": [{"claim", "api",
    "times", "found", "seconds", "holds"}, …]}`.
    """
    url = checked(store, "catga-store verify sqlite:///flows.db")
    from catga_store.testing import verify as kit  # noqa: PLC0415  needs Hypothesis

    # On stderr, so that the output can be piped.
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
        _print_findings(findings, off)

    if off:
        raise typer.Exit(NO)


def _print_findings(findings: Iterable[CheckResult], off: list[CheckResult]) -> None:
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
    print_rows(("", "API", "CHECKED", "TIMES", "TOOK"), rows)
    console = stdout()
    for one in off:
        console.print(Text(f"{one.api}: {one.claim}\n{one.found}\n"), soft_wrap=True)

    console.print(
        Text(f"{len(off)} of {len(rows)} checks failed.", "bold red")
        if off
        else Text("All checks passed.", "bold green")
    )
