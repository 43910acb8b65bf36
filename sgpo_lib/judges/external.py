"""Who judges in the policy's place, as a params file names it: scores that rank answers, wins that evaluate them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sgpo_lib.judges.endpoint import Endpoint
from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.judges.llm import LLMJudge
from sgpo_lib.judges.pairwise import against_sft, audit, mean_by_response, score_responses
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
    """Compare every policy's responses with each of the SFT model's to the same prompt.

    Parameters
    ----------
    responses : M rows with `policy` ("sft" among them), `prompt_id`, `prompt` and `response`.

    Returns
    -------
    wins : shape (M,), the preference in [0, 1] for each response over the SFT model's, averaged over these; 1/2 for
        the same text, and for the SFT model's own, which nobody is asked about.
    counts : see `scores`.
    """
    judge = load_judge(params, cache)
    ours, theirs = against_sft(responses)
    prompts, texts = responses["prompt"].to_numpy(), responses["response"].to_numpy()
    differ = texts[ours] != texts[theirs]  # two equal answers tie, whatever rounding makes of them
    asked = differ & (responses["policy"] != "sft").to_numpy()[ours]
    preference = np.full(len(ours), 0.5)
    if isinstance(judge, RewardModelJudge):
        score = judge.score(prompts.tolist(), texts.tolist())
        preference[asked] = (np.sign(score[ours] - score[theirs])[asked] + 1) / 2
        return mean_by_response(preference, ours), {}
    first, second = ours[asked], theirs[asked]
    comparisons = judge.compare(prompts[first].tolist(), texts[first].tolist(), texts[second].tolist())
    preference[asked] = comparisons["preference"]
    return mean_by_response(preference, ours), audit(comparisons) | _usage(judge)


def _usage(judge: LLMJudge | PairwiseRewardModelJudge) -> dict[str, Any]:
    return judge.endpoint.usage() if isinstance(judge, LLMJudge) else {}
