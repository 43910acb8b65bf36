"""Seed DPO until a KL: it ends with the first epoch that is far enough, and to look on changes nothing."""

import pytest
import torch

from sgpo_lib import steps
from sgpo_lib.params import load_params
from sgpo_lib.runs import Run

CONSTANT = {"seed_dpo.lr_scheduler_type": "constant"}


def seed_policy(file, **overrides):
    """Train seed DPO; return its weights, its log and its record's metrics."""
    step = Run.open(file, overrides=CONSTANT | {f"seed_dpo.{k}": v for k, v in overrides.items()}).step("seed_dpo")
    step.begin()
    policy = steps.load_policy(step)
    update = steps.seed_update(steps.label_seed(step, policy, steps.choose_prompts(step, policy)))
    log = steps.train(step, policy, update)
    weights = {name: tensor.clone() for name, tensor in policy.model.state_dict().items() if "lora_" in name}
    return weights, log, steps.finish(step, update, log)["metrics"]


def test_training_ends_with_the_first_epoch_that_reaches_the_target_and_is_that_of_as_many_epochs(tiny_params_file):
    with pytest.warns(UserWarning, match=r"After seed_dpo\.max_epochs = 4 .* not seed_dpo\.target_kl = 1000"):
        _, log, metrics = seed_policy(tiny_params_file, num_train_epochs=1, target_kl=1000, max_epochs=4)
    curve = log["kl"].dropna()
    assert log["step"].tolist() == list(range(1, 9))
    assert log.loc[curve.index, "epoch"].tolist() == [1, 2, 3, 4]
    assert curve.is_monotonic_increasing
    assert metrics["kl_last"] == curve.iloc[-1]

    target = float(curve.iloc[1:3].mean())
    reached, log, metrics = seed_policy(tiny_params_file, num_train_epochs=1, target_kl=target, max_epochs=4)
    assert log["kl"].dropna().tolist() == curve.tolist()[:3]
    assert metrics["kl_last"] >= target
    assert metrics["n_steps"] == 6
    plain, log, metrics = seed_policy(tiny_params_file, num_train_epochs=3)
    assert "kl" not in log
    assert "kl_last" not in metrics
    assert reached.keys() == plain.keys()
    assert all(torch.equal(reached[name], plain[name]) for name in plain)


def test_epochs_asked_for_are_trained_although_the_target_is_behind(tiny_params_file):
    _, log, _ = seed_policy(tiny_params_file, num_train_epochs=2, target_kl=1e-9, max_epochs=4)
    assert log["epoch"].iloc[-1] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed_dpo.target_kl": 8}, "target_kl needs lr_scheduler_type: constant, because linear"),
        (CONSTANT | {"seed_dpo.target_kl": 8, "seed_dpo.max_epochs": 1}, "max_epochs must be at least num_train_epo"),
    ],
)
def test_a_training_without_a_known_end_has_a_constant_learning_rate_and_room(tiny_params_file, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_params(tiny_params_file, overrides)
