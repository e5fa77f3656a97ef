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
    """One thing that keeps a flow from going on, or may do so.

    `code` is one of the words in the table of `Store.diagnose`. `severity` is `"problem"` if the flow
    cannot go on by itself, `"warning"` if it probably does not, `"info"` if it may be right.
    """

    code: str
    severity: Severity
    text: str
    """What was found, as what is said of the flow: "is suspended, but waits for nothing"."""
    advice: str
    """What can be done about it."""


@frozen
class Diagnosis:
    """What was found about one flow, the worst first; nothing if it is well."""

    flow_id: str
    flow: FlowSummary | None
    """Everything but its state; `None` if there is no such flow: then only what belongs to it is left."""
    findings: tuple[FlowFinding, ...] = ()
    correlation_id: str | None = None
    """The wait condition that the flow is suspended on, or that waits for a flow that does not exist."""

    @property
    def severity(self) -> Severity | None:
        """The worst severity of its findings; `None` if there are none."""
        return self.findings[0].severity if self.findings else None

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of its findings."""
        return tuple(finding.code for finding in self.findings)
