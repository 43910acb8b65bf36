"""A model's shape without its weights: parameters, FLOPs, what training keeps for the backward pass, cache.

Read off the model that transformers builds from a config on torch's meta device, prepared for training by the code
that trains it. Knows nothing of machines, runs or prices.
"""

import copy
import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import constants
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from sgpo_lib.data import hub
from sgpo_lib.params.schema import ModelParams
from sgpo_lib.policy.embedded import EMBEDDED_MODELS, folder_of
from sgpo_lib.policy.loading import choose_dtype
from sgpo_lib.policy.model import Policy

KNOWN_CONFIGS: dict[str, dict] = {
    "alignment-handbook/zephyr-7b-sft-full": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "gemma3-270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },
}
"""Sizes of the models that the params files here name, for where their configs cannot be fetched."""


def find_config(params: ModelParams) -> tuple[PretrainedConfig, str]:
    """Return the model's config and where it is from: a folder, the hub, its cache, or `KNOWN_CONFIGS`.

    Raises
    ------
    ConnectionError : if none of them has it.
    """
    name = params.name_or_path
    if name in EMBEDDED_MODELS:
        folder = folder_of(name)
        if folder.exists():
            return AutoConfig.from_pretrained(folder), "the converted model"
    elif Path(name).is_dir():
        return AutoConfig.from_pretrained(name), "its folder"
    else:
        why = hub.why_silent(constants.ENDPOINT)
        try:
            config = AutoConfig.from_pretrained(name, revision=params.revision, local_files_only=why is not None)
            return config, "the hub" if why is None else "the hub's local cache"
        except OSError as error:
            if name not in KNOWN_CONFIGS:
                raise ConnectionError(
                    f"The config of {name!r} could not be read ({why or str(error).splitlines()[0]}), and it is not "
                    f"one of the models known here: {', '.join(KNOWN_CONFIGS)}."
                ) from None
    sizes = dict(KNOWN_CONFIGS[name])
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes), "the table in sgpo_lib/shape.py"


@dataclass(frozen=True)
class Shape:
    """The model without weights, and the counts that decide time and memory.

    Attributes
    ----------
    config : of the model.
    params : of the model section; decides adapters and types.
    on_gpu : types and attention kernels differ between GPUs and CPUs.
    """

    config: PretrainedConfig
    params: ModelParams
    on_gpu: bool
    _measured: dict[tuple, float] = field(default_factory=dict, repr=False, compare=False)

    def build(self, n_layers: int | None = None) -> torch.nn.Module:
        """Return the model as training has it, on torch's meta device, whole or with its first layers only."""
        config = copy.deepcopy(self.config)
        if n_layers is not None:
            config.num_hidden_layers = n_layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:n_layers]
        attention = (self.params.attn_implementation or "sdpa") if self.on_gpu else "eager"  # as in leader.train
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype, attn_implementation=attention)
            policy = Policy(model, None, self.params)
            policy.make_trainable(seed=0)
        return policy.model.train()

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products, generation and frozen weights are in."""
        if self.on_gpu and self.params.dtype == "auto":
            return torch.bfloat16
        return choose_dtype(self.params.dtype, "cuda" if self.on_gpu else "cpu")

    @cached_property
    def whole(self) -> torch.nn.Module:
        """The whole model, on the meta device."""
        return self.build()

    @cached_property
    def total(self) -> int:
        """Parameters, adapters included."""
        return sum(p.numel() for p in self.whole.parameters())

    @cached_property
    def trainable(self) -> int:
        """Parameters that training changes."""
        return sum(p.numel() for p in self.whole.parameters() if p.requires_grad)

    @property
    def frozen_bytes(self) -> float:
        """What the weights that training leaves alone take; NF4 with double quantisation takes 4.127 bits a weight."""
        frozen = self.total - self.trainable
        every, trained = self.matrices
        quantized = every - trained if self.params.quantization else 0
        return quantized * 4.127 / 8 + (frozen - quantized) * self.dtype.itemsize

    @cached_property
    def head(self) -> int:
        """Weights of the output layer, tied or not."""
        return self.whole.get_output_embeddings().weight.numel()

    @cached_property
    def matrices(self) -> tuple[int, int]:
        """Weights that every token is multiplied by, the head excepted: all, and those of them that are trained."""
        head = self.whole.get_output_embeddings()
        linear = [m.weight for m in self.whole.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        return sum(w.numel() for w in linear), sum(w.numel() for w in linear if w.requires_grad)

    @cached_property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        return (self.total - sum(p.numel() for p in self.build(0).parameters())) // self.config.num_hidden_layers

    @property
    def attention_width(self) -> int:
        """Query heads times their width."""
        return self.config.num_attention_heads * self._head_dim

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        width = self.config.num_key_value_heads * self._head_dim
        return 2 * self.config.num_hidden_layers * width * self.dtype.itemsize

    @property
    def _head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    def forward_flops(self, tokens: float, length: float, head_tokens: float) -> float:
        """FLOPs of reading `tokens` tokens in causal sequences of `length`, with logits of `head_tokens` of them."""
        return 2 * tokens * self.matrices[0] + self._attention_flops(tokens, length) + 2 * head_tokens * self.head

    def training_flops(self, tokens: float, length: float, head_tokens: float, checkpointing: bool) -> float:
        """FLOPs of forward and backward: what is frozen needs no gradient of its own; the head is computed twice."""
        forward = self.forward_flops(tokens, length, 0)
        backward = 2 * tokens * sum(self.matrices) + 2 * self._attention_flops(tokens, length)
        head = 2 * head_tokens * self.head * (4 if self.params.lora is None else 3)
        return forward * (2 if checkpointing else 1) + backward + head

    def _attention_flops(self, tokens: float, length: float) -> float:
        """Two products with a context that is half the sequence in the mean; sliding windows are not counted on."""
        return 4 * tokens * self.config.num_hidden_layers * self.attention_width * length / 2

    def decoding(self, rows: int, samples: float, batch: int, prompt: float, steps: int) -> tuple[float, float]:
        """FLOPs and bytes read of sampling: a batch decodes in lockstep, for as many steps as its longest answer.

        Parameters
        ----------
        rows, samples : answers in all, and of each prompt (on average), which is read once for them.
        """
        context = prompt + steps / 2
        reading = self.forward_flops(prompt, prompt, 1) / samples
        flops = rows * (reading + self.forward_flops(steps, 2 * context, steps))
        weights = (self.matrices[0] + self.head) * self.dtype.itemsize
        return flops, math.ceil(rows / batch) * steps * (weights + min(rows, batch) * context * self.cache_bytes)

    def activation_bytes(self, sequences: int, length: int, checkpointing: bool) -> float:
        """Bytes that the forward pass keeps for the backward pass, head excepted.

        Measured rather than guessed: one and two layers of this very model run on tensors without memory, and
        what autograd would save is added up. With checkpointing, the layer that is being recomputed is included.
        """

        def saved(n_layers: int, checkpointing: bool) -> float:
            key = (n_layers, sequences, length, checkpointing)
            if key not in self._measured:
                self._measured[key] = self._saved_bytes(*key)
            return self._measured[key]

        one_layer, all_layers = saved(1, checkpointing), self.config.num_hidden_layers
        kept = one_layer + (all_layers - 1) * (saved(2, checkpointing) - one_layer)
        return kept + (saved(2, False) - saved(1, False) if checkpointing else 0)

    def _saved_bytes(self, n_layers: int, sequences: int, length: int, checkpointing: bool) -> float:
        model = self.build(n_layers)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16)
        with FakeTensorMode():
            _without_memory(model)
            if checkpointing:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)
                    model.gradient_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
            weights = {p.untyped_storage()._cdata for p in model.parameters()}
            saved = {}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in weights:
                    saved[storage._cdata] = (storage.nbytes(), tensor)  # held, or its address would be used again
                return tensor

            body = (model.get_base_model() if self.params.lora is not None else model).base_model
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
                body(torch.zeros(sequences, length, dtype=torch.long), use_cache=False)
        return sum(n for n, _ in saved.values())

    def passing_bytes(self, tokens: float) -> float:
        """Bytes that one layer needs for `tokens` tokens while it computes and gives back afterwards."""
        return tokens * (3 * self.config.intermediate_size + 4 * self.config.hidden_size) * self.dtype.itemsize


def _without_memory(model: torch.nn.Module) -> None:
    """Turn a model on the meta device into one of fake CPU tensors, which unlike the former know autocast."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:  # tied weights stay tied
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    if isinstance(tensor, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = fake
                table[name] = made[id(tensor)]
