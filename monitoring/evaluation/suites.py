"""Suites: data sets of a task on which its versions are evaluated repeatedly. Pure.

A task's suites are its own (`newest` and `older`, which show what was forgotten), general skills, and hard cases from
production. Comparisons on them stay valid after a newer suite: the data identify the kind of their suite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from monitoring.evaluation.gate import NEWEST, OLDER, Comparison

SuiteKind = Literal["newest", "general", "hard"]
KindNow = Literal["newest", "older", "general", "hard"]


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """A suite. `kind` is its kind when it was added: of several `newest` the last one counts, and the others are older.

    `metric` and `class_field` are used if an evaluation names none. `counts` are the numbers of rows by slice and
    value: class, source, language and length. If rows were `erased` since, the digest is only a name.
    """

    task: str
    digest: str
    kind: KindNow
    rows: int
    groups: int
    metric: str = ""
    class_field: str = ""
    counts: dict[str, dict[str, int]] = {}
    notes: tuple[str, ...] = ()
    by: str = ""
    created_at: float = 0.0
    erased: int = 0

    @property
    def data_digest(self) -> str:
        """The digest of its present rows."""
        return self._digest_without(self.erased)

    def list_digests(self) -> list[str]:
        """The digests of its rows, now and before each possible erasure."""
        return [self._digest_without(erased) for erased in range(self.erased + 1)]

    def _digest_without(self, erased: int) -> str:
        named = f"{self.digest} without {erased} rows"
        return hashlib.sha256(named.encode()).hexdigest() if erased else self.digest


def kinds_of(suites: Sequence[Suite]) -> Mapping[str, KindNow]:
    """The present kind of each of a task's suites, by digest: `newest`, `older`, `general` or `hard`."""
    newest = max((suite for suite in suites if suite.kind == NEWEST), key=lambda suite: suite.created_at, default=None)
    return {suite.digest: OLDER if suite.kind == NEWEST and suite != newest else suite.kind for suite in suites}


def name_kinds(comparisons: Mapping[str, Comparison], suites: Sequence[Suite]) -> dict[str, Comparison]:
    """The comparisons, each with the present kind of its suite. A comparison on a removed suite of the task's own stays
    until there is another `newest` one."""
    kinds = kinds_of(suites)
    of_data = {digest: kinds[suite.digest] for suite in suites for digest in suite.list_digests()}
    updated = {}
    for name, comparison in comparisons.items():
        kind = of_data.get(comparison.data_digest, comparison.suite) if comparison.suite else ""
        is_gone = kind in (NEWEST, OLDER) and comparison.data_digest not in of_data
        if not (is_gone and NEWEST in kinds.values()):
            updated[name] = msgspec.structs.replace(comparison, suite=kind)
    return updated
