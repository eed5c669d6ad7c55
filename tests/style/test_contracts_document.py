"""docs/contracts.md names every wording that is taken for a refusal, and the bounds that hold."""

from __future__ import annotations

import re

from router.acceptance import ORDER
from router.arguments import PARAMETERS_BYTES_MAX
from router.contract import ANSWER_LENGTH_MAX, KEYS
from router.refusals import REFUSAL_LENGTH_MAX, WORDINGS
from tests.style.source import ROOT
from tests.style.tables import code, table

DOCUMENT = "docs/contracts.md"
TEXT = (ROOT / DOCUMENT).read_text(encoding="utf-8")


def test_every_wording_is_in_the_document_and_nothing_else() -> None:
    found = table(DOCUMENT, "Language", "May go before", "Refuses")
    told = {row[0]: tuple(re.findall(r"`([^`]+)`", cell) for cell in row[1:]) for row in found}
    wanted = {name: ([text.strip() for text in one.apologies], list(one.openings)) for name, one in WORDINGS.items()}
    assert told == wanted


def test_every_rung_is_there_in_its_order_and_the_bounds_are_those_of_the_code() -> None:
    rungs = table(DOCUMENT, "Rung", "Fires where", "Never where")
    assert [code(row[0]) for row in rungs] == list(ORDER)
    assert re.findall(r"`(\w+)`", rungs[0][1])[: len(KEYS)] == list(KEYS)
    for bound in (
        f"{ANSWER_LENGTH_MAX:,} characters",
        f"{PARAMETERS_BYTES_MAX:,} bytes",
        f"{REFUSAL_LENGTH_MAX} characters",
    ):
        assert bound in TEXT
