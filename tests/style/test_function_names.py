"""Public functions of the product begin with a verb.

A method is read after its object (`registry.alias(task)`), so it may be a noun. So may a command or an endpoint: a
person types its name, or its address has it. `limits_of(key)`, `new_key`, `next_phase`, `as_text`, `to_json` and
`with_fingerprint` are named for their result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.style.source import Function, files, shown, tree

PRODUCT = ("gateway", "router", "serving", "monitoring")
FOLDER = Path(__file__).parent
VERBS = frozenset((FOLDER / "verbs.txt").read_text(encoding="utf-8").split())
COMMANDS = {  # of gateway/cli: registered in another file than their own
    "doctor",
    "keygen",
    "requests",
    "sidecar",
    "why",
}
REGISTERED = re.compile(r"@(\w+\.(command|callback|get|post|put|patch|delete)|add_command)\(")
DERIVED = re.compile(r"\w+_of|(new|next|from|to|as|with)_\w+|main")


def registered(path: Path, node: Function) -> bool:
    """A command or an endpoint: a decorator hands it to its router or its command line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return any(REGISTERED.match(lines[decorator.lineno - 1]) for decorator in node.decorator_list)


def without_verb() -> Iterator[tuple[str, str]]:
    """Name and place of each public function whose first word is not a verb."""
    for path in files(*PRODUCT):
        for node in tree(path).body:
            if (
                isinstance(node, Function)
                and not node.name.startswith("_")
                and node.name.split("_")[0] not in VERBS
                and not DERIVED.fullmatch(node.name)
                and not registered(path, node)
            ):
                yield node.name, shown(path, node.lineno)


def test_public_functions_begin_with_a_verb() -> None:
    bad = [
        f"{place} {name}"
        for name, place in without_verb()
        if not (name in COMMANDS and place.startswith("gateway/cli/"))
    ]
    assert not bad, f"begin with a verb (a new one goes into verbs.txt): {bad}"
