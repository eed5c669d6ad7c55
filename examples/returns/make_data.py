"""Make the training, dev and held-out rows from the templates: python examples/returns/make_data.py --seed 7

Facts are drawn so that every rule is well represented and the days crowd around the policy's limits; labels come from
`policy.py`. Training rows come in families of four: a case, and the same case in the same words with the days, the
country, or one other fact changed so that another rule applies. What a small model has to look at is then all that
differs. With `--freely`, most training rows are told without a template (`tellings.py`), in pairs. Hand-written rows
(`HAND_WRITTEN`) are never made here, only checked against.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from policy import CATEGORIES, CONDITIONS, EU, SEASONS, Facts, Season, answer_for, label_for, rule_for
from tellings import tell_freely
from templates import TEMPLATES, fill
from wordings import ABROAD_NAMES

DATA = Path(__file__).resolve().parent / "data"
HAND_WRITTEN = (DATA / "heldout_hand.jsonl", DATA / "heldout_fresh.jsonl")
RULE_SHARES = {
    "gift-card": 6, "outside-eu": 14, "defect": 12, "hygiene": 10, "no-receipt": 11, "used": 10, "window-30": 14,
    "goodwill-60": 12, "too-late": 11,
}  # fmt: skip
# The first case of a training family; the other three are mostly of the rules that are scarce here.
FIRST_SHARES = {
    "gift-card": 3, "outside-eu": 5, "defect": 9, "hygiene": 7, "no-receipt": 5, "used": 7, "window-30": 24,
    "goodwill-60": 26, "too-late": 14,
}  # fmt: skip
# The first case of a pair that is told freely.
FREE_RULE_SHARES = {
    "gift-card": 5, "outside-eu": 8, "defect": 12, "hygiene": 10, "no-receipt": 12, "used": 11, "window-30": 17,
    "goodwill-60": 14, "too-late": 11,
}  # fmt: skip
# The same for the holiday season: more of the two rules that it decides otherwise, and of their neighbours.
HOLIDAY_FIRST_SHARES = {
    "gift-card": 3, "outside-eu": 5, "defect": 7, "hygiene": 8, "no-receipt": 25, "used": 8, "window-30": 12,
    "goodwill-60": 22, "too-late": 10,
}  # fmt: skip
LIMITS = (30, 60)
FREE_SHARES = {"train": 0.8, "dev": 0.5, "heldout": 0.0}
"""The share of a split's cases that `--freely` tells without a template."""
TURNED_FIELDS = ("days", "days", "days", "receipt", "condition", "condition", "category", "country")


def draw_days(draw: random.Random) -> int:
    """Days since purchase: a quarter of them within a few days of a limit."""
    chance = draw.random()
    if chance < 0.26:
        return draw.choice(LIMITS) + draw.randint(-3, 4)
    if chance < 0.50:
        return draw.randint(0, 40)
    return draw.randint(0, 110) if chance < 0.93 else draw.randint(100, 380)


def draw_facts(rule: str, draw: random.Random) -> Facts:
    """Facts to which this rule applies, drawn by rejection so that the other facts say as little as can be."""
    for _ in range(100_000):
        abroad = draw.random() < (0.5 if rule in ("gift-card", "outside-eu") else 0.0)
        facts = Facts(
            category=draw.choice(CATEGORIES),
            days=draw_days(draw),
            receipt=draw.random() < 0.7,
            condition=draw.choice(CONDITIONS),
            country=draw.choice(sorted(ABROAD_NAMES if abroad else EU)),
        )
        if rule_for(facts) == rule:
            return facts
    raise RuntimeError(f"no facts found for the rule {rule}: is it reachable?")


def turned(facts: Facts, fields: tuple[str, ...], draw: random.Random) -> Facts:
    """The same case with one of `fields` changed, so that another rule applies wherever that can be."""
    other = facts
    for _ in range(60):
        field = draw.choice(fields)
        abroad = draw.choice(sorted(EU if facts.country in ABROAD_NAMES else ABROAD_NAMES))
        values: dict[str, Any] = {
            "days": draw_days(draw), "country": abroad, "receipt": not facts.receipt,
            "condition": draw.choice(CONDITIONS), "category": draw.choice(CATEGORIES),
        }  # fmt: skip
        other = replace(facts, **{field: values[field]})
        if rule_for(other) != rule_for(facts):
            break
    return other


def told_cases(split: str, draw: random.Random, season: Season = "regular") -> list[Facts]:
    """One case, or in training a family of four."""
    first_shares = HOLIDAY_FIRST_SHARES if season == "holiday" else FIRST_SHARES
    shares = first_shares if split == "train" else RULE_SHARES
    facts = draw_facts(draw.choices(list(shares), list(shares.values()))[0], draw)
    if split != "train":
        return [facts]
    third = ("country",) if season == "regular" else ("country", "days", "receipt")
    return [
        facts, turned(facts, ("days",), draw), turned(facts, third, draw),
        turned(facts, ("receipt", "condition", "category"), draw),
    ]  # fmt: skip


def free_cases(split: str, draw: random.Random, season: Season = "regular") -> list[Facts]:
    """One case, or in training a pair that differs in one fact."""
    shares = HOLIDAY_FIRST_SHARES if season == "holiday" else FREE_RULE_SHARES
    facts = draw_facts(draw.choices(list(shares), list(shares.values()))[0], draw)
    return [facts, turned(facts, (draw.choice(TURNED_FIELDS),), draw)] if split == "train" else [facts]


def told_rows(
    split: str, draw: random.Random, free: random.Random, told_as: str, season: Season, *, freely: bool
) -> list[tuple[Facts, str, str]]:
    """Cases of one family, each with its text and its parent: the template, or the form of what is told freely."""
    if freely and free.random() < FREE_SHARES[split]:
        told = [(facts, *tell_freely(facts, split, told_as)) for facts in free_cases(split, free, season)]
        return [(facts, text, f"{split}-{form}") for facts, text, form in told]
    template = draw.choice(TEMPLATES[split])
    return [(facts, fill(template, facts, told_as), template.id) for facts in told_cases(split, draw, season)]


def made_rows(
    split: str, count: int, seed: int, taken: set[str], season: Season = "regular", *, freely: bool = False
) -> Iterator[dict[str, object]]:
    """`count` rows of one split, labelled as the season decides; a text already in `taken` is left out."""
    draw, free = random.Random(f"{seed}-{split}"), random.Random(f"{seed}-{split}-free")
    number, family = 0, 0
    while number < count:
        family += 1
        for facts, text, parent in told_rows(split, draw, free, f"{seed}-{split}-{family}", season, freely=freely):
            if normal(text) in taken or number == count:
                continue
            taken.add(normal(text))
            number += 1
            yield {
                "id": f"{split}-{number:05}", "origin": "template", "parent": parent, "family": family,
                "facts": asdict(facts), "text": text,
                "label": label_for(facts, season) if split == "heldout" else answer_for(facts, season),
            }  # fmt: skip


def normal(text: str) -> str:
    """A text without case, punctuation and spacing, to find near-identical rows."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, object]]) -> str:
    """Write rows and return the file's sha256."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Write the three made splits and print what is in them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--train", type=int, default=12000, help="rows")
    parser.add_argument("--dev", type=int, default=220, help="rows")
    parser.add_argument("--heldout", type=int, default=400, help="rows")
    parser.add_argument("--season", choices=SEASONS, default="regular", help="whose decisions are the labels")
    parser.add_argument("--freely", action="store_true", help="tell most training rows without a template")
    parser.add_argument("--output", type=Path, default=DATA)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    taken = {normal(str(row["text"])) for path in HAND_WRITTEN if path.exists() for row in read_rows(path)}
    for split, count, name in (("heldout", asked.heldout, "heldout_templates"), ("dev", asked.dev, "dev"),
                               ("train", asked.train, "train")):  # fmt: skip
        rows = list(made_rows(split, count, asked.seed, taken, asked.season, freely=asked.freely))
        digest = write_rows(asked.output / f"{name}.jsonl", rows)
        rules = Counter(json.loads(str(row["label"]))["rule"] for row in rows)
        print(f"{name}: {len(rows)} rows, sha256 {digest}")
        print("  " + ", ".join(f"{rule} {rules[rule]}" for rule in RULE_SHARES))


if __name__ == "__main__":
    main()
