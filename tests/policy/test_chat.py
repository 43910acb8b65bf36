"""Talking with a policy: both answer, each in its own conversation, and the nats are those of plain passes."""

import builtins
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sgpo_lib.policy import Policy, chat, generate
from sgpo_lib.policy.loading import saved_params

REPOSITORY = Path(__file__).parents[2]
ANSWER = re.compile(r"SFT     (.*?)\npolicy  (.*?)\n {8}log pi/pi_SFT ([+-][\d.]+) nats over (\d+) tokens", re.DOTALL)


def start(*arguments, **options):
    """Start the program, as a person would, in another folder than the repository's."""
    return subprocess.Popen(
        [sys.executable, "-m", "sgpo_lib.policy.chat", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        **options,
    )


def conversation(folder, base=None, seed=0, dtype="float32"):
    policy = Policy.load(saved_params(folder, base and str(base), device="cpu", dtype=dtype), folder)
    return chat.Conversation(policy, temperature=1.0, max_new_tokens=8, seed=seed)


def plain_log_prob(model, prompt_ids, response_ids):
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *response_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(response_ids)[:, None]).sum().item()


def talk(monkeypatch, capsys, arguments, lines):
    """Run the program in this process; returns what it printed."""
    waiting = iter(lines)

    def next_line(prompt):
        line = next(waiting, EOFError)
        if line in (EOFError, KeyboardInterrupt):
            raise line
        return line

    monkeypatch.setattr(sys, "argv", ["chat", *map(str, arguments), "--device", "cpu"])
    monkeypatch.setattr(builtins, "input", next_line)
    chat.main()
    return capsys.readouterr()


def test_by_pipe_every_line_is_answered_by_both(adapter, tmp_path):
    options = ["--max-new-tokens", 8, "--temperature", 1, "--beta", 0.1, "--device", "cpu"]
    process = start(adapter, *options, cwd=tmp_path)
    out, err = process.communicate("Hello?\nDescribe the sea.\n", timeout=120)
    assert process.returncode == 0, err
    answers = ANSWER.findall(out)
    assert len(answers) == 2
    for *_, nats, _tokens in answers:
        reward = re.search(rf"{re.escape(nats)} nats .*implicit reward ([+-][\d.]+)", out)
        assert float(reward[1]) == pytest.approx(0.1 * float(nats), abs=1e-3)
    assert "generate:" not in err  # no bar for each answer

    expected = conversation(adapter, dtype="auto")
    for text, (sft, policy, nats, _tokens) in zip(["Hello?", "Describe the sea."], answers, strict=True):
        turn = expected.say(text)
        assert (turn.sft, turn.policy) == (sft, policy)
        assert turn.log_ratio == pytest.approx(float(nats), abs=2e-3)


def test_nats_are_those_of_a_plain_pass_with_and_without_the_adapter(tiny_model, adapter):
    talked = conversation(adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    history = []
    for turn_number, text in enumerate(["Hello?", "Describe the sea."]):
        history.append({"role": "user", "content": text})
        row = generate(talked.policy, [history], 1, 0, 1.0, 8, first_index=turn_number).iloc[0]
        turn = talked.say(text)
        assert turn.policy == row["response"]
        assert turn.n_tokens == len(row["response_ids"])
        log_probs = [plain_log_prob(model, row["prompt_ids"], row["response_ids"]) for model in (tuned, base)]
        assert turn.log_ratio == pytest.approx(np.subtract(*log_probs), abs=1e-3)
        assert abs(turn.log_ratio) > 0.01
        history.append({"role": "assistant", "content": turn.policy})


def test_sft_model_answers_as_it_does_alone_and_hears_its_own_answers(tiny_model, adapter):
    talked, alone = conversation(adapter), Policy.load(saved_params(adapter, device="cpu", dtype="float32"))
    history = []
    for turn_number, text in enumerate(["Hello?", "Describe the sea.", "And the sky?"]):
        history.append({"role": "user", "content": text})
        answer = generate(alone, [history], 1, 0, 1.0, 8, first_index=turn_number)["response"][0]
        turn = talked.say(text)
        assert turn.sft == answer
        assert turn.sft != turn.policy
        history.append({"role": "assistant", "content": answer})


def test_weights_trained_whole_are_held_against_the_base_that_is_named(tiny_model, whole):
    talked = conversation(whole, tiny_model)
    turn = talked.say("Hello?")
    row = generate(talked.policy, [[{"role": "user", "content": "Hello?"}]], 1, 0, 1.0, 8).iloc[0]
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (whole, tiny_model)]
    log_probs = [plain_log_prob(model, row["prompt_ids"], row["response_ids"]) for model in models]
    assert turn.log_ratio == pytest.approx(np.subtract(*log_probs), abs=1e-3)


def test_seed_decides_the_answers(adapter):
    first, again, other = (conversation(adapter, seed=seed).say("Hello?") for seed in (0, 0, 1))
    assert first == again
    assert first.policy != other.policy


def test_a_line_that_no_longer_fits_is_said_and_leaves_the_conversation_as_it_was(monkeypatch, capsys, adapter):
    arguments = [adapter, "--max-new-tokens", 8]
    with_long = talk(monkeypatch, capsys, arguments, ["Hello?", "word " * 300, "And the sky?"])
    without = talk(monkeypatch, capsys, arguments, ["Hello?", "And the sky?"])
    assert "max_position_embeddings" in with_long.err
    assert with_long.out == without.out


@pytest.mark.parametrize("end", [EOFError, "", KeyboardInterrupt])
def test_end_of_input_an_empty_line_and_an_interruption_end_quietly(monkeypatch, capsys, adapter, end):
    said = talk(monkeypatch, capsys, [adapter, "--max-new-tokens", 4], ["Hello?", end, "Never asked"])
    assert len(ANSWER.findall(said.out)) == 1


def test_an_interruption_while_it_waits_leaves_no_traceback(adapter, tmp_path):
    process = start(adapter, "--max-new-tokens", 4, "--device", "cpu", cwd=tmp_path)
    process.stdin.write("Hello?\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("SFT")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "message"),
    [("whole", "does not say which SFT model .*--base"), ("nowhere", "holds no saved policy")],
)
def test_what_cannot_be_talked_with_is_said_in_a_line(monkeypatch, request, capsys, tmp_path, name, message):
    folder = request.getfixturevalue(name) if name == "whole" else tmp_path / name
    with pytest.raises(SystemExit, match=message):
        talk(monkeypatch, capsys, [folder], [])


def test_a_run_s_round_points_to_the_policy_in_it(monkeypatch, capsys, tmp_path):
    (tmp_path / "policy").mkdir()
    with pytest.raises(SystemExit, match=r"Is it .*policy\?"):
        talk(monkeypatch, capsys, [tmp_path], [])


def test_an_unknown_device_is_said_with_those_there_are(monkeypatch, capsys, adapter):
    monkeypatch.setattr(sys, "argv", ["chat", str(adapter), "--device", "gpu"])
    with pytest.raises(SystemExit):
        chat.main()
    assert "--device gpu is none of auto, cpu" in capsys.readouterr().err
