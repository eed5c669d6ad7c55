"""The budgets of the check `predicted_gain` at this gateway: the live share that each version sends to general."""

from __future__ import annotations

from collections.abc import Sequence

from router.checks import get_least_gain
from router.findings import Finding
from router.gain_budget import GainBudget, move
from router.policy import Policy, TaskPolicy


class LiveGainBudgets:
    """Updates the budgets after each scored request. Each gateway has its own budgets."""

    def __init__(self) -> None:
        self.by_version: dict[str, GainBudget] = {}

    def note(self, policy: Policy, task: TaskPolicy | None, findings: Sequence[Finding]) -> None:
        """Count a request by its finding. The check may be enforced or only observed."""
        finding = next(
            (entry for entry in findings if entry.check == "predicted_gain" and entry.score is not None), None
        )
        if task is None or finding is None or finding.score is None or finding.version is None:
            return
        name, check, fitted = finding.version, task.checks.get("predicted_gain"), policy.fitted.get(finding.version)
        if check is None or fitted is None or fitted.gain is None or not fitted.gain.shown_to_help:
            return
        if name not in self.by_version:  # a new version: drop the removed ones
            self.by_version = {version: entry for version, entry in self.by_version.items() if version in policy.fitted}
        least = get_least_gain(fitted.gain, check.share)
        self.by_version[name] = move(self.by_version.get(name), finding.score, least, check.share)
