from __future__ import annotations

import json
import math
from collections.abc import Mapping

import httpx2
import openai
import pytest

from gateway.errors import ERRORS, FINAL, Problem

STATUSES = {400, 401, 403, 404, 405, 408, 409, 410, 413, 415, 422, 429, 431, 500, 501, 502, 503, 504}


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_has_the_shape_that_clients_parse(code: str) -> None:
    problem = Problem(code, "It did not work.", "model")
    assert json.loads(problem.body()) == {
        "error": {"message": "It did not work.", "type": ERRORS[code].type, "param": "model", "code": code}
    }
    assert problem.status in STATUSES
    assert (b"content-type", b"application/json") in problem.headers()


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_says_when_it_comes(code: str) -> None:
    meaning = ERRORS[code].meaning
    assert meaning.endswith(".")
    assert meaning[0].isupper()


@pytest.mark.parametrize("code", [code for code, spec in ERRORS.items() if spec.status == 503])
def test_what_may_pass_says_when_to_come_again(code: str) -> None:
    assert dict(Problem(code, "Full.").headers())[b"retry-after"] == (b"60" if code == "fallback_capped" else b"1")


@pytest.mark.parametrize(("seconds", "told"), [(0.0, b"1"), (0.4, b"1"), (1.6, b"2"), (30.0, b"30"), (3600.0, b"3600")])
def test_a_wait_is_told_in_whole_seconds_of_at_least_one(seconds: float, told: bytes) -> None:
    assert dict(Problem("overload", "Full.", None, seconds).headers())[b"retry-after"] == told


@pytest.mark.parametrize("code", ERRORS)
def test_clients_are_told_not_to_try_again_where_that_is_of_no_use(code: str) -> None:
    told = dict(Problem(code, "No.").headers()).get(b"x-should-retry")
    assert (told == b"false") == (code in FINAL)
    of_ours = code in ("needs_human", "no_task_fits")
    assert told is None or of_ours or ERRORS[code].status in (409, 429) or ERRORS[code].status >= 500


def test_clients_are_told_not_to_try_again_where_the_wait_is_longer_than_theirs() -> None:
    told = [dict(Problem("no_replica", "No.", None, wait).headers()).get(b"x-should-retry") for wait in (60.0, 61.0)]
    assert told == [None, b"false"]


def test_what_will_not_pass_has_no_wait() -> None:
    for code in ("invalid_json", "invalid_api_key", "request_not_found", "engine_error"):
        assert b"retry-after" not in dict(Problem(code, "No.").headers())


def test_a_code_that_is_not_in_the_table_can_not_be_raised() -> None:
    with pytest.raises(KeyError):
        Problem("made_up", "No.")


def test_a_problem_is_its_message_in_a_log() -> None:
    assert str(Problem("overload", "Full.")) == "Full."
    assert math.isclose(Problem("overload", "Full.").retry_after_seconds or 0, 1.0)


CLASSES: Mapping[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
}


@pytest.mark.parametrize("code", ERRORS)
def test_the_official_client_makes_its_own_class_of_every_error(code: str) -> None:
    problem = Problem(code, "It did not work.", "model")

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(problem.status, headers=problem.headers(), content=problem.body(), request=request)

    http = openai.DefaultHttpxClient(transport=httpx2.MockTransport(answer))
    kind = CLASSES.get(min(problem.status, 500), openai.APIStatusError)
    client = openai.OpenAI(api_key="sk-app-x", base_url="http://gateway/v1", max_retries=0, http_client=http)
    with client, pytest.raises(kind) as raised:
        client.models.list()
    assert (raised.value.status_code, raised.value.code, raised.value.param) == (problem.status, code, "model")
    assert "It did not work." in raised.value.message
