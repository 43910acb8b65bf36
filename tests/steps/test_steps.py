"""What the steps that train leave behind, without notebooks."""

import pandas as pd
import pytest

from sgpo_lib import annotation, data, follower, steps
from sgpo_lib.runs import Run


@pytest.fixture
def seeded(tiny_params_file):
    """A run whose seed DPO is made: a quarter of the labels flipped, four pairs kept for calibration."""
    run = Run.open(tiny_params_file, overrides={"data.label_noise": 0.25, "data.n_calibration": 4})
    step = run.step("seed_dpo").begin()
    policy = steps.load_policy(step)
    splits = steps.choose_prompts(step, policy)
    pairs = steps.label_seed(step, policy, splits)
    steps.label_calibration(step, policy, splits)
    update = steps.seed_update(pairs)
    steps.finish(step, update, steps.train(step, policy, update), n_processes=1)
    return run


def test_the_seed_step_leaves_labels_policy_and_record(seeded):
    step = seeded.step("seed_dpo")
    assert step.load("pairs.parquet")["flipped"].sum() == 2
    assert step.load("calibration.parquet")["flipped"].sum() == 1
    assert set(step.load("prompts.parquet")["part"]) == {"seed", "calibration"}
    record = step.record()
    assert {"n_pairs", "n_processes", "n_steps", "loss_first"} <= set(record["metrics"])
    assert list(record["seconds"]) == ["load", "generate", "train"]
    assert not list(step.folder.glob(".*.tmp"))
    assert (step.load("policy") / "adapter_model.safetensors").exists()


def test_a_round_is_updated_on_its_worst_case_from_the_policy_before(seeded):
    params, step = seeded.params, seeded.step("annotation", 1).begin()
    policy = steps.load_policy(step)
    labelled = seeded.step("seed_dpo").load("prompts.parquet")
    pool = data.prepare(params.data, params.root, 0, labelled=labelled).rounds[0]
    responses = annotation.respond(policy, pool, params.generation, step.seed)
    responses = annotation.with_implicit_rewards(policy, responses, params.beta)
    pairs = annotation.with_margins(annotation.rank(responses, by="implicit_reward"))
    step.save("responses.parquet", responses)
    step.save("pairs.parquet", pairs)
    step.save("labelled_margins.parquet", pd.DataFrame({"margin": [0.1]}))
    step.finish()
    with pytest.raises(FileNotFoundError, match="03_dro_reweighting"):
        steps.round_update(seeded.step("leader", 1))

    step = seeded.step("follower", 1).begin()
    worst = follower.worst_case(pairs["margin"], params.follower.radius)
    step.save("worst_case.parquet", pd.DataFrame(worst.per_pair()))
    step.finish(worst.summary())

    step = seeded.step("leader", 1).begin()
    update = steps.round_update(step)
    assert update.counts == {"n_rows": len(pairs), "n_moved": (worst.moved > 0).sum()}
    assert update.rows["loss_moved"].tolist() == worst.moved.tolist()
    log = steps.train(step, steps.load_policy(step), update)
    # From pi_0, which is the reference too, so that every margin begins at 0.
    assert log["rewards/margins"].iloc[0] == pytest.approx(0, abs=1e-4)
    assert steps.finish(step, update, log)["metrics"]["n_moved"] == update.counts["n_moved"]
