"""MiniLM, the optional second embedding, in both of its forms: `python -m benchmarks.minilm [--json]`.

ms             a text's time on one core, by the CPU time of the thread, for texts of 40, 200 and 800 characters
outside_ms     of that what is not the net, which alone keeps the interpreter from an event loop in another thread
late_ms        how late a timer of 1 ms in an event loop comes while texts of 800 characters are embedded in a thread
               beside it, by the clock; `idle_late_ms` the same without them
cosine         of int8 to float32, over all texts of the sample
auroc          of the distance to the nearest training prompt as a score for out of scope, in each form, on CLINC150

The texts are CLINC150's, joined for the longer ones. The goal: less than 2 ms outside the net, and int8 costs no more
than 0.002 of the AUROC.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, say, table
from router.embedding import EmbeddingError, Vectors
from router.minilm import MiniLM, write

CHARACTERS = (40, 200, 800)
TEXTS = 100
BESIDE_SECONDS = 2.0
TICK_SECONDS = 0.001
FORMS = ("int8", "float32")
OUTSIDE_MS_GOAL = 2.0
LOSS_GOAL = 0.002


class Timed:
    """The session, and the CPU time that the net takes of the calling thread."""

    def __init__(self, session: Any) -> None:
        self._session, self.seconds = session, 0.0

    def run(self, *asked: Any) -> Any:
        """As the session does it."""
        began = time.thread_time()
        found = self._session.run(*asked)
        self.seconds += time.thread_time() - began
        return found


def times(minilm: MiniLM, texts: Sequence[str]) -> dict[str, float]:
    """Medians of a text's time, whole and outside the net, and the longest of the latter."""
    watched = Timed(minilm._session)
    timed = MiniLM(minilm.name, watched, minilm._tokenizer)
    figures, longest = {}, 0.0
    for length in CHARACTERS:
        whole, outside = [], []
        for at in range(TEXTS):
            text = " ".join(texts[20 * at : 20 * at + 40])[:length]
            inside, began = watched.seconds, time.thread_time()
            timed.embed([text])
            whole.append(time.thread_time() - began)
            outside.append(whole[-1] - (watched.seconds - inside))
        figures[f"ms_{length}"] = 1e3 * float(np.median(whole))
        figures[f"outside_ms_{length}"] = 1e3 * float(np.median(outside))
        longest = max(longest, *outside)
    return {**figures, "outside_ms_max": 1e3 * longest}


async def late(minilm: MiniLM | None, text: str) -> Vectors:
    """How late each tick is, in ms, while the text is embedded again and again in a thread, or while nothing is."""
    found: list[float] = []
    end = time.perf_counter() + BESIDE_SECONDS

    def embed() -> None:
        while minilm is not None and time.perf_counter() < end:
            minilm.embed([text])

    beside = asyncio.create_task(asyncio.to_thread(embed))
    while time.perf_counter() < end:
        due = time.perf_counter() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        found.append(1e3 * max(0.0, time.perf_counter() - due))
    await beside
    return np.array(found, np.float32)


def auroc(inside: Vectors, outside: Vectors) -> float:
    """How often a score of `outside` is above one of `inside`; ties count half."""
    ordered = np.sort(inside)
    below = np.searchsorted(ordered, outside, "left") + np.searchsorted(ordered, outside, "right")
    return float(below.mean() / (2 * len(ordered)))


def sample(file: Path, rows: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Training prompts, and texts inside and outside of what they cover."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unmeasurable(f"{file} can not be read: name the folder of clinc150/data_full.json in --data.") from error
    draw = random.Random(seed)
    parts = ((data["train"], 3 * rows), (data["test"], rows), (data["oos_test"], rows))
    train, inside, outside = ([text for text, _ in draw.sample(part, min(size, len(part)))] for part, size in parts)
    return train, inside, outside


def measured(asked: Any) -> dict[str, float]:
    """All figures."""
    train, inside, outside = sample(asked.data / "clinc150" / "data_full.json", asked.rows, asked.seed)
    figures: dict[str, float] = {}
    vectors: dict[str, Vectors] = {}
    for form in FORMS:
        path = FOLDER / "minilm" / f"{form}.onnx"
        try:
            say(f"{form}: written, unless it is there")
            write(path, form)
            minilm = MiniLM.load(path)
        except EmbeddingError as error:
            raise Unmeasurable(str(error)) from error
        say(f"{form}: times")
        figures |= {f"{form}_{name}": one for name, one in times(minilm, train).items()}
        for name, beside in (("idle_late", None), ("late", minilm)):
            ticks = uvloop.run(late(beside, " ".join(train)[:800]))
            figures |= {f"{form}_{name}_ms_p{part}": float(np.percentile(ticks, part)) for part in (50, 99)}
        say(f"{form}: {len(train) + len(inside) + len(outside)} texts")
        known = minilm.embed(train)
        vectors[form] = minilm.embed([*inside, *outside])
        distances = 1 - (vectors[form] @ known.T).max(1)
        figures[f"{form}_auroc"] = auroc(distances[: len(inside)], distances[len(inside) :])
    likeness = np.sum(vectors["int8"] * vectors["float32"], 1)
    figures |= {"cosine_mean": float(likeness.mean()), "cosine_min": float(likeness.min())}
    return figures | {"auroc_loss": figures["float32_auroc"] - figures["int8_auroc"]}


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    head = [f"at most {report['rows']} texts in and out of scope each", "measured"]
    return table(head, [[name, one] for name, one in report["figures"].items()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("minilm", "MiniLM, the optional second embedding, in both forms.", full="all rows: two minutes")
    parser.add_argument("--data", type=Path, required=True, help="the folder with clinc150/data_full.json")
    parser.add_argument("--rows", type=int, help="texts in and out of scope each, at least 100 (default 500)")
    asked = parser.parse_args(arguments)
    asked.rows = asked.rows or (5000 if asked.full else 500)
    if asked.rows < 100:
        parser.error("--rows: at least 100, or no figure says anything")

    def measure() -> tuple[dict[str, Any], list[str]]:
        return {"rows": asked.rows, "figures": measured(asked)}, []

    goals = [
        *(Goal(f"{form}_outside_ms_max", at_most=OUTSIDE_MS_GOAL) for form in FORMS),
        Goal("auroc_loss", at_most=LOSS_GOAL),
    ]
    return conclude("minilm", measure, goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
