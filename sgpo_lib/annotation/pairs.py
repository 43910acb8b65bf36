"""From answers to pairs: which of them compete, which is chosen, and by what margin."""

import bisect
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sgpo_lib.data.selection import choose_two, two_by_gap

if TYPE_CHECKING:
    from sgpo_lib.policy.model import Policy

# What a pair keeps of each of its two responses.
_OF_RESPONSE = ["response_ids", "finished", "log_prob", "reference_log_prob", "implicit_reward", "gold"]


def choose(policy: "Policy", responses: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Keep of each prompt's responses those that are to compete: all, or two that are worth a comparison.

    Parameters
    ----------
    policy : whose SFT model says how alike responses are, for "aepo".
    responses : rows that share a `prompt_id` are answers to one prompt.
    rule : "best-worst" keeps all. The others keep two: "random" the first two, which are as good as any; "aepo" what
        `sgpo_lib.data.choose_two` takes by the cosines of `sgpo_lib.policy.embed_responses`; "min-margin" and
        "max-margin" the two whose `implicit_reward` differs least and most.

    Returns
    -------
    Those rows, unchanged and in their order. Of equal texts one competes, unless all are equal.
    """
    if rule == "best-worst":
        return responses
    states = pd.Series(dtype=object)
    if rule == "aepo":
        from sgpo_lib.policy.scoring import embed_responses

        states = embed_responses(policy, responses["prompt_ids"].tolist(), responses["response_ids"].tolist())
        states = pd.Series([*(states / np.linalg.norm(states, axis=1, keepdims=True))], index=responses.index)

    def two_of(answers: pd.DataFrame) -> tuple[int, int]:
        if rule == "random":
            return 0, 1
        if rule == "aepo":
            directions = np.stack(states[answers.index])
            return choose_two(directions @ directions.T)
        return two_by_gap(answers["implicit_reward"].to_numpy(), largest=rule == "max-margin")

    kept = []
    for _, answers in responses.groupby("prompt_id", sort=False):
        distinct = answers.drop_duplicates("response")
        answers = distinct if len(distinct) > 1 else answers
        kept += [answers.index[position] for position in two_of(answers)]
    return responses.loc[sorted(kept)]


def n_comparisons(compared: pd.DataFrame) -> pd.Series:
    """Count what labels cost by `prompt_id`: one comparison of two answers, or, where more compete, a score of each."""
    n_answers = compared.groupby("prompt_id", sort=False).size()
    return n_answers.where(n_answers > 2, 1)


def with_balanced_rewards(responses: pd.DataFrame) -> pd.DataFrame:
    """Add `balanced_reward`: the implicit reward less what makes chosen and rejected answers equally long on average.

    R - alpha |y| in reward units, |y| in tokens. As alpha grows, shorter answers win and longer ones lose, so that the
    mean length of the best less that of the worst falls from step to step, each where two answers to one prompt tie.
    Of these steps the nearest to zero is taken, at its middle; alpha is 0 where that is on it. It can be negative.

    Parameters
    ----------
    responses : with `prompt_id`, `implicit_reward` and `response_ids`; rows that share a `prompt_id` compete.

    Returns
    -------
    The rows, with `attrs["length_penalty"]`: alpha, in reward units a token.

    Notes
    -----
    DICE (Chen et al., ICLR 2025, arXiv 2406.09760), whose code looks for alpha on a grid and counts characters.
    """
    rewards, lengths = responses["implicit_reward"].to_numpy(), responses["response_ids"].map(len).to_numpy()
    group = responses["prompt_id"].factorize()[0]

    def longer_by(alpha: float) -> float:
        table = pd.DataFrame({"score": rewards - alpha * lengths, "group": group}).groupby("group")["score"]
        return float((lengths[table.idxmax()] - lengths[table.idxmin()]).mean())

    ties = [np.empty(0)]
    for rows in responses.groupby("prompt_id").indices.values():
        first, second = (rows[side] for side in np.triu_indices(len(rows), 1))
        longer = lengths[first] != lengths[second]
        first, second = first[longer], second[longer]
        ties.append((rewards[first] - rewards[second]) / (lengths[first] - lengths[second]))
    ends = np.unique(np.concatenate(ties))
    alpha = 0.0
    if len(ends):
        steps = np.concatenate([ends[:1] - 1, (ends[1:] + ends[:-1]) / 2, ends[-1:] + 1])
        beyond = bisect.bisect_left(steps, 0, key=lambda step: -longer_by(step))
        nearest = [alpha, *steps[max(beyond - 1, 0) : beyond + 1]]
        alpha = float(min(nearest, key=lambda step: abs(longer_by(step))))
    balanced = responses.assign(balanced_reward=rewards - alpha * lengths)
    balanced.attrs["length_penalty"] = alpha
    return balanced


def rank(responses: pd.DataFrame, by: str) -> pd.DataFrame:
    """Pair each prompt's best response with its worst, by a score.

    Parameters
    ----------
    responses : rows that share a `prompt_id` compete.
    by : column of scores, higher is better.

    Returns
    -------
    DataFrame, a row per prompt in the order of appearance: `prompt_id`, `prompt`, `prompt_ids`, the texts
    `chosen` and `rejected`, what else is known of each, as `chosen_<column>` and `rejected_<column>`, and `weight`:
    0 where the responses are the same text or tie in the score, so that there is no preference, else 1. Rows of
    weight 0 keep the number of rows, and so of training steps, what it is without ties; `preferred` leaves them out.

    Raises
    ------
    ValueError : if no prompt's responses differ in the score, so that there is nothing to learn.
    """
    group = responses.groupby("prompt_id", sort=False)[by]
    best, worst = responses.loc[group.idxmax()], responses.loc[group.idxmin()]
    best, worst = best.reset_index(drop=True), worst.reset_index(drop=True)
    prefers = (best[by] > worst[by]) & (best["response"] != worst["response"])

    if not prefers.any():
        raise ValueError(
            f"All {len(best)} prompts have responses that tie in {by!r}: sample more responses per prompt, "
            "longer ones, or at a higher temperature."
        )

    pairs = best[["prompt_id", "prompt", "prompt_ids"]].copy()
    pairs["chosen"], pairs["rejected"] = best["response"], worst["response"]
    for column in _OF_RESPONSE:
        if column in responses:
            pairs[f"chosen_{column}"], pairs[f"rejected_{column}"] = best[column], worst[column]
    pairs = pairs.rename(columns={"chosen_response_ids": "chosen_ids", "rejected_response_ids": "rejected_ids"})
    return pairs.assign(weight=prefers.astype(float))


def preferred(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs that hold a preference: all but those of `weight` 0."""
    return pairs[pairs["weight"] > 0].reset_index(drop=True) if "weight" in pairs else pairs


def with_margins(pairs: pd.DataFrame) -> pd.DataFrame:
    """Add `margin`, xi_i = R(x, chosen) - R(x, rejected) in reward units, and, where a gold score is known,
    `agrees_with_gold`: whether the gold user would have chosen the same response.
    """
    pairs = pairs.assign(margin=pairs["chosen_implicit_reward"] - pairs["rejected_implicit_reward"])
    if "chosen_gold" in pairs:
        pairs["agrees_with_gold"] = pairs["chosen_gold"] > pairs["rejected_gold"]
    return pairs


def audit(pairs: pd.DataFrame) -> dict[str, float]:
    """Count the pairs, and say how large their margins are and, where gold is known, how often they are right.

    Pairs without a preference are counted, and do not enter the rest.
    """
    n_prompts, pairs = len(pairs), preferred(pairs)
    margins = pairs["margin"]
    numbers = {
        "n_pairs": len(pairs),
        "n_without_preference": n_prompts - len(pairs),
        "margin_mean": float(margins.mean()),
        "margin_median": float(margins.median()),
        "margin_min": float(margins.min()),
        "margin_max": float(margins.max()),
    }
    if "agrees_with_gold" in pairs:
        numbers["agreement"] = float(pairs["agrees_with_gold"].mean())
    return numbers
