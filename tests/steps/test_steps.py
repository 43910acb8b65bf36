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
    assert record["metrics"]["n_comparisons"] == 8 + 4  # of two answers each, for training and for calibration
    assert list(record["seconds"]) == ["load", "generate", "train"]
    assert not list(step.folder.glob(".*.tmp"))
    assert (step.load("policy") / "adapter_model.safetensors").exists()


def annotated(run, tied=()):
    """Annotate the first round of a run; return the pairs that are not tied."""
    params, step = run.params, run.step("annotation", 1).begin()
    policy = steps.load_policy(step)
    labelled = run.step("seed_dpo").load("prompts.parquet")
    pool = data.prepare(params.data, params.root, 0, labelled=labelled).rounds[0]
    responses = annotation.respond(policy, pool, params.generation, step.seed)
    responses = annotation.with_implicit_rewards(policy, responses, params.beta)
    pairs = annotation.with_margins(annotation.rank(responses, by="implicit_reward"))
    pairs.loc[list(tied), "weight"] = 0.0
    step.save("responses.parquet", responses)
    step.save("pairs.parquet", pairs)
    step.save("labelled_margins.parquet", pd.DataFrame({"margin": [0.1]}))
    step.finish()
    return annotation.preferred(pairs)


def solved(run, pairs, radius):
    """Solve for the worst case of the first round's pairs, and return it."""
    step = run.step("follower", 1).begin()
    worst = follower.worst_case(pairs["margin"], radius)
    step.save("worst_case.parquet", pd.DataFrame(worst.per_pair()))
    step.finish(worst.summary())
    return worst


@pytest.mark.parametrize("reference", ["previous", "initial"])
def test_replayed_rows_are_seed_pairs_in_place_of_as_many_measured_from_the_same_policy(seeded, reference):
    overrides = {"leader.replay": 0.5, "leader.reference": reference}
    run = Run.open(
        seeded.params.root / "params/tiny.yaml",
        overrides={"data.label_noise": 0.25, "data.n_calibration": 4} | overrides,
    )
    solved(run, annotated(run), 0.3)
    step = run.step("leader", 1).begin()
    plain, policy = steps.round_update(step), steps.load_policy(step)
    update = steps.with_replay(step, policy, plain)
    labelled = run.step("seed_dpo").load("pairs.parquet")
    replayed = update.rows["prompt_id"].isin(labelled["prompt_id"])
    assert len(update.rows) == len(plain.rows) == 4
    assert replayed.sum() == update.counts["n_replayed"] == 2
    pd.testing.assert_frame_equal(
        update.rows.loc[~replayed, plain.rows.columns], plain.rows[~replayed], check_dtype=False
    )
    assert (update.rows.loc[replayed, ["loss_moved", "loss_displacement"]] == 0).all(axis=None)
    assert (update.rows["loss_weight"] == 1).all()
    log = steps.train(step, policy, update)
    if reference == "previous":  # from pi_0, which is the reference too, so that every margin begins at 0
        assert log["rewards/margins"].iloc[0] == pytest.approx(0, abs=1e-4)


def test_pairs_without_a_preference_keep_their_rows_where_rows_are_weighed(seeded):
    solved(seeded, annotated(seeded, tied=[1]), 0.3)
    overrides = {"data.label_noise": 0.25, "data.n_calibration": 4}
    file = seeded.params.root / "params/tiny.yaml"

    def rows_of(mode):
        return steps.round_update(Run.open(file, overrides=overrides | mode).step("leader", 1)).rows

    all_pairs = seeded.step("annotation", 1).load("pairs.parquet")
    worst = seeded.step("follower", 1).load("worst_case.parquet")
    rows = rows_of({})
    assert rows["prompt_id"].tolist() == all_pairs["prompt_id"].tolist()
    assert rows["loss_weight"].tolist() == [1, 0, 1, 1]
    assert rows["loss_moved"].drop(index=1).tolist() == worst["moved"].tolist()
    assert rows.loc[1, ["loss_moved", "loss_displacement"]].tolist() == [0, 0]
    assert rows.loc[1, "ref_chosen_logps"] == all_pairs.loc[1, "chosen_log_prob"]
    for mode in ("sgpo", "ipo", "spa"):
        left = rows_of({"leader.mode": mode})
        assert left["prompt_id"].tolist() == all_pairs["prompt_id"].drop(index=1).tolist()
        assert "loss_weight" not in left


def test_another_shuffle_trains_the_same_rows_in_another_order(seeded):
    solved(seeded, annotated(seeded), 0.3)
    overrides = {"data.label_noise": 0.25, "data.n_calibration": 4, "leader.per_device_train_batch_size": 1}
    logs = []
    for shuffle in (0, 0, 3):
        file = seeded.params.root / "params/tiny.yaml"
        step = Run.open(file, overrides=overrides | {"leader.shuffle": shuffle}).step("leader", 1).begin()
        logs.append(steps.train(step, steps.load_policy(step), steps.round_update(step)))
    assert logs[0]["loss"].tolist() == logs[1]["loss"].tolist() != logs[2]["loss"].tolist()
    assert logs[0].attrs == logs[2].attrs


def test_a_round_is_updated_on_its_worst_case_from_the_policy_before(seeded):
    pairs = annotated(seeded)
    with pytest.raises(FileNotFoundError, match="03_dro_reweighting"):
        steps.round_update(seeded.step("leader", 1))

    worst = solved(seeded, pairs, seeded.params.follower.radius)
    step = seeded.step("leader", 1).begin()
    update = steps.round_update(step)
    assert update.counts == {"n_rows": len(pairs), "n_moved": (worst.moved > 0).sum()}
    assert update.rows["loss_moved"].tolist() == worst.moved.tolist()
    log = steps.train(step, steps.load_policy(step), update)
    # From pi_0, which is the reference too, so that every margin begins at 0.
    assert log["rewards/margins"].iloc[0] == pytest.approx(0, abs=1e-4)
    assert steps.finish(step, update, log)["metrics"]["n_moved"] == update.counts["n_moved"]
