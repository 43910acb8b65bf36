"""The lab: its closed forms, its arms' identities, and its tables."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest

from sgpo_lib import lab
from sgpo_lib.follower import influence, logistic_loss, worst_case

SMALL = lab.Setting(n_labels=16, n_calibration=12, n_pairs=32, n_rounds=2)


@pytest.fixture(scope="module")
def world():
    return lab.make_world(0, n_prompts=12, n_held_out=6, n_answers=5, n_features=4)


@pytest.fixture(scope="module")
def begin(world):
    return lab.start(world, SMALL, 3, 0)


def test_the_gradient_is_that_of_the_distorted_dpo_loss(world):
    rng = np.random.default_rng(0)
    theta, reference = rng.normal(size=(2, 3, 4))
    pairs = lab.draw_pairs(rng, theta, world.training, 8)
    moved, flips = rng.random((2, 3, 8))
    displacement = 2 * rng.random((3, 8))
    distortion = lab.Distortion(moved, displacement, flips)

    def loss(theta):
        x = 0.1 * pairs.margins(theta - reference, world.training)
        terms = (1 - moved) * logistic_loss(x) + moved * logistic_loss(x - displacement) + flips * x
        return terms.mean(axis=1)

    step = 1e-5
    rises = np.stack([loss(theta + shift) - loss(theta - shift) for shift in step * np.eye(4)], axis=1)
    gradient = lab.gradient(theta, reference, pairs, distortion, world.training, 0.1)
    np.testing.assert_allclose(gradient, rises / (2 * step), atol=1e-9)


def test_divergence_is_the_kullback_leibler_divergence_from_the_uniform_policy(world):
    theta = np.random.default_rng(0).normal(size=(2, 4))
    logits = np.einsum("sd,mad->sma", theta, world.held_out)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    by_definition = (chances * np.log(chances / (1 / 5))).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(lab.divergence(theta, world.held_out), by_definition, rtol=1e-12)
    np.testing.assert_allclose(lab.divergence(0 * theta, world.held_out), 0, atol=1e-12)


def test_expected_utility_is_the_derivative_of_the_log_partition(world):
    theta, utility = np.random.default_rng(0).normal(size=(2, 3, 4))
    step = 1e-5

    def log_partition(theta):
        return np.log(np.exp(lab.scores(theta, world.held_out)).sum(axis=-1)).mean(axis=-1)

    rise = log_partition(theta + step * utility) - log_partition(theta - step * utility)
    value = lab.expected_utility(theta, utility, world.held_out)
    np.testing.assert_allclose(value, rise / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("nats", [0.01, 0.5, 1.2])
def test_scaling_meets_the_divergence_and_keeps_the_direction(world, nats):
    theta = np.random.default_rng(0).normal(size=(5, 4)) * np.geomspace(1e-3, 1e3, 5)[:, None]
    scaled = lab.scaled_to(theta, world.held_out, nats)
    np.testing.assert_allclose(lab.divergence(scaled, world.held_out), nats, rtol=1e-8)
    cosine = (scaled * theta).sum(axis=1) / np.linalg.norm(scaled, axis=1) / np.linalg.norm(theta, axis=1)
    np.testing.assert_allclose(cosine, 1)


@pytest.mark.parametrize("nats", [0.0, 1.7])
def test_no_scale_reaches_beyond_certainty(world, nats):
    with pytest.raises(ValueError, match=r"1\.61"):
        lab.scaled_to(np.ones((1, 4)), world.held_out, nats)


def test_pairs_are_two_different_answers_drawn_from_the_policy(world):
    theta = np.zeros((1, 4))
    theta[0, 0] = 2.0
    pairs = lab.draw_pairs(np.random.default_rng(0), theta, world.training, 40_000)
    assert (pairs.chosen != pairs.rejected).all()
    chances = np.exp(lab.log_probabilities(lab.scores(theta, world.training)))[0, 0]
    both = [np.bincount(x[pairs.prompt == 0], minlength=5) for x in (pairs.chosen, pairs.rejected)]
    frequency = sum(both) / (pairs.prompt == 0).sum()
    # Two draws without replacement contain answer a with p_a + sum_{b != a} p_b p_a / (1 - p_b).
    odds = chances / (1 - chances)
    np.testing.assert_allclose(frequency, chances * (1 + odds.sum() - odds), atol=0.03)


def test_labels_follow_bradley_terry_and_its_noise(world):
    rng = np.random.default_rng(0)
    utility = rng.normal(size=(1, 4))
    drawn = lab.draw_pairs(rng, 0 * utility, world.training, 50_000)
    pairs = lab.labelled(rng, drawn, utility, world.training, strength=2.0, noise=0.2)
    size = np.abs(pairs.margins(utility, world.training))
    expected = 0.2 + 0.6 / (1 + np.exp(-2.0 * size))
    assert (pairs.margins(utility, world.training) > 0).mean() == pytest.approx(expected.mean(), abs=0.01)


def test_fewer_labels_are_the_first_of_more(world):
    few, many = (lab.start(world, lab.Setting(n_labels=n, n_calibration=1), 2, 0).seed_pairs for n in (5, 9))
    np.testing.assert_array_equal(few.chosen, many.chosen[:, :5])


def test_every_arm_is_self_annotation_where_its_adversary_has_no_budget(world, begin):
    plain = lab.play(world, SMALL, begin, lab.Arm()).theta
    for arm in (lab.Arm(radius=0.0, at_random=True), lab.ARMS["self-annotation"]):
        np.testing.assert_array_equal(lab.play(world, SMALL, begin, arm).theta, plain)
    vanishing = lab.play(world, SMALL, begin, lab.Arm(radius=1e-12)).theta
    np.testing.assert_allclose(vanishing, plain, atol=1e-9)


@pytest.mark.parametrize("name", ["transport .3", "flips", "replay", "A/A: other shuffle", "confound: one step more"])
def test_every_other_arm_ends_elsewhere(world, begin, name):
    ends = [lab.play(world, SMALL, begin, lab.ARMS[arm]).theta for arm in (name, "self-annotation")]
    assert np.abs(ends[0] - ends[1]).max() > 1e-6


def test_gold_labels_order_every_pair_rightly(world, begin):
    assert lab.play(world, SMALL, begin, lab.Arm(by_gold=True)).accuracy.min() == 1


def test_the_placebo_has_the_followers_influence_and_it_is_the_followers_own(begin):
    margins = np.abs(np.random.default_rng(0).normal(size=(3, 20)))
    ours, placebo = (
        lab.follow(lab.Arm(radius=0.3, at_random=r), margins, begin.calibration, np.random.default_rng(0))
        for r in (False, True)
    )
    assert ours.influence() == pytest.approx([influence(worst_case(own, 0.3)) for own in margins])
    assert placebo.influence() == pytest.approx(ours.influence())
    assert not np.array_equal(placebo.moved, ours.moved)


def test_batches_are_epochs_and_one_step_more_leaves_the_others_as_they_are():
    six, seven = (lab.batches(np.random.default_rng(0), 2, 24, n, 4) for n in (6, 7))
    np.testing.assert_array_equal(np.sort(six.swapaxes(0, 1).reshape(2, 24)), [np.arange(24)] * 2)
    np.testing.assert_array_equal(seven[:6], six)


def test_the_summary_compares_runs_in_pairs(world):
    arms = {name: lab.ARMS[name] for name in ("self-annotation", "transport 1")}
    results = lab.compare(world, SMALL, arms, 4, 0, 0.5)
    table = lab.summary(results)
    assert list(table.index) == ["seed DPO", *arms]
    assert table.loc["self-annotation", ["gain", "gain_low", "raw_high"]].tolist() == [0, 0, 0]
    wide = results.pivot(index="run", columns="arm", values="matched")
    differences = wide["transport 1"] - wide["self-annotation"]
    assert table.loc["transport 1", "gain"] == pytest.approx(differences.mean())


def test_label_equivalents_are_read_off_the_curve():
    counts = [10, 100, 1000]
    curve = np.array([[1.0, 2.0, 3.0]]) + np.random.default_rng(0).normal(0, 0.01, (50, 1))
    estimate, low, high = lab.label_equivalent(curve, counts, curve[:, 0] + 0.5, seed=0)
    assert low == pytest.approx(estimate) == pytest.approx(high) == pytest.approx(10**1.5)
    assert lab.label_equivalent(curve, counts, curve[:, 2] + 1, seed=0)[0] == pytest.approx(1000)


def test_more_labels_make_a_better_seed_policy(world):
    curve = lab.label_curve(world, lab.Setting(), [4, 64], 40, 0, 0.5)
    assert curve[:, 1].mean() > curve[:, 0].mean() + 0.05


def test_predictions_say_what_made_them(tmp_path):
    table = pd.DataFrame({"gain": [0.1]}, index=pd.Index(["flips"], name="arm"))
    page, csv = lab.write_predictions(tmp_path, {"S1": table}, "Made by `x` on y, commit z.")
    assert "Made by `x` on y, commit z." in page.read_text()
    assert pd.read_csv(csv, index_col="arm").loc["flips", "gain"] == 0.1


def test_the_notebook_writes_its_predictions(tmp_path):
    # The explorer's button is not pressed; everything else runs, in few runs.
    few = {"n_runs": 4, "n_map_runs": 4, "label_noise": [0.0, 0.25], "n_labels": [16, 32]}
    notebook = Path(__file__).parents[2] / "notebooks" / "09_lab.ipynb"
    papermill.execute_notebook(
        notebook,
        tmp_path / "lab.ipynb",
        few | {"figures_dir": str(tmp_path)},
        cwd=notebook.parent,
        progress_bar=False,
    )
    page = (tmp_path / "lab" / "predictions.md").read_text()
    assert re.search(r"Made by `papermill .* -p n_runs 4 .*commit ([0-9a-f]{9}|unknown)", page)
    assert pd.read_csv(tmp_path / "lab" / "S2.csv")["label_noise"].tolist() == [0.0] * 8 + [0.25] * 8
    equivalents = pd.read_csv(tmp_path / "lab" / "S3.csv", index_col="arm")
    assert {"seed DPO", "flips + replay"} <= set(equivalents.index)
    assert equivalents["labels"].between(16, 1440).all()
    assert {"arms.png", "influence.png", "maps.png", "label_curve.png"} <= {
        f.name for f in (tmp_path / "lab").iterdir()
    }
