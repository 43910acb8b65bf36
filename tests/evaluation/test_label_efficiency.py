"""Label equivalents: those of a simulated curve are found, and none beyond it is made up."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_judgements import judgements

from sgpo_lib.evaluation.label_efficiency import as_text, equivalent, label_efficiency
from sgpo_lib.runs.study import Study

COUNTS = [16, 48, 96, 480, 1440]


def study(arms: dict[str, int], n_seeds: int) -> Study:
    points = [{"method": "dpo", "name": f"DPO {m}", "n_labels": m, "params": f"{m}.yaml"} for m in COUNTS]
    variants = points + [{"method": f"self-dpo+{name}", "name": name, "n_labels": n} for name, n in arms.items()]
    return Study(name="s", params="p.yaml", seeds=list(range(n_seeds)), variants=variants)


def simulated(worth: dict[str, float], noise: float, n_seeds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Judgements where seed DPO earns 0.1 log m, and an arm as much as its worth in labels does."""
    rng = np.random.default_rng(seed)
    earned = {f"DPO {m}": m for m in COUNTS} | worth
    return judgements({("", name): 0.1 * np.log(m) + noise * rng.normal(size=n_seeds) for name, m in earned.items()})


@settings(max_examples=20)
@given(st.floats(17, 1400), st.integers(1, 500))
def test_without_noise_the_known_equivalent_is_found(worth, spent):
    found = label_efficiency(simulated({"arm": worth}, 0), study({"arm": spent}, 5), None, n_draws=20)
    (row,) = found.arms.itertuples()
    assert row.equivalent == pytest.approx(worth)
    assert row.equivalent_low == pytest.approx(worth)
    assert row.per_label == pytest.approx(worth / spent)
    assert found.curve["fitted"].tolist() == pytest.approx(found.curve["mean"].tolist())


def test_beyond_the_curve_nothing_is_extrapolated():
    judged = simulated({"poor": 3, "rich": 9000}, 0)
    text = as_text(label_efficiency(judged, study({"poor": 48, "rich": 48}, 5), None, n_draws=20))
    assert text.loc["poor", "worth in labels of seed DPO"] == "< 16 [< 16, < 16]"
    assert text.loc["rich", "worth in labels of seed DPO"] == "> 1440 [> 1440, > 1440]"
    assert text.loc["rich", "per label"] == "> 30.0 [> 30.0, > 30.0]"


def test_intervals_cover_the_known_equivalent():
    covered = 0
    for seed in range(50):
        judged = simulated({"arm": 150}, 0.03, seed=seed)
        (row,) = label_efficiency(judged, study({"arm": 48}, 5), None, n_draws=300).arms.itertuples()
        covered += row.equivalent_low <= 150 <= row.equivalent_high
    assert covered >= 43


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5).map(sorted), st.floats(-1, 1))
def test_the_equivalent_is_the_first_place_where_the_curve_reaches_the_target(curve, target):
    counts, curve = np.array(COUNTS), np.array(curve)
    found = equivalent(counts, curve, target)
    if found == 0:
        assert target < curve[0]
    elif np.isinf(found):
        assert target > curve[-1]
    else:
        grid = np.log(found) + np.array([-1e-6, 0, 1e-6])
        before, at, _ = np.interp(grid, np.log(counts), curve)
        assert at == pytest.approx(target, abs=1e-9)
        assert found == counts[0] or before < target + 1e-12


def test_a_curve_that_falls_is_made_monotone_by_pooling():
    judged = judgements({("", f"DPO {m}"): [g] * 3 for m, g in zip(COUNTS, [0.1, 0.3, 0.2, 0.5, 0.6], strict=True)})
    arm = judgements({("", "arm"): [0.4] * 3})
    found = label_efficiency(pd.concat([judged, arm]), study({"arm": 48}, 3), None, n_draws=20)
    assert found.curve["fitted"].tolist() == pytest.approx([0.1, 0.25, 0.25, 0.5, 0.6])
    assert found.arms["equivalent"].item() == pytest.approx(np.exp(np.interp(0.4, [0.25, 0.5], np.log([96, 480]))))
