"""Texts as a mailbox has them, made of a set's bare ones: the worlds of `benchmarks.scope`.

The words of these frames are in no frame that a model is fitted with (`router/data/frames.txt`). A file with lines of a
kind (greeting, signature, filler, notice) and a text, with a tab between, replaces them.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import Unmeasurable

MAIL = Path(__file__).with_name("data") / "mail.txt"
LANGUAGES = Path(__file__).with_name("data") / "languages.tsv"
KINDS = ("greeting", "signature", "filler", "notice")
MAIL_CHARACTERS, TYPO_SHARE = 1_500, 0.03

Mail = Mapping[str, Sequence[str]]


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """The lines of a file: what stands before the tab, and after it. Raises Unmeasurable."""
    try:
        lines = [line.split("\t", 1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(name, text) for name, text in lines]
    except (OSError, ValueError) as error:
        raise Unmeasurable(f"{file} can not be read: each line has a word, a tab and a text.") from error


def read_mail(file: Path) -> Mail:
    """The parts of mails by kind. Raises Unmeasurable where a kind is missing."""
    pairs = read_pairs(file)
    found = {kind: [text for name, text in pairs if name == kind] for kind in KINDS}
    if not all(found.values()):
        raise Unmeasurable(f"{file} needs lines of each kind: {', '.join(KINDS)}.")
    return found


def in_frame(text: str, others: Sequence[str], mail: Mail, draw: random.Random) -> str:
    """Between a greeting and a signature."""
    gap = draw.choice(("\n", "\n\n", " "))
    return gap.join((draw.choice(mail["greeting"]), text, draw.choice(mail["signature"])))


def with_typos(text: str, others: Sequence[str], mail: Mail, draw: random.Random) -> str:
    """With 3% of the characters swapped for others."""
    letters = list(text)
    for at in range(len(letters)):
        if letters[at].isalpha() and draw.random() < TYPO_SHARE:
            letters[at] = draw.choice(string.ascii_lowercase)
    return "".join(letters)


def with_turned(text: str, others: Sequence[str], mail: Mail, draw: random.Random) -> str:
    """With 3% of the characters in the wrong order."""
    letters = list(text)
    for at in range(len(letters) - 1):
        if draw.random() < TYPO_SHARE:
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def two_requests(text: str, others: Sequence[str], mail: Mail, draw: random.Random) -> str:
    """With another request in scope behind it."""
    return f"{text} {draw.choice(others)}"


def in_mail(text: str, others: Sequence[str], mail: Mail, draw: random.Random) -> str:
    """In the middle of a mail of 1,500 characters."""
    lines = draw.sample(mail["filler"], len(mail["filler"]))
    end = f"{draw.choice(mail['signature'])}\n{draw.choice(mail['notice'])}"
    taken: list[str] = []
    while lines and len(" ".join(taken)) + len(text) + len(end) < MAIL_CHARACTERS:
        taken.append(lines.pop())
    middle = draw.randrange(len(taken) + 1)
    body = " ".join((*taken[:middle], text, *taken[middle:]))
    return f"{draw.choice(mail['greeting'])}\n{body}\n{end}"


def between(text: str, others: Sequence[str], mail: Mail, draw: random.Random) -> str:
    """Between two requests in scope."""
    before, after = draw.sample(list(others), 2)
    return f"{before} {text} {after}"


World = Callable[[str, Sequence[str], Mail, random.Random], str]
WORLDS: Mapping[str, World] = {
    "frame": in_frame,
    "typos": with_typos,
    "turned": with_turned,
    "two": two_requests,
    "mail": in_mail,
}


def make_world(world: World, texts: Sequence[str], inside: Sequence[str], mail: Mail, draw: random.Random) -> list[str]:
    """Each text in its world, with requests in scope from `inside`."""
    return [world(text, inside, mail, draw) for text in texts]
