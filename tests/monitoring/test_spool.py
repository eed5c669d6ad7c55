"""The spool on disk: what is whole is replayed in its order, what is torn is cut, what is locked is left alone."""

from __future__ import annotations

import os
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
    """What the kernel does when a process is killed: its locks are gone, its files are as they were."""
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
