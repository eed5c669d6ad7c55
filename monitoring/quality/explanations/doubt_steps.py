"""The next steps for a version that is suspect because of doubts about its evidence, one for each doubt. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monitoring.quality.verdicts.quality import SignalReport


def list_steps(task: str, name: str, reports: Sequence[SignalReport]) -> Iterator[str]:
    """The steps that end the doubts of these reports on the version `name` of the task."""
    doubts = {report.doubt for report in reports}
    if "labellers" in doubts:
        yield (
            f"Have those who label {name} now label rows of its evaluation too: "
            f"`apprentice tasks baseline {task} {name} reviewed --calibrate FILE --reason TEXT`."
        )
    if "first_day" in doubts:
        yield f"Wait until {name} has labels of a whole day: a bad hour is told from a degradation then."
    if "one_session" in doubts:
        yield f"Wait for labels of other sessions of {name}: a degradation shows in them, too."
    if "days_differ" in doubts:
        yield f"Wait for more labels of {name}: a degradation that lasts outweighs its bad days."
    if "reviewers" in doubts:
        times = max(report.stricter for report in reports if report.doubt == "reviewers")
        yield f"Wait for the usual reviewers: the present ones call {times:.1f} times as many answers of {name} wrong."
    if "one_giver" in doubts:
        export = "apprentice records export --dataset feedback --since 1d --out feedback.csv"
        yield f"Look at who says so: one caller or rater alone speaks against {name} (`{export}`)."
        yield f"Have people review answers of {name}: labels of operators and admins count without anybody else's."
