"""Comparisons of two answers, and what the rest of the method needs from them: a score for every answer, counts.

A *comparer* is any object with `compare(prompts, first, second)`; it returns a table, a row per pair, whose
column `preference` in [0, 1] says how far the first answer is preferred to the second. An LLM is one
(`sgpo_lib.judges.llm`), and so is a pairwise reward model (`sgpo_lib.judges.reward_model`).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Protocol

import numpy as np
import pandas as pd


class Comparer(Protocol):
    """Who prefers one of two answers to the same prompt."""

    def compare(self, prompts: Sequence[list[dict]], first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
        """Return N rows with `preference` for the first answer, and with `in_order` and `swapped`, of which it is
        the mean: the preference for the first answer where it was shown first, and where it was shown second.
        """


def against_sft(responses: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Pair every response with each of the SFT model's to the same prompt: K x K pairs of K answers each.

    Parameters
    ----------
    responses : rows with `policy` ("sft" among them) and `prompt_id`.

    Returns
    -------
    ours, theirs : positions in `responses` of the two of each pair, shape (P,), ordered by `ours`; every response
        has a pair. The SFT model's are paired with themselves too, so that it wins half.

    Raises
    ------
    ValueError : if the SFT model has no answer to a prompt.
    """
    rows = pd.DataFrame({"prompt_id": responses["prompt_id"].to_numpy(), "ours": np.arange(len(responses))})
    sft = rows[(responses["policy"] == "sft").to_numpy()].rename(columns={"ours": "theirs"})
    pairs = rows.merge(sft, on="prompt_id", how="left")
    if pairs["theirs"].isna().any():
        missing = pairs.loc[pairs["theirs"].isna(), "prompt_id"].iloc[0]
        raise ValueError(f"the SFT model has no answer to prompt {missing} for others to be compared with")
    return pairs["ours"].to_numpy(), pairs["theirs"].to_numpy(int)


def mean_by_response(values: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Average one value per pair (P,) over the pairs of each response, as `against_sft` numbers them."""
    return np.bincount(ours, values) / np.bincount(ours)


def score_responses(responses: pd.DataFrame, comparer: Comparer) -> tuple[np.ndarray, pd.DataFrame]:
    """Score each response by its win rate against the other responses to its prompt.

    With this as a column, `sgpo_lib.annotation.rank` makes the best and worst pairs of iterative DPO; with two
    responses to a prompt the scores are the preference and its complement.

    Parameters
    ----------
    responses : M rows with `prompt_id`, `prompt` and `response`; rows that share a `prompt_id` compete, each with
        each, so n of them take n (n - 1) / 2 comparisons.

    Returns
    -------
    scores : shape (M,), in [0, 1]; 1/2 for a response that has no other to compete with.
    comparisons : a row per comparison: `prompt_id`, the positions `first` and `second` of the two in `responses`,
        and the comparer's columns.
    """
    pairs = [
        (prompt_id, *pair)
        for prompt_id, rows in responses.groupby("prompt_id", sort=False).indices.items()
        for pair in combinations(sorted(rows), 2)
    ]
    asked = pd.DataFrame(pairs, columns=["prompt_id", "first", "second"]).astype({"first": int, "second": int})
    prompts, texts = responses["prompt"].to_numpy(), responses["response"].to_numpy()
    verdicts = comparer.compare(
        prompts[asked["first"]].tolist(), texts[asked["first"]].tolist(), texts[asked["second"]].tolist()
    )
    comparisons = asked.join(verdicts)

    won, played = np.zeros(len(responses)), np.zeros(len(responses))
    for side, won_by_side in {"first": comparisons["preference"], "second": 1 - comparisons["preference"]}.items():
        np.add.at(won, comparisons[side], won_by_side)
        np.add.at(played, comparisons[side], 1)
    return np.where(played > 0, won / np.maximum(played, 1), 0.5), comparisons


def audit(comparisons: pd.DataFrame) -> dict[str, float | None]:
    """Count what a comparer decided, and how far the order in which it was shown the answers decided for it.

    Returns
    -------
    dict with `n_comparisons`; `ties` (share with preference 1/2); `orders_disagree`, the share of pairs read
    in both orders whose preferred answer changes with the order; `prefers_shown_first`, the mean preference for
    the answer in first place, 1/2 without position bias; and `n_unread` of the `n_verdicts` that were asked
    for: these count as ties. Shares of nothing are None.
    """
    asked = comparisons[comparisons["asked"]] if "asked" in comparisons else comparisons
    in_order, swapped = asked["in_order"], asked["swapped"]
    both = asked[in_order.notna() & swapped.notna()]
    for_the_place = np.concatenate([in_order.dropna(), 1 - swapped.dropna()])
    return {
        "n_comparisons": len(comparisons),
        "ties": _mean(comparisons["preference"] == 0.5),
        "orders_disagree": _mean((both["in_order"] - 0.5) * (both["swapped"] - 0.5) < 0),
        "prefers_shown_first": _mean(for_the_place),
        "n_verdicts": 2 * len(asked),
        "n_unread": int(in_order.isna().sum() + swapped.isna().sum()),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
