"""The language model: load it, sample from it, score sequences under it and under its SFT reference.

Knows tokens and log-probabilities; knows nothing of judges, pairs or training.
"""

import contextlib
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from sgpo_lib.leader.packed_batches import PackingCheck
from sgpo_lib.params.schema import ModelParams
from sgpo_lib.policy.checks import check_model, check_tokenizer, rendered
from sgpo_lib.policy.export import adapter_card
from sgpo_lib.policy.loading import (
    choose_device,
    choose_dtype,
    hub_options,
    in_float32,
    load_model,
    move_to,
    or_explain,
    refuse_adapter,
    resolve,
    with_adapter,
    without_future_warnings,
)


@dataclass
class Policy:
    """A causal language model with its tokenizer.

    Attributes
    ----------
    model : the policy pi_theta; a `PeftModel` if it is an adapter on the SFT model.
    tokenizer : pads on the left.
    params : what it was loaded from.
    packing_checks : by type of the weights, whether answers may share their prompt's computation.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    params: ModelParams
    packing_checks: dict[torch.dtype, PackingCheck] = field(default_factory=lambda: defaultdict(PackingCheck))
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
        source = resolve(params.name_or_path)
        refuse_adapter(source, params)
        tokenizer = or_explain(lambda: AutoTokenizer.from_pretrained(source, **hub_options(source, params)), source)
        check_tokenizer(tokenizer, params.name_or_path)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        is_adapter = weights is not None and (weights / "adapter_config.json").exists()
        model = load_model(source if is_adapter or weights is None else weights, params)
        check_model(model, tokenizer, params)
        if is_adapter:
            model = with_adapter(model, weights)
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
            with without_future_warnings():
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
            self.model = with_adapter(base, weights).eval()
        elif weights is None and isinstance(self.model, PeftModel):
            self.model = self.model.unload().eval()
        elif weights is not None or self.params.lora is None:
            self.model = load_model(weights or resolve(self.params.name_or_path), self.params).eval()

    @property
    def samples_as_it_scores(self) -> bool:
        """Whether the log-probabilities that sampling leaves are as exact as those of `sequence_log_probs`."""
        return self.params.scoring_dtype == "auto" or self.model.dtype == torch.float32

    @contextlib.contextmanager
    def scoring(self, reference: bool, dtype: str | None = None) -> Iterator[PreTrainedModel | PeftModel]:
        """Give the policy, or the SFT model, in `dtype` or `params.scoring_dtype`; afterwards it is as before.

        An implicit reward is a small difference of large log-probabilities, and takes their rounding with it.
        Where all weights are trained, policy and SFT model take turns on the device.
        """
        device, has_copy = self.device, reference and self.params.lora is None
        if has_copy:
            move_to(self.model, torch.device("cpu"))
        try:
            with (
                self.reference() if reference else contextlib.nullcontext(self.model) as model,
                in_float32(model) if (dtype or self.params.scoring_dtype) == "float32" else contextlib.nullcontext(),
            ):
                yield model
        finally:
            if has_copy:
                move_to(self._sft, torch.device("cpu"))
                move_to(self.model, device)

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
                self._sft = load_model(resolve(self.params.name_or_path), self.params).eval()
            yield self._sft.to(choose_device(self.params.device))

    @contextlib.contextmanager
    def scaled(self, alpha: float) -> Iterator[None]:
        """Multiply what the adapter adds to the SFT model: by 0 this is the SFT model, by 1 the policy itself.

        Raises
        ------
        ValueError : if there is no adapter.
        """
        if not isinstance(self.model, PeftModel):
            raise ValueError(
                "only an adapter can be scaled: this policy is the SFT model itself, or all its weights were trained "
                "(model.lora: null), and then what training added is not kept apart."
            )
        with rescale_adapter_scale(self.model, alpha):
            yield

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
            Path(folder, "README.md").write_text(adapter_card(self.params), encoding="utf-8")
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
        text = rendered(self.tokenizer, self.params.name_or_path, messages, **options)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def stop_tokens(self) -> list[int]:
        """Token ids that end a response."""
        stop = self.model.generation_config.eos_token_id
        stop = [stop] if isinstance(stop, int) else list(stop or [])
        return sorted({*stop, self.tokenizer.eos_token_id})
