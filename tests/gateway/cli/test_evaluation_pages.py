"""Pages of evaluations: answers side by side, escaped and cut."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from gateway.cli.evaluation_pages import make_html, make_markdown
from monitoring.evaluation.report import report
from monitoring.evaluation.results import RowResult
from monitoring.evaluation.row_classes import Classes


def answered() -> dict[str, Any]:
    rows = [RowResult(number=n, id=str(n), group=n, right=n > 0, outcome="answered") for n in range(30)]
    return {
        "id": "e1", "version": "returns@v1", "task": "returns", "status": "done", "suite": "hard", "rows": 30,
        "data_digest": "d" * 64, "metric": "exact", "ended_at": 1.0, "arms": ["adapter", "general"], "asked": {},
        "report": report({"adapter": rows, "general": rows}, Classes(), [], 0),
    }  # fmt: skip


def test_a_judges_agreement_with_people_stands_beside_each_of_its_figures() -> None:
    rows = [
        RowResult(number=n, id=str(n), group=n, right=n > 0, outcome="answered", slices={"source": str(n % 2)})
        for n in range(30)
    ]
    judge = {"pool": "general", "agreement": 0.9, "agreement_low": 0.8}
    judged = report({"adapter": rows, "general": rows}, Classes(), [], 0) | {"judge": judge}
    judged |= {"leaks": {"same": 1, "near": 0, "right_without": {"adapter": 1.0}}}
    page = make_html([answered() | {"report": judged}, answered()], {})
    figures = ("96.7 %", "right", "general right", "general", "Right", "Right answers")
    for before in figures:
        assert f"{before} (a judge: agrees with people in 90.0 %)" in page, before
    assert "a judge" not in make_html([answered()], {})


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


def test_tools_and_calls_of_them_are_shown() -> None:
    calls = '{"tool_calls":[{"arguments":{"order":"A-%d"},"name":"refund"}]}'
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    row = {
        "number": 0,
        "messages": [
            {"role": "user", "content": "Refund <it>."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": None},
        ],
        "tools": [
            {"type": "function", "function": {"name": "look"}},
            {
                "type": "function",
                "function": {"name": "refund", "parameters": {"properties": {"order": {}, "eur": {}}}},
            },
        ],
        "parallel_tool_calls": False,
        "tool_choice": "required",
        "expected": calls % 8,
        "answers": {"adapter": calls % 7, "general": "No."},
        "right": {"adapter": False, "general": False},
    }
    html, markdown = make_html([answered()], {"e1": [row]}), make_markdown([answered()], {"e1": [row]})
    offered = ["tools: look(), refund(order, eur)", "parallel_tool_calls: false"]
    said = ["user: Refund &lt;it&gt;.", "assistant: look({})", "tool: None"]
    assert "\n".join([*offered, "tool_choice: &quot;required&quot;", *said]) in html
    cells = ['refund({"order":"A-8"})', 'refund({"order":"A-7"})', "No."]
    assert "".join(f"<pre>{escape(cell)}</pre>" for cell in cells) == "".join(re.findall("<pre>.*?</pre>", html)[-3:])
    assert f"|{'|'.join(cells)}|" in markdown
    plain = {name: value for name, value in row.items() if name != "tools"}
    assert escape(calls % 8) in make_html([answered()], {"e1": [plain]}), "without tools it is a text"


def test_names_of_classes_are_no_html_in_any_page() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    rows = {
        arm: [
            RowResult(number=n, id=str(n), group=n, right=right, outcome="answered", expected=hostile, answered=hostile)
            for n in range(30)
        ]
        for arm, right in (("adapter", False), ("general", True))
    }
    answer = answered() | {"report": report(rows, Classes("text", "", (hostile, "b")), [], 0)}
    for page in (make_html([answer], {}), make_markdown([answer], {})):
        assert "onerror" in page
        assert "<img" not in page
