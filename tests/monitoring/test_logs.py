from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from monitoring.logs import LINE_LENGTH_MAX, LOGGERS_OF_LIBRARIES, UNLOGGED, Form, configure, redact

PUBLIC = "a1b2c3d4e5f6"
SECRET = "Zk3_-u1QzT9nQ0vJ7m4yWc2LbR8sXeHd5GfA6pViKoE"
KEY = f"sk-app-{PUBLIC}-{SECRET}"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    others = [(logger, logger.handlers[:], logger.propagate) for logger in map(logging.getLogger, LOGGERS_OF_LIBRARIES)]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, its_handlers, propagate in others:
        logger.handlers[:] = its_handlers
        logger.propagate = propagate


def log_to(form: Form, level: str = "INFO") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    configure(level, form, stream)
    return logging.getLogger("gateway.test"), stream


def test_a_json_line_has_time_level_logger_message_and_the_given_fields() -> None:
    log, stream = log_to("json")
    log.warning("replica %s is down", "small-0", extra={"pool": "small", "attempts": 2})
    line = json.loads(stream.getvalue())
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "gateway.test",
        "message": "replica small-0 is down",
        "pool": "small",
        "attempts": 2,
    }


def test_one_event_is_one_json_line_even_with_a_traceback_in_it() -> None:
    log, stream = log_to("json")
    try:
        raise RuntimeError(f"bad key {KEY}")
    except RuntimeError:
        log.exception("it\nfailed")
    (text,) = stream.getvalue().splitlines()
    line = json.loads(text)
    assert line["message"] == "it\nfailed"
    assert "RuntimeError: bad key sk-app-a1b2c3d4e5f6-…" in line["exception"]
    assert SECRET not in text


def test_fields_can_not_pass_for_the_line_s_own() -> None:
    log, stream = log_to("json")
    log.info("true", extra={"level": "critical", "at": "yesterday"})
    line = json.loads(stream.getvalue())
    assert line["level"] == "info"
    assert line["at"] != "yesterday"


def test_what_is_no_json_is_written_as_text() -> None:
    log, stream = log_to("json")
    log.info("seen", extra={"kinds": {1}, "path": io.StringIO})
    assert json.loads(stream.getvalue())["kinds"] == "{1}"


@pytest.mark.parametrize("form", ["json", "text"])
def test_keys_are_cut_down_to_their_public_part_wherever_they_stand(form: Form) -> None:
    log, stream = log_to(form)
    log.info("caller sent Authorization: Bearer %s", KEY, extra={"key": KEY, "headers": {"authorization": KEY}})
    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count(f"sk-app-{PUBLIC}-…") == 3


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("field", sorted(UNLOGGED))
def test_what_people_wrote_is_left_out(form: Form, field: str) -> None:
    log, stream = log_to(form)
    log.info("answered", extra={field: "May I return my swimwear?"})
    assert "swimwear" not in stream.getvalue()
    assert "[not logged]" in stream.getvalue()


@pytest.mark.parametrize(
    ("line", "redacted"),
    [
        (f"key {KEY}.", f"key sk-app-{PUBLIC}-…."),
        (f"the caller sk-app-{PUBLIC} asks", f"the caller sk-app-{PUBLIC} asks"),
        ("sk-app-short-secretsecret", "sk-app-…"),
        (f"sk-app-{SECRET}", "sk-app-…"),
        ("sk-app-a1b2c3d4e5f6secret", "sk-app-…"),
        ("Authorization: Bearer hf_abcdefghijk.xyz==", "Authorization: Bearer …"),
        ("bearer of news", "bearer of news"),
    ],
)
def test_redaction(line: str, redacted: str) -> None:
    assert redact(line) == redacted


def test_a_line_break_in_a_message_can_not_forge_a_line_of_text() -> None:
    log, stream = log_to("text")
    log.info("unknown model %s", "x\r\n2026-01-01T00:00:00 INFO gateway: all is well", extra={"model": "a\nb"})
    (line,) = stream.getvalue().splitlines()
    assert "gateway.test: unknown model x\\r\\n2026" in line


def test_text_shows_the_traceback() -> None:
    log, stream = log_to("text")
    try:
        raise RuntimeError("no route")
    except RuntimeError:
        log.exception("failed")
    assert stream.getvalue().splitlines()[-1] == "RuntimeError: no route"


def test_a_message_has_a_greatest_length() -> None:
    log, stream = log_to("json")
    log.info("x" * 100_000, extra={"detail": "y" * 100_000})
    line = json.loads(stream.getvalue())
    assert line["message"] == "x" * LINE_LENGTH_MAX + "… (100000 characters)"
    assert len(line["detail"]) < LINE_LENGTH_MAX + 50


def test_level_is_obeyed_and_configuring_twice_doubles_nothing() -> None:
    _, first = log_to("json", "debug")
    log, stream = log_to("json", "error")
    log.warning("not shown")
    log.error("shown")
    assert first.getvalue() == ""
    assert len(stream.getvalue().splitlines()) == 1


def test_what_libraries_log_goes_the_same_way() -> None:
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(io.StringIO()))
    _, stream = log_to("json")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert json.loads(stream.getvalue())["logger"] == "uvicorn.error"


def test_an_unknown_form_or_level_is_refused() -> None:
    with pytest.raises(ValueError, match="give json or text"):
        configure("INFO", "xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="LOUD"):
        configure("loud")
