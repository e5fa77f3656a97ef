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
    """One reason why a flow does not, or may not, continue.

    `code` is one of the words in the table of `Store.diagnose`. `severity` is `"problem"` if the flow
    cannot continue by itself, `"warning"` if it probably does not, and `"info"` if this may be intended.
    """

    code: str
    severity: Severity
    text: str
    """What was found, as a predicate of the flow: "is suspended, but waits for nothing"."""
    advice: str
    """What can be done about it."""


@frozen
class Diagnosis:
    """The findings about one flow, most severe first; none if nothing is wrong."""

    flow_id: str
    flow: FlowSummary | None
    """The flow without its state; `None` if there is no such flow, if not even its head can be read, or if the
    finding is about a wait condition."""
    findings: tuple[FlowFinding, ...] = ()
    correlation_id: str | None = None
    """The wait condition on which the flow is suspended, or whose parent does not exist, or that cannot be read."""

    @property
    def severity(self) -> Severity | None:
        """The highest severity of the findings; `None` if there are none."""
        return self.findings[0].severity if self.findings else None

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings."""
        return tuple(finding.code for finding in self.findings)
