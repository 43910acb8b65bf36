"""Answers, the policy's own and people's, with their log-probabilities; and the labelled pairs made of them."""

import contextlib
import hashlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft.tuners.lora import LoraLayer

from sgpo_lib.annotation.pairs import choose, n_comparisons, rank, with_margins
from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.params.schema import GenerationParams, Params
from sgpo_lib.policy import vllm
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.sampling import generate
from sgpo_lib.policy.scoring import sequence_log_probs
from sgpo_lib.runs.shards import in_shards


def respond(
    policy: Policy,
    prompts: pd.DataFrame,
    generation: GenerationParams,
    seed: int,
    n_samples: int = 2,
    shards: Path | None = None,
    shard_size: int | None = None,
    who: str = "the policy",
) -> pd.DataFrame:
    """Sample `n_samples` responses to every prompt from the policy (paper: 2), by the engine that `generation` names.

    Parameters
    ----------
    prompts : N rows with `prompt_id`, `prompt` (a list of chat messages) and perhaps `form`.
    shards : folder in which the responses are kept, `shard_size` prompts a file, until all are there: an
        interrupted call that is made again loses at most one file's work. Several policies may share it. Shards
        change responses as `batch_size` does (see `sgpo_lib.policy.generate`): in float32 log-probabilities by
        their rounding, in 16 bits what is drawn.
    shard_size : None for two batches, as answers that end early give their place in the batch to others of the shard.
        An engine that batches by itself gets 512 prompts at once.
    who : what the progress bar calls the policy.

    Returns
    -------
    DataFrame, N * n_samples rows: those columns and the columns of `sgpo_lib.policy.generate`.
    """
    options = generation.model_dump()
    engine = options.pop("engine")
    key = {"generation": options, "engine": engine, "seed": seed, "n_samples": n_samples}
    asked = prompts.filter(["prompt_id", "prompt", "form"]).reset_index(drop=True)
    with vllm.generator(policy) if engine == "vllm" else contextlib.nullcontext(generate) as draw:

        def answer(part: pd.DataFrame) -> pd.DataFrame:
            first = int(part.index[0])
            how = options | {"first_index": first, "doing": f"{who} answers"}
            return draw(policy, part["prompt"].tolist(), n_samples, seed, **how)

        if shards is None:
            responses = answer(asked)
        else:
            size = shard_size or (512 if engine == "vllm" else max(1, 2 * generation.batch_size // n_samples))
            responses = in_shards(asked, answer, shards, size, key | {"policy": _digest(policy)})
    return asked.loc[responses.pop("prompt_index")].reset_index(drop=True).join(responses)


def labelled(
    policy: Policy,
    prompts: pd.DataFrame,
    params: Params,
    seed: int,
    shards: Path | None = None,
    n_samples: int | None = None,
    rule: str | None = None,
) -> pd.DataFrame:
    """Return labelled pairs of SFT answers: people's where the prompts come with them, else the gold user's.

    Parameters
    ----------
    policy : the SFT model.
    prompts : rows with `prompt_id` and `prompt`, and `chosen` and `rejected` (texts) where people labelled them.
        Otherwise the model answers each prompt several times, and of the answers that `rule` has it compare the
        gold user picks the one that it likes best and the one that it likes least.
    seed, shards : of the sampling, see `respond`.
    n_samples : how many times; None for `data.n_seed_samples`. For calibration as many as
        self-annotation takes: the best and the worst of more lie further apart, so the policy would seem to err less.

    rule : see `choose`; None for `data.choose_seed`.

    Returns
    -------
    DataFrame, a row per pair, with log-probabilities under the policy, which is the reference too; and, where the gold
    user labelled it, `n_comparisons`: what the label cost, one comparison of two answers or a score of each of more.

    Raises
    ------
    ValueError : if the prompts have no labels and there is no gold user to give them, or a labelled pair is longer
        than `seed_dpo.max_length`; before anything is sampled or scored.
    """
    if "chosen" in prompts:
        pairs = encode_pairs(policy, prompts, params.generation.max_prompt_length, params.seed_dpo.max_length)
    elif params.gold is None:
        raise ValueError(
            f"{params.data.source} has no labels (chosen, rejected), and gold is null, so nobody labels the seed: "
            "bring labelled pairs, or set gold."
        )
    else:
        n_samples = n_samples or params.data.n_seed_samples
        responses = respond(policy, prompts, params.generation, seed, n_samples, shards, who="the SFT model")
        compared = choose(policy, responses, rule or params.data.choose_seed).copy()
        compared["gold"] = GoldJudge(**params.gold.model_dump()).score(compared["response"])
        pairs = rank(compared, by="gold")
        pairs["n_comparisons"] = pairs["prompt_id"].map(n_comparisons(compared))
        if not policy.samples_as_it_scores:
            pairs = rescore(policy, pairs)
    # The policy is the reference itself here.
    return pairs.assign(
        chosen_reference_log_prob=pairs["chosen_log_prob"], rejected_reference_log_prob=pairs["rejected_log_prob"]
    )


def _digest(policy: Policy) -> str:
    """Hash of all weights, of how the adapter's are scaled, and of the chat template."""
    scales = [layer.scaling for layer in policy.model.modules() if isinstance(layer, LoraLayer)]
    digest = hashlib.sha256(f"{policy.params.lora} {scales} {policy.tokenizer.chat_template}".encode())
    for name, tensor in policy.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


def with_implicit_rewards(policy: Policy, responses: pd.DataFrame, beta: float) -> pd.DataFrame:
    """Add `reference_log_prob` (nats, under the SFT model) and `implicit_reward` (reward units).

    implicit_reward = beta * (log pi(y|x) - log pi_ref(y|x)), the R_theta of the paper. Both come from passes in
    `policy.params.scoring_dtype`, and `log_prob` becomes what its pass says, unless sampling was as exact. Rounding
    by bfloat16 alone would move margins by .06 to .08 rms, six times the radius that the paper uses.
    """
    ids = responses["prompt_ids"], responses["response_ids"]
    if not policy.samples_as_it_scores:
        responses = responses.assign(log_prob=sequence_log_probs(policy, *ids))
    reference = sequence_log_probs(policy, *ids, reference=True)
    return responses.assign(reference_log_prob=reference, implicit_reward=beta * (responses["log_prob"] - reference))


def encode_pairs(
    policy: Policy, pairs: pd.DataFrame, max_prompt_length: int, max_length: int | None = None
) -> pd.DataFrame:
    """Prepare pairs that people labelled: token ids, and log-probabilities under the policy as it is.

    Parameters
    ----------
    pairs : N rows with `prompt_id`, `prompt`, `chosen` and `rejected` (texts).
    max_length : tokens that a prompt and an answer may have together, where they are to be trained on.

    Returns
    -------
    The pairs with `prompt_ids`, `chosen_ids`, `rejected_ids`, `chosen_log_prob`, `rejected_log_prob`.

    Raises
    ------
    ValueError : a pair is longer than `max_length`; before any is scored.
    """
    pairs = pairs.reset_index(drop=True)
    asked = policy.encode_prompts(pairs["prompt"].tolist())
    both = zip(pairs["chosen"], pairs["rejected"], strict=True)
    turns = [policy.encode_turns(*row) for row in zip(pairs["prompt"], asked, both, strict=True)]
    pairs["prompt_ids"] = policy.without_heads([prompt_ids for prompt_ids, _ in turns], max_prompt_length)
    pairs["chosen_ids"] = [chosen for _, (chosen, _) in turns]
    pairs["rejected_ids"] = [rejected for _, (_, rejected) in turns]
    left_out = {
        policy.tokenizer.decode(ids[len(prompt_ids) :]) for ids, (prompt_ids, _) in zip(asked, turns, strict=True)
    } - {""}
    if left_out:
        warnings.warn(
            f"The chat template of {policy.params.name_or_path!r} asks for an answer by {min(left_out)!r}, which "
            "finished turns do not repeat: labelled answers are read and trained without it, unlike the policy's own.",
            stacklevel=2,
        )
    lengths = pairs["prompt_ids"].map(len) + pairs[["chosen_ids", "rejected_ids"]].map(len).max(axis=1)
    if max_length is not None and (lengths > max_length).any():
        raise ValueError(
            f"{(lengths > max_length).sum()} of {len(pairs)} labelled pairs are longer than seed_dpo.max_length="
            f"{max_length} tokens (the longest, of prompt {pairs['prompt_id'][lengths.idxmax()]}, has "
            f"{lengths.max()}): raise seed_dpo.max_length, or shorten prompts or answers."
        )
    return rescore(policy, pairs)


def rescore(policy: Policy, pairs: pd.DataFrame, beta: float | None = None) -> pd.DataFrame:
    """Bring `chosen_log_prob` and `rejected_log_prob` up to the present policy; with `beta`, the margins too.

    The ranking stays: margins of pairs that the present policy would rank the other way become negative.
    """
    pairs = pairs.copy()
    responses = pairs["chosen_ids"].tolist() + pairs["rejected_ids"].tolist()
    both = sequence_log_probs(policy, pairs["prompt_ids"].tolist() * 2, responses)
    pairs["chosen_log_prob"], pairs["rejected_log_prob"] = np.split(both, 2)
    if beta is None:
        return pairs
    for side in ("chosen", "rejected"):
        pairs[f"{side}_implicit_reward"] = beta * (pairs[f"{side}_log_prob"] - pairs[f"{side}_reference_log_prob"])
    return with_margins(pairs)
