"""What was gained: gold reward, win rates, length and KL on held-out prompts, with intervals over prompts."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import sklearn

from sgpo_lib.judges import GoldJudge
from sgpo_lib.policy import Policy, sequence_log_probs


def sampled_kl(policy: Policy, responses: pd.DataFrame, temperature: float) -> np.ndarray:
    """One-sample estimates of KL(pi || SFT) in nats per response, shape (N,); single ones can be negative.

    Both laws are taken at the sampling temperature, so the mean estimates the divergence of what is
    deployed. The policy's own log-probability comes from sampling where that was as exact as scoring, else from a
    scoring pass like the reference's: rounding in bfloat16 would add a floor of some tenths of a nat.
    """
    ids = responses["prompt_ids"], responses["response_ids"]
    own = responses["sampling_log_prob"].to_numpy()
    if not policy.samples_as_it_scores:
        own = sequence_log_probs(policy, *ids, temperature=temperature)
    return own - sequence_log_probs(policy, *ids, reference=True, temperature=temperature)


def judge(responses: pd.DataFrame, gold: GoldJudge | None, wins: np.ndarray | None = None) -> pd.DataFrame:
    """Score every policy's responses and compare each with the SFT model's to the same prompt.

    Parameters
    ----------
    responses : rows with `policy` ("sft" among them), `prompt_id`, `response` and `kl`; one response per
        policy and prompt.
    gold : None where no gold user is known.
    wins : shape (N,), another judge's preference in [0, 1] for each response over the SFT model's, used where
        there is no gold user. Without either, only length and KL are filled in.

    Returns
    -------
    DataFrame with `policy`, `prompt_id`, `words`, `characters`, `kl`, with any judge `win` over the SFT model
    (1, 0, or 1/2 for a tie) and, with a gold user, `gold_reward` and `gold_reward_vs_sft`.
    """
    table = responses[["policy", "prompt_id", "kl"]].copy()
    table["words"] = responses["response"].str.split().str.len()
    table["characters"] = responses["response"].str.len()
    if gold is None:
        return table if wins is None else table.assign(win=wins)
    table["gold_reward"] = gold.score(responses["response"])
    sft = table[table["policy"] == "sft"].set_index("prompt_id")["gold_reward"]
    table["gold_reward_vs_sft"] = table["gold_reward"] - table["prompt_id"].map(sft)
    table["win"] = (np.sign(table["gold_reward_vs_sft"]) + 1) / 2
    return table


def summarize(judgements: pd.DataFrame, confidence: float = 0.95, n_bootstrap: int = 10_000) -> dict[str, Any]:
    """Mean and percentile-bootstrap interval over prompts of every quantity, per policy.

    Returns
    -------
    `{policy: {quantity: {"mean", "low", "high"}}}`, policies in order of appearance; win rates in per cent.
    All policies share the resampled prompts, so the summary does not depend on their order.
    """
    summary: dict[str, Any] = {}
    baseline = judgements[judgements["policy"] == "sft"].set_index("prompt_id")
    for policy, table in judgements.groupby("policy", sort=False):
        table = table.set_index("prompt_id").loc[baseline.index]
        rows = {
            name: bootstrap(table[name].to_numpy(), confidence, n_bootstrap)
            for name in ("gold_reward", "gold_reward_vs_sft", "words", "kl")
            if name in table
        }
        if "win" in table:
            rows["win_rate"] = bootstrap(100 * table["win"].to_numpy(), confidence, n_bootstrap)
            rows["length_controlled_win_rate"] = _length_controlled(
                table["win"].to_numpy(),
                baseline["characters"].to_numpy() - table["characters"].to_numpy(),
                confidence,
            )
        rows["n_prompts"] = len(table)
        summary[str(policy)] = rows
    return summary


def preference_accuracy(
    margins: pd.DataFrame, confidence: float = 0.95, n_bootstrap: int = 10_000
) -> dict[str, dict[str, dict[str, float]]]:
    """How often each policy's implicit reward orders labelled pairs as people did, in per cent.

    Parameters
    ----------
    margins : rows with `policy`, `prompt_id`, `margin` (chosen less rejected, reward units; 0 counts half) and
        `extra_characters` (chosen less rejected).

    Returns
    -------
    `{policy: {quantity: {"mean", "low", "high"}}}`. `preference_accuracy` is over pairs. Where labels favour
    length, so does that; `length_balanced_accuracy` is the mean of the accuracies on pairs whose longer and whose
    shorter answer was chosen, 50 for a reward that is length alone; it is left out where there are none of either.
    The bootstrap draws prompts and with each all its pairs: they share its difficulty, and often an answer.
    """
    found = {}
    for policy, rows in margins.groupby("policy", sort=False):
        right, extra = 50 * (np.sign(rows["margin"].to_numpy()) + 1), rows["extra_characters"].to_numpy()
        prompts, names = rows["prompt_id"].factorize()
        draws = np.random.default_rng(0).integers(len(names), size=(n_bootstrap, len(names)))
        found[str(policy)] = {"preference_accuracy": _interval(*_over_prompts(right, prompts, draws), confidence)}
        longer, shorter = extra > 0, extra < 0
        if longer.any() and shorter.any():
            one, other = (_over_prompts(right[part], prompts[part], draws) for part in (longer, shorter))
            balanced = [(of_one + of_other) / 2 for of_one, of_other in zip(one, other, strict=True)]
            found[str(policy)]["length_balanced_accuracy"] = _interval(*balanced, confidence)
    return found


def _over_prompts(values: np.ndarray, prompts: np.ndarray, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of values (N,) of prompts (N,), and of each draw of prompts (B, P) with all their values; NaN if none."""
    n_prompts = draws.shape[1]
    sums, sizes = np.bincount(prompts, values, n_prompts), np.bincount(prompts, minlength=n_prompts)
    with np.errstate(invalid="ignore"):
        return values.mean(), sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)


def bootstrap(
    values: np.ndarray, confidence: float = 0.95, n_bootstrap: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Mean of `values` (N,) with its percentile-bootstrap interval.

    Raises
    ------
    ValueError : if there is nothing to average, or a value is not finite.
    """
    values = np.asarray(values, float)
    if not (values.size and np.isfinite(values).all()):
        raise ValueError(f"bootstrap needs finite values, but got {values!r}.")
    draws = np.random.default_rng(seed).integers(values.size, size=(n_bootstrap, values.size))
    return _interval(values.mean(), values[draws].mean(axis=1), confidence)


def length_controlled_win_rate(wins: np.ndarray, delta_characters: np.ndarray) -> float:
    """AlpacaEval's length-controlled win rate in per cent, by its `length_controlled_minimal` model.

    The logistic regression wins ~ tanh(standardised length difference) + intercept, read off at equal
    lengths (Dubois et al., 2024, arXiv 2404.04475). Design matrix and fit are alpaca-eval's own; only its
    download of instruction difficulties is left out, which this model has no term for.

    Parameters
    ----------
    wins : shape (N,), in [0, 1].
    delta_characters : shape (N,), baseline's length less the policy's.
    """
    return _fit_length_control(wins, delta_characters)[0]


def _length_controlled(
    wins: np.ndarray, delta: np.ndarray, confidence: float, n_bootstrap: int = 300
) -> dict[str, float]:
    """Length-controlled win rate with a bootstrap interval at the regularisation that the whole sample chose."""
    mean, strength = _fit_length_control(wins, delta)
    draws = np.random.default_rng(0).integers(wins.size, size=(n_bootstrap, wins.size))
    fits = [_fit_length_control(wins[draw], delta[draw], strength)[0] for draw in draws]
    return _interval(mean, np.array(fits), confidence)


def _fit_length_control(wins: np.ndarray, delta: np.ndarray, strength: float | None = None) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # alpaca-eval imports pkg_resources and uses arguments sklearn will rename
        from alpaca_eval.metrics.glm_winrate import GLM_INFO, fit_LogisticRegressionCV, make_dmatrix_for_model

        n_splits = min(5, len(wins))
        if np.ptp(delta) == 0 or np.ptp(wins) == 0 or n_splits < 2:
            return 100 * float(wins.mean()), strength or 1.0  # nothing to control for, or nothing to fit
        model = GLM_INFO["length_controlled_minimal"]
        seen = pd.DataFrame(
            {"preference": wins, "std_delta_len": delta / delta.std(ddof=1), "not_gamed_baseline": True}
        )
        equal_length = seen[["not_gamed_baseline"]].assign(std_delta_len=0.0)
        design, at_equal_length = make_dmatrix_for_model(seen, equal_length, formula=model["formula"])
        options = {"n_splits": n_splits} if strength is None else {"n_splits": 0, "C": strength}
        with sklearn.config_context():
            fit = fit_LogisticRegressionCV(design, "preference", is_ytrue_proba=True, **options)
            predicted = fit.predict_proba(at_equal_length)[:, 1]
    return 100 * float(predicted.mean()), strength or float(fit.C_[0])


def _interval(mean: float, resampled: np.ndarray, confidence: float) -> dict[str, float]:
    low, high = np.nanquantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"mean": float(mean), "low": float(low), "high": float(high)}
