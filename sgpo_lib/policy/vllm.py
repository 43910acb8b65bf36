"""Generation by vLLM: the same table as `sgpo_lib.policy.generate`, faster where there is a GPU.

It has not been run on a GPU where it was written; run instead was all of it but vLLM itself, with a stand-in that
serves a small model from the same arguments, each of which was found in the source of vLLM 0.33.0.
Knows how vLLM is asked and what it answers; the law of the policy, and all that is done with answers, is elsewhere.
"""

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel

from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.scoring import sequence_log_probs

# The ranks that vLLM has kernels for (vllm.config.lora.MaxLoRARanks).
_LORA_RANKS = [1, 8, 16, 32, 64, 128, 256, 320, 512]

# Share of the GPU's memory that vLLM leaves to scoring, beside what the policy already holds.
_LEFT_FOR_SCORING = 0.1

# Nats per token by which vLLM's law may differ. Rounding in bfloat16 was 0.6 nats per response of some 40 tokens
# between float32 and bfloat16 of the embedded model on a CPU; between two implementations it is not measured here.
_TOLERANCE = 0.1


@contextlib.contextmanager
def generator(policy: Policy) -> Iterator[Callable[..., pd.DataFrame]]:
    """Give a function with the signature and the results of `sgpo_lib.policy.generate`, for this policy alone.

    vLLM starts at its first call and gives the GPU back at the end of the block. An adapter is served on its
    base model as it is in memory; a policy without adapter from the folder that it was loaded from.

    Two things differ from `generate`: `batch_size` only bounds the scoring, because vLLM batches by itself; and
    each (prompt, sample) still has a random stream of its own, but which tokens it draws may change with the
    batch's rounding, so that a repeated run is close to the first, not equal.

    Raises
    ------
    ImportError : if vLLM is not installed; says how to do without.
    RuntimeError : from the function, if vLLM answers with another law than the policy's.
    """
    vllm = _import_vllm()
    with tempfile.TemporaryDirectory(prefix="sgpo-adapter-") as folder:
        engine = _Engine(vllm, policy, Path(folder))
        try:
            yield engine.generate
        finally:
            engine.close()


class _Engine:
    def __init__(self, vllm: SimpleNamespace, policy: Policy, folder: Path):
        self.vllm, self.policy, self.folder = vllm, policy, folder
        self.llm = self.adapter = None

    def generate(
        self,
        policy: Policy,
        prompts: Sequence[list[dict]],
        n_samples: int,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        max_prompt_length: int | None = None,
        batch_size: int = 64,
        first_index: int = 0,
        doing: str = "generate",
    ) -> pd.DataFrame:
        if policy is not self.policy:
            raise ValueError("This generator serves another policy; open one for each policy.")
        is_first = self.llm is None
        if is_first:
            self._start()
        prompt_ids = policy.encode_prompts(prompts, max_prompt_length)
        jobs = [(index, sample) for index in range(len(prompts)) for sample in range(n_samples)]
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt_ids[index]} for index, _ in jobs],
            [
                self.vllm.SamplingParams(
                    temperature=temperature,
                    max_tokens=max_new_tokens,
                    stop_token_ids=policy.stop_tokens,
                    seed=_stream(seed, first_index + index, sample),
                    logprobs=0,  # of the drawn token alone
                    detokenize=False,
                )
                for index, sample in jobs
            ],
            lora_request=self.adapter,
        )
        jobs = [(first_index + index, sample) for index, sample in jobs]
        responses = to_responses(policy, jobs, outputs, batch_size)
        if is_first:
            check_law(policy, responses, temperature)
        return responses

    def _start(self) -> None:
        model = self.policy.model
        is_adapter = isinstance(model, PeftModel)
        source = (model.get_base_model() if is_adapter else model).name_or_path
        options: dict[str, Any] = {}
        if is_adapter:
            self.policy.save(self.folder)
            self.adapter = self.vllm.LoRARequest("policy", 1, str(self.folder))
            rank = next(rank for rank in _LORA_RANKS if rank >= model.peft_config["default"].r)
            options = {"enable_lora": True, "max_lora_rank": rank}
        if self.policy.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.policy.device)
            options["gpu_memory_utilization"] = round(free / total - _LEFT_FOR_SCORING, 2)
        self.llm = self.vllm.LLM(
            model=source,
            revision=None if Path(source).exists() else self.policy.params.revision,
            dtype=str(model.dtype).removeprefix("torch."),
            logprobs_mode="processed_logprobs",  # after the temperature: the law that tokens are drawn from
            generation_config="vllm",  # the model's own defaults would bend that law
            **options,
        )

    def close(self) -> None:
        self.llm = None  # its engine is a process of its own, which ends with the object
        gc.collect()


def to_responses(
    policy: Policy, jobs: Sequence[tuple[int, int]], outputs: Sequence[Any], batch_size: int = 64
) -> pd.DataFrame:
    """Turn vLLM's outputs into the table of `sgpo_lib.policy.generate`.

    `sampling_log_prob` is vLLM's own, the law that the tokens were drawn from. `log_prob` is scored by the policy:
    vLLM gives one law of the two, and an implicit reward is the small difference of two large numbers, which
    should both come from one implementation (`annotation.with_implicit_rewards` scores the reference).

    Parameters
    ----------
    jobs : (prompt_index, sample) of each output, in the order of the rows.
    outputs : `vllm.RequestOutput` of one sample each, asked for with `logprobs=0`.

    Raises
    ------
    RuntimeError : if an output was aborted, or lacks the token that ended it.
    """
    rows = []
    for (index, sample), output in zip(jobs, outputs, strict=True):
        drawn = output.outputs[0]
        ids = list(drawn.token_ids)
        finished = bool(ids) and ids[-1] in policy.stop_tokens
        if drawn.finish_reason != ("stop" if finished else "length"):
            raise RuntimeError(
                f"vLLM ended sample {sample} of prompt {index} by {drawn.finish_reason!r} after {len(ids)} tokens, the "
                f"last of them {'a' if finished else 'no'} stop token. This version of vLLM does not fit; use "
                "generation.engine: transformers."
            )
        rows.append(
            {
                "prompt_index": index,
                "sample": sample,
                "response": policy.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True).strip(),
                "prompt_ids": list(output.prompt_token_ids),
                "response_ids": ids,
                "finished": finished,
                "log_prob": 0.0,
                "sampling_log_prob": float(drawn.cumulative_logprob),
            }
        )
    responses = pd.DataFrame(rows)
    scores = sequence_log_probs(policy, responses["prompt_ids"], responses["response_ids"], batch_size=batch_size)
    return responses.assign(log_prob=scores)


def check_law(policy: Policy, responses: pd.DataFrame, temperature: float, n: int = 32) -> None:
    """Check on the first `n` responses that vLLM draws from the policy, adapter and temperature included.

    Raises
    ------
    RuntimeError : if the log-probabilities of the two differ by more than rounding, or if vLLM's are the SFT
        model's rather than the policy's.
    """
    first = responses.head(n)

    def distance(reference: bool) -> float:
        ids = first["prompt_ids"], first["response_ids"]
        scores = sequence_log_probs(policy, *ids, reference=reference, temperature=temperature)
        return float((np.abs(first["sampling_log_prob"] - scores) / first["response_ids"].map(len)).median())

    far = distance(reference=False)
    problem = None
    if not far <= _TOLERANCE:
        problem = f"they are {far:.2f} nats per token apart, where rounding stays below {_TOLERANCE}"
    elif isinstance(policy.model, PeftModel) and distance(reference=True) < far / 2:
        problem = "they are those of the SFT model, without the policy's adapter"
    if problem:
        raise RuntimeError(
            f"vLLM's log-probabilities are not the policy's: {problem}. It serves other weights, or reports another "
            "temperature. Update vLLM, save a policy that was trained in memory before it answers, or use "
            "generation.engine: transformers."
        )


def _stream(seed: int, index: int, sample: int) -> int:
    """Seed of the random stream of one (prompt, sample)."""
    return int(np.random.SeedSequence([seed, index, sample]).generate_state(1)[0])


def _import_vllm() -> SimpleNamespace:
    try:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise ImportError(
            f"generation.engine is 'vllm', but vLLM cannot be imported ({error}). Install it where there is a GPU "
            "(pip install vllm), or set generation.engine: transformers."
        ) from error
    return SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams, LoRARequest=LoRARequest)
