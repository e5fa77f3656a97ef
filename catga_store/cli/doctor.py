"""The command `doctor`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from collections.abc import Iterator

import typer
from attrs import asdict
from rich.text import Text

import catga_store as cs
from catga_store.cli.doctor_by_scheme import doctor_of
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import guarded
from catga_store.cli.output import counted
from catga_store.cli.output import escaped
from catga_store.cli.output import print_hanging
from catga_store.cli.output import print_json
from catga_store.cli.output import stdout
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreArgument
from catga_store.cli.store_options import checked
from catga_store.cli.store_options import open_laid_out
from catga_store.opening.url_codecs import bare
from catga_store.protocol.masking import mask_url
from catga_store.rewrapping import count_bodies
from catga_store.stores.findings import Doctor
from catga_store.stores.findings import Finding

__all__ = ["doctor", "known_doctor"]

_OFF = ("warning", "problem")
_STYLES = {"ok": "green", "problem": "bold red", "info": "dim"}


def known_doctor(url: str, command: str) -> Doctor:
    """Answer what is known of a URL's kind of store; `NotSupportedError` if nothing is."""
    store_doctor = doctor_of(url)
    if store_doctor is None:
        message = f"{command} does not support this kind of store yet: {mask_url(url)}"
        raise cs.NotSupportedError(message)

    return store_doctor


@guarded
def doctor(store: StoreArgument = None, *, as_json: AsJson = False) -> None:
    """Check a store and its environment for anything that could lose or delay flows; changes nothing.

    Each finding shows what was found, what it means for flows and what to change. Exits with status 1 if there
    is a warning, a problem, or no store.

    `--json`: `{"url", "healthy": true or false, "findings": [{"check", "level", "found", "means",
    "change"}, …]}`; `level` is ok, info, unknown, warning or problem.
    """
    url = checked(store, "catga-store doctor sqlite:///flows.db")
    store_doctor = known_doctor(url, "doctor")
    findings = list(_findings(url, store_doctor))
    off = [finding for finding in findings if finding.level in _OFF]
    if as_json:
        documents = [asdict(finding) for finding in findings]
        print_json({"url": mask_url(url), "healthy": not off, "findings": documents})
    else:
        _print_findings(findings, len(off))

    if off:
        raise typer.Exit(NO)


def _findings(url: str, store_doctor: Doctor) -> Iterator[Finding]:
    levels: set[str] = set()
    for finding in store_doctor.examine(bare(url)):
        levels.add(finding.level)
        yield finding

    if "problem" not in levels and store_doctor.absent(bare(url)) is None:
        yield from _answers(url)  # last, because opening might change what was found
        yield from _bodies(url)


def _answers(url: str) -> Iterator[Finding]:
    try:
        with open_laid_out(url) as store:
            start = time.perf_counter()
            store.ping()
            took = time.perf_counter() - start
            flows = store.count_flows()
            stuck = store.diagnose_all(limit=_STUCK, most=_LOOKED_AT)
    except (cs.StoreUnavailableError, cs.StoreConfigError, cs.CorruptRecordError) as error:
        yield Finding(
            "store",
            "problem",
            str(error),
            "no worker can use the store",
            "resolve the problem that the store reports",
        )
        return

    found = f"the store responded in {took * 1000:.2f} ms and holds {counted(flows, 'flow')}"
    yield Finding("store", "ok", found, "workers can use the store")
    yield _flows(stuck)


_STUCK, _LOOKED_AT = 100, 2000


def _flows(stuck: cs.Page[cs.Diagnosis]) -> Finding:
    """What is wrong with flows: a sample of them is looked at."""
    sample = "" if stuck.cursor is None else f" among the first {_LOOKED_AT:,} checked"
    if not stuck.items:
        return Finding(
            "stuck",
            "ok",
            f"no live flow is stuck{sample}",
            "every live flow continues without help",
        )

    reasons = Counter(one.findings[0].code for one in stuck)
    said = ", ".join(f"{number} {code}" for code, number in reasons.most_common())
    found = (
        f"{counted(len(stuck), 'flow')}{' or more' if stuck.cursor else ''} stuck{sample}: {said}"
    )
    if reasons.keys() == {"never_due"}:
        means = (
            "claim_due never returns these flows; this is correct if only your own code "
            "continues them"
        )
        change = "otherwise, run `catga-store stuck` to see these flows"
        return Finding("stuck", "info", found, means, change)

    means = "these flows do not continue without help"
    change = (
        "run `catga-store stuck` to see why each flow is stuck, and `catga-store why "
        "FLOW_ID` to see what to do"
    )
    return Finding("stuck", "warning", found, means, change)


def _bodies(url: str) -> Iterator[Finding]:
    """How bodies are stored, if any went through codecs or if the URL names some."""
    try:
        with open_laid_out(url) as store:
            counts, all_counted = count_bodies(store)
    except (cs.StoreUnavailableError, cs.StoreConfigError, cs.CorruptRecordError) as error:
        yield Finding(
            "bodies", "unknown", str(error), "the command could not determine how bodies are stored"
        )
        return

    if url == bare(url) and not any(counts):
        return

    of = "" if all_counted else f" of the first {sum(counts.values()):,}"
    found = ", ".join(
        f"{number:,} with the codecs {trail or 'none'}"
        if trail is not None
        else f"{number:,} without codecs"
        for trail, number in sorted(counts.items(), key=lambda one: -one[1])
    )
    yield Finding(
        "bodies",
        "info",
        f"{found or 'none'}{of}",
        "a program can read a body only if it has that body's codecs and key",
        "to rewrite all bodies with the codecs of the URL, run `catga-store rewrap`"
        if len(counts) > 1
        else "",
    )


def _print_findings(findings: Iterable[Finding], off: int) -> None:
    console = stdout()
    for finding in findings:
        style = _STYLES.get(finding.level, "yellow")
        found = Text(style=style).append(f"{finding.check}: ", "bold")
        found.append(escaped(finding.found))
        lines = [found, Text(finding.means, "dim")]
        if finding.change:
            lines.append(Text(f"→ {finding.change}"))

        print_hanging(console, Text(finding.level, style), lines, 9)

    console.print(
        Text(f"{counted(off, 'finding')} to check.", "bold yellow")
        if off
        else Text("No problems found.", "bold green")
    )
