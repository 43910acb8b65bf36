"""Sharded work: the same table as in one go, and a kill costs at most one shard."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sgpo_lib import annotation
from sgpo_lib.annotation import answers
from sgpo_lib.data.builtin_prompts import builtin_prompts
from sgpo_lib.params import GenerationParams, LoraParams, ModelParams
from sgpo_lib.policy import Policy
from sgpo_lib.runs.shards import in_shards

N = 11
PROMPTS = pd.DataFrame(
    {"prompt_id": [f"p{i}" for i in range(N)], "prompt": [[{"content": f"é {i}"}] for i in range(N)]}
)


def answer(part):
    """Two rows a prompt, of every kind of column that responses have."""
    rows = [
        {"prompt_index": i, "response": f"{text[0]['content']}\n{j}", "ids": [i, j], "finished": j == 0, "score": i / 7}
        for i, text in part["prompt"].items()
        for j in range(2)
    ]
    return pd.DataFrame(rows)


def refuse(part):
    raise AssertionError("answered again")


class Counting:
    """An `answer` that notes which prompts it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, part):
        self.asked += part["prompt_id"].tolist()
        return answer(part)


# --- tables


@pytest.mark.parametrize("size", [1, 4, N, 100])
def test_shards_make_the_same_table_as_one_call_to_the_last_type(tmp_path, size):
    sharded = in_shards(PROMPTS, answer, tmp_path, size, {"seed": 0})
    pd.testing.assert_frame_equal(sharded, answer(PROMPTS), check_exact=True)
    assert all(type(ids) is list and all(type(i) is int for i in ids) for ids in sharded["ids"])


def test_finished_shards_are_not_made_again(tmp_path):
    first = in_shards(PROMPTS, answer, tmp_path, 4, {"seed": 0})
    again = in_shards(PROMPTS.iloc[:8], refuse, tmp_path, 4, {"seed": 0})
    pd.testing.assert_frame_equal(again, first.iloc[:16], check_exact=True)


def test_index_of_the_prompts_does_not_matter(tmp_path):
    in_shards(PROMPTS, answer, tmp_path, 4, {})
    in_shards(PROMPTS.set_axis(range(50, 50 - N, -1)), refuse, tmp_path, 4, {})


@pytest.mark.parametrize(
    ("prompts", "key", "asked"),
    [
        (PROMPTS, {"seed": 1}, N),
        (PROMPTS, {"seed": 0, "policy": "other"}, N),
        (PROMPTS.assign(prompt_id=["other", *PROMPTS["prompt_id"][1:]]), {"seed": 0}, 4),
        (PROMPTS.assign(prompt=[[{"content": "edited"}], *PROMPTS["prompt"][1:]]), {"seed": 0}, 4),
        (PROMPTS.iloc[4:], {"seed": 0}, N - 4),
    ],
    ids=["other seed", "other policy", "other prompt id", "other prompt", "other place"],
)
def test_shards_of_anything_else_are_not_used(tmp_path, prompts, key, asked):
    in_shards(PROMPTS, answer, tmp_path, 4, {"seed": 0})
    counting = Counting()
    table = in_shards(prompts, counting, tmp_path, 4, key)
    assert len(counting.asked) == asked
    pd.testing.assert_frame_equal(table, answer(prompts.reset_index(drop=True)), check_exact=True)
    in_shards(PROMPTS, refuse, tmp_path, 4, {"seed": 0})  # and they are not lost either


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_shard_is_made_again_and_only_it(tmp_path, seed):
    whole = in_shards(PROMPTS, answer, tmp_path, 4, {})
    random = np.random.default_rng(seed)
    file = sorted(tmp_path.iterdir())[1]
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(content if seed else content[: len(content) // 2])
    counting = Counting()
    again = in_shards(PROMPTS, counting, tmp_path, 4, {})
    assert counting.asked == ["p4", "p5", "p6", "p7"]
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


def test_what_a_failed_answer_left_is_nothing_but_whole_shards(tmp_path):
    def fail_at_eight(part):
        if part.index[0] == 8:
            raise RuntimeError("out of memory")
        return answer(part)

    with pytest.raises(RuntimeError, match="out of memory"):
        in_shards(PROMPTS, fail_at_eight, tmp_path, 4, {})
    counting = Counting()
    in_shards(PROMPTS, counting, tmp_path, 4, {})
    assert counting.asked == ["p8", "p9", "p10"]
    assert len(list(tmp_path.iterdir())) == 3


# --- responses of a policy


GENERATION = {"temperature": 0.7, "max_new_tokens": 10, "max_prompt_length": 96}
QUESTIONS = pd.DataFrame(
    {
        "prompt_id": [f"p{i}" for i in range(10)],
        "prompt": [[{"role": "user", "content": text}] for text in builtin_prompts()[:100:10]],
    }
)


def load(folder, disturb=0.0):
    import torch

    lora = LoraParams(r=4, lora_alpha=8)
    policy = Policy.load(ModelParams(name_or_path=str(folder), device="cpu", dtype="float32", lora=lora))
    policy.make_trainable(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter += disturb
    policy.model.eval()
    return policy


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load(tiny_model, 0.1)


def test_sharded_responses_equal_unsharded_ones_up_to_the_rounding_of_log_probabilities(policy, tmp_path):
    generation = GenerationParams(**GENERATION, batch_size=1)
    whole = annotation.respond(policy, QUESTIONS, generation, seed=3)
    sharded = annotation.respond(policy, QUESTIONS, generation, seed=3, shards=tmp_path, shard_size=4)
    pd.testing.assert_frame_equal(sharded, whole, check_exact=False, atol=1e-4, rtol=0)
    assert sharded["response_ids"].map(type).eq(list).all()


def test_sharded_responses_are_the_unsharded_tokens_whatever_the_batch(policy, tmp_path):
    generation = GenerationParams(**GENERATION, batch_size=8)
    whole = annotation.respond(policy, QUESTIONS, generation, seed=3)
    sharded = annotation.respond(policy, QUESTIONS, generation, seed=3, shards=tmp_path, shard_size=4)
    pd.testing.assert_frame_equal(sharded, whole, check_exact=False, atol=1e-4, rtol=0)
    assert sharded["response_ids"].tolist() == whole["response_ids"].tolist()


@pytest.mark.parametrize("change", ["policy", "seed", "temperature", "samples"])
def test_responses_of_another_policy_seed_or_law_are_not_mixed_in(policy, tiny_model, tmp_path, change):
    generation = GenerationParams(**GENERATION)
    annotation.respond(policy, QUESTIONS, generation, seed=3, shards=tmp_path, shard_size=4)
    other = load(tiny_model, 0.2) if change == "policy" else policy
    generation = GenerationParams(**GENERATION | {"temperature": 0.9}) if change == "temperature" else generation
    options = {"seed": 4 if change == "seed" else 3, "n_samples": 1 if change == "samples" else 2}
    expected = annotation.respond(other, QUESTIONS, generation, **options)
    sharded = annotation.respond(other, QUESTIONS, generation, **options, shards=tmp_path, shard_size=10)
    mixed = annotation.respond(other, QUESTIONS, generation, **options, shards=tmp_path, shard_size=4)
    pd.testing.assert_frame_equal(sharded, expected, check_exact=False, atol=1e-4, rtol=0)
    assert mixed["response_ids"].tolist() == expected["response_ids"].tolist()


def test_an_interrupt_keeps_every_shard_that_was_answered(policy, tmp_path, monkeypatch):
    generation = GenerationParams(**GENERATION, batch_size=4)  # two batches of two answers each: four prompts
    draw, asked = answers.generate, []

    def interrupted(*arguments, first_index, **options):
        asked.append(first_index)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return draw(*arguments, first_index=first_index, **options)

    monkeypatch.setattr(answers, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        annotation.respond(policy, QUESTIONS, generation, seed=3, shards=tmp_path)
    resumed = annotation.respond(policy, QUESTIONS, generation, seed=3, shards=tmp_path)
    assert asked == [0, 4, 8, 8]
    monkeypatch.undo()
    whole = annotation.respond(policy, QUESTIONS, generation, seed=3)
    assert resumed["response_ids"].tolist() == whole["response_ids"].tolist()


def test_the_progress_bar_names_who_is_asked(policy, tmp_path, capsys):
    generation = GenerationParams(**GENERATION, batch_size=16)
    annotation.respond(policy, QUESTIONS, generation, seed=3, shards=tmp_path, who="round-1")
    bar = capsys.readouterr().err
    assert "round-1 answers: 100%" in bar
    assert "20/20" in bar


KILLED = """
import sys, time
from pathlib import Path
from test_shards import load, respond_noting

def slow(first):
    print(first, flush=True)
    time.sleep(0.3)

respond_noting(slow, load(sys.argv[1], 0.1), Path(sys.argv[2]))
"""


def respond_noting(note, policy, shards):
    """Respond in shards of two prompts, with a note of the first prompt of each that has to be made."""
    draw = answers.generate

    def noting(*arguments, first_index, **options):
        note(first_index)
        return draw(*arguments, first_index=first_index, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "generate", noting)
        generation = GenerationParams(**GENERATION, batch_size=8)
        return annotation.respond(policy, QUESTIONS, generation, seed=3, shards=shards, shard_size=2)


def test_a_killed_generation_goes_on_and_loses_at_most_the_shard_at_hand(policy, tiny_model, tmp_path):
    import torch

    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tiny_model), str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert [int(process.stdout.readline()) for _ in range(3)] == [0, 2, 4]
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    made = []
    resumed = respond_noting(made.append, policy, tmp_path / "killed")
    assert made == [4, 6, 8]
    undisturbed = respond_noting(lambda _: None, policy, tmp_path / "undisturbed")
    pd.testing.assert_frame_equal(resumed, undisturbed, check_exact=True)
    killed, whole = (sorted(file.name for file in (tmp_path / run).iterdir()) for run in ("killed", "undisturbed"))
    assert killed == whole  # names hold the hash of the content
