"""Params files: YAML, what they extend, methods and overrides laid over them, and errors that name key and line."""

import difflib
import functools
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sgpo_lib.params import strict_yaml
from sgpo_lib.params.methods import METHODS
from sgpo_lib.params.schema import Params, flatten
from sgpo_lib.params.section import UNPRINTABLE

_PLACE = ("name", "root")  # where the file lies says what they are


def as_overrides(overrides: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return overrides as a dict, also where they come as JSON or YAML text, as from `papermill -p overrides '{...}'`.

    Raises
    ------
    ValueError : they are no mapping of dotted keys to values.
    """
    try:
        values = strict_yaml.parse(overrides) if isinstance(overrides, str) else overrides
    except ValueError as error:
        raise ValueError(f"overrides {overrides!r} cannot be read: {error}.") from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(
            f'overrides must be dotted keys with their values, such as {{"follower.radius": 0.03}}, not {overrides!r}.'
        )
    return values


def load_params(
    params_file: str | Path, overrides: dict[str, Any] | str | None = None, method: str | None = None
) -> Params:
    """Read and validate a params file, with what the method sets and dotted-key overrides laid over it.

    Parameters
    ----------
    params_file : path of the YAML file. A relative path is looked for in the working directory and
        then in its parents, so that a notebook finds it from wherever it is run. The folder that holds
        its `params/` folder is the root that `output_dir` and local data files are relative to.
    overrides : e.g. ``{"follower.radius": 0.03}``, or the same as text.
    method : a key of `METHODS`. A file that says otherwise than the method is refused; overrides may.

    Raises
    ------
    FileNotFoundError, ValueError : naming the file, each offending key, and the nearest valid one.
    """
    path = find_file(Path(params_file), "params")
    root = next((parent.parent for parent in path.parents if parent.name == "params"), path.parent)
    values, files = _read(path)
    flat, preset = flatten(values), METHODS[method] if method else {}
    contradicted = [
        f"'{key}' is {flat[key]!r}, but method {method} sets it to {value!r}: leave it out and ask for the method "
        "that sets what you want, or give it as an override."
        for key, value in preset.items()
        if flat.get(key, value) != value
    ]
    overrides = as_overrides(overrides)
    for key, value in (preset | overrides).items():
        _set(values, key, value)
    problems = [_unknown(key) for key in values if key in _PLACE] + contradicted
    if not problems:
        try:
            return Params(**{**values, "name": path.stem, "root": root})
        except ValidationError as error:
            problems = _problems(error, files, preset | overrides)
    listing = "\n  ".join(problems).encode(errors="backslashreplace").decode()
    raise ValueError(f"{path}{' with overrides' if overrides else ''} cannot be used:\n  {listing}")


def default_of(key: str) -> Any:
    """Return what a dotted key is where nobody sets it; None also where it has to be set, or there is no such key."""
    return _known().get(key)


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """Read a YAML file and lay it over the one that it `extends`; also return the files read, the topmost first."""
    if path.resolve() in above:
        chain = " extends ".join(str(file) for file in (*above, path.resolve()))
        raise ValueError(f"{above[0]} extends itself: {chain}. Take one 'extends' out.")
    values = strict_yaml.read(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections such as 'model:' and 'data:', but holds {values!r}.")
    base = values.pop("extends", None)
    if base is None:
        return values, [path]
    if not isinstance(base, str) or UNPRINTABLE.search(base) or not (path.parent / base).is_file():
        raise ValueError(f"{path} extends {base!r}, but there is no such file in {path.parent}.")
    below, files = _read(path.parent / base, (*above, path.resolve()))
    return _laid_over(below, values), [path, *files]


def _laid_over(below: Any, above: Any) -> Any:
    """Sections are merged; anything else, and what follows a `rule`, is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)) or "rule" in above:
        return above
    return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}


def find_file(path: Path, kind: str) -> Path:
    """Find a file in the working directory or above it, so that notebooks find it from wherever they run.

    Raises
    ------
    FileNotFoundError : naming the files of its kind that there are.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / path).is_file():
            return (folder / path).resolve()
    beside = next(
        (f for f in ((folder / path).parent for folder in (here, *here.parents)) if any(f.glob("*.yaml"))), here
    )
    available = sorted(file.name for file in beside.glob("*.yaml"))
    hint = f" There are: {', '.join(available)}." if available else ""
    raise FileNotFoundError(f"No {kind} file {str(path)!r} in {here} or the folders above it.{hint}")


def _set(values: dict, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[last] = value


@functools.cache
def _known() -> dict[str, Any]:
    """Every dotted key that a params file may have, over all alternatives of a section, with its default."""
    schema = Params.model_json_schema()

    def keys_of(part: dict, prefix: str) -> dict[str, Any]:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        found = {}
        for alternative in part.get("anyOf", []):
            found = keys_of(alternative, prefix) | found
        for name, inner in part.get("properties", {}).items():
            found |= {f"{prefix}{name}": inner.get("default")} | keys_of(inner, f"{prefix}{name}.")
        return found

    known = keys_of(schema, "")
    return {key: default for key, default in known.items() if key not in _PLACE}


def _problems(error: ValidationError, files: list[Path], overridden: dict[str, Any]) -> list[str]:
    """Say what is wrong with each key; while there are unknown ones, with these alone."""
    unknown = [_dotted(item) for item in error.errors() if item["type"] == "extra_forbidden"]
    unknown = [key for key in dict.fromkeys(unknown) if key not in _known()]
    return [_unknown(key) for key in unknown] or [_explain(item, files, overridden) for item in error.errors()]


def _unknown(key: str) -> str:
    section = key.rpartition(".")[0]
    beside = [known for known in _known() if known.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, beside, 1, 0.5) or difflib.get_close_matches(key, _known(), 1, 0.3)
    return f"'{key}' is not a parameter" + (f"; did you mean '{near[0]}'?" if near else ".")


def _dotted(error: dict) -> str:
    """The key that an error is about, without the names of the types that pydantic tried."""
    names = [str(part) for part in error["loc"] if not (isinstance(part, str) and part[:1].isupper())]
    return ".".join(name for name in names if "[" not in name and name != "constrained-float")


def _explain(error: dict, files: list[Path], overridden: dict[str, Any]) -> str:
    where, message = _dotted(error), error["msg"].removeprefix("Value error, ")
    if not where:  # a rule about several parameters names them itself
        return f"{message}."
    if error["type"] == "missing":
        return f"'{where}' is missing."
    place = "" if any(f"{where}.".startswith(f"{key}.") for key in overridden) else _place(where.split("."), files)
    return f"'{where}' is {error['input']!r}: {message[0].lower()}{message[1:]}{place}."


def _place(keys: list[str], files: list[Path]) -> str:
    """Where the topmost file that sets the key does so; an item of a list is where the list is."""
    keys = [key for key in keys if not key.isdigit()]
    lines = ((file, strict_yaml.line_of(file, keys)) for file in files)
    return next((f" (line {line} of {file.name})" for file, line in lines if line), "")
