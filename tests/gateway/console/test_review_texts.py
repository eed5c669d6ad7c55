"""The texts of a request, as the pages of reviews and of one request show them: whatever its messages have."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.console.signed_in_request import Console

CALL = {"id": "c1", "type": "function", "function": {"name": "refund", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "shown", "blocks"),
    [
        ({"role": "user", "content": "A vase."}, "A vase.", 1),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "refund", 1),
        ({"role": "assistant", "tool_calls": [CALL]}, "refund", 1),
        ({"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}, "One moment.", 2),
        ({"role": "assistant"}, "assistant", 0),
    ],
)
def test_a_message_is_shown_with_or_without_a_text_and_calls(message: dict[str, Any], shown: str, blocks: int) -> None:
    templates = Console(None).templates
    template = templates.get_template("review_parts.html")
    review = {"messages": [message], "tools": [], "prompt": None, "cut": [], "answer": "", "tool_calls": []}
    request, _ = str(template.module.texts(review)).split('aria-label="Answer"')  # type: ignore[attr-defined]
    assert shown in request
    assert request.count("<pre>") == blocks
    asked = {"messages": [message], "a": "Yes.", "b": "No."}
    page = templates.get_template("pair.html").render(**asked, pair=asked, person={})
    pair = page.partition('aria-label="Request"')[2].partition('aria-label="First answer"')[0]
    assert (shown in pair, pair.count("<pre>")) == (True, blocks)
