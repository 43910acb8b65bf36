"""What each leader mode trains on, against the formulas of the notebook's table, and radius 0 against plain DPO."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_expit

from sgpo_lib import follower
from sgpo_lib.annotation import rescore
from sgpo_lib.leader import objective, train, training_rows
from sgpo_lib.params import LeaderParams, LoraParams, ModelParams
from sgpo_lib.policy import Policy
from sgpo_lib.spa import least_confident

BETA = 0.1
found = st.lists(st.floats(-4, 4), min_size=1, max_size=12).map(np.array)
radii = st.floats(0, 2)


def leader(mode: str, **options) -> LeaderParams:
    at_once = {"learning_rate": 1e-9, "per_device_train_batch_size": 8, "max_length": 128}
    return LeaderParams(**at_once | {"mode": mode, "reference": "initial"} | options)


def pairs_with(margins: np.ndarray) -> pd.DataFrame:
    """Pairs whose margins against the initial policy are these."""
    pairs = pd.DataFrame(
        {"chosen_reference_log_prob": -50.0, "rejected_reference_log_prob": -40.0}, range(len(margins))
    )
    return pairs.assign(chosen_log_prob=-50 + margins / BETA, rejected_log_prob=-40.0, margin=margins)


def table(worst: follower.WorstCase, pieces=None) -> pd.DataFrame:
    columns = pd.DataFrame(worst.per_pair())
    return columns if pieces is None else columns.assign(piece_slope=worst.piece_slopes(pieces))


@given(found, radii, st.sampled_from([None, (-0.5, 0.8)]))
def test_the_gradient_of_envelope_rows_is_that_of_the_worst_case(margins, radius, support):
    worst = follower.worst_case(margins, radius, support)
    rows = training_rows(pairs_with(margins), table(worst), leader("envelope"), BETA)
    gradient = (-rows["weight"] * expit(-margins) + rows["slope"]) / len(margins)
    x = torch.tensor(margins, requires_grad=True)
    (expected,) = torch.autograd.grad(follower.sgpo_loss(x, radius, support), x)
    if len(set(margins)) == len(margins):  # among equal margins either may be the one that moves
        np.testing.assert_allclose(gradient, expected, atol=1e-9)
    assert gradient.sum() == pytest.approx(float(expected.sum()), abs=1e-9)


@given(found, radii, st.integers(2, 7))
def test_piece_rows_have_the_slope_of_the_pieces_objective_whose_value_is_the_worst_case(margins, radius, k):
    support = (margins.min() - 0.1, margins.max() + 0.1)
    pieces = follower.tangents(k, support)
    worst = follower.worst_case(margins, radius, support, pieces)
    rows = training_rows(pairs_with(margins), table(worst, pieces), leader("pieces"), BETA)
    s, q = worst.masses_and_shifts(pieces)

    def objective_of(x):
        return (s * (np.multiply.outer(x, pieces.slopes) + pieces.intercepts) - q * pieces.slopes).sum(axis=1)

    assert objective_of(margins).mean() == pytest.approx(worst.value, abs=1e-9)
    np.testing.assert_allclose(rows["slope"], objective_of(margins + 1) - objective_of(margins), atol=1e-9)
    assert (rows["weight"] == 0).all()


@given(found, radii)
def test_the_weights_of_algorithm_1_are_plain_dpo(margins, radius):
    worst = follower.worst_case(margins, radius)
    weighted = training_rows(pairs_with(margins), table(worst), leader("weights"), BETA)
    plain = training_rows(pairs_with(margins), None, leader("dpo"), BETA)
    np.testing.assert_allclose(weighted["weight"], 1, atol=1e-12)
    pd.testing.assert_frame_equal(weighted.drop(columns="weight"), plain.drop(columns="weight"))


@given(found)
def test_at_radius_0_the_rows_are_those_of_plain_self_annotated_dpo(margins):
    worst = table(follower.worst_case(margins, 0.0))
    plain = training_rows(pairs_with(margins), None, leader("dpo"), BETA)
    for mode in ("transport", "envelope"):
        rows = training_rows(pairs_with(margins), worst, leader(mode), BETA)
        pd.testing.assert_frame_equal(rows.abs(), plain.abs())  # 0 may be -0


@given(found, radii)
def test_the_number_of_tangents_does_not_change_what_transport_trains_on(margins, radius):
    support = (margins.min() - 0.1, margins.max() + 0.1)
    exact = follower.worst_case(margins, radius, support)
    for k in (5, 6, 7):
        tangents = follower.worst_case(margins, radius, support, follower.tangents(k, support))
        np.testing.assert_allclose(tangents.moved, exact.moved, atol=1e-9)
        np.testing.assert_allclose(tangents.displacement, exact.displacement, atol=1e-9)


# --- the losses that the trainers report, on a real (tiny) policy


def loss(x):
    return -log_expit(x)


LOSSES = {
    "dpo": lambda x, rows: loss(x).mean(),
    "label-smoothing": lambda x, rows: (0.9 * loss(x) + 0.1 * loss(-x)).mean(),
    "robust": lambda x, rows: ((0.9 * loss(x) - 0.1 * loss(-x)) / 0.8).mean(),
    "dr-dpo": lambda x, rows: -2 * np.log(np.exp(-loss(x) / 2).mean()),
    "sgpo": lambda x, rows: follower.worst_case(x, 0.3).value,
    "ipo": lambda x, rows: np.mean((per_token(rows) - 1 / (2 * BETA)) ** 2),
}


def per_token(rows):
    ratios = [
        (rows[f"{side}_log_prob"] - rows[f"ref_{side}_logps"]) / rows[f"{side}_ids"].map(len)
        for side in ("chosen", "rejected")
    ]
    return ratios[0] - ratios[1]


@pytest.fixture
def policy(tiny_model) -> Policy:
    lora = LoraParams(r=4, lora_alpha=8)
    return Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=lora))


def pairs_of(policy: Policy) -> pd.DataFrame:
    """Eight pairs of random tokens, with references that put their margins anywhere."""
    rng = np.random.default_rng(3)
    ids = [[rng.integers(2, 500, size).tolist() for _ in range(8)] for size in (12, 6, 4)]
    pairs = rescore(policy, pd.DataFrame(dict(zip(["prompt_ids", "chosen_ids", "rejected_ids"], ids, strict=True))))
    for side in ("chosen", "rejected"):
        pairs[f"{side}_reference_log_prob"] = pairs[f"{side}_log_prob"] + rng.normal(0, 10, 8)
    return pairs


def margins_of(rows: pd.DataFrame) -> np.ndarray:
    gained = {side: rows[f"{side}_log_prob"] - rows[f"ref_{side}_logps"] for side in ("chosen", "rejected")}
    return BETA * (gained["chosen"] - gained["rejected"]).to_numpy()


@pytest.mark.parametrize("mode", LOSSES)
def test_reported_loss_is_the_closed_form_of_the_margins(policy, mode):
    params = leader(mode, dr_beta=2.0)
    rows = training_rows(pairs_of(policy), None, params, BETA)
    log = train(policy, rows, params, BETA, 0, objective(params, 0.3, follower.RangeSupport()))
    assert log["loss"].iloc[0] == pytest.approx(LOSSES[mode](margins_of(rows), rows), rel=1e-4)


def test_spa_smooths_the_tenth_that_an_exaggerated_policy_is_least_sure_of_and_not_before_its_warm_up(policy):
    policy.make_trainable(0)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    pairs = pairs_of(policy)
    params = leader("spa", num_train_epochs=2)
    rows = training_rows(pairs, None, params, BETA)
    log = train(policy, rows, params, BETA, 0, objective(params))
    margins, least = margins_of(rows), np.argmin(exaggerated_margins(policy, pairs))
    assert log["loss"].iloc[0] == pytest.approx(loss(margins).mean(), rel=1e-4)
    assert log["loss"].iloc[1] == pytest.approx((loss(margins).sum() + 0.1 * margins[least]) / 8, rel=1e-4)
    assert log["noisy"].iloc[1] == 1 / 8


@pytest.mark.parametrize("size", [1, 4])
def test_spa_smooths_about_a_tenth_also_of_few_pairs_in_small_batches(size):
    generator, shares = torch.Generator().manual_seed(0), []
    for _ in range(300):
        confidence = torch.randn(40, generator=generator)
        flagged = [least_confident(confidence[i : i + size], confidence[: i + size]) for i in range(0, 40, size)]
        shares.append(torch.cat(flagged).float().mean().item())
    assert 0.08 < np.mean(shares) < 0.11


@torch.no_grad()
def exaggerated_margins(policy: Policy, pairs: pd.DataFrame) -> np.ndarray:
    def gained(row, side):
        ids = torch.tensor([[*row["prompt_ids"], *row[f"{side}_ids"]]])
        logits = policy.model(ids).logits[0]
        with policy.reference() as sft:
            reference = sft(ids).logits[0]
        tokens, at = ids[0, len(row["prompt_ids"]) :], slice(len(row["prompt_ids"]) - 1, -1)
        both = [
            torch.log_softmax(x[at], -1).gather(-1, tokens[:, None]).sum()
            for x in (1.5 * logits - 0.5 * reference, reference)
        ]
        return float(both[0] - both[1])

    return np.array([gained(row, "chosen") - gained(row, "rejected") for _, row in pairs.iterrows()])


def test_every_mode_of_the_params_has_a_test():
    tested = {*LOSSES, "transport", "envelope", "pieces", "weights", "spa"}
    assert tested == set(get_args(LeaderParams.model_fields["mode"].annotation))


def test_a_training_shorter_than_its_logging_interval_has_a_log(policy):
    params = leader("dpo", logging_steps=10)
    rows = training_rows(pairs_of(policy), None, params, BETA)
    log = train(policy, rows, params, BETA, 0)
    assert log["loss"].iloc[0] == pytest.approx(loss(margins_of(rows)).mean(), rel=1e-4)


def test_training_logs_reach_tensorboard(policy, tmp_path):
    params = leader("dpo", report_to="tensorboard")
    train(policy, training_rows(pairs_of(policy), None, params, BETA), params, BETA, 0, log_folder=tmp_path / "logs")
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
