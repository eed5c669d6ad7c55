"""The gateway's errors about a field name the option that gives it."""

from __future__ import annotations

import inspect

import pytest

from gateway.cli.option_names import name_options, options_of
from gateway.cli.tasks import baseline, changed
from tests.gateway.cli.conftest import run

BASELINE = options_of(inspect.signature(baseline).parameters.values())
CHANGED = options_of(inspect.signature(changed).parameters.values())


def test_a_commands_options_are_as_they_are_typed() -> None:
    assert (BASELINE["of_class"], BASELINE["wrong"], CHANGED["effective"]) == ("--class", "--wrong", "--effective")
    assert "task" not in BASELINE, "it is not an option"


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ("effective_at: it is not a date.", "effective_at", "--effective: it is not a date."),
        ("expires_at has to be after effective_at.", "expires_at", "--until has to be after --effective."),
        ("message goes with refuse, and only with it.", "message", "--message goes with refuse, and only with it."),
        ("A time that is past.", "expires_at", "--until: A time that is past."),
        ("limits.effective_at: Too early.", "limits.effective_at", "--effective: Too early."),
        ("limits.effective_at.day: Wrong.", "limits.effective_at.day", "--effective.day: Wrong."),
        ("It goes by feedback_metric.", "other", "It goes by feedback_metric."),
        ("The task is not known.", "task", "The task is not known."),
    ],
)
def test_fields_are_named_by_their_options(message: str, param: str, said: str) -> None:
    assert name_options(message, param, CHANGED) == said


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ("give either `accept`, or `wrong` and `of`.", None, "give either --accept, or --wrong and --of."),
        (
            "wrong: more than of: give the wrong ones of all.",
            "wrong",
            "--wrong: more than of: give the wrong ones of all.",
        ),
        ("of_class: an evaluation is of all classes.", None, "--class: an evaluation is of all classes."),
        ("stream: length is not counted.", None, "stream: length is not counted."),
    ],
)
def test_words_that_are_no_fields_stay(message: str, param: str | None, said: str) -> None:
    assert name_options(message, param, BASELINE) == said


@pytest.mark.parametrize(
    "words",
    [
        ("adapters", "show", "a/b"),
        ("adapters", "stage", "a/b@v1"),
        ("adapters", "rollback", "a/b"),
        ("adapters", "pulls", "--cancel", "a/b"),
        ("datasets", "show", "a/b"),
        ("datasets", "export", "a/b", "--out", "x.jsonl"),
        ("suites", "show", "returns", "a/b"),
        ("trainings", "show", "a/b"),
        ("keys", "revoke", "a/b", "--yes"),
        ("explain", "a/b"),
        ("datasets", "show", ".."),
    ],
)
def test_names_with_a_slash_lead_to_no_other_address(words: tuple[str, ...]) -> None:
    key = f"sk-app-{'a' * 12}-{'b' * 43}"
    refused = run(*words, "--gateway", "http://127.0.0.1:9", "--key", key)
    assert (refused.exit_code, refused.out) == (2, "")
    assert "is not a name that anything here has: none has a slash" in refused.err
