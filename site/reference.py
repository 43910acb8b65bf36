"""The pages that list all there is: params, read off their schema, and public names, off their docstrings."""

import importlib
import inspect
import json
from types import ModuleType
from typing import Any

from sgpo_lib.params.schema import Params

_HEAD = """# Params

Every key that a params file may hold; its sections are the steps of the method. A file that `extends` another has only
what differs from that one. In a notebook and on a command line a key is written with dots:
`overrides = {"follower.radius": 0.3}`. A key that does not exist is refused with the nearest that does."""

# From the mathematics up to what draws it; the rest of the library serves these.
_ROOMS = (
    "follower",
    "leader",
    "data",
    "policy",
    "annotation",
    "judges",
    "evaluation",
    "runs",
    "steps",
    "lab",
    "regret",
    "plots",
)


def params_reference() -> str:
    """Return Markdown: a table for each section, with key, values, default and meaning."""
    schema = Params.model_json_schema()
    kinds = schema["$defs"]
    own = {key: value for key, value in schema["properties"].items() if key not in ("name", "root")}
    parts = [_HEAD, "## A params file", _table(own, set(schema["required"]), kinds)]
    for name in sorted(kinds, key=lambda name: _place(name, own)):
        kind = kinds[name]
        table = _table(kind["properties"], set(kind.get("required", ())), kinds)
        parts += [f"({name.lower()})=\n## {_title(name)}", kind.get("description", ""), table]
    return "\n\n".join(part for part in parts if part) + "\n"


def _place(name: str, own: dict[str, Any]) -> int:
    """Sections in the order of the file that holds them; what only they refer to comes last."""
    mentions = [i for i, value in enumerate(own.values()) if f"/{name}" in json.dumps(value)]
    return mentions[0] if mentions else len(own)


def _title(name: str) -> str:
    return name.removesuffix("Params").removesuffix("Rule") + (" rule" if name.endswith("Rule") else "")


def _table(properties: dict[str, Any], required: set[str], kinds: dict[str, Any]) -> str:
    lines = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value in properties.items():
        default = "*required*" if key in required else _default(value, kinds)
        lines.append(f"| `{key}` | {_values(value)} | {default} | {value.get('description', '')} |")
    return "\n".join(lines)


def _default(value: dict[str, Any], kinds: dict[str, Any]) -> str:
    if isinstance(value.get("default"), dict) and "$ref" in json.dumps(value):
        return "its own"
    return f"`{json.dumps(value.get('default'), ensure_ascii=False)}`"


def _values(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{_title(name)}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(_values(one) for one in value["anyOf"])
    if "const" in value or "enum" in value:
        return ", ".join(f"`{one}`" for one in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_values(value['items'])}" if "items" in value else "list"
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum", value.get("exclusiveMaximum"))
    bounds = [f"{'≥' if 'minimum' in value else '>'} {low:g}"] if low is not None else []
    bounds += [f"{'≤' if 'maximum' in value else '<'} {high:g}"] if high is not None else []
    return " ".join([value.get("type", "any"), ", ".join(bounds)]).strip()


def api_reference() -> str:
    """Return Markdown: each room's public names with signature and docstring."""
    parts = ["# API", "The public names, room by room. A room imports only from rooms below it."]
    for room in _ROOMS:
        module = importlib.import_module(f"sgpo_lib.{room}")
        parts += [f"## {room}", inspect.getdoc(module) or ""]
        for name in getattr(module, "__all__", _defined_in(module)):
            value = getattr(module, name)
            if callable(value) and inspect.getdoc(value):
                parts.append(f"### {room}.{name}\n\n```text\n{name}{_signature(value)}\n\n{inspect.getdoc(value)}\n```")
    return "\n\n".join(parts) + "\n"


def _defined_in(module: ModuleType) -> list[str]:
    own = inspect.getmembers(module, lambda value: inspect.getmodule(value) is module)
    return [name for name, _ in own if not name.startswith("_")]


def _signature(value: Any) -> str:
    try:
        return str(inspect.signature(value)).replace("sgpo_lib.", "").replace("pandas.DataFrame", "DataFrame")
    except ValueError:
        return ""
