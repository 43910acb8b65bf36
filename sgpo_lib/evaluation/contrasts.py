"""Variants of a study held against each other, and the words that the result deserves.

Differences are taken seed by seed and cluster by cluster of prompts, as variants share both. A study's primary
contrast, at a planned look, is confirmed or not; all else is exploratory and says so. "Equivalent" is said only where
two one-sided tests say it; what is undecided has the smallest difference beside it that would have been seen.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from sgpo_lib.evaluation.comparison import cells, measure
from sgpo_lib.evaluation.judgements import QUANTITIES
from sgpo_lib.evaluation.statistics import Estimate, alpha_per_look, crossed_mean, holm
from sgpo_lib.runs.study import Study

_NO_SEED = Estimate(np.nan, np.nan, np.nan, np.nan, 0, 0)


class _Contrast(NamedTuple):
    """Last policy of one variant less that of another, by the names that a design has; `at_kl` is None as trained."""

    variant: str
    baseline: str
    at_kl: float | None
    quantity: str


def contrasts(judged: pd.DataFrame, study: Study, confidence: float = 0.95) -> pd.DataFrame:
    """Compare the variants' last policies: the study's primary contrast first, then all with their group's baselines.

    Where there are several groups, such as labels without and with noise, each variant is also compared with itself in
    the first group. Only seeds in which both policies reached the KL count.

    Parameters
    ----------
    judged : as `sgpo_lib.evaluation.judgements.with_quantities` returns it.

    Returns
    -------
    DataFrame : `role` ("primary" or "exploratory"), `variant`, `baseline`, `at_kl` (NaN as trained), `quantity`,
        `mean`, `low`, `high` (the primary's at its look's level), `between_runs` (standard deviation of one seed's
        difference), `smallest_visible` (the true difference that is found with 80% power), `n_seeds`, `n_clusters`;
        `p_value` of a difference (two-sided; of non-inferiority twice the one-sided), `p_holm` and `p_equivalent`, both
        adjusted for their number within the role; `verdict`. Exploratory rows of another quantity than `measure` are
        not tested and have neither p-value nor verdict.
    """
    told, alpha, rows = measure(judged), 1 - confidence, []
    primary, planned = study.primary, {}
    if primary:
        asked = [_Contrast(primary.treatment, name, primary.at_kl, primary.quantity) for name in primary.control]
        found = _estimates(judged, study, asked)
        planned = {contrast: found.get(contrast, _NO_SEED) for contrast in asked}
        is_look = all(estimate.n_seeds in study.looks for estimate in planned.values())
        level = alpha_per_look(study.looks, alpha) if is_look else None
        rows += _tested(planned, "primary", primary.test, study.equivalence, level, alpha)
    kls = [None, *sorted(judged["matched_kl"].dropna().unique())]
    quantities = [name for name in QUANTITIES if name in judged and name != "gold_reward"]  # differs as vs SFT does
    asked = [_Contrast(*pair, at_kl, name) for name in quantities if told for at_kl in kls for pair in _pairs(study)]
    others = _estimates(judged, study, [contrast for contrast in asked if contrast not in planned])
    tested = {contrast: estimate for contrast, estimate in others.items() if contrast.quantity == told}
    rows += _tested(tested, "exploratory", "difference", study.equivalence, alpha, alpha)
    rows += [_row(contrast, "exploratory", e, alpha) for contrast, e in others.items() if contrast not in tested]
    columns = ["role", *_Contrast._fields, "mean", "low", "high", "p_value", "p_holm", "p_equivalent", "verdict"]
    columns += ["smallest_visible", "between_runs", "n_seeds", "n_clusters"]
    return pd.DataFrame(rows, columns=columns).astype({"at_kl": float})


def _pairs(study: Study) -> list[tuple[str, str]]:
    """Name what is compared: each variant with its group's baselines, and with itself in the first group."""
    names = {(variant.group, variant.label): variant.full_name for variant in study.variants}
    pairs = []
    for number, baseline in enumerate(study.baselines):
        for (group, label), name in names.items():
            already = label in study.baselines[: number + 1]  # with itself, or the other way round
            if (group, baseline) in names and not already:
                pairs.append((name, names[group, baseline]))
    first = study.variants[0].group
    for (group, label), name in names.items():
        if group != first and (first, label) in names:
            pairs.append((name, names[first, label]))
    return pairs


def _estimates(judged: pd.DataFrame, study: Study, asked: list[_Contrast]) -> dict[_Contrast, Estimate]:
    final = judged[judged["is_final"]]
    of_arm = {
        variant.full_name: final[(final["group"] == variant.group) & (final["variant"] == variant.label)]
        for variant in study.variants
    }
    found = {}
    for contrast in asked:
        both = []
        for name in contrast[:2]:
            arm = of_arm[name]
            arm = arm[arm["matched_kl"].isna() if contrast.at_kl is None else arm["matched_kl"] == contrast.at_kl]
            both.append(arm[arm[contrast.quantity].notna()])
        seeds = set(both[0]["seed"]) & set(both[1]["seed"])
        if seeds:
            (ours, sizes), (theirs, _) = (cells(arm[arm["seed"].isin(seeds)], contrast.quantity) for arm in both)
            found[contrast] = crossed_mean(ours - theirs, sizes)
    return found


def _tested(
    estimates: dict[_Contrast, Estimate], role: str, test: str, margin: float, level: float | None, alpha: float
) -> list[dict]:
    """Test contrasts that stand together; `level` is None at a look that was not planned."""
    is_lower_bound = test == "non-inferiority"
    p_values = [min(2 * e.p_above(-margin), 1) if is_lower_bound else e.p_value() for e in estimates.values()]
    p_equivalent = [e.p_equivalent(margin) for e in estimates.values()]
    rows = []
    for (contrast, e), p, adjusted, same in zip(
        estimates.items(), p_values, holm(p_values), holm(p_equivalent), strict=True
    ):
        row = _row(contrast, role, e, alpha if level is None else level)
        row |= {"p_value": p, "p_holm": adjusted, "p_equivalent": same}
        rows.append(row | {"verdict": verdict(role, test, e, adjusted, same, margin, level)})
    return rows


def _row(contrast: _Contrast, role: str, estimate: Estimate, alpha: float) -> dict:
    low, high = estimate.interval(1 - alpha)
    numbers = {"mean": estimate.mean, "low": low, "high": high, "smallest_visible": estimate.smallest_visible(alpha)}
    counted = {name: getattr(estimate, name) for name in ("between_runs", "n_seeds", "n_clusters")}
    return contrast._asdict() | {"role": role} | numbers | counted


def verdict(
    role: str, test: str, estimate: Estimate, p_holm: float, p_equivalent: float, margin: float, level: float | None
) -> str:
    """Say what a tested contrast shows. Only role "primary" is ever "confirmed".

    Parameters
    ----------
    test : "difference" or "non-inferiority" by less than `margin`.
    p_holm, p_equivalent : of the test and of equivalence within `margin`, adjusted for their number.
    level : of the test; None at a look that was not planned, which gets no verdict.
    """
    if level is None:
        return "not a planned look: no verdict"
    if np.isnan(estimate.standard_error):
        return "one seed, or one form of prompts: nothing can be said"
    found = None
    if test == "non-inferiority":
        found = "not inferior" if p_holm <= level else "inferior" if 2 * estimate.p_below(-margin) <= level else None
    elif p_holm <= level:
        found = "better" if estimate.mean > 0 else "worse"
    elif p_equivalent <= level:
        found = f"equivalent within ±{margin:g}"
    strength = "confirmed" if role == "primary" and found else role
    return f"{strength}: {found or 'undecided'}"


def sentences(table: pd.DataFrame) -> list[str]:
    """Say each tested row of `contrasts` in a sentence, with the effect that would have been seen."""
    lines = []
    for row in table[table["verdict"].notna()].itertuples():
        heading, digits = QUANTITIES[row.quantity]
        where = "as trained" if np.isnan(row.at_kl) else f"at {row.at_kl:g} nats"
        what = f"{row.variant} against {row.baseline}, {heading} {where}"
        if not row.n_seeds:
            lines.append(f"{what}: in no seed both got there; {row.verdict}.")
            continue
        start = f"{what}: {row.mean:+.{digits}f}"
        if np.isnan(row.low):
            lines.append(f"{start}; {row.verdict}.")
            continue
        lines.append(
            f"{start} [{row.low:+.{digits}f}, {row.high:+.{digits}f}], p = {row.p_value:.2g} ({row.p_holm:.2g} by "
            f"Holm), {row.n_seeds} seeds: **{row.verdict}**; {row.smallest_visible:.{digits}f} would have been seen "
            "four times in five."
        )
    return lines
