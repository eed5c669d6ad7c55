"""Services rules that no linter knows. Each fails with the place and with what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.style.source import (
    ROOMS,
    ROOT,
    SOURCES,
    Function,
    files,
    functions,
    length,
    listed_by_git,
    shown,
    tracked,
    tree,
)

FUNCTION_LINES_MAX = 70
WALK_LINES_MAX = 60
FILE_LINES_MAX = 500
LONGER_WITH_A_REASON: dict[str, str] = {}
BANNED_IN_NAMES = frozenset(
    {"backend", "upstream", "util", "utils", "helper", "helpers", "manager", "handler", "handlers", "common"}
)
BANNED_AS_FILES = BANNED_IN_NAMES | {"base", "misc", "core", "lib"}
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
NAMED_BY_OTHERS = frozenset({"add_signal_handler", "add_exception_handler"})


def words_of(name: str) -> set[str]:
    return {word.lower() for part in name.split("_") for word in WORDS.findall(part)}


@pytest.mark.invariant("No function is longer than a screen.")
def test_no_function_is_longer_than_a_screen() -> None:
    too_long = [
        f"{shown(path, node.lineno)} {node.name}: {length(node)} lines"
        for path in files(*SOURCES)
        for node in functions(path)
        if length(node) > FUNCTION_LINES_MAX
    ]
    assert not too_long, f"at most {FUNCTION_LINES_MAX} lines: give its steps names of their own"


def test_the_walk_is_one_function_that_can_be_read_at_once() -> None:
    (walk,) = [node for node in functions(ROOT / "gateway" / "path" / "request_path.py") if node.name == "walk"]
    assert length(walk) <= WALK_LINES_MAX


def test_the_walk_names_its_steps_in_their_order() -> None:
    (walk,) = [node for node in functions(ROOT / "gateway" / "path" / "request_path.py") if node.name == "walk"]
    calls = sorted(
        (node.lineno, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        for node in ast.walk(walk)
        if isinstance(node, ast.Call)
    )
    steps = ["require_caller", "read_body", "admit", "choose", "open_answer", "relay", "settle"]
    assert [name for _, name in calls if name in steps] == steps


@pytest.mark.parametrize("path", [p for p in files(*SOURCES, "tests") if p.name == "__init__.py"], ids=shown)
def test_init_files_are_empty(path: Path) -> None:
    assert not path.read_bytes(), f"{shown(path)}: import from the file that has it"


def test_no_file_is_too_long_to_have_one_subject() -> None:
    too_long = {
        shown(path): lines
        for path in files(*SOURCES)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    }
    assert set(too_long) <= set(LONGER_WITH_A_REASON), f"over {FILE_LINES_MAX} lines: {too_long}"
    assert set(LONGER_WITH_A_REASON) <= set(too_long), "an exception that is no longer needed"


def test_files_and_folders_are_nouns_an_operator_would_say() -> None:
    bad = [
        shown(path)
        for path in files(*SOURCES, "tests")
        if any(words_of(part) & BANNED_AS_FILES and words_of(part) <= BANNED_AS_FILES for part in parts_of(path))
    ]
    assert not bad, f"name them for what they hold: {bad}"


def parts_of(path: Path) -> list[str]:
    return [part.removesuffix(".py") for part in path.relative_to(ROOT).parts]


def names_in(module: ast.Module) -> Iterator[tuple[int, str]]:
    """The names that a file gives to others: modules' and classes' names, functions and their arguments."""
    for node in ast.walk(module):
        if isinstance(node, Function | ast.ClassDef):
            yield node.lineno, node.name
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                yield from assigned(statement)


def assigned(statement: ast.stmt) -> Iterator[tuple[int, str]]:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        if isinstance(target, ast.Name):
            yield statement.lineno, target.id


def test_one_word_for_one_thing() -> None:
    bad = [
        f"{shown(path, line)} {name}"
        for path in files(*ROOMS)
        for line, name in names_in(tree(path))
        if words_of(name) & BANNED_IN_NAMES and name not in NAMED_BY_OTHERS
    ]
    assert not bad, f"use the glossary's words (CONTRIBUTING.md): {bad}"


def undocumented(path: Path) -> Iterator[str]:
    module = tree(path)
    if path.name != "__init__.py" and not ast.get_docstring(module):
        yield shown(path, 1)
    for node in public_definitions(module):
        if not ast.get_docstring(node):
            yield f"{shown(path, node.lineno)} {node.name}"


def public_definitions(module: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions, and the public methods of public classes; an override says nothing new."""
    for node in module.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    method
                    for method in node.body
                    if isinstance(method, Function)
                    and not method.name.startswith("_")
                    and not implements_what_is_described_elsewhere(node)
                )


def implements_what_is_described_elsewhere(node: ast.ClassDef) -> bool:
    """A wire format, or a writer of its answers: the methods of WireFormat and AnswerWriter carry the words."""
    return node.name.endswith(("Format", "Writer"))


def kinds_of_a_documented_tree(path: Path) -> frozenset[str]:
    """Classes whose meaning the module's docstring draws as a tree, one line each."""
    told = ast.get_docstring(tree(path)) or ""
    return frozenset(re.findall(r"[├└]─ (\w+)", told)) | frozenset(re.findall(r"(?m)^(\w+) {2,}\S", told))


def test_everything_public_says_what_it_means() -> None:
    bare = [
        place
        for path in files(*ROOMS)
        for place in undocumented(path)
        if place.rpartition(" ")[2] not in kinds_of_a_documented_tree(path)
    ]
    assert not bare, f"a docstring gives meaning, units and errors raised: {bare}"


FROZEN = frozenset({"frozenset", "tuple", "MappingProxyType", "namedtuple"})
MUTABLE_CALLS = frozenset({"dict", "list", "set", "defaultdict", "deque", "OrderedDict", "Counter", "bytearray"})
MUTABLE = ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp
READ_ONLY_TYPES = ("Mapping", "Sequence", "tuple", "frozenset", "Final[Mapping")


def mutable_state(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Lists, dicts and sets that a module holds and that its types let somebody change."""
    for statement in module.body:
        if isinstance(statement, ast.AnnAssign) and is_mutable(statement.value):
            name, kind = ast.unparse(statement.target), ast.unparse(statement.annotation)
            if not (name.isupper() and kind.startswith(READ_ONLY_TYPES)):
                yield statement.lineno, name
        if isinstance(statement, ast.Assign) and is_mutable(statement.value):
            name = ast.unparse(statement.targets[0])
            if name != "__all__":
                yield statement.lineno, name
    yield from ((node.lineno, "global") for node in ast.walk(module) if isinstance(node, ast.Global))


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in MUTABLE_CALLS
    return isinstance(value, MUTABLE)


@pytest.mark.invariant("No module holds state that can change.")
def test_no_module_holds_state_that_can_change() -> None:
    bad = [f"{shown(path, line)} {name}" for path in files(*ROOMS) for line, name in mutable_state(tree(path))]
    assert not bad, f"give it an owner, or the type Mapping, tuple or frozenset and a name in capitals: {bad}"


MACHINE_PATHS = re.compile(r"(?<![\w.$})/-])/(?:work|root|home|opt/wheels|Users)/[\w.-]+")
TEMPORARY_PATHS = re.compile(r"(?<![\w.])/tmp/[\w.-]+")
REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch|index-url[ =]+\S*://")
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b")
BINARY = (".safetensors", ".png", ".gz", ".parquet")


def lines_with(pattern: re.Pattern[str], *, without: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in tracked():
        if path.endswith(BINARY) or path in without or path == "tests/style/test_source.py":
            continue
        text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
        found += [f"{path}:{n} {m[0]}" for n, line in enumerate(text.splitlines(), 1) if (m := pattern.search(line))]
    return found


def test_nothing_names_a_path_of_the_machine_it_was_written_on() -> None:
    assert not lines_with(MACHINE_PATHS)


def test_nothing_names_a_temporary_path_of_the_machine_it_was_written_on() -> None:
    assert not lines_with(TEMPORARY_PATHS)


def test_no_tracked_file_is_a_link_to_elsewhere() -> None:
    assert not [path for path in listed_by_git() if not (ROOT / path).resolve().is_relative_to(ROOT)]


def test_nothing_names_the_address_of_a_package_registry() -> None:
    assert not lines_with(REGISTRIES)


def test_nothing_is_left_to_be_done_by_a_note() -> None:
    assert not lines_with(UNFINISHED), "write an issue instead"


def test_tracked_files_are_text_in_utf_8_with_a_line_end() -> None:
    bad = []
    for path in tracked():
        if path.endswith(BINARY):
            continue
        data = (ROOT / path).read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            bad.append(f"{path}: not UTF-8")
        if data and not data.endswith(b"\n"):
            bad.append(f"{path}: no line end at the end of the file")
        if b"\r" in data:
            bad.append(f"{path}: CR")
    assert not bad


def test_class_name_stands_for_one_class() -> None:
    places: dict[str, list[str]] = {}
    for path in files(*ROOMS):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(shown(path, node.lineno))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_name_of_an_alias_in_monitoring_stands_for_one_literal() -> None:
    places: dict[str, list[str]] = {}
    for path in files("monitoring"):
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
                places.setdefault(ast.unparse(node.targets[0]), []).append(shown(path, node.lineno))
    assert places
    assert not {name: where for name, where in places.items() if len(where) > 1}


TEST_NAME_CHARACTERS_MAX = 80


def test_test_names_are_short_enough_to_read_at_once() -> None:
    too_long = [
        f"{shown(path, node.lineno)} {node.name}: {len(node.name)} characters"
        for path in files(*SOURCES, "tests")
        for node in functions(path)
        if node.name.startswith("test_") and len(node.name) > TEST_NAME_CHARACTERS_MAX
    ]
    assert not too_long, f"at most {TEST_NAME_CHARACTERS_MAX} characters: name the behaviour alone"
