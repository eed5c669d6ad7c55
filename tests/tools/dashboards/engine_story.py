"""The engines of the made-up day, told in vLLM's own metrics."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fakes.metrics import Count, exposition

ADAPTERS = ("returns@v1", "returns@v2", "contracts@v3")


@dataclass
class Batch:
    """The requests that wait for a place among the adapters."""

    waiting: int = 0


@dataclass
class Engine:
    """One engine of the story. `hits` is its prefix cache's share."""

    pool: str
    replica: str
    draw: random.Random
    hits: float
    started_at: float = 0.0
    max_loras: int = 4
    in_flight: int = 0
    count: Count = field(default_factory=Count)
    adapters: Batch = field(default_factory=Batch)

    @property
    def model(self) -> str:
        """The base model's name."""
        return f"base-{self.pool}"

    def live(self, busy: float, seconds: float) -> None:
        """A part of its life, with a request in two seconds."""
        draw, slow, at = self.draw, 3.0 if self.pool == "general" else 1.0, 0.0
        for _ in range(round(busy * seconds / 2)):
            prompt, made = draw.randrange(80, 900), draw.randrange(10, 60)
            waits, reads = draw.expovariate(100), 0.04 * slow * draw.lognormvariate(0, 0.4)
            each = 0.006 * slow * draw.lognormvariate(0, 0.2)
            self.count.end(at, at + waits + reads, prompt, made, queued=waits, now=at + waits + reads + made * each)
            self.count.histograms["time_to_first_token_seconds"].observe(waits + reads)
            self.count.histograms["inter_token_latency_seconds"].observe(each)
            self.count.prefix_hits += round(self.hits * prompt)
            self.count.finished[draw.choice(("stop", "stop", "stop", "length"))] += 1
        self.count.preemptions += draw.random() < 0.02
        self.in_flight = draw.randrange(1, 3 + round(30 * busy * slow))
        self.adapters.waiting = draw.choice((0, 0, 0, 0, 1, 2))

    def sampled(self, at: float, up: bool) -> Iterator[str]:
        """Its metrics at this moment, as Prometheus would scrape them."""
        own = f'instance="{self.replica}:8000",job="engines"'
        yield f"up{{{own}}} {int(up)} {at:.3f}\n"
        self.count.adapters_ran = {",".join(self.draw.sample(ADAPTERS, 2)): at}
        text = exposition(self) if up else ""
        for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line.startswith("vllm:")):
            yield f"{name[:-1]},{own}}} {value} {at:.3f}\n"
