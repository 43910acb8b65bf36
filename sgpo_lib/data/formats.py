"""Rows of any known preference format in, one table out: what a row means and what is wrong with it.

Knows TRL's formats, Alpaca's rows, transcripts as in Anthropic's HH, alpaca-eval's annotations and plain prompts; knows
nothing of where rows come from.
"""

import json
import re
import sys
import warnings
from collections.abc import Callable

import pandas as pd

from sgpo_lib.data.context import CONTEXT, transcript, with_context
from sgpo_lib.data.prompts import LONE_SURROGATE, with_ids

ROLES = ("system", "user", "assistant")
PROBLEMS_SHOWN = 20
# Columns that later steps add to the pairs; of these names, a user's own would be taken for theirs.
RESERVED = re.compile(
    "flipped|margin|agrees_with_gold|prompt_ids|ref_(chosen|rejected)_logps|loss_(weight|slope|moved|displacement)|"
    "(chosen|rejected)_(ids|finished|log_prob|reference_log_prob|implicit_reward|gold)"
)


def to_frame(source: str, rows: list[tuple[str, object]], bad_rows: str) -> pd.DataFrame:
    """Parse rows into the table that `sgpo_lib.data.load` documents.

    Parameters
    ----------
    source : str
        Where the rows are from, for messages.
    rows : list of (place, row)
        A row that is no dict is reported at its place, such as "line 3".
    bad_rows : {"raise", "drop"}
    """
    if not rows:
        raise ValueError(f"{source}: no rows")
    fields = {field for _, row in rows if isinstance(row, dict) for field in row}
    parse, replaced = _format_of(fields)
    problems, parsed, extras, n_ties = [], [], [], 0
    for place, row in rows:
        result, found = parse(row) if isinstance(row, dict) else (None, [_why_not_a_row(row)])
        if result and "weight" in replaced & fields:
            found = [*found, *_weight_problems(row)]
            result["weight"] = float(row["weight"]) if not found else None
        problems += [f"{place}: {problem}" for problem in found]
        if found:
            continue
        if result is None:
            n_ties += 1
            continue
        parsed.append(result)
        extras.append({name: value for name, value in row.items() if name not in replaced})
    n_bad = len(rows) - len(parsed) - n_ties

    if problems:
        shown = [f"  {problem}" for problem in problems[:PROBLEMS_SHOWN]]
        if len(problems) > PROBLEMS_SHOWN:
            shown.append(f"  ... and {len(problems) - PROBLEMS_SHOWN} more")
        report = "\n".join([f"{source}: {len(problems)} problems in {n_bad} of {len(rows)} rows", *shown])
        if bad_rows == "raise":
            raise ValueError(f"{report}\nCorrect these rows, or leave them out with bad_rows='drop'.")
        warnings.warn(f"left out rows that cannot be used. {report}", stacklevel=3)
    if n_ties:
        warnings.warn(f"{source}: left out {n_ties} ties (preference 1.5) of {len(rows)} rows", stacklevel=3)
    if not parsed:
        raise ValueError(f"{source}: no usable row is left of {len(rows)}")

    names = dict.fromkeys(name for extra in extras for name in extra if name != "prompt_id")
    kept = {name: [_encodable(extra.get(name)) for extra in extras] for name in names}
    left_out = [name for name in names if RESERVED.fullmatch(name) or not _is_plain(name, kept[name])]
    if left_out:
        warnings.warn(
            f"{source}: left out columns {', '.join(map(repr, left_out))}: a table keeps text, truth values, and "
            "numbers of up to 64 bits, not mixed, under names that no later step uses",
            stacklevel=3,
        )
    columns = {name: values for name, values in kept.items() if name not in left_out}
    data = with_ids(pd.DataFrame({name: [row[name] for row in parsed] for name in parsed[0]} | columns))
    _warn_of_white_space(source, data)
    data.attrs.update(n_ties=n_ties, n_bad_rows=n_bad)
    return data


def _encodable(value: object) -> object:
    """Text of a row's extra columns, with the halves of surrogate pairs replaced, which no file can hold."""
    return LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def _is_plain(name: str, values: list) -> bool:
    """Whether a column can be kept: text, numbers or truth values, as a file has them, but not mixed."""
    kinds = {type(value) for value in values if value is not None}
    fits = all(-(2**63) <= value < 2**63 for value in values if type(value) is int)
    is_one_kind = kinds <= {int, float} or kinds in ({str}, {bool})
    return is_one_kind and fits and not LONE_SURROGATE.search(name)


def _warn_of_white_space(source: str, data: pd.DataFrame) -> None:
    written = {(key, json.dumps(prompt)) for key, prompt in zip(data["prompt_id"], data["prompt"], strict=True)}
    n_more = len(written) - data["prompt_id"].nunique()
    if n_more:
        warnings.warn(
            f"{source}: {n_more} prompts differ from another in nothing but white space at their ends, and count as "
            "the same prompt in every split",
            stacklevel=4,
        )


Parsed = tuple[dict | None, list[str]]  # a row (None for a tie), and what is wrong with it


def _format_of(fields: set[str]) -> tuple[Callable[[dict], Parsed], set[str]]:
    """Return the parser for rows with these fields, and the fields that its results replace.

    Decided once for the whole table: a row that lacks `chosen` where others have it is a fault, not a prompt.
    """
    prompt = {"prompt" if "prompt" in fields else "instruction", *CONTEXT}
    if fields & {"chosen", "rejected"}:
        return _parse_preference, {*prompt, "chosen", "rejected", "weight"}
    if fields & {"output_1", "output_2"}:
        return _parse_annotation, {*prompt, "output_1", "output_2", "weight"}
    return _parse_prompt, prompt


def _why_not_a_row(row: object) -> str:
    if isinstance(row, json.JSONDecodeError):
        return f"invalid JSON: {row.msg} at column {row.colno}"
    if isinstance(row, UnicodeDecodeError):
        return f"not UTF-8 text: {row.reason} at byte {row.start + 1}"
    if isinstance(row, ValueError | RecursionError):
        return f"invalid JSON: {row}"
    return f"expected an object with named fields, got {type(row).__name__}"


def _parse_prompt(row: dict) -> Parsed:
    problems: list[str] = []
    prompt = with_context(row, _messages(row, _prompt_field(row), "user", problems), problems)
    _check_turns(prompt, problems)
    return {"prompt": prompt}, problems


def _parse_preference(row: dict) -> Parsed:
    problems: list[str] = []
    chosen = _messages(row, "chosen", "assistant", problems)
    rejected = _messages(row, "rejected", "assistant", problems)
    implicit = chosen is not None and len(chosen) > 1
    given = None
    if not implicit or row.get(_prompt_field(row)) is not None:
        given = _messages(row, _prompt_field(row), "user", problems)
    if problems:
        return None, problems

    for field, reply in (("chosen", chosen), ("rejected", rejected)):
        if reply[-1]["role"] != "assistant":
            problems.append(f"{field}: the last message must be the assistant's, got '{reply[-1]['role']}'")
    if chosen[:-1] != rejected[:-1]:
        problems.append("rejected: must share all messages but the last with chosen")
    # A prompt given as text beside whole conversations names one of their user messages.
    user_texts = {message["content"].strip() for message in chosen[:-1] if message["role"] == "user"}
    named = isinstance(row.get(_prompt_field(row)), str) and given[0]["content"].strip() in user_texts
    if implicit and given is not None and given != chosen[:-1] and not named:
        problems.append("prompt: differs from the messages before the last in chosen")
    prompt = with_context(row, chosen[:-1] if implicit else given, problems, implicit)
    _check_turns(prompt, problems)
    return _pair(row, prompt, chosen[-1]["content"], rejected[-1]["content"], problems)


def _parse_annotation(row: dict) -> Parsed:
    problems: list[str] = []
    prompt = with_context(row, _messages(row, _prompt_field(row), "user", problems), problems)
    _check_turns(prompt, problems)
    outputs = [_messages(row, field, "assistant", problems) for field in ("output_1", "output_2")]
    preference = row.get("preference")
    is_number = isinstance(preference, int | float) and not isinstance(preference, bool)
    if not is_number or not 1 <= preference <= 2:
        problems.append(f"preference: expected a number from 1 (output_1 better) to 2, got {preference!r}")
    if problems or preference == 1.5:
        return None, problems
    chosen, rejected = outputs if preference < 1.5 else outputs[::-1]
    return _pair(row, prompt, chosen[-1]["content"], rejected[-1]["content"], problems)


def _prompt_field(row: dict) -> str:
    return "instruction" if "instruction" in row and "prompt" not in row else "prompt"


def _pair(row: dict, prompt: list[dict], chosen: str, rejected: str, problems: list[str]) -> Parsed:
    if chosen == rejected:
        problems.append("rejected: must differ from chosen")
    # Of a few words only, as both answers to "Hi" may begin with it; answers given as chat messages are as meant.
    repeated = prompt[-1]["content"].strip() if prompt else ""
    texts = [row[field] for field in ("chosen", "rejected", "output_1", "output_2") if field in row]
    if len(repeated.split()) > 2 and all(isinstance(t, str) and t.strip().startswith(repeated) for t in texts):
        problems.append(
            "chosen, rejected: both repeat the prompt, so that it would be trained twice: take it out of the answers, "
            "or, if they are meant to repeat it, give them as chat messages"
        )
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}, problems


def _weight_problems(row: dict) -> list[str]:
    weight = row.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if is_number and 0 <= weight <= sys.float_info.max:
        return []
    return [f"weight: expected a finite number of at least 0, as other rows have, got {weight!r}"]


def _messages(row: dict, field: str, role: str, problems: list[str]) -> list[dict] | None:
    """Read a field as chat messages; plain text that is no transcript is one message of `role`."""
    value = row.get(field)
    if isinstance(value, str):
        value = transcript(value) or [{"role": role, "content": value}]
    problem = None
    if value is None:
        problem = "missing or null, expected text or a list of chat messages"
    elif not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        problem = f"expected text or a list of chat messages, got {type(value).__name__}"
    elif not value:
        problem = "empty, expected text or a list of chat messages"
    else:
        for message in value:
            if message.get("role") not in ROLES:
                problem = f"role must be one of {', '.join(ROLES)}, got {message.get('role')!r}"
            elif not isinstance(message.get("content"), str):
                problem = f"content must be text, got {type(message.get('content')).__name__}"
            elif not message["content"].strip():
                problem = "empty text"
            elif LONE_SURROGATE.search(message["content"]):
                problem = "not valid Unicode (half of a surrogate pair), which no file or tokenizer can hold"
    if problem is not None:
        problems.append(f"{field}: {problem}")
        return None
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _check_turns(prompt: list[dict] | None, problems: list[str]) -> None:
    """Chat templates accept one order only: a system message if any, then user and assistant in turn."""
    if prompt is None:
        return
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[0] == "system" else roles
    in_turn = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))
    if len(turns) % 2 == 0 or not in_turn:
        problems.append(
            "prompt: roles must be an optional system message, then user and assistant in turn, ending with "
            f"user; got {', '.join(roles)}"
        )
