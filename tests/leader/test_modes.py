"""What each leader mode trains on, against the formulas of the notebook's table, and radius 0 against plain DPO."""

import re
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_expit
from transformers import TrainerCallback

from sgpo_lib import follower
from sgpo_lib.annotation import rescore, with_margins
from sgpo_lib.leader import MODES, KnownReferencesTrainer, as_table, objective, train, training_rows
from sgpo_lib.leader.losses import weighted_logistic
from sgpo_lib.leader.spa import threshold
from sgpo_lib.params import METHODS, LeaderParams, LoraParams, ModelParams, load_params
from sgpo_lib.policy import Policy

ROOT = Path(__file__).parents[2]

BETA = 0.1
found = st.lists(st.floats(-4, 4), min_size=1, max_size=12).map(np.array)
radii = st.floats(0, 2)


def leader(mode: str, **options) -> LeaderParams:
    at_once = {"learning_rate": 1e-9, "per_device_train_batch_size": 8, "max_length": 128}
    return LeaderParams(**at_once | {"mode": mode, "reference": "initial"} | options)


FLIPS = leader("flips")


def pairs_with(margins: np.ndarray) -> pd.DataFrame:
    """Pairs whose margins against the initial policy are these."""
    pairs = pd.DataFrame(
        {"chosen_reference_log_prob": -50.0, "rejected_reference_log_prob": -40.0}, range(len(margins))
    )
    return pairs.assign(chosen_log_prob=-50 + margins / BETA, rejected_log_prob=-40.0, margin=margins)


def table(worst: follower.WorstCase, pieces=None) -> pd.DataFrame:
    columns = pd.DataFrame(worst.per_pair())
    columns["flip_probability"] = follower.worst_flips(worst.margins, 0.3, 0.1).flip_probability
    return columns if pieces is None else columns.assign(piece_slope=worst.piece_slopes(pieces))


@given(found, radii, st.sampled_from([None, (-0.5, 0.8)]))
def test_the_gradient_of_envelope_rows_is_that_of_the_worst_case(margins, radius, support):
    worst = follower.worst_case(margins, radius, support)
    rows = training_rows(pairs_with(margins), table(worst), leader("envelope"))
    gradient = (-rows["loss_weight"] * expit(-margins) + rows["loss_slope"]) / len(margins)
    x = torch.tensor(margins, requires_grad=True)
    (expected,) = torch.autograd.grad(follower.sgpo_loss(x, radius, support), x)
    if len(set(margins)) == len(margins):  # among equal margins either may be the one that moves
        np.testing.assert_allclose(gradient, expected, atol=1e-9)
    assert gradient.sum() == pytest.approx(float(expected.sum()), abs=1e-9)


def calibrated(margins: np.ndarray, probabilities: list[float]) -> np.ndarray:
    return np.resize(probabilities, len(margins))


chances = st.lists(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.01, 0.99)), min_size=1, max_size=12)


@given(found, chances, radii)
def test_the_gradient_of_flip_rows_is_that_of_the_worst_flips(margins, probabilities, radius):
    p = calibrated(margins, probabilities)
    rows = training_rows(pairs_with(margins), pd.DataFrame(follower.worst_flips(margins, p, radius).per_pair()), FLIPS)
    x = torch.tensor(margins, requires_grad=True)
    mine = weighted_logistic(x, slope=torch.tensor(rows["loss_slope"].to_numpy()))
    worst = follower.flip_loss(x, p, radius)
    assert mine.item() == pytest.approx(worst.item(), abs=1e-12)
    gradients = [torch.autograd.grad(value, x)[0] for value in (mine, worst)]
    np.testing.assert_allclose(*gradients, atol=1e-12)
    np.testing.assert_allclose(gradients[0], (rows["loss_slope"] - expit(-margins)) / len(margins), atol=1e-12)


def test_the_gradient_of_flip_rows_is_that_of_finite_differences_of_the_adversarys_value():
    margins = np.random.default_rng(0).normal(0.5, 1, 9)
    p, step = 1 / (1 + np.exp(0.3 + margins)), 1e-5
    worst = follower.worst_flips(margins, p, 0.1)
    slope = training_rows(pairs_with(margins), worst.per_pair(), FLIPS)["loss_slope"]
    for i, change in enumerate(step * np.eye(len(margins))):
        ends = [follower.worst_flips(margins + sign * change, p, 0.1).value for sign in (1, -1)]
        expected = (slope[i] - expit(-margins[i])) / len(margins)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, abs=1e-8)


@given(found, chances)
def test_flips_of_radius_0_are_label_smoothing_with_each_pairs_own_probability(margins, probabilities):
    p = calibrated(margins, probabilities)
    rows = training_rows(pairs_with(margins), follower.worst_flips(margins, p, 0.0).per_pair(), FLIPS)
    x = torch.tensor(margins)
    smoothed = (1 - p) * loss(margins) + p * loss(-margins)
    mine = weighted_logistic(x, slope=torch.tensor(rows["loss_slope"].to_numpy()))
    assert mine.item() == pytest.approx(smoothed.mean(), abs=1e-12)


@given(found, radii)
def test_flips_of_labels_that_are_certain_are_dpo_bit_for_bit(margins, radius):
    rows = training_rows(pairs_with(margins), follower.worst_flips(margins, 0.0, radius).per_pair(), FLIPS)
    x = torch.tensor(margins, dtype=torch.float32, requires_grad=True)
    flips = weighted_logistic(x, slope=torch.tensor(rows["loss_slope"].to_numpy(), dtype=torch.float32))
    plain = weighted_logistic(x)
    assert torch.equal(flips, plain)
    assert torch.equal(torch.autograd.grad(flips, x)[0], torch.autograd.grad(plain, x)[0])


@given(found, radii, st.integers(2, 7))
def test_piece_rows_have_the_slope_of_the_pieces_objective_whose_value_is_the_worst_case(margins, radius, k):
    support = (margins.min() - 0.1, margins.max() + 0.1)
    pieces = follower.tangents(k, support)
    worst = follower.worst_case(margins, radius, support, pieces)
    rows = training_rows(pairs_with(margins), table(worst, pieces), leader("pieces"))
    s, q = worst.masses_and_shifts(pieces)

    def objective_of(x):
        return (s * (np.multiply.outer(x, pieces.slopes) + pieces.intercepts) - q * pieces.slopes).sum(axis=1)

    assert objective_of(margins).mean() == pytest.approx(worst.value, abs=1e-9)
    np.testing.assert_allclose(rows["loss_slope"], objective_of(margins + 1) - objective_of(margins), atol=1e-9)
    assert (rows["loss_weight"] == 0).all()


@given(found, radii, st.sampled_from([None, (-0.5, 0.8)]))
def test_transport_rows_have_the_worst_cases_loss_where_the_follower_found_the_margins(margins, radius, support):
    worst = follower.worst_case(margins, radius, support)
    rows = training_rows(pairs_with(margins), table(worst), leader("transport"))
    moved, displacement = rows["loss_moved"].to_numpy(), rows["loss_displacement"].to_numpy()
    losses = (1 - moved) * loss(worst.margins) + moved * loss(worst.margins - displacement)
    assert losses.mean() == pytest.approx(worst.value, abs=1e-12)


@given(st.floats(-60, 60), st.floats(0, 4))
def test_a_displaced_margin_is_a_shifted_reference(log_ratio, displacement):
    margin = BETA * (log_ratio - 3.0)
    shifted = BETA * (log_ratio - (3.0 + displacement / BETA))
    assert loss(margin - displacement) == pytest.approx(loss(shifted), abs=1e-12)


@given(found)
def test_at_radius_0_the_losses_are_those_of_plain_self_annotated_dpo(margins):
    worst = table(follower.worst_case(margins, 0.0))
    x = torch.tensor(margins, dtype=torch.float32)
    plain = weighted_logistic(x, torch.ones_like(x), torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x))
    for mode in ("transport", "envelope"):
        rows = training_rows(pairs_with(margins), worst, leader(mode))
        columns = [
            torch.tensor(rows.get(name, pd.Series(default, rows.index)).to_numpy(), dtype=torch.float32)
            for name, default in {
                "loss_weight": 1.0,
                "loss_slope": 0.0,
                "loss_moved": 0.0,
                "loss_displacement": 0.0,
            }.items()
        ]
        assert torch.equal(weighted_logistic(x, *columns), plain)


@given(found, radii)
def test_the_number_of_tangents_does_not_change_what_transport_trains_on(margins, radius):
    support = (margins.min() - 0.1, margins.max() + 0.1)
    exact = follower.worst_case(margins, radius, support)
    for k in (5, 6, 7):
        tangents = follower.worst_case(margins, radius, support, follower.tangents(k, support))
        np.testing.assert_allclose(tangents.moved, exact.moved, atol=1e-9)
        np.testing.assert_allclose(tangents.displacement, exact.displacement, atol=1e-9)


@given(found, radii)
def test_the_random_adversary_spends_the_same_budget_on_other_pairs(margins, radius):
    worst = follower.worst_case(margins, radius)
    chosen, dealt = (training_rows(pairs_with(margins), table(worst), leader(mode)) for mode in ("transport", "random"))
    columns = ["loss_moved", "loss_displacement"]
    assert sorted(map(tuple, chosen[columns].to_numpy())) == sorted(map(tuple, dealt[columns].to_numpy()))


# --- the losses that the trainers report, on a real (tiny) policy


def loss(x):
    return -log_expit(x)


LOSSES = {
    "dpo": lambda x, rows: loss(x).mean(),
    "label-smoothing": lambda x, rows: (0.9 * loss(x) + 0.1 * loss(-x)).mean(),
    "robust": lambda x, rows: ((0.9 * loss(x) - 0.1 * loss(-x)) / 0.8).mean(),
    "dr-dpo": lambda x, rows: -2 * np.log(np.exp(-loss(x) / 2).mean()),
    "sgpo": lambda x, rows: follower.worst_case(x, 0.3).value,
    "kl-dpo": lambda x, rows: np.mean(np.minimum(10, np.exp((loss(x) - loss(x).mean()) / 0.5)) * loss(x)),
    "hoelder-dpo": lambda x, rows: np.mean(
        np.exp(-1.5 * loss(x)) + np.exp(-1.5 * loss(-x)) - 3 * np.exp(-0.5 * loss(x)) + 2
    ),
    "sppo": lambda x, rows: np.mean(
        (ratio(rows, "chosen") - 1 / (2 * BETA)) ** 2 + (ratio(rows, "rejected") + 1 / (2 * BETA)) ** 2
    ),
    "ipo": lambda x, rows: np.mean((per_token(rows) - 1 / (2 * BETA)) ** 2),
}


def ratio(rows, side):
    return rows[f"{side}_log_prob"] - rows[f"ref_{side}_logps"]


def per_token(rows):
    ratios = [ratio(rows, side) / rows[f"{side}_ids"].map(len) for side in ("chosen", "rejected")]
    return ratios[0] - ratios[1]


@pytest.fixture
def policy(tiny_model) -> Policy:
    lora = LoraParams(r=4, lora_alpha=8)
    return Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=lora))


def pairs_of(policy: Policy, n: int = 8) -> pd.DataFrame:
    """Pairs of random tokens, with references that put their margins anywhere."""
    rng = np.random.default_rng(3)
    ids = [[rng.integers(2, 500, size).tolist() for _ in range(n)] for size in (12, 6, 4)]
    pairs = rescore(policy, pd.DataFrame(dict(zip(["prompt_ids", "chosen_ids", "rejected_ids"], ids, strict=True))))
    for side in ("chosen", "rejected"):
        pairs[f"{side}_reference_log_prob"] = pairs[f"{side}_log_prob"] + rng.normal(0, 10, n)
    return pairs


def margins_of(rows: pd.DataFrame) -> np.ndarray:
    gained = {side: rows[f"{side}_log_prob"] - rows[f"ref_{side}_logps"] for side in ("chosen", "rejected")}
    return BETA * (gained["chosen"] - gained["rejected"]).to_numpy()


@pytest.mark.parametrize("mode", LOSSES)
def test_reported_loss_is_the_closed_form_of_the_margins(policy, mode):
    params = leader(mode, dr_beta=2.0, kl_temperature=0.5)
    rows = training_rows(pairs_of(policy), None, params)
    log = train(policy, rows, params, BETA, 0, objective(params, 0.3, follower.RangeSupport()))
    assert log["loss"].iloc[0] == pytest.approx(LOSSES[mode](margins_of(rows), rows), rel=1e-4)


def test_spa_smooths_the_labels_below_its_threshold_and_not_before_its_warm_up(policy):
    params = leader("spa", num_train_epochs=2)
    rows = training_rows(pairs_of(policy), None, params)
    log = train(policy, rows, params, BETA, 0, objective(params))
    margins = margins_of(rows)
    wrong = margins <= 0  # 8 pairs have been seen, and the threshold is 0 until there are 50
    assert 0 < wrong.sum() < 8
    assert log["loss"].iloc[0] == pytest.approx(loss(margins).mean(), rel=1e-4)
    assert log["loss"].iloc[1] == pytest.approx((loss(margins).sum() + 0.1 * margins[wrong].sum()) / 8, rel=1e-4)
    assert log["noisy"].iloc[1] == wrong.mean()


def test_spas_threshold_is_between_the_sixth_and_the_seventh_lowest_of_the_last_fifty():
    remembered = deque([-100.0] * 9, maxlen=50)
    assert threshold(remembered) == 0
    remembered.extend(np.random.default_rng(0).permutation(50).tolist())
    assert threshold(remembered) == 5.5


def test_spa_smooths_the_six_least_confident_of_the_fifty_that_it_has_seen(policy):
    params = leader("spa", num_train_epochs=2, per_device_train_batch_size=50)
    rows = training_rows(pairs_of(policy, 50), None, params)
    rows["ref_chosen_logps"] -= 60  # no margin is below 0, the threshold before there are fifty
    log = train(policy, rows, params, BETA, 0, objective(params))
    margins = margins_of(rows)
    lowest = np.sort(margins)[:6]
    assert lowest[0] > 0
    assert log["loss"].iloc[0] == pytest.approx(loss(margins).mean(), rel=1e-4)
    assert log["loss"].iloc[1] == pytest.approx((loss(margins).sum() + 0.1 * lowest.sum()) / 50, rel=1e-4)
    assert log["noisy"].iloc[1] == pytest.approx(6 / 50)


METHODS_OF_ROUNDS = [name for name in METHODS if name != "dpo"]


@pytest.mark.parametrize("method", METHODS_OF_ROUNDS)
def test_every_method_trains_the_same_rows_in_the_same_steps_and_order(policy, method, monkeypatch):
    """One row a pair: 8 pairs in batches of 3 are 3 steps an epoch, whatever the method."""
    batches = []
    gathered = KnownReferencesTrainer.compute_loss

    def noting(self, model, inputs, *args, **kwargs):
        batches.append(inputs["input_ids"].tolist())
        return gathered(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(KnownReferencesTrainer, "compute_loss", noting)

    def trained(method):
        batches.clear()
        small = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "learning_rate": 1e-4}
        sets = {
            key.removeprefix("leader."): value for key, value in METHODS[method].items() if key.startswith("leader.")
        }
        params = leader(**{"mode": sets.pop("mode")} | small | sets)
        pairs = with_margins(with_implicit_rewards_of(pairs_of(policy)))
        worst = table(follower.worst_case(pairs["margin"], 0.3), pieces_of(pairs["margin"]))
        rows = training_rows(pairs, worst, params)
        log = train(fresh(policy), rows, params, BETA, 0, objective(params, 0.3, follower.RangeSupport()))
        return len(rows), log.attrs["n_steps"], log.attrs["lr_sum"], list(log["learning_rate"]), list(batches)

    assert trained(method) == trained("self-dpo")


@pytest.mark.parametrize("mode", ["transport", "envelope"])
def test_at_radius_0_the_adapter_is_that_of_plain_self_annotation_bit_for_bit(policy, mode):
    pairs = with_margins(with_implicit_rewards_of(pairs_of(policy)))

    def trained(mode, radius):
        params = leader(mode, learning_rate=1e-2, per_device_train_batch_size=3)
        rows = training_rows(pairs, table(follower.worst_case(pairs["margin"], radius)), params)
        train(fresh(policy), rows, params, BETA, 0)
        adapter = {name: w.detach().numpy().tobytes() for name, w in policy.model.named_parameters() if "lora_" in name}
        return rows[[name for name in rows if not name.startswith("loss_")]], adapter

    (rows, adapter), (plain_rows, plain_adapter) = trained(mode, 0.0), trained("dpo", 0.0)
    pd.testing.assert_frame_equal(rows, plain_rows)
    assert adapter == plain_adapter
    assert trained(mode, 0.3)[1] != plain_adapter


def with_implicit_rewards_of(pairs: pd.DataFrame) -> pd.DataFrame:
    for side in ("chosen", "rejected"):
        pairs[f"{side}_implicit_reward"] = BETA * (pairs[f"{side}_log_prob"] - pairs[f"{side}_reference_log_prob"])
    return pairs


def pieces_of(margins) -> follower.Pieces:
    return follower.tangents(6, (margins.min() - 0.1, margins.max() + 0.1))


def fresh(policy: Policy) -> Policy:
    policy.use(None)
    return policy


class FirstStepOnly(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


# The paper's have hundreds of steps and its authors' recipe's warm-up.
SHORT_TRAININGS = [path.stem for path in sorted(ROOT.glob("params/*.yaml")) if not re.match("mistral|llama", path.stem)]


@pytest.mark.parametrize("section", ["seed_dpo", "leader"])
@pytest.mark.parametrize("file", SHORT_TRAININGS)
def test_the_first_step_of_a_shipped_short_training_has_the_whole_learning_rate(policy, file, section):
    params = load_params(ROOT / f"params/{file}.yaml")
    training = getattr(params, section)
    n_pairs = params.data.n_seed if section == "seed_dpo" else params.data.n_prompts[0]
    rows = training_rows(pairs_of(policy, n_pairs), None, leader("dpo"))
    log = train(policy, rows, training, BETA, 0, callbacks=[FirstStepOnly()])
    assert log["learning_rate"].tolist() == [training.learning_rate]
    assert all(weight.any() for name, weight in policy.model.named_parameters() if "lora_B" in name)  # born 0


def test_a_warm_up_that_wastes_a_step_of_a_short_training_is_warned_of(policy):
    params = leader("dpo", per_device_train_batch_size=2, warmup_steps=0.5, learning_rate=1e-2)
    with pytest.warns(UserWarning, match="first of 4 steps trained nothing"):
        log = train(policy, training_rows(pairs_of(policy), None, params), params, BETA, 0)
    assert list(log["learning_rate"]) == pytest.approx([0, 0.005, 0.01, 0.005])
    assert log.attrs["lr_sum"] == pytest.approx(0.02)


def test_held_out_rows_have_a_loss_after_every_epoch_and_callbacks_hear_of_steps(policy):
    class Heard(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

    params = leader("dpo", num_train_epochs=2)
    rows, heard = training_rows(pairs_of(policy), None, params), Heard()
    log = train(policy, rows, params, BETA, 0, eval_rows=rows, callbacks=[heard])
    assert log["eval_loss"].iloc[0] == pytest.approx(loss(margins_of(rows)).mean(), rel=1e-4)
    assert heard.steps == log.attrs["n_steps"] == 2


def test_a_new_mode_is_an_entry_of_the_registry(policy, monkeypatch):
    """Hinge-like: pairs that the policy already orders right count half."""
    halves = replace(
        MODES["dpo"], loss=r"w\ell", method="toy", columns=lambda pairs, worst, leader: {"loss_weight": np.full(8, 0.5)}
    )
    monkeypatch.setitem(MODES, "toy", halves)
    params = leader("toy")
    rows = training_rows(pairs_of(policy), None, params)
    log = train(policy, rows, params, BETA, 0, objective(params))
    assert log["loss"].iloc[0] == pytest.approx(loss(margins_of(rows)).mean() / 2, rel=1e-4)
    assert "`toy`" in as_table()


def test_every_mode_of_the_params_has_a_test():
    assert {*LOSSES, "transport", "random", "envelope", "pieces", "flips", "spa"} == set(MODES)


def test_a_training_shorter_than_its_logging_interval_has_a_log(policy):
    params = leader("dpo", logging_steps=10)
    rows = training_rows(pairs_of(policy), None, params)
    log = train(policy, rows, params, BETA, 0)
    assert log["loss"].iloc[0] == pytest.approx(loss(margins_of(rows)).mean(), rel=1e-4)


def test_training_logs_reach_tensorboard(policy, tmp_path):
    params = leader("dpo", report_to="tensorboard")
    train(policy, training_rows(pairs_of(policy), None, params), params, BETA, 0, log_folder=tmp_path / "logs")
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
