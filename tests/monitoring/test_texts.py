"""Kept texts: sealed under keys, masked, archived once, deleted when they are due."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis as Client
from redis.asyncio import Redis

from gateway.features.texts.redactors import redact_all, redact_conversation
from gateway.formats.conversation_texts import TEXT_BYTES_MAX
from monitoring.archive.run import ArchiveJob, run
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import (
    ArchiveQuery,
    FeedbackRow,
    NothingArchived,
    connect_duckdb,
    day_of,
    export,
    find_table,
    list_files,
    write_parquet,
    write_part,
    write_path,
)
from monitoring.erasure_run import ErasureJob, erase
from monitoring.evaluation.redis_keys import EVALUATIONS_KEY, get_evaluation_key
from monitoring.feedback import FEEDBACK_SEALED_KEY, WORDS, Feedback, FeedbackStore, SealingLook, WordSeals
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback_reader import read_feedback
from monitoring.redaction import mask_text
from monitoring.text_reader import TextReader
from monitoring.text_retention import delete_due_texts
from monitoring.text_stream import ARCHIVED_MS, TextStream
from monitoring.texts import (
    BYTES_KEY,
    PRUNED_KEY,
    STREAM_KEY,
    TEXT_KEY,
    KeptText,
    Resealing,
    Seals,
    TextDays,
    TextKeys,
    TextRetention,
    TextRow,
    TextSource,
    Unsealable,
)
from monitoring.time_units import DAY_SECONDS
from tests.monitoring.test_archive import AFTER_RENAME, BEFORE_RENAME, begun, damage, rows

NOW = time.time()
OLD, NEW = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
MANY = 10_000_000


def text(number: int, at: float = NOW, task: str = "returns") -> KeptText:
    return KeptText(
        request=f"r{number}",
        at=at,
        task=task,
        version="returns@v1",
        caller="abcdefghijkl",
        handles=[f"handle{number}"],
        messages=[{"role": "user", "content": f"The vase number {number} is broken."}],
        answer=f"Refund {number}.",
    )


def keys(sealing: str | None, **known: str) -> TextKeys:
    return TextKeys(known, sealing)


async def kept(redis: Redis, texts: list[KeptText], seals: Seals | None = None) -> list[str]:
    seals = seals or Seals({}, None)
    return list(await TextStream(redis, MANY).keep([seals.close(each) for each in texts]))


@pytest.fixture
def job(valkey_socket: str, tmp_path: Path) -> ArchiveJob:
    folder = tmp_path / "archive"
    return ArchiveJob(f"unix://{valkey_socket}", str(folder), 36_600, texts=TextRetention({"returns": TextDays(30)}))


def reader(job: ArchiveJob, known: TextKeys | None = None) -> TextReader:
    return TextReader(TextSource(job.redis_url, job.folder, known or TextKeys()))


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a run that was begun."""
    assert process.stdout is not None
    process.stdout.read()
    process.communicate()
    return process.returncode


def parts(job: ArchiveJob) -> list[Path]:
    try:
        return [Path(job.folder, place) for place in list_files(FolderStorage(Path(job.folder)), ArchiveQuery("texts"))]
    except NothingArchived:
        return []


@given(st.text(), st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=2), max_size=3))
def test_a_sealed_text_opens_to_itself_and_under_no_other_id(answer: str, messages: list[dict[str, str]]) -> None:
    seals = Seals({"new": bytes(32)}, "new")
    whole = KeptText(request="r1", at=1.0, task="returns", messages=messages, answer=answer)
    row = seals.close(whole)
    assert seals.open(row) == whole
    row.request = "r2"
    with pytest.raises(Unsealable):
        seals.open(row)


def test_no_word_of_a_sealed_text_is_in_its_row() -> None:
    row = Seals({"new": bytes(32)}, "new").close(text(1))
    assert b"vase" not in msgspec.json.encode(row)
    with pytest.raises(Unsealable, match=r"the key 'new', which texts\.keys lacks"):
        Seals({}, None).open(row)


@pytest.mark.parametrize("words", [b'{"comment": "x", "of_a_newer_release": 1}', b"[1]", b"{"])
def test_words_that_this_release_can_not_read_are_not_lost_by_it(words: bytes) -> None:
    seals = keys("old", old=OLD, new=NEW).seals()
    given = Feedback(feedback_id="f", metric="correct", value=True, at=NOW, caller="c", key="old")
    given = msgspec.structs.replace(given, sealed=seals._seal(words, "words\nr1"))
    seals, resealing = keys("new", old=OLD, new=NEW).seals(), Resealing()
    read = seals.read_words(given, "r1", WORDS)
    assert (read.key, read.comment) == ("old", None)
    assert resealing.change(given, lambda each: seals.reseal_words(each, "r1", WORDS)) is given
    assert resealing == Resealing(0, 1, held=1), "its former key has to stay"
    present, resealing = keys("old", old=OLD).seals(), Resealing()
    assert resealing.change(given, lambda each: present.open_words(each, "r1", WORDS)) is given
    assert resealing == Resealing(0, 1), "no former key holds it"


@pytest.mark.parametrize(
    ("given_text", "masked"),
    [
        ("Mail jo.o'neil+x@shop.example.co.uk now.", "Mail [email] now."),
        ("Card 4111 1111 1111 1111, order 1234567890123456.", "Card [card], order 1234567890123456."),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [iban] please"),
        ("Call +49 30 901820 on 2026-03-01 12:00:00.", "Call [phone] on 2026-03-01 12:00:00."),
        ("Return of 129.99 after 30 days", "Return of 129.99 after 30 days"),
        ("GB29NWBK60161331926819", "[iban]"),
        (r'{"to": "Ada\nGB29NWBK60161331926819"}', r'{"to": "Ada\n[iban]"}'),
        ("GB29NWBK60161331926818", "GB29NWBK60161331926818"),
        ("An müller@straße.de, mu\u0308ller@example.de.", "An [email], [email]."),
        ("Von владимир@пример.рф, sofort", "Von [email], sofort"),
        ("Card 4111.1111.1111.1111. Card 4111\u00a01111\u00a01111\u00a01111.", "Card [card]. Card [card]."),
        ("IBAN DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000.", "IBAN [iban]."),
        ("Ratio 3.1415926535897932, host 10.0.0.1, part 4111.1111.1111.1112.",) * 2,
    ],
)
def test_what_checks_out_as_personal_is_masked_and_other_numbers_stay(given_text: str, masked: str) -> None:
    assert mask_text(given_text) == masked
    nested = {"role": "user", "content": [{"type": "text", "text": given_text}], "n": 4}
    assert redact_all(nested, mask_text) == {"role": "user", "content": [{"type": "text", "text": masked}], "n": 4}


NESTED = '{"to": "jo@shop.example", "a": ' + "[" * 800 + "]" * 800 + "}"


@pytest.mark.parametrize(
    ("given_text", "masked"),
    [
        ('{"card":4111111111111111, "n": 4}', '{"card":"[card]","n":4}'),
        ('{"to": "jo@shop.example", "n": 4}', '{"to": "[email]", "n": 4}'),
        ('{"n": 4111 1111 1111 1111', '{"n": [card]'),
        ('{"parts": [4111111111111111, true]}', '{"parts":["[card]",true]}'),
        (r'{"card": "4111\u00a01111\u00a01111\u00a01111", "n": 4}', '{"card":"[card]","n":4}'),
        (r'{"to": "jo\u0040shop.example"}', '{"to":"[email]"}'),
        (NESTED, NESTED.replace("jo@shop.example", "[email]")),
    ],
)
def test_masked_arguments_of_a_call_are_json_where_they_were(given_text: str, masked: str) -> None:
    call = {"function": {"name": "pay", "arguments": given_text}}
    assert redact_all([call], mask_text) == [{"function": {"name": "pay", "arguments": masked}}]


def test_phone_numbers_without_a_plus_are_those_of_the_region() -> None:
    assert mask_text("Call 030 901820.") == "Call 030 901820."
    assert mask_text("Call 030 901820.", "DE") == "Call [phone]."


@pytest.mark.parametrize("piece", ["1/1-", "1 2-3/", "(030)12-34 ", "+4930 ", "DE89"])
def test_a_phone_number_is_masked_behind_any_amount_of_numbers_that_are_none(piece: str) -> None:
    began = time.process_time()
    masked = mask_text(piece * (TEXT_BYTES_MAX // len(piece)) + " x +49 30 901820", "DE")
    assert masked.endswith(" x [phone]")
    assert time.process_time() - began < 30, "some 0.5 s: the time grows with the text alone"


async def test_long_texts_of_a_task_need_no_more_memory_than_a_helper_has(redis: Redis, job: ArchiveJob) -> None:
    rows, scratch = 600, Path(job.folder) / ".partial-long"  # 315 MB: DuckDB has 512, and holds a row group four times
    scratch.mkdir(parents=True)
    lines = scratch / "rows.jsonl"
    with lines.open("wb") as file:
        for number in range(rows):
            row = Seals({}, None).close(
                msgspec.structs.replace(text(number), prompt=f"{number:03} " * (1 << 17), messages=[])
            )
            file.write(msgspec.json.encode(row) + b"\n")
    storage = FolderStorage(Path(job.folder))
    assert write_part(storage, "texts", lines, f"texts/{day_of(NOW)}/part-1-0-2-0.parquet")
    merged = scratch / "merged.parquet"
    with connect_duckdb(scratch=scratch) as connection:
        write_parquet(connection, find_table(storage, ArchiveQuery("texts")), merged)
        sizes = f"SELECT sum(total_uncompressed_size) FROM parquet_metadata({write_path(merged)}) GROUP BY row_group_id"
        assert max(size for (size,) in connection.execute(sizes).fetchall()) < 64 << 20
    assert export(storage, ArchiveQuery("texts"), scratch / "exported.parquet") == rows
    with reader(job) as texts:
        assert [each.request for each in texts.of_task("returns")] == [f"r{number}" for number in range(rows)]


def with_tools(number: int, words: str = "Pay back.") -> KeptText:
    tools = [{"type": "function", "function": {"name": f"refund{n}", "description": words * 20}} for n in range(30)]
    return msgspec.structs.replace(text(number), tools=tools, parallel_tool_calls=False)


def test_a_choice_of_tools_is_redacted_as_they_are_and_texts_without_one_are_read() -> None:
    named = {"type": "function", "function": {"name": "refund7"}}
    whole = msgspec.structs.replace(with_tools(1), tool_choice=named)
    seals = keys("new", new=NEW).seals()
    assert seals.open(seals.close(whole)) == whole
    redacted = redact_conversation(whole, lambda part: part.replace("7", "x"))
    chosen = redacted.tool_choice["function"]["name"]
    assert chosen in [tool["function"]["name"] for tool in redacted.tools]
    required = msgspec.structs.replace(whole, tool_choice="required")
    assert redact_conversation(required, str.upper).tool_choice == "required"
    earlier = Seals({}, None).close(with_tools(2))
    content = {name: part for name, part in json.loads(earlier.text).items() if name != "tool_choice"}
    assert Seals({}, None).open(msgspec.structs.replace(earlier, text=json.dumps(content))) == with_tools(2)


def test_equal_tools_are_equal_bytes_and_no_others_can_be_put_in_their_place() -> None:
    seals = keys("new", old=OLD, new=NEW).seals()
    rows = [seals.close(with_tools(number)) for number in range(2)]
    other, plain = seals.close(with_tools(2, "Pay more.")), Seals({}, None).close(with_tools(3))
    assert rows[0].tools == rows[1].tools != other.tools
    assert rows[0].text != rows[1].text
    assert len(rows[0].tools or "") < len(plain.tools or "") / 5
    assert [seals.open(row) for row in (*rows, plain)] == [with_tools(number) for number in (0, 1, 3)]
    moved = seals.reseal(keys("old", old=OLD).seals().close(with_tools(4)))
    assert (moved.tools, seals.open(moved)) == (rows[0].tools, with_tools(4))
    assert seals.open(rows[0]).tools is seals.open(rows[1]).tools, "they are opened once"
    for strange in (other.tools, rows[0].text):
        with pytest.raises(Unsealable):
            keys("new", new=NEW).seals().open(msgspec.structs.replace(rows[0], tools=strange))
    lost = seals.open(msgspec.structs.replace(rows[0], tools=None))
    assert (lost.tools, lost.cut, lost.as_asked()) == ([], ["Its tools are not kept."], {})


@pytest.mark.parametrize("sealing", [None, "new"])
async def test_a_file_of_the_archive_holds_tools_once_and_none_that_was_erased(
    redis: Redis, job: ArchiveJob, tmp_path: Path, sealing: str | None
) -> None:
    seals, count = keys(sealing, new=NEW).seals(), 500
    texts = [with_tools(number, os.urandom(30).hex() if number == 7 else "Pay back.") for number in range(count)]
    await kept(redis, texts, seals)
    run(job)
    columns = "SELECT path_in_schema, sum(total_compressed_size) FROM parquet_metadata(?) GROUP BY ALL"
    sizes = dict(duckdb.execute(columns, [str(parts(job)[0])]).fetchall())
    shared, own = (seals.close(text).tools or "" for text in (texts[0], texts[7]))
    assert sizes["tools"] < len(shared) + len(own) + 8 * count
    with reader(job, keys(sealing, new=NEW)) as known:
        assert list(known.of_task("returns")) == texts
    places = {name: str(tmp_path / name) for name in ("datasets", "trainings", "spool")}
    erase(ErasureJob(redis_url=job.redis_url, folder=job.folder, until=NOW, requests=["r7"], **places))
    assert [row["tools"] for row in rows(parts(job))] == [shared] * (count - 1)


async def test_texts_are_read_by_request_and_by_task_and_time_wherever_they_are(redis: Redis, job: ArchiveJob) -> None:
    assert await kept(redis, [text(1, NOW - 60), text(2), text(3, task="other")]) == ["kept"] * 3
    assert await kept(redis, [text(2)]) == ["same"]
    assert run(job).texts == 3
    assert await kept(redis, [text(1), text(4)]) == ["same", "kept"], "an archived one is known still"
    with reader(job) as texts:
        found = texts.of_requests(["r1", "r4", "r9"])
        assert (found["r1"], found["r4"], len(found)) == (text(1, NOW - 60), text(4), 2)
        assert [each.request for each in texts.of_task("returns")] == ["r4", "r1", "r2"]
        assert [each.request for each in texts.of_task("returns", NOW - 30, NOW)] == []
        assert [each.request for each in texts.of_task("returns", None, NOW)] == ["r1"]
    run(job)
    assert int(await redis.get(BYTES_KEY) or 0) == 0
    assert await redis.xlen(STREAM_KEY) <= 1
    assert 0 < await redis.pttl(f"{TEXT_KEY}r4") <= ARCHIVED_MS


@pytest.mark.parametrize("column", [None, "text"])
async def test_texts_of_a_task_are_read_past_a_damaged_file(redis: Redis, job: ArchiveJob, column: str | None) -> None:
    await kept(redis, [text(number, NOW - DAY_SECONDS * number) for number in range(3)])
    run(job)
    damage(damaged := parts(job)[1], column)
    with reader(job) as texts:
        assert sorted(each.request for each in texts.of_task("returns")) == ["r0", "r2"]
        assert texts.archive.damaged == {str(damaged.relative_to(job.folder))}


async def test_a_text_that_can_not_be_read_is_kept_beside_until_it_is_erased(
    redis: Redis, client: Client, job: ArchiveJob, tmp_path: Path
) -> None:
    await kept(redis, [text(1), text(2), text(3)])
    newer = b'{"request": "r1", "at": "of a newer release", "text": "The vase is broken."}'
    client.set(f"{TEXT_KEY}r1", newer)
    with reader(job) as texts:
        assert [each.request for each in texts.of_task("returns")] == ["r2", "r3"]
        assert [*texts.of_requests(["r1", "r2"])] == ["r2"]
    folders = {name: str(tmp_path / name) for name in ("datasets", "trainings", "spool")}
    erasure = ErasureJob(redis_url=job.redis_url, folder=job.folder, until=NOW, requests=["r2"], **folders)
    assert (erase(erasure).texts, run(job).texts) == (1, 0)
    (path,) = Path(job.folder, "unreadable").iterdir()
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {"entry": json.loads(line)["entry"], "request": "r1", "text": newer.decode()}
    assert client.get(f"{TEXT_KEY}r1") == b""
    erasure.requests = ["r1"]
    erase(erasure)
    assert path.read_text() == ""


async def test_redis_takes_no_more_texts_than_may_wait_for_the_archive(redis: Redis, job: ArchiveJob) -> None:
    row = Seals({}, None).close(text(1))
    stream = TextStream(redis, len(msgspec.json.encode(row)))
    assert await stream.keep([row, Seals({}, None).close(text(2))]) == ["kept", "full"]
    run(job)
    assert await stream.keep([row, Seals({}, None).close(text(2))]) == ["same", "kept"]


async def test_a_text_that_is_larger_than_the_bound_waits_and_blocks_no_other(redis: Redis, job: ArchiveJob) -> None:
    stream, rows = TextStream(redis, 100), [Seals({}, None).close(text(number)) for number in range(2)]
    assert await stream.keep(rows) == ["kept", "full"]
    assert run(job).texts == 1
    assert await stream.keep(rows) == ["same", "kept"]


@pytest.mark.invariant("Every kept text is in one file of the archive, once, whatever was killed meanwhile.")
@pytest.mark.parametrize("hook", [BEFORE_RENAME, AFTER_RENAME])
async def test_a_killed_run_and_two_at_once_lose_and_double_no_text(redis: Redis, job: ArchiveJob, hook: str) -> None:
    await kept(redis, [text(number, NOW - DAY_SECONDS * (number % 2)) for number in range(20)])
    assert ended(begun(job, hook)) == -9
    await kept(redis, [text(20)])
    assert [ended(each) for each in [begun(job), begun(job)]] == [0, 0]
    with reader(job) as texts:
        assert sorted(each.request for each in texts.of_task("returns")) == sorted(f"r{n}" for n in range(21))
    (rows,) = duckdb.execute("SELECT count(*) FROM read_parquet(?)", [[str(path) for path in parts(job)]]).fetchall()
    assert rows == (21,)


async def test_texts_go_when_they_are_due_and_unlabelled_ones_before(
    redis: Redis, client: Client, job: ArchiveJob
) -> None:
    job.texts = TextRetention({"returns": TextDays(30, 14), "other": TextDays(5)}, 366)
    ages = {1: 31, 2: 20, 3: 20, 4: 13, 5: 13}
    await kept(redis, [text(n, NOW - days * DAY_SECONDS) for n, days in ages.items()])
    await kept(redis, [text(6, NOW - 6 * DAY_SECONDS, "other"), text(7, NOW - 100 * DAY_SECONDS, "gone")])
    label = FeedbackRow(request="r3", at=NOW, caller="c", feedback_id="f", metric="correct", value_boolean=True)
    lines = Path(job.folder).parent / "label.jsonl"
    lines.write_bytes(msgspec.json.encode(label))
    write_part(FolderStorage(Path(job.folder)), "feedback", lines, f"feedback/{day_of(NOW)}/part-1-1.parquet")
    assert run(job).texts_pruned == 3
    with reader(job) as texts:
        assert sorted(each.request for each in texts.of_task("returns")) == ["r3", "r4", "r5"]
        assert list(texts.of_task("other")) == []
        assert len(list(texts.of_task("gone"))) == 1
    assert client.exists(PRUNED_KEY)
    assert run(job).texts_pruned == 0, "it is looked through once an hour"


@pytest.mark.parametrize("column", [None, "at", "text"])
async def test_a_damaged_file_of_texts_stops_no_deletion_from_others(
    redis: Redis, client: Client, job: ArchiveJob, column: str | None
) -> None:
    await kept(redis, [text(n, NOW - days * DAY_SECONDS) for n, days in ((1, 9), (2, 8), (3, 8), (4, 7), (5, 1))])
    run(job)
    damage(damaged := parts(job)[1], column)
    client.delete(PRUNED_KEY)
    job.texts = TextRetention({"returns": TextDays(5)}, 366, keys("new", new=NEW))
    assert run(job).texts_pruned == 2
    assert parts(job) == [damaged, parts(job)[-1]]
    assert [(row["request"], row["key"]) for row in rows(parts(job)[1:])] == [("r5", "new")]
    damaged.unlink()
    client.delete(PRUNED_KEY)
    assert run(job).texts_pruned == 0


async def test_a_text_is_not_deleted_as_unlabelled_while_labels_are_damaged(
    redis: Redis, client: Client, job: ArchiveJob
) -> None:
    job.texts = TextRetention({"returns": TextDays(30, 14)}, 366)
    label = FeedbackRow(request="r1", at=NOW, caller="c", feedback_id="f", metric="correct", value_boolean=True)
    path = Path(job.folder, f"feedback/{day_of(NOW)}/part-1-0-1-0.parquet")
    Path(job.folder).mkdir()
    lines = Path(job.folder).parent / "label.jsonl"
    lines.write_bytes(msgspec.json.encode(label))
    write_part(FolderStorage(Path(job.folder)), "feedback", lines, f"feedback/{day_of(NOW)}/part-1-0-1-0.parquet")
    whole = path.read_bytes()
    damage(path)
    await kept(redis, [text(n, NOW - days * DAY_SECONDS) for n, days in ((1, 20), (2, 20), (3, 31))])
    assert run(job).texts_pruned == 1, "only the one that is too old in any case"
    path.write_bytes(whole)
    client.delete(PRUNED_KEY)
    assert run(job).texts_pruned == 1
    assert [row["request"] for row in rows(parts(job))] == ["r1"]


async def test_texts_under_an_old_key_come_under_the_present_one(redis: Redis, client: Client, job: ArchiveJob) -> None:
    await kept(redis, [text(1)], keys("old", old=OLD).seals())
    run(job)
    await kept(redis, [text(2)], keys("new", new=NEW).seals())
    job.texts = TextRetention({}, 366, keys("new", old=OLD, new=NEW))
    client.delete(PRUNED_KEY)
    run(job)
    with reader(job, keys("new", new=NEW)) as texts:
        assert {each.request: each for each in texts.of_task("returns")} == {"r1": text(1), "r2": text(2)}
        assert texts.unreadable == 0
    with reader(job, keys("old", old=OLD)) as texts:
        assert (list(texts.of_task("returns")), texts.unreadable) == ([], 2)


async def test_texts_of_evaluations_under_an_old_key_come_under_the_present_one(
    redis: Redis, client: Client, job: ArchiveJob
) -> None:
    sealed = {"1:": keys("old", old=OLD), "2:": keys("lost", lost=OLD), "3:": keys("new", new=NEW)}
    rows = {field: msgspec.json.encode(of.seals().close(text(1))) for field, of in sealed.items()}
    rows |= {"0:": b"{", "4:": b'{"request": 5}', "5:": b"\xff"}
    client.zadd(EVALUATIONS_KEY, {"e1": NOW, "gone": NOW})
    client.hset(key := get_evaluation_key("e1", "texts"), mapping=dict(rows))
    client.expire(key, 1000)
    job.texts = TextRetention({}, 366, keys("new", old=OLD, new=NEW))
    run(job)
    seals, found = keys("new", new=NEW).seals(), client.hgetall(key)
    assert seals.open(msgspec.json.decode(found[b"1:"], type=TextRow)) == text(1)
    assert {name: raw for name, raw in found.items() if name != b"1:"} == {
        name.encode(): raw for name, raw in rows.items() if name != "1:"
    }, "what is damaged, or lies under a lost key, is left"
    assert 0 < client.ttl(key) <= 1000
    client.delete(PRUNED_KEY)
    job.texts = TextRetention({}, 366, keys(None, new=NEW))
    run(job)
    assert client.hgetall(key) == found, "nothing is unsealed where keys are no longer used"


async def test_words_of_feedback_in_files_come_under_the_present_key(
    redis: Redis, client: Client, job: ArchiveJob
) -> None:
    words: dict[str, Any] = {"comment": "A vase", "demonstration": {"of": "vase"}, "tags": {"class": "x", "to": "vase"}}
    sealed, given = {"plain": keys(None), "old": keys("old", old=OLD), "lost": keys("lost", lost=OLD)}, []
    for number, (name, of) in enumerate(sealed.items()):
        given.append(Feedback(feedback_id=name, metric="correct", value=True, at=NOW + number, caller="c", **words))
        seals = partial(WordSeals, of.seals(), frozenset({"class"}))
        assert (await FeedbackStore(redis, 1000, 1000, seals=seals).give("r1", given[-1], "c", young=True)).outcome
    job.texts = TextRetention({}, 366, keys("new", old=OLD, new=NEW), ["class"])
    for entry in await redis.hvals("apprentice:feedback:r1"):
        await redis.xadd(FEEDBACK_STREAM_KEY, {"request": "r1", "index": "", "feedback": entry.split(b"\n", 2)[2]})
    await redis.delete("apprentice:feedback:r1")
    client.set(PRUNED_KEY, b"")
    run(job)
    (path,) = Path(job.folder).rglob("feedback/*/*.parquet")
    before = {row["feedback_id"]: row for row in rows([path])}
    assert (before["plain"]["comment"], before["old"]["comment"]) == ("A vase", None)
    earlier = Path(job.folder, "feedback/day=2020-01-01/part-1-0-1-0.parquet")  # as an earlier release wrote it
    earlier.parent.mkdir()
    columns = "* EXCLUDE (key, sealed) REPLACE ('r0' AS request)"
    plain = f"SELECT {columns} FROM read_parquet('{path}') WHERE feedback_id = 'plain'"
    duckdb.execute(f"COPY ({plain}) TO '{earlier}'")
    client.delete(PRUNED_KEY)
    run(job)
    assert [(row["request"], row["key"], row["comment"]) for row in rows([earlier])] == [("r0", "new", None)]
    after = {row["feedback_id"]: row for row in rows([path])}
    assert [(name, after[name]["key"]) for name in sealed] == [("plain", "new"), ("old", "new"), ("lost", "lost")]
    assert {row["tags"] for row in after.values()} == {'{"class":"x"}'}
    assert after["lost"] == before["lost"]
    assert b"vase" not in path.read_bytes() + repr(client.xrange(FEEDBACK_STREAM_KEY)).encode()
    stamp = path.stat().st_mtime_ns
    client.delete(PRUNED_KEY)
    run(job)
    assert path.stat().st_mtime_ns == stamp, "what is sealed is left alone"
    assert client.exists(FEEDBACK_SEALED_KEY), "who has the lost key looks again, and nobody else for a day"
    with connect_duckdb() as connection:
        read = partial(read_feedback, client, connection, FolderStorage(Path(job.folder)), ["r1"])
        assert read(keys("new", new=NEW).seals())["r1"][:2] == given[:2]
        assert [each.comment for each in read(keys(None).seals())["r1"]] == [None] * 3
        job.texts = TextRetention({}, 366, keys("new", lost=OLD, new=NEW), ["class"])
        for is_done in (False, True):
            client.delete(PRUNED_KEY)
            run(job)
            assert client.exists(FEEDBACK_SEALED_KEY) == is_done
        assert read(keys("new", new=NEW).seals())["r1"] == given


async def test_a_text_that_comes_late_under_a_former_key_is_waited_for(
    redis: Redis, client: Client, job: ArchiveJob
) -> None:
    job.texts = TextRetention({}, 366, present := keys("new", old=OLD, new=NEW))
    words, days = WordSeals(present.seals()), list[float]()

    def look(at: float) -> SealingLook:
        client.delete(PRUNED_KEY)
        delete_due_texts(client, FolderStorage(Path(job.folder)), job.texts, at)
        found = words.read_look(client.get(FEEDBACK_SEALED_KEY))
        return found or SealingLook("", 0.0, 0.0)

    for day in (0.0, 0.5, 1.0):
        found = look(NOW + day * 86_400)
        days.append(found.at)
        assert (found.since, found.frees_keys()) == (NOW, day == 1.0)
    assert days == [NOW, NOW, NOW + 86_400], "the next look is a day later"
    await kept(redis, [text(1)], keys("old", old=OLD).seals())
    run(job)
    assert look(NOW + 90_000).mark == "", "it sealed one"
    found = look(NOW + 90_001)
    assert (found.since, found.frees_keys()) == (NOW + 90_001, False)
    seals = keys("old", old=OLD).seals()
    given = Feedback(feedback_id="f", metric="correct", value=True, at=NOW, caller="c", key="old")
    given = msgspec.structs.replace(given, sealed=seals._seal(b'{"newer": 1}', "words\nr1\nc\nf"))
    client.xadd(FEEDBACK_STREAM_KEY, {"request": "r1", "feedback": msgspec.json.encode(given)})
    client.xadd(FEEDBACK_STREAM_KEY, {"request": "r1", "feedback": b"{"})
    found = look(NOW + 200_000)
    assert (found.held, found.frees_keys()) == (2, False)
    client.delete(FEEDBACK_STREAM_KEY)
    found = look(NOW + 300_000)
    assert (found.held, found.since) == (0, NOW + 300_000)


def test_a_row_in_redis_is_the_row_of_the_archive() -> None:
    row = Seals({}, None).close(text(1))
    assert msgspec.json.decode(msgspec.json.encode(row), type=TextRow) == row
