"""YAML as its reader means it: what plain YAML 1.1 would read as something else, or drop, is refused with its line.

Knows text and plain values; knows nothing of what they are for.
"""

import re
from pathlib import Path
from typing import Any

import yaml

_OCTAL_OR_BASE_60 = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+)(\.[0-9_]*)?")
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice, and numbers that YAML 1.1 reads in another base."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"'{key.value}' is given on line {lines[key.value]} and again on line {line}")
            lines[key.value] = line
            for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                self._refuse_other_bases(key.value, item)
        return super().construct_mapping(node, deep)

    @staticmethod
    def _refuse_other_bases(key: str, node: yaml.Node) -> None:
        is_number = node.tag in (f"{_TAG}int", f"{_TAG}float") and node.style is None
        if is_number and _OCTAL_OR_BASE_60.fullmatch(node.value):
            raise ValueError(
                f"'{key}' is {node.value} on line {node.start_mark.line + 1}, which YAML reads as another number (a "
                "leading 0 is octal, a colon base 60): write it as a plain decimal number, or quote it where text is "
                "meant"
            )


# Kept as the words they are: a switch understands them, and a number must not become 1 or 0 by them.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_TAG}bool", f"{_TAG}timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def parse(text: str) -> Any:
    """Return the plain values that a YAML (or JSON) text holds.

    `yes`, `no`, `on`, `off` and dates stay text.

    Raises
    ------
    ValueError : the text is not YAML, gives a key twice, holds a number in another base than it looks (`010` would
        be 8, `1:30` 90), refers to itself, or is nested too deeply; with the line.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            # At once and not piecemeal, which is how PyYAML would make values that contain themselves.
            return None if node is None else loader.construct_object(node, deep=True)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {error}") from None
    except Exception as error:  # PyYAML's constructors raise whatever a wrong explicit tag makes them
        raise ValueError(f"it is not valid YAML: a value does not fit its tag ({error!r})") from None


def read(path: Path) -> Any:
    """Return the plain values of a YAML file.

    Raises
    ------
    ValueError : as `parse` does, and for a file that is not UTF-8; naming the file.
    """
    try:
        return parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start + 1}: {error.reason}): save it as UTF-8."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None


def line_of(path: Path, keys: list[str]) -> int | None:
    """Return the line of a YAML file that sets the key reached through `keys`, counted from 1; None if none does."""
    node, line = yaml.compose(path.read_bytes().decode("utf-8-sig"), Loader=yaml.SafeLoader), None
    for name in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == name), None)
        if found is None:
            return None
        line, node = found[0].start_mark.line + 1, found[1]
    return line
