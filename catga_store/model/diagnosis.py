"""What is wrong with a flow, in words."""

from __future__ import annotations

from typing import Literal
from typing import TypeAlias

from attrs import frozen

from catga_store.model.flows import FlowSummary

__all__ = ["SEVERITIES", "Diagnosis", "FlowFinding", "Severity"]

Severity: TypeAlias = Literal["info", "warning", "problem"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "problem")
"""From the least to the worst."""


@frozen
class FlowFinding:
    """A reason why a flow does not continue, or may not continue.

    `code` is one of the codes that `Store.diagnose` lists. `severity` is `"problem"` if the flow cannot
    continue by itself, `"warning"` if it probably will not continue, and `"info"` if this may be intended.
    """

    code: str
    severity: Severity
    text: str
    """What was found, as a predicate whose subject is the flow: "is suspended, but waits for nothing"."""
    advice: str
    """What you can do about it."""


@frozen
class Diagnosis:
    """The findings about a flow, most severe first. There are no findings if nothing is wrong."""

    flow_id: str
    flow: FlowSummary | None
    """The flow without its state; `None` if the flow does not exist, if not even its head can be read, or if the
    finding is about a wait condition."""
    findings: tuple[FlowFinding, ...] = ()
    correlation_id: str | None = None
    """The id of the wait condition on which the flow is suspended, whose parent does not exist, or that cannot
    be read."""

    @property
    def severity(self) -> Severity | None:
        """The highest severity of the findings; `None` if there are no findings."""
        return self.findings[0].severity if self.findings else None

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings."""
        return tuple(finding.code for finding in self.findings)
