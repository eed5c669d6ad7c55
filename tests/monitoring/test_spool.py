"""The spool on disk: what is whole is replayed in its order, what is torn is cut, what is locked is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from monitoring.spool import FRAME, Spool

NAMES = [f"record {number:04}".encode() for number in range(100)]


def spool(folder: Path, name: str = "one", bytes_max: int = 1 << 20) -> Spool:
    made = Spool(folder, name, bytes_max)
    made.open()
    return made


def drained(it: Spool, count: int = 7) -> list[bytes]:
    found: list[bytes] = []
    while payloads := it.first(count):
        found += payloads
        it.forget()
    return found


def killed(it: Spool) -> None:
    """A killed process, as the kernel leaves it: its locks are gone, its files are as they were."""
    it._end_writing()
    for descriptor in it._locks.values():
        os.close(descriptor)


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """The one segment of a gateway that was killed."""
    one = spool(tmp_path)
    one.append(NAMES, 5.0)
    killed(one)
    (path,) = tmp_path.glob("*.spool")
    return path


def test_what_was_written_comes_back_in_its_order_and_nothing_stays(tmp_path: Path) -> None:
    one = spool(tmp_path)
    one.append(NAMES[:40], 5.0)
    assert one.first(3) == one.first(3) == NAMES[:3]
    one.forget()
    one.append(NAMES[40:], 6.0)
    assert one.records == 97
    assert drained(one) == NAMES[3:]
    assert (one.records, one.size_bytes, one.oldest_at) == (0, 0, None)
    one.append(NAMES[:2], 7.0)
    assert drained(one) == NAMES[:2]
    one.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 7, 12, 18])
def test_a_torn_tail_is_cut_wherever_the_kill_came(tmp_path: Path, segment: Path, cut: int) -> None:
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-cut])
    two = spool(tmp_path, "two")
    assert two.take_over() == 99
    assert drained(two) == NAMES[:99]
    assert [path.name for path in tmp_path.iterdir()] == ["two.lock"]


def test_zeros_after_a_crash_of_the_machine_are_no_records(tmp_path: Path, segment: Path) -> None:
    with segment.open("ab") as file:
        file.write(bytes(4096))
    two = spool(tmp_path, "two")
    assert two.take_over() == 100
    assert drained(two) == NAMES


def test_a_record_that_the_disk_damaged_is_left_out_and_counted(tmp_path: Path, segment: Path) -> None:
    data = bytearray(segment.read_bytes())
    data[50 * (FRAME.size + len(NAMES[0])) + FRAME.size] ^= 1
    segment.write_bytes(data)
    two = spool(tmp_path, "two")
    two.take_over()
    assert drained(two) == NAMES[:50] + NAMES[51:]
    assert two.lost == 1
    assert two.records == 0


def damage_length(segment: Path, record: int, length: int = 9_999_999) -> None:
    data = bytearray(segment.read_bytes())
    FRAME.pack_into(data, record * (FRAME.size + len(NAMES[0])), length, 0)
    segment.write_bytes(data)


def make_unreadable(segment: Path) -> None:
    """Any attempt to read it fails, as on a disk with a fault: a folder stands in its place."""
    segment.unlink()
    segment.mkdir()


def test_a_damaged_record_is_counted_once_however_often_its_replay_is_tried(tmp_path: Path) -> None:
    one = spool(tmp_path)
    one.append(NAMES, 5.0)
    (segment,) = tmp_path.glob("*.spool")
    data = bytearray(segment.read_bytes())
    data[FRAME.size] ^= 1
    segment.write_bytes(data)
    assert [one.first(10) for _ in range(4)] == [NAMES[1:10]] * 4
    assert one.lost == 0
    assert drained(one) == NAMES[1:]
    assert (one.lost, one.records) == (1, 0)


def test_what_comes_after_a_damaged_length_is_counted_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = spool(tmp_path)
    one.append(NAMES, 5.0)
    (segment,) = tmp_path.glob("*.spool")
    damage_length(segment, 40)
    assert drained(one) == NAMES[:40]
    assert (one.lost, one.records, one.size_bytes, one.oldest_at) == (60, 0, 0, None)
    assert "60 records" in caplog.text
    assert [path.name for path in tmp_path.glob("*.spool*")] == [f"{segment.name}.damaged"]
    one.append(NAMES[:2], 6.0)
    assert drained(one) == NAMES[:2]


@pytest.mark.parametrize("length", [0, 1, 11, 12, 31, 32])
def test_whatever_a_damaged_length_leads_to_each_record_is_had_or_counted(tmp_path: Path, length: int) -> None:
    one = spool(tmp_path)
    one.append(NAMES, 5.0)
    (segment,) = tmp_path.glob("*.spool")
    damage_length(segment, 97, length)
    found = drained(one)
    assert found == NAMES[: len(found)] or found == NAMES[:97] + NAMES[-(len(found) - 97) :]
    assert len(found) + one.lost == 100
    assert (one.records, one.size_bytes) == (0, 0)


def test_a_segment_that_can_not_be_read_is_set_aside_and_the_next_ones_come(tmp_path: Path) -> None:
    one = spool(tmp_path, bytes_max=1 << 13)
    one.append(NAMES, 5.0)
    (segment,) = tmp_path.glob("*.spool")
    one.append([b"after"], 6.0)
    make_unreadable(segment)
    assert drained(one) == [b"after"]
    assert (one.lost, one.records, one.size_bytes) == (100, 0, 0)
    assert [path.name for path in tmp_path.glob("*.spool*")] == [f"{segment.name}.damaged"]


def test_unreadable_spool_of_a_dead_gateway_blocks_no_other_spool(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        dead = spool(tmp_path, name, bytes_max=1 << 13)
        dead.append(NAMES, 5.0)
        dead.append([name.encode()], 6.0)
        killed(dead)
    make_unreadable(min(tmp_path.glob("b.*.spool")))
    taker = spool(tmp_path, "taker")
    assert taker.take_over() == 203
    assert drained(taker) == [*NAMES, b"a", b"b", *NAMES, b"c"]
    assert taker.lost == 1
    assert taker.take_over() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.00000001.spool.damaged", "taker.lock"]


def test_a_gateway_whose_lock_can_not_be_had_keeps_nobody_from_the_others_spools(tmp_path: Path, segment: Path) -> None:
    (tmp_path / "bad.lock").mkdir()
    (tmp_path / "a.lock").mkdir()
    taker = spool(tmp_path, "taker")
    assert taker.take_over() == 100
    assert drained(taker) == NAMES


def test_a_process_that_can_open_no_file_at_present_loses_no_record(
    tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = spool(tmp_path, "two")
    with monkeypatch.context() as full:
        full.setattr(Path, "open", no_file_left)
        assert two.take_over() == 0
    assert two.take_over() == 100
    with monkeypatch.context() as full:
        full.setattr(Path, "open", no_file_left)
        with pytest.raises(OSError, match="no file left"):
            two.first(1)
    assert drained(two) == NAMES
    assert two.lost == 0


def no_file_left(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "no file left")


def test_a_segment_that_somebody_removed_is_counted_and_stops_nothing(tmp_path: Path, segment: Path) -> None:
    two = spool(tmp_path, "two")
    two.take_over()
    two.append([b"mine"], 1.0)
    segment.unlink()
    assert drained(two) == [b"mine"]
    assert two.lost == 100


def test_one_of_two_takes_a_dead_ones_spool_over_and_its_own_comes_after(tmp_path: Path, segment: Path) -> None:
    two, three = spool(tmp_path, "two"), spool(tmp_path, "three")
    two.append([b"mine"], 9.0)
    assert (two.take_over(), three.take_over()) == (100, 0)
    assert two.first(1) == NAMES[:1]
    two.forget()
    killed(two)
    assert three.take_over() == 101
    assert sorted(drained(three)) == sorted([*NAMES, b"mine"])
    assert [path.name for path in tmp_path.iterdir()] == ["three.lock"]


def test_beyond_the_bound_the_oldest_segments_go_even_while_they_are_replayed(tmp_path: Path) -> None:
    one = spool(tmp_path, bytes_max=4096)
    dropped = sum(one.append(NAMES[n : n + 10], 1.0) for n in range(0, 100, 10))
    assert one.first(5) == NAMES[:5]
    dropped += sum(one.append(NAMES[:10], 1.0) for _ in range(20))
    one.forget()
    assert one.size_bytes <= 4096
    assert len(drained(one)) == 300 - dropped
    assert (one.records, one.size_bytes) == (0, 0)


def test_a_second_gateway_of_the_same_name_is_refused(tmp_path: Path) -> None:
    spool(tmp_path)
    with pytest.raises(OSError, match="one already"):
        spool(tmp_path)


def test_gateway_starts_though_another_checks_just_then_whether_its_name_is_free(tmp_path: Path) -> None:
    """The other one holds the name's lock for the moment of its look, and nobody takes a name meanwhile."""
    gate, looked = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path / "one.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(gate, fcntl.LOCK_EX)
    fcntl.flock(looked, fcntl.LOCK_EX)

    def end() -> None:
        os.close(looked)
        os.close(gate)

    ends = threading.Timer(0.05, end)
    ends.start()
    it = spool(tmp_path)
    ends.join()
    assert it.append([b"a record"], 1.0) == 0
