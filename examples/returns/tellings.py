"""Training cases told freely: clauses in any order, joined in many ways, with things beside the point among them.

The phrases are in `phrases.py`. Of each bank, one phrase in seven is kept for dev rows, which no training row has.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fresh import (
    MORE_ASIDES,
    MORE_DELIVERIES,
    MORE_HABITS,
    MORE_NOTES,
    MORE_PURCHASES,
    MORE_RECEIPTS,
    MORE_STATES,
    MORE_TIMES,
)
from habits import HABITS, HABITUAL_RECEIPTS, PLACE_FRAGMENTS, THING_AND_PLACE, THING_CLAUSES, TIME_CLAUSES
from phrases import (
    ADJECTIVES,
    ASIDES,
    CLOSINGS,
    DELIVERIES,
    FIELD_NAMES,
    LOOSE_SPANS,
    LOOSE_TIMES,
    MORE_ITEMS,
    NAMES,
    OPENINGS,
    PERSONS,
    PURCHASES,
    expand,
)
from policy import CATEGORIES, EU, Facts
from states import RECEIPTS, STATE_NOTES, STATES
from templates import spell
from wordings import ABROAD_NAMES, CITIES, COUNTRY_CODES, ITEMS, OTHER_NAMES

Draw = Callable[[str], random.Random]
MORE_CITIES: dict[str, tuple[str, ...]] = {
    "Austria": ("Vienna", "Graz"), "Belgium": ("Brussels", "Antwerp"), "Bulgaria": ("Sofia",), "Croatia": ("Zagreb",),
    "Cyprus": ("Nicosia",), "Czechia": ("Prague", "Brno"), "Denmark": ("Copenhagen",
    "Aarhus"), "Estonia": ("Tallinn",),
    "Finland": ("Helsinki", "Turku"), "France": ("Paris", "Lyon", "Nice"), "Germany": ("Berlin", "Munich", "Hamburg"),
    "Greece": ("Athens",), "Hungary": ("Budapest",), "Ireland": ("Dublin", "Cork"), "Italy": ("Rome", "Milan",
    "Naples"),
    "Latvia": ("Riga",), "Lithuania": ("Vilnius",), "Malta": ("Valletta",), "Netherlands": ("Rotterdam", "Utrecht"),
    "Poland": ("Warsaw", "Krakow"), "Portugal": ("Lisbon",
    "Porto"), "Romania": ("Bucharest",), "Slovakia": ("Bratislava",),
    "Slovenia": ("Ljubljana",), "Spain": ("Madrid", "Seville"), "Sweden": ("Gothenburg", "Malmo"),
    "Switzerland": ("Zurich", "Basel"), "Norway": ("Bergen", "Oslo"), "United Kingdom": ("Leeds", "Edinburgh"),
    "United States": ("Boston", "Chicago"), "Canada": ("Toronto", "Vancouver"), "Australia": ("Perth", "Brisbane"),
    "Japan": ("Osaka",), "Brazil": ("Rio de Janeiro",), "Turkey": ("Izmir",), "Ukraine": ("Lviv",),
    "Serbia": ("Novi Sad",),
    "Iceland": ("Reykjavik",), "Mexico": ("Mexico City",), "India": ("Bangalore",), "South Korea": ("Incheon",),
    "New Zealand": ("Wellington",), "Israel": ("Tel Aviv",), "South Africa": ("Cape Town",),
    "Argentina": ("Buenos Aires",),
}  # fmt: skip
SHORT_FORMS = (
    ("receipt", "rcpt"), ("without", "w/o"), ("with", "w/"), (" and ", " & "), ("please", "pls"), ("delivered",
    "dlvd"),
    ("weeks", "wks"), ("months", "mths"), ("because", "bc"), ("you", "u"), ("thanks", "thx"), (" euros", " eur"),
)  # fmt: skip


def part_of(bank: Sequence[str], split: str) -> Sequence[str]:
    """The phrases of a bank that belong to the split."""
    if len(bank) < 7:
        return bank
    return [phrase for number, phrase in enumerate(bank) if (number % 7 == 3) == (split == "dev")]


def count_of(number: int, unit: str, draw: random.Random) -> str:
    """A number of units, in figures or in words: "3 weeks", "a week", "twelve days"."""
    if number == 1:
        return draw.choice((f"a {unit}", f"one {unit}", f"1 {unit}"))
    return f"{spell(number) if draw.random() < 0.4 else number} {unit}s"


def tell_span(days: int, draw: random.Random) -> str:
    """A span of time that leaves no doubt on which side of the policy's limits it is."""
    ways: list[tuple[float, Callable[[], str]]] = [(5.0, lambda: count_of(days, "day", draw) if days else "no time")]
    weeks, rest = divmod(days, 7)
    if 1 <= weeks <= 17:
        joint = draw.choice((" and ", " and ", " plus ", ", "))
        odd = f"{joint}{count_of(rest, 'day', draw)}" if rest else ""
        ways.append((1.0 if rest else 4.0, lambda: count_of(weeks, "week", draw) + odd))
    if days in (14, 28):
        ways.append((1.5, lambda: "a fortnight" if days == 14 else "two fortnights"))
    months, over = divmod(days, 30)
    if 1 <= months <= 6 and 3 <= over <= 26:
        more = count_of(over // 7, "week", draw) if over % 7 == 0 else count_of(over, "day", draw)
        ways.append((1.0, lambda: f"{count_of(months, 'month', draw)} and {more}"))
    loose = [phrase for low, high, phrase in LOOSE_SPANS if low <= days <= high]
    if loose:
        ways.append((4.0, lambda: expand(draw.choice(loose), draw)))
    return draw.choices([way for _, way in ways], [weight for weight, _ in ways])[0]()


def tell_time(days: int, draw: random.Random) -> str:
    """The time of the purchase, seen from today."""
    named = [phrase for low, high, phrase in LOOSE_TIMES + MORE_TIMES if low <= days <= high]
    if days == 0 or (named and draw.random() < 0.4):
        return expand(draw.choice(named), draw)
    if days <= 25 and draw.random() < 0.08:
        day = draw.randint(1, 28 - days)
        return f"on the {ordinal(day)}, today is the {ordinal(day + days)} of the same month"
    if 31 <= days <= 45 and draw.random() < 0.08:
        return f"{days} days ago, {count_of(days - 30, 'day', draw)} past the thirty"
    return expand("{span} [ago|ago|ago|ago|back]", draw).replace("{span}", tell_span(days, draw))


def ordinal(day: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day not in (11, 12, 13) else 0, "th")
    return f"{day}{ending}"


def name_country(facts: Facts, draw: random.Random) -> str:
    """The country, sometimes with a city before it, sometimes the city alone."""
    country = draw.choice(OTHER_NAMES.get(facts.country, (facts.country,)))
    cities = MORE_CITIES.get(facts.country, ()) + CITIES.get(facts.country, ())
    chance = draw.random()
    if chance < 0.22 and cities:
        return draw.choice(cities) + draw.choice((", ", ", ", " in ", " (", " - ")) + country
    if chance < 0.30 and facts.country in MORE_CITIES:
        return draw.choice(MORE_CITIES[facts.country])
    return country


def pick_state(facts: Facts, split: str, draw: random.Random) -> str:
    chance, (kind, condition) = draw.random(), (facts.category, facts.condition)
    if chance < 0.5:
        return draw.choice(list(part_of(HABITS[kind][condition] + MORE_HABITS[kind][condition], split)))
    if chance < 0.7:
        return draw.choice(list(part_of(MORE_STATES[condition] + CLAUSES["state", condition], split)))
    bank = STATES[facts.condition]
    own = bank.get(facts.category, ())
    chosen = own if own and draw.random() < 0.35 else part_of(bank["any"], split)
    return draw.choice(list(chosen))


def pick_receipt(facts: Facts, split: str, draw: Draw) -> str:
    said = CLAUSES["receipt", "yes" if facts.receipt else "no"]
    banks = (RECEIPTS[facts.receipt], HABITUAL_RECEIPTS[facts.receipt], MORE_RECEIPTS[facts.receipt], said)
    papers = draw("kind of receipt").choices(banks, (2, 2, 2, 3))[0]
    return draw("receipt").choice(list(part_of(papers, split)))


def upper(clause: str) -> str:
    return clause[:1].upper() + clause[1:]


def make_words(facts: Facts, draw: Draw) -> dict[str, str]:
    """The words for the slots of the phrases."""
    beside = draw("beside")
    shares = [share for share, _ in PERSONS]
    person = draw("person").choices([words for _, words in PERSONS], shares)[0]
    item = draw("item").choice(ITEMS[facts.category] + MORE_ITEMS[facts.category])
    kind = beside.choice([name for name in CATEGORIES if name not in (facts.category, "gift card")])
    other = beside.choice(ITEMS[kind])
    elsewhere = beside.choice(sorted(ABROAD_NAMES if beside.random() < 0.5 else EU))
    adjective = ADJECTIVES[facts.country]
    return person | {
        "item": item, "other": other, "Other": upper(other), "it": "it",
        "country": name_country(facts, draw("country")),
        "elsewhere": OTHER_NAMES.get(elsewhere, (elsewhere,))[0],
        "a_adj": ("an " if adjective[0] in "AEIO" else "a ") + adjective, "ago": tell_time(facts.days, draw("time")),
        "span": tell_span(facts.days, draw("span")), "order": str(beside.randrange(1000, 99999)),
        "price": str(beside.randrange(5, 400)), "small": str(beside.randrange(2, 10)),
        "age": str(beside.randrange(17, 90)),
        "name": beside.choice(NAMES), "bare": strip_article(item), "n": str(facts.days), "spelled": spell(facts.days),
    }  # fmt: skip


def strip_article(item: str) -> str:
    return re.sub(r"^(a|an|some|the) (pair of |set of |pack of )?", "", item)


def join_clauses(clauses: list[str], draw: random.Random) -> str:
    """The clauses one after the other, as sentences, as one sentence, or in a mixture of both."""
    manner = draw.random()
    text, starts = "", True
    for number, clause in enumerate(clauses):
        text += upper(clause) if starts else clause
        if number == len(clauses) - 1:
            break
        full_stop = manner < 0.35 or (manner < 0.8 and draw.random() < 0.45)
        joint = ". " if full_stop else draw.choice((", ", ", ", " and ", "; ", ", and ", " - ", "... ", ", but ", "\n"))
        text, starts = text + joint, full_stop or joint in ("... ", "\n")
    return text


def begin_story(split: str, draw: Draw) -> list[str]:
    """The clauses that tell thing, time and place: a sentence for thing and time, or a fragment for each."""

    def pick(*banks: Sequence[str]) -> list[str]:
        return [draw(f"clause {number}").choice(list(part_of(bank, split))) for number, bank in enumerate(banks)]

    chance = draw("kind of story").random()
    if chance < 0.35:
        return pick(PURCHASES + MORE_PURCHASES, DELIVERIES + MORE_DELIVERIES)
    if chance < 0.50:
        return pick(PURCHASES + MORE_PURCHASES, PLACE_FRAGMENTS)
    if chance < 0.70:
        return pick(THING_AND_PLACE, TIME_CLAUSES)
    return pick(THING_CLAUSES, TIME_CLAUSES, PLACE_FRAGMENTS)


def tell_story(facts: Facts, split: str, draw: Draw) -> str:
    """A case in sentences."""
    words = make_words(facts, draw)
    order = draw("order")
    clauses = [
        *begin_story(split, draw), pick_receipt(facts, split, draw), pick_state(facts, split,
        draw("state")),
    ]  # fmt: skip
    if order.random() < 0.7:
        order.shuffle(clauses)
    asides = order.choices((0, 1, 2, 3), (60, 27, 10, 3))[0]
    for aside in order.sample(list(part_of(ASIDES + MORE_ASIDES, split)), asides):
        clauses.insert(order.randint(0, len(clauses)), aside)
    filled = [expand(clause, draw(f"words {clause}")).format(**words) for clause in clauses]
    opening, closing = (draw(name).choice(list(part_of(bank, split))) for name, bank in
                        (("opening", OPENINGS), ("closing", CLOSINGS)))  # fmt: skip
    body = join_clauses(filled, draw("joints"))
    ends = (
        ""
        if closing.startswith(" [Can") and order.random() < 0.2
        else draw("end").choice((".", ".", ".", ".", "", "!"))
    )
    text = expand(opening, draw("opening words")) + body + ends + expand(closing, draw("closing words"))
    text = re.sub(r"\bi(?=[' ])", "I", text.format(**words) if "{" in text else text)
    return upper(text.strip())


def read_texts(name: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """The lines of a file by the two facts that stand before each text."""
    texts: dict[tuple[str, str], tuple[str, ...]] = {}
    for line in (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines():
        one, other, text = line.split("|", 2)
        texts[one, other] = (*texts.get((one, other), ()), text)
    return texts


MESSAGES = read_texts("messages.txt")
"""Whole messages by product category and condition."""
CLAUSES = read_texts("clauses.txt")
"""More clauses of a receipt ("yes", "no") and of a state (a condition)."""


def tell_message(facts: Facts, split: str, draw: Draw) -> str:
    """A case in a message that was written as a whole, but for its time, place and receipt."""
    words = make_words(facts, draw) | PERSONS[0][1]
    receipt = expand(pick_receipt(facts, split, draw), draw("words of receipt")).format(**words)
    message = draw("message").choice(list(part_of(MESSAGES[facts.category, facts.condition], split)))
    return message.format(
        ago=words["ago"], span=words["span"], place=words["country"], receipt=receipt, Receipt=upper(receipt)
    )


def tell_note(facts: Facts, split: str, draw: Draw) -> str:
    """A case as fields with or without names, in any order."""
    words, look = make_words(facts, draw), draw("look")
    bare = words["bare"]
    yes = ("yes", "y", "yes", "available", "ok", "there", "1", "true", "have it", "attached")
    no = ("no", "n", "no", "none", "missing", "lost", "0", "false", "-", "not available")
    country = look.choice((words["country"], words["country"], COUNTRY_CODES[facts.country], facts.country))
    named = look.random() < 0.62
    paper = draw("paper").choice(("receipt", "receipt", "invoice", "bill", "proof of purchase"))
    age_name = "days" if look.random() < 0.5 else "age"
    values = {
        "item": look.choice((bare, bare, words["item"], facts.category, f"{bare} ({facts.category})")),
        age_name: str(facts.days) if age_name == "days" else draw("age").choice((words["ago"],
        f"{words['span']} ago")),
        "receipt": draw("yes").choice(yes if facts.receipt else no),
        "state": draw("note").choice(list(part_of(STATE_NOTES[facts.condition] + MORE_NOTES[facts.condition], split))),
        "country": country,
    }  # fmt: skip
    if not named:
        short = draw("age").choice(
            (f"{facts.days} days", f"{facts.days}d", words["ago"], words["span"], f"{facts.days} days old")
        )
        values[age_name] = short
        told = ("with {}", "{} ok", "{} yes", "has {}", "{} there", "{} kept", "{} in hand") if facts.receipt else (
            "no {}", "without {}", "{} lost", "no {}", "{} missing", "w/o {}", "{} gone")  # fmt: skip
        values["receipt"] = draw("yes").choice(told).format(paper)
        values["country"] = look.choice(("{}", "{}", "to {}", "delivered {}", "shipped to {}", "{} address")).format(
            country
        )
    names = list(values)
    if look.random() < 0.75:
        look.shuffle(names)
    extras = [look.choice((f"order {words['order']}", f"price {words['price']}", f"customer {words['name']}"))]
    keys = {name: draw(f"key {name}").choice(list(part_of(FIELD_NAMES[name], split))) for name in names}
    if draw("caps").random() < 0.3:
        keys = {name: key.upper() if draw("caps all").random() < 0.3 else upper(key) for name, key in keys.items()}
    form = look.choice((": ", ": ", "=", " - ", " = ", ":")) if named else ""
    fields = [f"{keys[name]}{form}{values[name]}" if named else values[name] for name in names]
    if look.random() < 0.25:
        fields.insert(look.randint(0, len(fields)), extras[0])
    if named and look.random() < 0.12:
        return "{" + ", ".join(f'"{keys[name]}": "{values[name]}"' for name in names) + "}"
    between = look.choice(("\n", "\n", ", ", ", ", "; ", " | ", ". ", " / ", " - ", "\n- ", "\n* ", " , "))
    opening = look.choice(
        ("", "", "", "Return: ", "return? ", "RMA: ", "Case: ", "New return\n", "refund? ", "for decision: ")
    )
    return opening + between.join(fields) + look.choice(("", "", ".", " ?", "", " - return ok?"))


FORMS = {"note": (0.2, tell_note), "message": (0.4, tell_message), "story": (0.4, tell_story)}
"""The forms, each with its share and how it is told."""


def roughen(text: str, draw: random.Random) -> str:
    """The text as people type it in haste: small letters, lost marks, short forms, slips of the finger."""
    chance = draw.random()
    if chance < 0.55:
        return text
    if chance < 0.60:
        return text.upper()
    if draw.random() < 0.75:
        text = text.lower()
    if draw.random() < 0.5:
        text = text.replace("'", "")
    if draw.random() < 0.25:
        text = re.sub(r"[,;.!]+(?= |$)", "", text)
    if draw.random() < 0.2:
        text = re.sub(r"\b(a|an|the) ", "", text)
    if draw.random() < 0.3:
        for long, short in draw.sample(SHORT_FORMS, 5):
            text = text.replace(long, short)
    if chance > 0.78:
        rate = draw.choice((0.06, 0.12, 0.2))
        text = re.sub(r"[A-Za-z]{5,}", lambda word: slip(word.group(), rate, draw), text)
    return text


def slip(word: str, rate: float, draw: random.Random) -> str:
    """A word, at times with a letter lost, doubled, swapped with the next, or another in its place."""
    if draw.random() > rate:
        return word
    at = draw.randrange(1, len(word) - 1)
    return draw.choice((
        word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:], word[:at] + draw.choice("aeiourtn") + word[at + 1 :],
    ))  # fmt: skip


def tell_freely(facts: Facts, split: str, seed: str) -> tuple[str, str]:
    """The text of a case and the form it is told in.

    Each part draws from a source of its own, so with the same `seed` two cases that differ in one fact are told alike.
    """

    def draw(part: str) -> random.Random:
        return random.Random(f"{seed}-{part}")

    form = draw("form").choices(tuple(FORMS), [share for share, _ in FORMS.values()])[0]
    return roughen(FORMS[form][1](facts, split, draw), draw("rough")), form
