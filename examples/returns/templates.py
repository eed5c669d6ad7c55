"""Templates: the frames in which a case is told, and how a frame is filled from the facts.

Slots: {P} {R} {C} {D} {F} are sentences on purchase, receipt, condition, delivery and something beside the point;
in lower case the same as clauses; {MIX} is P, R, C and D in any order, {mix} the same in one sentence. {R3}/{r3} tell
the receipt in the third person, {cn} is the condition as a note, {rn} the receipt as yes or no. A template belongs to
one split, and so do the words it is filled with (`wordings.py`).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from policy import Facts
from wordings import (
    CITIES,
    CONDITION,
    CONDITION_NOTE,
    COUNTRY_CODES,
    DELIVERY,
    FILLERS,
    ITEMS,
    OTHER_NAMES,
    PURCHASE,
    RECEIPT,
    RECEIPT_THIRD,
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """One frame. `noise` is none, chat (small letters, lost apostrophes) or typos (letters swapped as well)."""

    id: str
    split: str
    text: str
    noise: str = "none"


def _frames(split: str, style: str, noise: str, *texts: str) -> tuple[Template, ...]:
    return tuple(Template(f"{split}-{style}-{number:02}", split, text, noise) for number, text in enumerate(texts, 1))


TRAIN = (
    *_frames(
        "train",
        "mail",
        "none",
        "Dear Sir or Madam,\n\n{P}. {C}. {R}. {D}. May I return it?\n\nYours faithfully",
        "Hello,\n\n{MIX}. Can I send it back?\n\nBest regards",
        "Dear customer service,\n\n{P}. {D}. {R}. {C}. {F}.\n\nKind regards",
        "Good morning,\n\n{F}. {MIX}. Please let me know whether a return is possible.\n\nThank you",
        "Hello team,\n\n{D} and {p}. {C}. {R}. What can you do for me?\n\nGreetings",
        "To whom it may concern,\n\nI am writing about a return. {MIX}. {F}.\n\nSincerely",
        "Dear team,\n\n{R} and {c}. {P}. {D}. I would be glad to hear from you.",
        "Hi there,\n\n{P}, {r}. {C}. {D}. {F}.\n\nCheers",
        "Subject: return of an order\n\n{MIX}. How do I proceed?",
        "Subject: refund request\n\nHello, {p}. {D}. {C}, and {r}. {F}. Many thanks!",
    ),
    *_frames(
        "train",
        "plain",
        "none",
        "{MIX}. Can I return it?",
        "{MIX}. {F}.",
        "{P}. {R}. {C}. {D}.",
        "{F}. {MIX}.",
        "{mix}. Will you take it back?",
        "{C}. {D}. {P}. {R}. Is a refund possible?",
        "Can I give this back? {MIX}.",
        "I have a question about a return. {MIX}.",
        "{P} but {c}. {R}. {D}.",
        "{D}. {P}. {F}. {C}. {R}. What now?",
        "{R}, {c}, {d}. {P}.",
        "Return please: {mix}.",
        "{P}. {F}. {C}. {F2}. {R}. {D}.",
        "Is it too late? {MIX}.",
        "{C} and {r}. {D}. {P}.",
    ),
    *_frames(
        "train",
        "chat",
        "chat",
        "hi, {mix}. can i return it?",
        "hey {p}, {c}, {r}, {d}. refund?",
        "{P}. {C}. {R}. {D}. pls help",
        "question: {mix}",
        "hi! {MIX}. thx",
        "hello?? {p} and {d}. {c}. {r}",
        "so {p}. {f}. {c}. {r}. {d}",
        "yo, {d}, {p}, {r}, {c}. ok to send back?",
        "{c}, {r}. {p}. {d}",
        "good evening. {MIX}",
    ),
    *_frames(
        "train",
        "typos",
        "typos",
        "{MIX}. can i retrun it?",
        "{P}. {C}. {R}. {D}. plz answer quick",
        "helo, {mix}. {f}",
        "{R}. {P}. {D}. {C}. thanx",
        "hi i want to send somthing back. {MIX}",
        "{mix}, waht now",
    ),
    *_frames(
        "train",
        "note",
        "none",
        "item: {item_bare}\ndays since purchase: {n}\nreceipt: {rn}\ncondition: {cn}\ncountry: {country}",
        "category: {category}\ndays: {n}\nreceipt: {rn}\ncondition: {cn}\ndestination: {country}",
        "{item_bare} | {n} days | receipt {rn} | {cn} | {country}",
        "country={code}; receipt={rn}; days={n}; condition={cn}; item={item_bare}",
        "Case: {category}, {cn}, {n} days since purchase, receipt: {rn}, delivered to {country}",
        '{{"category": "{category}", "days": {n}, "receipt": "{rn}", "condition": "{cn}", "country": "{country}"}}',
        "- product: {item_bare} ({category})\n- bought: {ago}\n- receipt: {rn}\n- state: {cn}\n- shipped to: {country}",
        "RMA\nShip-to {code}\nItem {item_bare}\nState {cn}\nReceipt {rn}\nAge {n}d",
        "Days since purchase: {n}. Condition: {cn}. Country: {country}. Product: {item_bare}. Receipt: {rn}.",
        "{category} / {country} / {cn} / receipt {rn} / {n} days",
        "Purchase: {ago}. Item: {item_bare}. {cn}. Receipt {rn}. To {country} ({code}).",
        "destination {country}, bought {ago}, {category}, {cn}, receipt: {rn}",
        "category,days,receipt,condition,country\n{category},{n},{rn},{cn},{code}",
        "receipt: {rn}, state: {cn}, age in days: {n}, article: {item_bare}, country: {code}",
    ),
    *_frames(
        "train",
        "third",
        "none",
        "Customer in {country} wants to return {item}. Bought {ago}. Condition: {cn}. {R3}.",
        "A customer from {country} bought {item} {ago}. {R3}. The item is {cn}.",
        "{R3}. {Item}, {cn}, was bought {ago} and delivered to {country}.",
        "The client asks to send back {item}. State: {cn}. Shipped to {country} {delay}. Purchased {ago}. {R3}.",
        "Ticket {order}: return of {item} from {country}. {R3}, condition {cn}, purchase {ago}.",
        "Mrs Jansen ordered {item} to {country}. It was {ago}. The article is {cn} and {r3}.",
        "Phone call: caller from {country}, {item}, purchase {ago}, {r3}, item {cn}.",
        "Return request for {item}. Purchase date: {ago}. {R3}. Delivered in {country}. Item state: {cn}.",
        "The buyer, living in {country}, purchased {item} {ago}; it is {cn}, {r3}.",
        "Please decide: {item}, {cn}, sent to {country}, {days} since purchase, {r3}.",
    ),
    *_frames(
        "train",
        "short",
        "none",
        "{Item}, {days} old, {cn}, receipt {rn}, {country}. Return?",
        "Return {item}? {days}, {cn}, {rn} receipt, delivered to {country}.",
        "{days} since purchase: {item}. {C}. {R}. {D}.",
        "It has been {days} since I bought {item}. {R}. {C}. {D}.",
        "{R}. It's been {days}. {C}. It's {item}. {D}.",
        "I have had {item} for {days}. {C}. {D}. {R}.",
        "{Item} bought {ago}. {D}. {C}. {R}.",
        "After {days} I would like to return {item}. {C}. {D} and {r}.",
        "{D}. {days} ago you sold me {item}. {C} and {r}. {F}.",
        "I am {days} past the purchase of {item}. {D}. {R}. {C}.",
    ),
)

DEV = (
    *_frames("dev", "mail", "none", "Dear shop,\n\nthis concerns a return. {MIX}.\n\nWith best wishes",
             "Good day, {p}. {f}. {D}. {C}. {R}. Would a return be all right?"),
    *_frames("dev", "plain", "none", "I'd like to know if this can go back: {mix}.", "{MIX}. What would you advise?"),
    *_frames("dev", "chat", "chat", "hiya. {MIX}. return ok?", "morning, {mix}, ty"),
    *_frames("dev", "note", "none", "article={item_bare}, bought={ago}, country={country}, receipt={rn}, state={cn}",
             "Return form. Goods: {category}. Elapsed: {n} days. Slip: {rn}. State: {cn}. Sent to: {country}."),
    *_frames("dev", "third", "none", "Someone in {country} is sending back {item} ({cn}). Bought {ago}, {r3}.",
             "A lady rang about {item} bought {ago}. {R3}. Goods are {cn}; delivery country {country}."),
)  # fmt: skip

HELDOUT = (
    *_frames(
        "heldout", "mail", "none",
        "Dear returns department,\n\nallow me to describe my case. {MIX}. I look forward to your decision.",
        "Greetings,\n\n{P}. {D}. {F}. {C}. {R}. Do let me know if you accept it.\n\nAll the best",
        "Ladies and gentlemen, {r} and {d}. {P}. {C}. Kindly tell me your decision.",
    ),
    *_frames(
        "heldout", "plain", "none",
        "Could this still be exchanged for my money? {MIX}.",
        "Here is my situation: {mix}. {F}.",
        "{C}. {F}. {P}. {R}. {D}. Am I still in time?",
        "Would you kindly accept a return? {D}. {P}. {R}. {C}.",
    ),
    *_frames(
        "heldout", "chat", "chat",
        "heya, quick one: {mix}. poss to get refund??",
        "{P}... {c}... {r}... {d}... so?",
        "hi support!! {MIX}. cheers",
    ),
    *_frames("heldout", "typos", "typos", "goood day, {mix}. is retrunig it posible", "{MIX}. pleas replay sooon"),
    *_frames(
        "heldout", "note", "none",
        "GOODS {category} // ELAPSED {n} days // SLIP {rn} // STATE {cn} // DEST {country}",
        "sold: {ago}\nwhat: {item_bare}\nwhere to: {country}\npaper receipt: {rn}\nshape: {cn}",
        "<case><dest>{country}</dest><state>{cn}</state><receipt>{rn}</receipt><age>{n} days</age>"
        "<goods>{item_bare}</goods></case>",
        "Intake sheet: age {n} days; {item_bare}; dest. {country}; receipt on file: {rn}; {cn}.",
    ),
    *_frames(
        "heldout", "third", "none",
        "A shopper residing in {country} would like to hand back {item}. The purchase took place {ago}. {R3}. "
        "The goods: {cn}.",
        "From the call log: {item}, sold {ago}, went to {country}, {cn}. {R3}.",
        "Mr Novak's order, {item}, went to {country}. He paid {ago}. {R3}. Inspection says: {cn}.",
        "Colleagues, is this one fine? {Item}; {days} have passed; {r3}; {country}; {cn}.",
    ),
)  # fmt: skip
TEMPLATES: dict[str, tuple[Template, ...]] = {"train": TRAIN, "dev": DEV, "heldout": HELDOUT}

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NAMED_DAYS = {
    0: ("today", "this morning", "earlier today"),
    1: ("yesterday",),
    2: ("the day before yesterday",),
    7: ("a week ago", "one week ago"),
    14: ("a fortnight ago",),
    45: ("a month and a half ago",),
}
_LOOSE_DAYS = {
    13: "just under two weeks ago",
    16: "a bit over two weeks ago",
    28: "just under a month ago",
    33: "a bit over a month ago",
    42: "about six weeks ago",
    57: "almost two months ago",
    64: "a little over two months ago",
    87: "almost three months ago",
    95: "a little over three months ago",
}


def spell(number: int) -> str:
    """A number from 0 to 999 in English words."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_SMALL[hundreds]} hundred" + (f" and {spell(rest)}" if rest else "")


def tell_days(days: int, draw: random.Random) -> str:
    """A span: "12 days", "twelve days", "two weeks", "a week and five days"."""
    weeks, rest = divmod(days, 7)
    chance = draw.random()
    plain = "day" if days == 1 else "days"
    if days >= 7 and weeks <= 14 and chance < (0.4 if rest == 0 else 0.1):
        told = spell(weeks) if draw.random() < 0.6 else str(weeks)
        told = ("a week" if draw.random() < 0.5 else "1 week") if weeks == 1 else f"{told} weeks"
        if rest:
            told += f" and {spell(rest) if draw.random() < 0.6 else rest} day{'s' if rest > 1 else ''}"
        return told
    return f"{spell(days)} {plain}" if chance > 0.8 else f"{days} {plain}"


def tell_ago(days: int, split: str, draw: random.Random) -> str:
    """When it was bought, seen from today. A loose wording never leaves the true value's side of a limit."""
    chance = draw.random()
    if days in _NAMED_DAYS and (chance < 0.4 or days == 0):
        return draw.choice(_NAMED_DAYS[days])
    if days in _LOOSE_DAYS and chance < 0.4:
        return _LOOSE_DAYS[days]
    if days > 100 and chance < 0.3:
        return f"about {spell(round(days / 30.4))} months ago"
    ways = {"train": ("{} ago", "{} ago", "{} ago", "exactly {} ago", "{} back"), "dev": ("{} ago", "{} earlier"),
            "heldout": ("{} ago", "{} prior to today", "as of today {} ago")}  # fmt: skip
    return draw.choice(ways[split]).format(tell_days(days, draw))


def _noisy(text: str, noise: str, draw: random.Random) -> str:
    if noise == "none":
        return text
    if draw.random() < 0.7:
        text = text.lower()
    if draw.random() < 0.6:
        text = text.replace("'", "")
    if noise == "chat":
        return text
    return re.sub(r"[a-z]{5,}", lambda found: _mistyped(found.group(), draw), text)


def _mistyped(word: str, draw: random.Random) -> str:
    if draw.random() > 0.12:
        return word
    at = draw.randrange(1, len(word) - 2)
    return draw.choice((
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    ))  # fmt: skip


def _upper(clause: str) -> str:
    return clause[:1].upper() + clause[1:]


def _condition(facts: Facts, split: str, draw: random.Random) -> str:
    bank = CONDITION[split][facts.condition]
    own = bank.get(facts.category, ())
    return draw.choice(own) if own and draw.random() < 0.45 else draw.choice(bank["any"])


def fill(template: Template, facts: Facts, seed: str) -> str:
    """Tell `facts` in the words of this template's split.

    Each slot draws from a source of its own, so with the same `seed` two cases that differ in one fact are told in the
    same words but for that fact.
    """
    split = template.split

    def draw(slot: str) -> random.Random:
        return random.Random(f"{seed}-{slot}")

    item = draw("item").choice(ITEMS[facts.category])
    country = draw("country").choice(OTHER_NAMES.get(facts.country, (facts.country,)))
    place = country
    if facts.country in CITIES and draw("place").random() < 0.25:
        place = draw("city").choice(CITIES[facts.country]) + draw("joint").choice((", ", " in ", ", ")) + country
    ago = tell_ago(facts.days, split, draw("ago"))
    fillers = [_filler(split, draw(f"filler-{number}")) for number in range(2)]
    receipt_third = draw("receipt third").choice(RECEIPT_THIRD[split][facts.receipt])
    p, r, c, d = order = [
        draw("purchase").choice(PURCHASE[split]).format(item=item, ago=ago),
        draw("receipt").choice(RECEIPT[split][facts.receipt]),
        _condition(facts, split, draw("condition")),
        draw("delivery").choice(DELIVERY[split]).format(country=place),
    ]
    draw("order").shuffle(order)
    yes_or_no = ("yes", "yes", "y", "present") if facts.receipt else ("no", "no", "n", "missing")
    slots = {
        "p": p, "r": r, "c": c, "d": d, "f": fillers[0], "r3": receipt_third,
        "P": _upper(p), "R": _upper(r), "C": _upper(c), "D": _upper(d), "F": _upper(fillers[0]),
        "F2": _upper(fillers[1]), "R3": _upper(receipt_third),
        "MIX": ". ".join(_upper(one) for one in order), "mix": f"{order[0]}, {order[1]}, {order[2]} and {order[3]}",
        "item": item, "Item": _upper(item), "item_bare": re.sub(r"^(a|an) (pair of |set of )?", "", item),
        "category": facts.category, "ago": ago, "days": tell_days(facts.days, draw("days")), "n": str(facts.days),
        "rn": draw("yes or no").choice(yes_or_no), "cn": draw("note").choice(CONDITION_NOTE[split][facts.condition]),
        "country": country, "code": COUNTRY_CODES[facts.country], "order": str(draw("ticket").randrange(10000, 99999)),
        "delay": draw("delay").choice(("by courier", "by post", "with express delivery")),
    }  # fmt: skip
    return _noisy(template.text.format(**slots), template.noise, draw("noise"))


def _filler(split: str, draw: random.Random) -> str:
    return draw.choice(FILLERS[split]).format(
        order=draw.randrange(10000, 99999), price=draw.randrange(5, 400), small=draw.randrange(2, 10)
    )
