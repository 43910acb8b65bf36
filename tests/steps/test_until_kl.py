"""Seed DPO until a KL: it ends with the first epoch that is found far enough, and to look on changes nothing."""

import pytest
import torch

from sgpo_lib import steps
from sgpo_lib.params import load_params
from sgpo_lib.policy import kl_matching
from sgpo_lib.runs import Run
from sgpo_lib.steps import until_kl


def seed_policy(file, **overrides):
    """Train seed DPO, two steps an epoch; return its weights, its log and its record's metrics."""
    step = Run.open(file, overrides={f"seed_dpo.{key}": value for key, value in overrides.items()}).step("seed_dpo")
    step.begin()
    policy = steps.load_policy(step)
    update = steps.seed_update(steps.label_seed(step, policy, steps.choose_prompts(step, policy)))
    log = steps.train(step, policy, update)
    weights = {name: tensor.clone() for name, tensor in policy.model.state_dict().items() if "lora_" in name}
    return weights, log, steps.finish(step, update, log)["metrics"]


def test_training_ends_with_the_first_epoch_that_reaches_the_target_and_is_that_of_as_many_epochs(
    tiny_params_file, monkeypatch
):
    monkeypatch.setattr(until_kl, "STEPS_APART", 2)
    monkeypatch.setattr(kl_matching, "N_PROMPTS", 16)
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
    plain, plain_log, plain_metrics = seed_policy(tiny_params_file, num_train_epochs=3, lr_scheduler_type="constant")
    assert plain_metrics | {"kl_last": metrics["kl_last"]} == metrics
    assert "kl" not in plain_log
    assert reached.keys() == plain.keys()
    assert all(torch.equal(reached[name], plain[name]) for name in plain)


def test_the_kl_is_estimated_from_the_epochs_asked_for_on_some_steps_apart_and_at_the_end(
    tiny_params_file, monkeypatch
):
    monkeypatch.setattr(until_kl, "STEPS_APART", 3)
    monkeypatch.setattr(kl_matching, "N_PROMPTS", 2)
    with pytest.warns(UserWarning, match="target_kl"):
        _, log, _ = seed_policy(tiny_params_file, num_train_epochs=2, target_kl=1000, max_epochs=5)
    assert log.loc[log["kl"].notna(), "epoch"].tolist() == [2, 4, 5]
    _, log, _ = seed_policy(tiny_params_file, num_train_epochs=2, target_kl=1e-9, max_epochs=5)
    assert log["epoch"].iloc[-1] == 2


def test_a_training_without_a_known_end_has_a_constant_learning_rate_and_room(tiny_params_file):
    wanted = {"seed_dpo.target_kl": 8}
    assert load_params(tiny_params_file, wanted).seed_dpo.lr_scheduler_type == "constant"
    assert load_params(tiny_params_file).seed_dpo.lr_scheduler_type == "linear"
    with pytest.raises(ValueError, match="target_kl needs lr_scheduler_type: constant, because cosine lowers"):
        load_params(tiny_params_file, wanted | {"seed_dpo.lr_scheduler_type": "cosine"})
    with pytest.raises(ValueError, match="max_epochs must be at least num_train_epochs"):
        load_params(tiny_params_file, wanted | {"seed_dpo.max_epochs": 1})
