"""AlpacaEval: a policy's responses out in its format, its annotations in, its own win rates of them.

Between the two lies the judging, which is alpaca-eval's own work (`alpaca_eval evaluate`) and costs an API.
Nothing here generates, and no metric is computed here: see `sgpo_lib.policy` and alpaca-eval.
"""

import contextlib
import json
import math
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import sklearn

from sgpo_lib import data
from sgpo_lib.data import hub
from sgpo_lib.evaluation.metrics import length_controlled_win_rate
from sgpo_lib.judges.replies import encodable
from sgpo_lib.runs.store import replacing

DATASET = "tatsu-lab/alpaca_eval"
BASELINE_FILE = "alpaca_eval_gpt4_baseline.json"
DIFFICULTIES_FILE = "df_gamed.csv"  # which `get_length_controlled_winrate` reads
_TEXTS = ("instruction", "output_1", "output_2", "generator_1", "generator_2")
_PROBLEMS_SHOWN = 10


def baseline_file() -> Path:
    """Fetch AlpacaEval 2.0's reference outputs, of its 805 instructions, from the hub or its local cache.

    alpaca-eval 0.6.6 fetches them by a loading script, which datasets 4 and newer refuse; so they have to be
    named on its command line: `--reference_outputs <this file>`.

    Raises
    ------
    ConnectionError : if the hub does not answer and the file is not in its cache.
    """
    try:
        return _from_hub(BASELINE_FILE)
    except ConnectionError as error:
        raise ConnectionError(f"{error} Download it where there is a connection, and give its path.") from error


def load_instructions(source: str = DATASET) -> pd.DataFrame:
    """Load AlpacaEval's instructions as evaluation prompts.

    Parameters
    ----------
    source : the hub dataset, or a local `.json` or `.jsonl` file of rows with `instruction`, such as
        `alpaca_eval_gpt4_baseline.json` or any model's outputs.

    Returns
    -------
    DataFrame with `prompt_id` and `prompt`, a row per distinct instruction in the source's order.

    Raises
    ------
    ConnectionError, FileNotFoundError, ValueError : naming file, row and field.
    """
    prompts = data.load(str(baseline_file()) if source == DATASET else source)
    return prompts.drop_duplicates("prompt_id", ignore_index=True)[["prompt_id", "prompt"]]


def write_outputs(file: Path, responses: pd.DataFrame, generator: str) -> Path:
    """Write one policy's responses as alpaca-eval's model outputs, whole or not at all.

    Parameters
    ----------
    responses : rows with `prompt` (a list of chat messages) and `response`; one row per prompt.
    generator : the name the policy shall have on the leaderboard.

    Returns
    -------
    `file`: a JSON list of `{"instruction", "output", "generator"}`.

    Raises
    ------
    ValueError : for what the format cannot hold: prompts of more than one user message, or a prompt with
        two responses, which alpaca-eval would pair with each other.
    """
    if responses.empty:
        raise ValueError(f"there are no responses of {generator!r} to write to {file}.")
    not_single = [len(p) != 1 or p[0]["role"] != "user" for p in responses["prompt"]]
    if any(not_single):
        raise ValueError(
            f"{sum(not_single)} of {len(responses)} prompts are not one user message (system messages or several "
            "turns), and AlpacaEval's format has room for one instruction only: evaluate on other prompts, such as "
            "AlpacaEval's own."
        )
    instructions = pd.Series([prompt[0]["content"] for prompt in responses["prompt"]])
    if instructions.duplicated().any():
        raise ValueError(
            f"{instructions.duplicated().sum()} prompts have several responses of {generator!r}, but AlpacaEval "
            f"compares one: pass one policy's responses, with one sample each. The first: "
            f"{instructions[instructions.duplicated()].iloc[0]!r}."
        )
    rows = [
        {"instruction": instruction, "output": output, "generator": generator}
        for instruction, output in zip(instructions, responses["response"], strict=True)
    ]
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
    return file


def command(model_outputs: Path, reference_outputs: Path) -> str:
    """Return the command line by which alpaca-eval judges outputs against a baseline's.

    The judge is alpaca-eval's default, GPT-4 Turbo with its key in `OPENAI_API_KEY`; `--annotators_config` takes
    others. The annotations land beside `model_outputs`, in `<annotators_config>/annotations.json`. The metric is
    named because the default one needs the hub, is computed before the annotations are saved, and takes any
    instructions for AlpacaEval's; `win_rates` has the length-controlled one.
    """
    named = ["--model_outputs", str(model_outputs), "--reference_outputs", str(reference_outputs)]
    return shlex.join(["alpaca_eval", "evaluate", *named, "--fn_metric", "get_winrate", "--sort_by", "win_rate"])


def read_annotations(file: Path | str) -> pd.DataFrame:
    """Read the `annotations.json` that alpaca-eval leaves (or the same as JSON lines).

    Returns
    -------
    DataFrame with `instruction`, `output_1`, `output_2`, `generator_1`, `generator_2`, `preference` (1: output_1
    is better, 2: output_2 is, NaN: the judge's reply could not be read; draws are 1.5) and what else was there.

    Raises
    ------
    FileNotFoundError, ValueError : naming the row and the field, or if more than one policy or baseline is in it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file.absolute()}. alpaca-eval calls it annotations.json")
    rows = _read_rows(file)
    problems = [f"  row {i}: {problem}" for i, row in enumerate(rows, 1) for problem in _problems(row)]
    if problems:
        more = [f"  ... and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
        listing = "\n".join(problems[:_PROBLEMS_SHOWN] + more)
        raise ValueError(f"{file}: {len(problems)} problems in {len(rows)} annotations\n{listing}")
    annotations = pd.DataFrame([row | {field: encodable(row[field]) for field in _TEXTS} for row in rows])
    annotations["preference"] = annotations["preference"].astype(float).replace({0.0: 1.5})  # 0: a draw, formerly
    for side in ("generator_1", "generator_2"):
        names = annotations[side].unique()
        if len(names) > 1:
            raise ValueError(f"{file}: {side} must be one model, but is {', '.join(names)}: use one file for each.")
    return annotations


def n_outdated(annotations: pd.DataFrame, model_outputs: Path) -> int:
    """Count annotations of answers that are not in `model_outputs` now, as after the policy was trained again."""
    present = {(row["instruction"], row["output"]) for row in json.loads(model_outputs.read_bytes())}
    judged = zip(annotations["instruction"], annotations["output_2"], strict=True)
    return sum(answered not in present for answered in judged)


def win_rates(annotations: pd.DataFrame) -> dict[str, Any]:
    """Win rates of `generator_2` over `generator_1`, those of AlpacaEval by alpaca-eval's own functions.

    The length-controlled win rate (`get_length_controlled_winrate`: Dubois et al., 2024, arXiv 2404.04475) has a term
    for each instruction's difficulty, so it exists only where all instructions are AlpacaEval's own and their
    difficulties can be had from the hub or its cache. It comes in two ways, which agree where a file holds all 805 in
    the data set's order: with the difficulty of each row's instruction, and as the leaderboard's code does it, which
    takes a row's number for its instruction. Compare the second with the leaderboard: 6 of 58 published files are out
    of order, and there the two differ by up to 2.6 points.

    `win_rate_at_equal_length` (`sgpo_lib.evaluation.length_controlled_win_rate`) is for comparing policies of one run
    where there are no difficulties. It is another quantity: alpaca-eval's regression without them is off by 6 points
    on average from published length-controlled win rates, and by 27 at worst.

    Parameters
    ----------
    annotations : of `read_annotations`.

    Returns
    -------
    dict of plain values, rates in per cent: `generator`, `baseline`, `win_rate`, `standard_error` (of that),
    `length_controlled_win_rate` and `length_controlled_win_rate_by_row` (the leaderboard's way), both None with the
    reason in `why_not_length_controlled` where they do not exist, `win_rate_at_equal_length`, `discrete_win_rate`,
    `n_wins`, `n_wins_base`, `n_draws`, `n_total`, and `n_missing`: annotations without a preference, which no rate
    counts, except that the leaderboard's way predicts a preference for them too.

    Raises
    ------
    ValueError : if no annotation has a preference.
    """
    with _quiet():
        from alpaca_eval.metrics import get_winrate

        judged = annotations[annotations["preference"].notna()].reset_index(drop=True)
        if judged.empty:
            raise ValueError(f"none of the {len(annotations)} annotations has a preference.")
        counts = {name: getattr(value, "item", lambda v=value: v)() for name, value in get_winrate(judged).items()}
        wins = judged["preference"] - 1
        shorter_by = judged["output_1"].str.len() - judged["output_2"].str.len()
        return {
            "generator": judged["generator_2"].iloc[0],
            "baseline": judged["generator_1"].iloc[0],
            **counts,
            **_length_controlled(annotations),
            "win_rate_at_equal_length": length_controlled_win_rate(wins.to_numpy(), shorter_by.to_numpy(float)),
            "n_missing": len(annotations) - len(judged),
        }


def _length_controlled(annotations: pd.DataFrame) -> dict[str, Any]:
    from alpaca_eval.metrics import get_length_controlled_winrate

    rates: dict[str, Any] = {"length_controlled_win_rate": None, "length_controlled_win_rate_by_row": None}
    try:
        own = json.loads(_from_hub(BASELINE_FILE).read_bytes())
        _from_hub(DIFFICULTIES_FILE)
    except ConnectionError as error:
        return rates | {"why_not_length_controlled": str(error)}
    index = annotations["instruction"].map({row["instruction"]: i for i, row in enumerate(own)})
    if index.isna().any():
        why = f"{index.isna().sum()} of {len(index)} instructions are not AlpacaEval's, so have no difficulty."
        return rates | {"why_not_length_controlled": why}
    if index.duplicated().any():
        why = f"{index.duplicated().sum()} instructions are judged more than once."
        return rates | {"why_not_length_controlled": why}
    by_row = annotations.drop(columns="index", errors="ignore").reset_index(drop=True)  # else it would be believed
    by_instruction = by_row.assign(index=index.to_numpy(int)).dropna(subset="preference")
    with _hub_or_cache(), sklearn.config_context():
        for name, rows in zip(rates, (by_instruction, by_row), strict=True):
            controlled = get_length_controlled_winrate(rows.copy(), save_weights_dir=None)
            rates[name] = float(controlled["length_controlled_winrate"])
    return rates | {"why_not_length_controlled": None}


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_or_cache() as silent:
        try:
            return Path(hf_hub_download(DATASET, name, repo_type="dataset"))
        except OSError as error:
            raise ConnectionError(
                f"{name} of the hub dataset {DATASET} is neither in reach ({silent or error}) nor in the local cache."
            ) from error


@contextlib.contextmanager
def _hub_or_cache() -> Iterator[str | None]:
    """Ask only the local cache if the hub is silent, whose clients would retry for long; gives why it is silent."""
    from huggingface_hub import constants

    silent = hub.why_silent(constants.ENDPOINT)
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or silent is not None
    try:
        yield silent
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # alpaca-eval imports pkg_resources and uses arguments sklearn will rename
        yield


def _read_rows(file: Path) -> list:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start + 1}.") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}. Was its writing cut short?") from None
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"{file}, line {number}: neither a JSON list nor JSON lines ({error}).") from None
    if not rows:
        raise ValueError(f"{file} has no annotations.")
    return rows


def _problems(row: object) -> list[str]:
    if not isinstance(row, dict):
        return [f"expected an object with named fields, got {type(row).__name__}"]
    found = [
        f"{field}: expected text, got {row.get(field)!r:.40}" for field in _TEXTS if not isinstance(row.get(field), str)
    ]
    value = row.get("preference", "nothing")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (value is None or (number and (math.isnan(value) or value == 0 or 1 <= value <= 2))):
        found.append(f"preference: expected a number from 1 (output_1 better) to 2, or null, got {value!r:.40}")
    return found
