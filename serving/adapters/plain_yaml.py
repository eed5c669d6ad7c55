"""The only reader of YAML. It refuses duplicate keys; in YAML that others send, also aliases (`PlainLoader`)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import msgspec
import yaml

from serving.adapters.errors import quote_name

NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufffe\uffff]")
BOOLEAN = "tag:yaml.org,2002:bool"


class PlainYamlError(ValueError):
    """The text can't be read; the message is the end of a sentence that begins with the file's name."""


def read_plain_yaml(raw: bytes) -> Any:
    """The value in a YAML text. Raises PlainYamlError."""
    try:
        return PlainLoader(raw.decode()).get_single_data()
    except yaml.YAMLError as error:
        place, fault = describe_syntax(error)
        where = f" (line {place[0]}, column {place[1]})" if place is not None else ""
        raise PlainYamlError(f"is no valid YAML{where}: {fault}.") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise PlainYamlError(f"can't be read: {error}.") from None


def write_plain_yaml(value: Any) -> bytes:
    """A JSON value as YAML: its JSON, with escapes for the characters that YAML lacks or takes as ends of lines."""
    written = msgspec.json.encode(value).decode()
    return NO_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", written).encode()


def read_yaml(raw: str | bytes) -> Any:
    """The value in an operator's own YAML text, such as the configuration. Raises YAMLError."""
    return UniqueKeyLoader(raw).get_single_data()


def find_places(raw: str, paths: Iterable[Iterable[str | int]]) -> Iterator[tuple[int, int]]:
    """The line and column, each from 1, of the innermost key of each path that the text has. Raises YAMLError."""
    root = yaml.compose(raw, UniqueKeyLoader)  # once: for a long file it takes a tenth of a second
    for path in paths:
        mark, node = None, root
        for key in map(str, path):
            entry = None
            if isinstance(node, yaml.MappingNode):
                entry = next(((name.start_mark, value) for name, value in node.value if name.value == key), None)
            elif isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
                entry = node.value[int(key)].start_mark, node.value[int(key)]
            if entry is None:
                break
            mark, node = entry
        yield (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


def describe_syntax(error: Exception) -> tuple[tuple[int, int] | None, str]:
    """The line and column of a YAMLError, each from 1 (None: it has none), and the fault."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return None, " ".join(str(error).split())
    if "'\\t'" in problem:
        problem = "a tab is here: indent with spaces"
    context = getattr(error, "context", None)
    return (mark.line + 1, mark.column + 1), f"{context}: {problem}" if context else problem


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader of Unicode texts that refuses duplicate keys: otherwise the last one would win silently."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value. Raises YAMLError if it does not fit its tag, such as the 30th of February, or contains itself."""
        try:
            return super().construct_object(node, True)  # in one go, to notice a value that contains itself
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):
            text = f"{quote_name(str(node.value))} can't be read as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping. Raises YAMLError that names a duplicate key and its line."""
        keys: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in keys:
                text = f"{quote_name(str(key.value))} comes twice: remove one"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """The text. JSON's two escapes for one character become that character. Raises YAMLError for one half alone,
        which can't be stored."""
        try:
            return super().construct_scalar(node).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            text = "an escape stands for half a character: write the character itself"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from None


class PlainLoader(UniqueKeyLoader):
    """Safe YAML without surprises: no aliases (a few lines of them can stand for gigabytes) and no duplicate keys.
    Dates are texts, and only true and false are booleans."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the parser looks it up on the class and only reads it
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:timestamp", BOOLEAN)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The node. Raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None,
                None,
                "aliases are not allowed",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)


PlainLoader.add_implicit_resolver(BOOLEAN, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
