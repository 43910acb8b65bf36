"""Who judges in the policy's place, as a params file names it: scores that rank answers, wins that evaluate them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sgpo_lib.judges.endpoint import Endpoint
from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.judges.llm import LLMJudge
from sgpo_lib.judges.pairwise import audit, score_responses
from sgpo_lib.judges.reward_model import PairwiseRewardModelJudge, RewardModelJudge
from sgpo_lib.params.schema import LLMJudgeParams, Params, RewardModelParams


def load_judge(
    params: LLMJudgeParams | RewardModelParams, cache: Path
) -> LLMJudge | RewardModelJudge | PairwiseRewardModelJudge:
    """Return the judge of a params file's section `judge`.

    Parameters
    ----------
    cache : folder in which an endpoint's answers are kept, so that a killed run asks only for what is missing.
    """
    if isinstance(params, LLMJudgeParams):
        options = params.model_dump(exclude={"kind", "annotator", "n_tries", "max_unread"})
        return LLMJudge(Endpoint(cache_dir=cache, **options), params.annotator, params.n_tries, params.max_unread)
    kind = PairwiseRewardModelJudge if params.kind == "pairwise" else RewardModelJudge
    return kind.load(**params.model_dump(exclude={"kind"}))


def scores(params: Params, responses: pd.DataFrame, cache: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Score responses by `annotation.judge`, for `sgpo_lib.annotation.rank`.

    Parameters
    ----------
    responses : M rows with `prompt_id`, `prompt` and `response`.

    Returns
    -------
    scores : shape (M,), higher is better.
    counts : of the judge's ties, position bias, unread verdicts and cost, where it has them.
    """
    if params.annotation.judge in ("sentiment", "gold"):
        gold = GoldJudge(**params.gold.model_dump())
        knows_all = params.annotation.judge == "gold"
        return (gold.score if knows_all else gold.sentiment)(responses["response"]), {}
    judge = load_judge(params.judge, cache)
    if isinstance(judge, RewardModelJudge):
        return judge.score(responses["prompt"].tolist(), responses["response"].tolist()), {}
    found, comparisons = score_responses(responses, judge)
    return found, audit(comparisons) | _usage(judge)


def wins_over_sft(
    params: LLMJudgeParams | RewardModelParams, responses: pd.DataFrame, cache: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """Compare every policy's responses with the SFT model's to the same prompt.

    Parameters
    ----------
    responses : M rows with `policy` ("sft" among them), `prompt_id`, `prompt` and `response`.

    Returns
    -------
    wins : shape (M,), the preference in [0, 1] for each response over the SFT model's; 1/2 for the same text.
    counts : see `scores`.
    """
    judge = load_judge(params, cache)
    sft = responses[responses["policy"] == "sft"].set_index("prompt_id")["response"]
    theirs = responses["prompt_id"].map(sft)
    asked = (responses["response"] != theirs).to_numpy()  # two equal answers tie, whatever rounding makes of them
    wins = np.full(len(responses), 0.5)
    prompts, ours = responses["prompt"][asked].tolist(), responses["response"][asked].tolist()
    if isinstance(judge, RewardModelJudge):
        margin = judge.score(prompts, ours) - judge.score(prompts, theirs[asked].tolist())
        wins[asked] = (np.sign(margin) + 1) / 2
        return wins, {}
    comparisons = judge.compare(prompts, ours, theirs[asked].tolist())
    wins[asked] = comparisons["preference"]
    return wins, audit(comparisons) | _usage(judge)


def _usage(judge: LLMJudge | PairwiseRewardModelJudge) -> dict[str, Any]:
    return judge.endpoint.usage() if isinstance(judge, LLMJudge) else {}
