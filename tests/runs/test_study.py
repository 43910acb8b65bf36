"""Studies: what they may hold, and the numbers that come out of seeds."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sgpo_lib.evaluation import comparison, report
from sgpo_lib.runs.study import Study, Variant, find_study, study_of

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "params" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_has_valid_params_for_every_variant_and_says_what_the_paper_claims(path):
    study = find_study(path)
    for variant in study.variants:
        study.run(variant, study.seeds[0])
    assert study.claim.startswith("Paper, ")
    assert study.title.endswith("?")


def test_the_studies_of_the_papers_tables_are_there_with_seeds_enough():
    assert {path.stem for path in STUDIES} >= {"main", "radius", "approximation", "noise", "rounds"}
    assert len(find_study(ROOT / "params" / "studies" / "main.yaml").seeds) >= 5


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        ([{"method": "ssapo"}, {"method": "ssapo", "name": "again"}], "share a folder"),
        ([{"method": "ssapo"}, {"method": "spa", "name": "ssapo"}], "share a name"),
        ([{"method": "dpo"}, {"method": "dpo", "params": "q.yaml", "name": "other"}], "share a method"),
        ([{"method": "ssapi"}], "no method ssapi"),
        ([{"method": "spa"}], "baselines dpo"),
        ([{"method": "dpo", "overides": {}}], "overides"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_with_the_reason(tmp_path, variants, problem):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"params": "p.yaml", "seeds": [0], "baselines": ["dpo"], "variants": variants}))
    with pytest.raises(ValueError, match=rf"(?s)mine\.yaml is not a study.*{problem}"):
        find_study(path)


def test_a_study_that_is_not_there_is_answered_with_those_that_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"main\.yaml.*radius\.yaml"):
        find_study("params/studies/mian.yaml")


# --- numbers over seeds


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_interval_and_p_value_over_seeds_are_those_of_the_t_test(values):
    got = comparison.over_seeds(np.array(values))
    if np.ptp(values) < 1e-6:
        return
    test = stats.ttest_1samp(values, 0)
    assert got.p_value == pytest.approx(test.pvalue, abs=1e-9)
    assert (got.low, got.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_one_seed_gives_a_mean_without_interval():
    got = comparison.over_seeds(np.array([0.5]))
    assert got.mean == 0.5
    assert np.isnan([got.low, got.high, got.p_value]).all()


def made_up(gains: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Results of variants named as their methods, whose final policy gained this much with seed 0, 1, ..."""
    rows = []
    for (group, method), values in gains.items():
        for seed, gain in enumerate(values):
            row = {"group": group, "variant": method, "method": method, "seed": seed}
            rows.append(row | {"policy": "dpo", "is_final": False, "gold_reward_vs_sft": 0.0, "kl": 1.0})
            rows.append(row | {"policy": "round-1", "is_final": True, "gold_reward_vs_sft": gain, "kl": 2.0})
    return pd.DataFrame(rows)


def test_differences_are_paired_by_seed_so_that_what_a_seed_gives_to_all_cancels():
    of_seed = np.array([-3.0, 0.0, 3.0, 1.0])
    results = made_up({("", "spa"): of_seed, ("", "ssapo"): of_seed + 0.1 + np.array([0.01, -0.01, 0.0, 0.0])})
    (row,) = comparison.paired_differences(results, ["spa"], "gold_reward_vs_sft").itertuples()
    assert (row.variant, row.baseline, row.n_seeds) == ("ssapo", "spa", 4)
    assert row.mean == pytest.approx(0.1)
    assert 0.05 < row.low < 0.1 < row.high < 0.15


def test_variants_are_compared_within_their_group_only():
    results = made_up(
        {("clean", "spa"): [0, 1], ("clean", "ssapo"): [1, 2], ("noisy", "spa"): [5, 6], ("noisy", "ssapo"): [5, 5]}
    )
    differences = comparison.paired_differences(results, ["spa"], "gold_reward_vs_sft")
    against_spa = differences[differences["baseline"] == "spa"].set_index("group")["mean"]
    assert against_spa.to_dict() == {"clean": 1.0, "noisy": -0.5}


def test_where_nobody_judged_nothing_is_compared():
    results = made_up({("clean", "spa"): [0, 1], ("noisy", "spa"): [5, 6]}).drop(columns="gold_reward_vs_sft")
    assert comparison.measure(results) is None
    assert comparison.paired_differences(results, ["spa"], None).empty


def test_each_variant_of_a_later_group_is_compared_with_itself_in_the_first():
    results = made_up({("clean", "spa"): [0, 1], ("noisy", "spa"): [-1, -1]})
    (row,) = comparison.paired_differences(results, ["spa"], "gold_reward_vs_sft").itertuples()
    assert (row.group, row.variant, row.baseline, row.mean) == ("noisy", "spa", "clean", -1.5)


def test_a_verdict_says_better_only_if_the_interval_excludes_0():
    results = made_up(
        {
            ("", "dpo"): [0.0, 0.1, 0.2],
            ("", "ssapo"): [1.0, 1.12, 1.2],
            ("", "spa"): [-1, 1.1, 0.2],
            ("", "ipo"): [-1, -1, -0.8],
        }
    )
    lines = comparison.verdicts(comparison.paired_differences(results, ["dpo"], "gold_reward_vs_sft"))
    endings = {line.split(" against")[0]: line.rsplit("seeds: ", 1)[1] for line in lines}
    assert endings == {
        "ssapo": "better at 95%.",
        "spa": "undecided at 95%.",
        "ipo": "worse at 95%.",
    }


def test_the_table_of_a_study_has_a_row_per_variant_and_a_column_per_baseline():
    results = made_up({("", "dpo"): [0.0, 0.2], ("", "ssapo"): [1.0, 1.1]})
    differences = comparison.paired_differences(results, ["dpo"], "gold_reward_vs_sft")
    table = report.study_table(comparison.final_means(results), differences)
    assert list(table.index) == ["dpo", "ssapo"]
    assert table.loc["ssapo", "vs dpo (paired)"].startswith("+0.950 [")
    assert table.loc["dpo", "vs dpo (paired)"] == ""
    assert table.loc["dpo", "seeds"] == "2"


def test_approximations_lose_value_and_groups_that_hold_all_pairs_lose_nothing():
    margins = np.random.default_rng(0).normal(0.3, 0.4, 200)
    table = comparison.approximations(margins, 0.01, (5, 7), (20, 100, 200)).set_index("follower")["lost"]
    assert table["exact"] == 0
    assert (table >= -1e-12).all()
    assert table["groups of 20"] > table["groups of 100"] > 0
    assert table["groups of 200"] == pytest.approx(0, abs=1e-12)


def test_methods_side_by_side_are_a_study_without_a_file():
    study = study_of("params/study.yaml", [0, 1], ["spa", "ssapo"], {"beta": 0.2})
    assert isinstance(study, Study)
    assert study.variants[1] == Variant(method="ssapo", overrides={"beta": 0.2})
    assert study_of("params/study.yaml", [0, 1], ["spa", "ssapo"], '{"beta": 0.2}') == study


def test_a_study_file_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("params: p.yaml\nseeds: [0]\nvariants: [{method: dpo}]\nseeds: [1]\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*'seeds' is given on line 2 and again on line 4"):
        find_study(path)
