"""Weights: which device and type, from where, and what to say if they cannot be had."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import find_adapter_config_file

from sgpo_lib.data import hub
from sgpo_lib.params.schema import LoraParams, ModelParams
from sgpo_lib.policy.checks import check_complete, check_finite
from sgpo_lib.policy.embedded import EMBEDDED_MODELS, unpack


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


def load_model(source: str | Path, params: ModelParams) -> PreTrainedModel:
    """Load a causal language model to the device and type that the params say."""
    device = choose_device(params.device)
    # A training of all weights changes most of them by less than half a step of bfloat16: they keep it in float32
    # only, also when answering, and then their reference has to be as exact.
    dtype = torch.float32 if params.lora is None else choose_dtype(params.dtype, device)
    model, report = or_explain(
        lambda: AutoModelForCausalLM.from_pretrained(
            source,
            **hub_options(source, params),
            dtype=dtype,
            attn_implementation=params.attn_implementation,
            quantization_config=_quantization(params, device),
            output_loading_info=True,
        ),
        source,
    )
    check_complete(report, source)
    check_finite(model, source)
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


def with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Load a saved adapter onto its base."""
    with without_future_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    with safe_open(Path(folder, "adapter_model.safetensors"), framework="pt") as file:
        found = set(file.keys())
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    check_complete({"missing_keys": expected - found, "unexpected_keys": found - expected}, folder)
    check_finite(adapted, folder)
    return adapted


def saved_params(folder: Path, base: str | None = None, **options: str) -> ModelParams:
    """Return the params of the SFT model that a saved policy belongs to.

    Parameters
    ----------
    folder : holds an adapter, which names its base, or all weights, which do not.
    base : the SFT model, as `model.name_or_path`; wins over what an adapter says.
    options : further `ModelParams`.

    Raises
    ------
    FileNotFoundError : if no policy is saved in `folder`.
    ValueError : if `base` is not given and the folder does not say it.
    """
    folder = Path(folder)
    adapter = folder / "adapter_config.json"
    if not adapter.is_file() and not (folder / "config.json").is_file():
        within = f" Is it {folder / 'policy'}?" if (folder / "policy").is_dir() else ""
        raise FileNotFoundError(f"{folder} holds no saved policy: neither adapter_config.json nor config.json.{within}")
    said = json.loads(adapter.read_text(encoding="utf-8")) if adapter.is_file() else {}
    revision = None if base else said.get("revision")
    base = base or said.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder} does not say which SFT model it was trained from: name it (--base, as model.name_or_path)."
        )
    # An adapter that is there is read as it is; that there is one says that switching it off gives the SFT model.
    lora = LoraParams() if adapter.is_file() else None
    return ModelParams(name_or_path=base, revision=revision, lora=lora, **options)


def refuse_adapter(source: str, params: ModelParams) -> None:
    """Refuse an adapter where the model itself is asked for, and say how to fold it in."""
    """Transformers would load it on its base: training would replace it, and switching it off leave the bare base."""
    file = or_explain(lambda: find_adapter_config_file(source, **hub_options(source, params)), source)
    if file is None:
        return
    folder = Path(file).parent
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    target = f"{Path(source).name}-merged"
    raise ValueError(
        f"model.name_or_path is {params.name_or_path!r}, which is an adapter on {base!r} and not a whole model: the "
        "reference would be that base without it. Merge the two, and name the result:\n"
        f'  python -c "from sgpo_lib.policy import merge; merge({str(folder)!r}, {target!r})"\n'
        f"  model.name_or_path: {target}"
    )


@torch.inference_mode(False)  # what is made under it could not be trained later
def move_to(model: torch.nn.Module, device: torch.device) -> None:
    """Move a model to a device; its weights can be trained there."""
    model.to(device)


@contextlib.contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Widen the 16-bit weights of a model for the length of a block."""
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
def without_future_warnings() -> Iterator[None]:
    """Silence what libraries say to each other about their next versions."""
    """PEFT reads attributes that transformers is about to rename; a reader can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def or_explain(load, source: str | Path):
    """Call `load`; where the hub cannot be reached, say so and what to do instead."""
    try:
        return load()
    except OSError as error:
        raise ConnectionError(
            f"The model {str(source)!r} could not be loaded: it is not a folder here, and the hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Without a hub, use the embedded default "
            "(model.name_or_path: smollm2-135m) or the path of a folder that holds the model."
        ) from error


def resolve(name_or_path: str) -> str:
    """Return what transformers loads: the folder of an embedded model, else the name itself."""
    if name_or_path in EMBEDDED_MODELS:
        return str(unpack(name_or_path))
    return name_or_path


def hub_options(source: str | Path, params: ModelParams) -> dict:
    """Return what a hub id needs besides its name; nothing for a folder."""
    """Options for what may come from the hub; if the hub is silent, only its local cache is asked."""
    if Path(source).exists():
        return {}
    return {"revision": params.revision, "local_files_only": hub.why_silent(constants.ENDPOINT) is not None}
