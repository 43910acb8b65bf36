"""Asking a run's policies: each answers as itself, and the numbers beside an answer are its own."""

import builtins
import sys

import pytest

from sgpo_lib import steps
from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.policy import Policy, generate
from sgpo_lib.policy.scoring import sequence_log_probs
from sgpo_lib.runs import Run
from sgpo_lib.steps import talk


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    from small_params import write_tiny_params

    run = Run.open(write_tiny_params(tmp_path_factory.mktemp("run"), tiny_model))
    step = run.step("seed_dpo").begin()
    policy = steps.load_policy(step)
    update = steps.seed_update(steps.label_seed(step, policy, steps.choose_prompts(step, policy)))
    steps.finish(step, update, steps.train(step, policy, update))
    return run


def test_each_policy_answers_as_it_does_alone(run):
    talked = talk.Talk(run).ask("Describe the sea.", seed=3)
    assert list(talked.index) == ["sft", "dpo"]
    options = run.params.generation
    for name, weights in (("sft", None), ("dpo", run.step("seed_dpo").load("policy"))):
        policy = Policy.load(run.params.model, weights)
        prompt = [{"role": "user", "content": "Describe the sea."}]
        (alone,) = generate(policy, [prompt], 1, 3, options.temperature, options.max_new_tokens).to_dict("records")
        row = talked.loc[name]
        assert row["response"] == alone["response"]
        ids = [alone["prompt_ids"]], [alone["response_ids"]]
        own, sft = (sequence_log_probs(policy, *ids, reference=reference)[0] for reference in (False, True))
        assert row["log_ratio"] == pytest.approx(own - sft, abs=1e-4)
        assert row["implicit_reward"] == pytest.approx(run.params.beta * (own - sft), abs=1e-4)
        assert row["gold_reward"] == GoldJudge(**run.params.gold.model_dump()).score([row["response"]])[0]


def test_lines_are_answered_until_an_empty_one(run, monkeypatch, capsys):
    lines = iter(["Hello?", "And the sky?", "", "Never asked"])
    params_file = run.params.root / "params" / f"{run.params.name}.yaml"
    monkeypatch.setattr(sys, "argv", ["talk", str(params_file)])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    talk.main()
    said = capsys.readouterr().out
    assert said.count("nats from SFT") == 4
    assert said.splitlines()[0] == "sft, dpo listen; an empty line ends it."


def test_a_run_without_a_seed_policy_says_what_to_run(run):
    with pytest.raises(FileNotFoundError, match="run notebook 01_seed_dpo first"):
        talk.Talk(Run.open(run.params.root / "params" / f"{run.params.name}.yaml", seed=1))
