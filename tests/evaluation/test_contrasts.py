"""Contrasts are paired, and only what was planned is ever called confirmed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_judgements import judgements
from scipy import stats

from sgpo_lib.evaluation import comparison, report
from sgpo_lib.evaluation.contrasts import contrasts, sentences, verdict
from sgpo_lib.evaluation.statistics import Estimate, alpha_per_look
from sgpo_lib.runs.study import Study


def study(gains: dict[tuple[str, str], list[float]], **design) -> Study:
    variants = [
        {"method": method, "group": group} | ({"params": f"{group}.yaml"} if group else {}) for group, method in gains
    ]
    n_seeds = len(next(iter(gains.values())))
    return Study(**{"name": "s", "params": "p.yaml", "seeds": list(range(n_seeds)), "variants": variants} | design)


def compared(gains: dict[tuple[str, str], list[float]], kls: tuple[float, ...] = (), **design) -> pd.DataFrame:
    table = contrasts(judgements(gains, kls), study(gains, **design))
    return table[table["quantity"] == "gold_reward_vs_sft"]


def test_differences_are_paired_so_that_what_a_seed_or_form_gives_to_all_cancels():
    of_seed = np.array([-3.0, 0.0, 3.0, 1.0])
    gains = {("", "spa"): of_seed, ("", "ssapo"): of_seed + 0.1 + np.array([0.01, -0.01, 0.0, 0.0])}
    (row,) = compared(gains, baselines=["spa"]).itertuples()
    assert (row.variant, row.baseline, row.n_seeds, row.n_clusters) == ("ssapo", "spa", 4, 4)
    assert row.mean == pytest.approx(0.1)
    assert 0.05 < row.low < 0.1 < row.high < 0.15
    assert row.between_runs == pytest.approx(np.std([0.01, -0.01, 0, 0], ddof=1))


def test_variants_are_compared_within_their_group_and_with_themselves_in_the_first():
    gains = {("clean", "spa"): [0, 1], ("clean", "ssapo"): [1, 2], ("noisy", "spa"): [5, 6], ("noisy", "ssapo"): [5, 5]}
    table = compared(gains, baselines=["spa"]).set_index(["variant", "baseline"])["mean"]
    assert table.to_dict() == pytest.approx(
        {
            ("clean: ssapo", "clean: spa"): 1.0,
            ("noisy: ssapo", "noisy: spa"): -0.5,
            ("noisy: spa", "clean: spa"): 5.0,
            ("noisy: ssapo", "clean: ssapo"): 3.5,
        }
    )


def test_policies_are_compared_as_trained_and_at_each_kl_by_the_seeds_that_reached_it():
    gains = {("", "spa"): [0.0, 0.0, 0.0], ("", "ssapo"): [0.2, 0.4, 0.6]}
    judged = judgements(gains, kls=(6.0,))
    missed = (judged["seed"] == 2) & (judged["variant"] == "spa") & (judged["matched_kl"] == 6)
    table = contrasts(judged[~missed], study(gains, baselines=["spa"]))
    told = table[table["quantity"] == "gold_reward_vs_sft"]
    assert told["at_kl"].fillna(0).tolist() == [0, 6]
    assert told["mean"].tolist() == pytest.approx([0.4, 0.15])
    assert told["n_seeds"].tolist() == [3, 2]


def test_where_nobody_judged_nothing_is_compared():
    gains = {("", "spa"): [0, 1], ("", "ssapo"): [5, 6]}
    judged = judgements(gains).drop(columns=["gold_reward", "gold_reward_vs_sft"])
    assert comparison.measure(judged) is None
    assert contrasts(judged, study(gains, baselines=["spa"])).empty


BETTER = {("", "spa"): [0.0, 0.01, 0.02, 0.01, 0.0], ("", "ssapo"): [1.0, 1.12, 1.2, 1.1, 1.0], ("", "dpo"): [0.0] * 5}
DESIGN = {"primary": {"treatment": "ssapo", "control": "spa"}, "looks": [5], "baselines": ["dpo"]}


def test_only_the_primary_contrast_is_confirmed():
    table = compared(BETTER, **DESIGN)
    verdicts = table.set_index(["role", "variant", "baseline"])["verdict"]
    assert verdicts["primary", "ssapo", "spa"] == "confirmed: better"
    assert verdicts["exploratory", "ssapo", "dpo"] == "exploratory: better"
    assert (table["role"] == "primary").sum() == 1


def test_a_primary_contrast_at_a_kl_that_no_run_reached_is_said_to_be_missing():
    design = DESIGN | {"primary": DESIGN["primary"] | {"at_kl": 9.0}, "baselines": []}
    (line,) = sentences(compared(BETTER, **design))
    assert line.endswith("at 9 nats: in no seed both got there; not a planned look: no verdict.")


def test_at_a_look_that_was_not_planned_there_is_no_verdict():
    design = DESIGN | {"seeds": list(range(9)), "looks": [4, 9]}
    (line,) = [line for line in sentences(compared(BETTER, **design)) if line.startswith("ssapo against spa")]
    assert "**not a planned look: no verdict**" in line


def test_the_primary_contrast_is_tested_at_its_looks_level_and_not_again_as_exploratory():
    design = DESIGN | {"seeds": list(range(10)), "looks": [5, 10], "baselines": ["spa"]}
    table = compared(BETTER, **design)
    row, level = table.iloc[0], alpha_per_look([5, 10])
    assert (table["variant"] + table["baseline"]).tolist() == ["ssapospa", "dpospa"]
    as_if_one_look = compared(BETTER, **DESIGN).iloc[0]
    assert (row["high"] - row["low"]) / (as_if_one_look["high"] - as_if_one_look["low"]) == pytest.approx(
        stats.t.isf(level / 2, 4) / stats.t.isf(0.025, 4)
    )


def test_a_primary_with_two_controls_needs_both_by_holm():
    gains = BETTER | {("", "dpo"): [0.9, 1.3, 1.0, 1.25, 0.9]}
    table = compared(gains, **DESIGN | {"primary": {"treatment": "ssapo", "control": ["spa", "dpo"]}, "baselines": []})
    assert table["verdict"].tolist() == ["confirmed: better", "primary: undecided"]
    assert table["p_holm"].iloc[0] == pytest.approx(min(1, 2 * table["p_value"].iloc[0]))


estimates = st.builds(
    Estimate, st.floats(-0.2, 0.2), st.floats(0.001, 0.1), st.floats(2, 30), st.just(0.1), st.just(5), st.just(6)
)


@given(estimates, st.sampled_from(["difference", "non-inferiority"]))
def test_words_agree_with_the_intervals(estimate, test):
    margin, level = 0.03, 0.05
    low, high = estimate.interval(1 - level)
    lower_tested = min(2 * estimate.p_above(-margin), 1)
    p = estimate.p_value() if test == "difference" else lower_tested
    words = verdict("primary", test, estimate, p, estimate.p_equivalent(margin), margin, level)
    if test == "non-inferiority":
        expected = "confirmed: not inferior" if low > -margin else "confirmed: inferior" if high < -margin else None
    elif low > 0 or high < 0:
        expected = "confirmed: better" if low > 0 else "confirmed: worse"
    else:
        inside = max(map(abs, estimate.interval(1 - 2 * level))) < margin
        expected = "confirmed: equivalent within ±0.03" if inside else None
    assert words == (expected or "primary: undecided")


@given(estimates)
def test_what_is_exploratory_is_never_confirmed(estimate):
    assert "confirmed" not in verdict("exploratory", "difference", estimate, 0.0, 0.0, 0.03, 0.05)


def test_with_one_seed_nothing_can_be_said():
    gains = {("", "spa"): [0.0], ("", "ssapo"): [1.0]}
    (line,) = sentences(compared(gains, baselines=["spa"]))
    assert line.endswith("+1.000; one seed, or one form of prompts: nothing can be said.")


def test_the_table_of_a_study_has_a_row_per_variant_and_a_column_per_baseline():
    gains = {("", "dpo"): [0.0, 0.2], ("", "ssapo"): [1.0, 1.1]}
    judged = judgements(gains, kls=(6.0,))
    followers = pd.DataFrame({"group": "", "variant": ["ssapo"] * 2, "influence": [0.1, 0.2]})
    table = report.study_table(comparison.means(judged), contrasts(judged, study(gains, baselines=["dpo"])), followers)
    assert list(table.index) == ["dpo", "ssapo"]
    assert table.loc["ssapo", "vs dpo"].startswith("+0.950 [")
    assert table.loc["ssapo", "vs dpo at 6 nats"].startswith("+0.475 [")
    assert table.loc["ssapo", "influence"] == "0.150"
    assert table.loc["dpo", "vs dpo"] == ""
    assert table.loc["dpo", "seeds"] == "2"


def test_the_table_of_one_variant_has_a_row_per_policy_with_the_spread_between_runs():
    table = report.study_table(
        comparison.means(judgements({("", "ssapo"): [1.0, 1.2, 1.4]})), pd.DataFrame({"verdict": []})
    )
    assert list(table.index) == ["sft", "dpo", "round-1"]
    assert table.loc["round-1", "gold reward vs SFT"].startswith("1.200 ± 0.200 [")
