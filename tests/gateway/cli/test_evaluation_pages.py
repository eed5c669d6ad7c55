"""Pages of evaluations: answers side by side, escaped and cut."""

from __future__ import annotations

from typing import Any

from gateway.cli.evaluation_pages import make_html, make_markdown
from monitoring.evaluation.comparing import Classes
from monitoring.evaluation.report import report
from monitoring.evaluation.results import RowResult


def answered() -> dict[str, Any]:
    rows = [RowResult(number=n, id=str(n), group=n, right=n > 0, outcome="answered") for n in range(30)]
    return {
        "id": "e1", "version": "returns@v1", "task": "returns", "status": "done", "suite": "hard", "rows": 30,
        "data_digest": "d" * 64, "metric": "exact", "ended_at": 1.0, "arms": ["adapter", "general"], "asked": {},
        "report": report({"adapter": rows, "general": rows}, Classes(), [], 0),
    }  # fmt: skip


TEXTS = {
    "e1": [
        {
            "number": 0,
            "messages": [{"role": "user", "content": "<script>alert(1)</script> a|b"}],
            "expected": "x" * 5000,
            "answers": {"adapter": "<b>no</b>"},
            "right": {"adapter": False, "general": True},
        }
    ]
}


def test_answers_stand_side_by_side_and_are_escaped() -> None:
    html = make_html([answered()], TEXTS)
    assert "<td class='wrong'><pre>&lt;b&gt;no&lt;/b&gt;</pre></td><td class='right'><pre>-</pre></td>" in html
    assert "<script" not in html
    assert "x" * 1501 not in html
    markdown = make_markdown([answered()], TEXTS)
    assert "|user: &lt;script>alert(1)&lt;/script> a\\|b|" in markdown
    assert "## hard dddddddddddd" in markdown
