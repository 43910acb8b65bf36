"""MT-Bench's judge: the conversations it is shown, the ratings it gives, and what they come to."""

import math
import re
import warnings
from typing import Any, Protocol

import numpy as np
import pandas as pd

from sgpo_lib.evaluation.metrics import bootstrap
from sgpo_lib.evaluation.mt_bench.questions import MTBench, _prompt_name
from sgpo_lib.judges.endpoint import EndpointError
from sgpo_lib.judges.replies import Reply

_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_ASK_AGAIN = (
    "Your reply could not be used: it must contain exactly one rating, a number from 1 to 10 in double square "
    "brackets. Reply now with that rating alone."
)


class Judge(Protocol):
    """A language model that answers conversations."""

    def complete(self, conversations: list[list[dict]], max_unanswered: int) -> list[Reply]:
        """Return the reply to each conversation, in order, of which so many may be without an answer."""


def rate(
    bench: MTBench, answers: pd.DataFrame, judge: Judge, n_attempts: int = 3, max_unread: float = 0.1
) -> pd.DataFrame:
    """Let a judge rate every answer on its own, from 1 to 10 (FastChat's single-answer grading).

    A reply counts if it has one rating in double brackets, which is a number from 1 to 10; where the reply was cut at
    its longest length, the rating must be the end of it. To any other the judge is told so, in the same conversation,
    until `n_attempts` replies were malformed; then the rating is missing, as it is at once where the judge refuses to
    answer. FastChat, in contrast, takes the first of several ratings, falls back on single brackets, and
    takes any number: a `[[0]]` or `[[100]]` enters its mean.

    Parameters
    ----------
    answers : of `answer`, to any of the benchmark's questions.
    max_unread : share of ratings, rounded up to a whole one, that may be missing.

    Returns
    -------
    DataFrame, two rows per question: `question_id`, `category`, `turn`, `judge_prompt` (its name), `rating` (NaN
    if missing), `n_asked` (1 to n_attempts) and `judgement`, the judge's last reply or why there is none.

    Warns
    -----
    UserWarning : with the number of ratings that are missing.

    Raises
    ------
    ValueError : if an answer is to an unknown question, or the judge returns too few or too many replies.
    sgpo_lib.judges.endpoint.EndpointError : if the judge fails, or more than `max_unread` of the ratings are missing.
    """
    unknown = set(answers["question_id"]) - set(bench.questions["question_id"])
    if unknown:
        raise ValueError(f"answers to unknown questions: {', '.join(map(str, sorted(unknown)))}.")
    graded = bench.questions.merge(answers, on="question_id", validate="one_to_one")
    rows, conversations = [], []
    for question in graded.to_dict("records"):
        for turn in (1, 2):
            name = _prompt_name(question["category"], turn)
            rows.append(
                {key: question[key] for key in ("question_id", "category")} | {"turn": turn, "judge_prompt": name}
            )
            conversations.append(_judge_conversation(bench.judge_prompts[name], question, turn))
    ratings, replies, n_asked = [np.nan] * len(rows), [""] * len(rows), [0] * len(rows)
    pending, n_unanswered = list(range(len(rows))), 0
    n_borne = math.ceil(max_unread * len(rows) - 1e-9)
    for _ in range(n_attempts):
        if not pending:
            break
        completed = judge.complete([conversations[i] for i in pending], max(0, n_borne - n_unanswered))
        if len(completed) != len(pending):
            raise ValueError(f"the judge returned {len(completed)} replies to {len(pending)} conversations.")
        again = []
        for i, reply in zip(pending, completed, strict=True):
            n_asked[i] += 1
            if reply.text is None:
                replies[i], n_unanswered = f"(no answer: {reply.problem})", n_unanswered + 1
                continue
            ratings[i], replies[i] = parse_rating(reply.text, reply.is_cut), reply.text
            if np.isnan(ratings[i]):
                again.append(i)
                # The conversation grows, because a judge that caches or decodes greedily would repeat itself.
                conversations[i] = [
                    *conversations[i],
                    {"role": "assistant", "content": reply.text.strip() or "(no reply)"},
                    {"role": "user", "content": _ASK_AGAIN},
                ]
        pending = again
    n_missing = int(np.isnan(ratings).sum())
    if n_missing:
        missing = (
            f"{n_missing} of {len(rows)} ratings are missing: {n_unanswered} without an answer, the others malformed"
        )
        if n_missing > n_borne:
            first = replies[int(np.flatnonzero(np.isnan(ratings))[0])]
            raise EndpointError(
                f"{missing}. That is more than max_unread = {max_unread:g} allows. One is {first!r:.300}"
            )
        warnings.warn(f"{missing}.", stacklevel=2)
    return pd.DataFrame(rows).assign(rating=ratings, n_asked=n_asked, judgement=replies)


def parse_rating(reply: str, is_cut: bool = False) -> float:
    """Return the rating in a judge's reply, `[[7]]`; NaN if there is none, several different ones, or not 1 to 10.

    A reply that was cut at its longest length may be unfinished thought: its rating must be the end of it.
    """
    if is_cut and not reply.rstrip().endswith("]]"):
        return np.nan
    found = {float(number) for number in _RATING.findall(reply)}
    rating = found.pop() if len(found) == 1 else np.nan
    return rating if 1 <= rating <= 10 else np.nan


def summarize(ratings: pd.DataFrame, confidence: float = 0.95, n_bootstrap: int = 10_000) -> dict[str, Any]:
    """Mean rating with its bootstrap interval over questions, overall, per turn and per category.

    As in FastChat, every rating counts once: where one is missing, its question counts half. The bootstrap draws
    questions and with each all its ratings.

    Returns
    -------
    dict of plain values: `score`; `turns` and `categories`, each by name; all `{"mean", "low", "high"}`, or None
    where every rating is missing; low and high are NaN for a single question. `n_questions`, `n_ratings`,
    `n_missing` (no usable reply) and `n_asked_again` (at least one malformed reply) count what the means rest on.
    """

    def interval(rows: pd.DataFrame) -> dict[str, float] | None:
        rated = rows.dropna(subset="rating")
        questions = rated["question_id"].factorize()[0]
        return bootstrap(rated["rating"].to_numpy(), confidence, n_bootstrap, questions) if len(rated) else None

    return {
        "score": interval(ratings),
        "turns": {f"turn {turn}": interval(rows) for turn, rows in ratings.groupby("turn")},
        "categories": {name: interval(rows) for name, rows in ratings.groupby("category", sort=False)},
        "n_questions": int(ratings["question_id"].nunique()),
        "n_ratings": int(ratings["rating"].notna().sum()),
        "n_missing": int(ratings["rating"].isna().sum()),
        "n_asked_again": int((ratings["n_asked"] > 1).sum()),
    }


def summary_table(summaries: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Lay summaries out as text, a row per policy; `missing` is the number of ratings that no mean counts."""

    def text(value: dict[str, float] | None) -> str:
        if value is None:
            return "–"
        mean, low, high = value.values()
        return f"{mean:.2f}" if np.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"

    rows = {
        policy: {
            "score": text(summary["score"]),
            **{name: text(value) for name, value in (summary["turns"] | summary["categories"]).items()},
            "missing": f"{summary['n_missing']} of {summary['n_missing'] + summary['n_ratings']}",
        }
        for policy, summary in summaries.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def _judge_conversation(prompt: dict[str, str], question: dict[str, Any], turn: int) -> list[dict]:
    values = {name: question[name] for name in ("answer_1", "answer_2")}
    values |= {"question_1": question["turn_1"], "question_2": question["turn_2"]}
    values |= {f"ref_answer_{t}": question[f"reference_{t}"] for t in (1, 2)}
    if turn == 1:
        values |= {"question": question["turn_1"], "answer": question["answer_1"]}
    return [
        {"role": "system", "content": prompt["system_prompt"]},
        {"role": "user", "content": prompt["prompt_template"].format(**values)},
    ]
