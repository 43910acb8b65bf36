"""The model card of a policy that a run made: what it is, how to load it, and what the records say of its making."""

import json
from typing import Any

import pandas as pd
import yaml

from sgpo_lib.data.sources import local_file
from sgpo_lib.evaluation.report import summary_table
from sgpo_lib.leader.modes import MODES
from sgpo_lib.params.schema import Params
from sgpo_lib.policy.embedded import EMBEDDED_MODELS
from sgpo_lib.policy.export import base_sentence, loading_code, public_name
from sgpo_lib.runs.step import Step

_PAPER = "[Stackelberg Game Preference Optimization](https://arxiv.org/abs/2502.18099)"
_TOLD = (
    *("beta", "model.lora.r", "model.lora.lora_alpha", "generation.temperature", "generation.max_new_tokens"),
    *("data.label_noise", "seed_dpo.learning_rate", "seed_dpo.num_train_epochs"),
    *("seed_dpo.per_device_train_batch_size", "seed_dpo.gradient_accumulation_steps"),
)
_TOLD_OF_ROUNDS = (
    *("leader.learning_rate", "leader.num_train_epochs", "leader.per_device_train_batch_size"),
    *("leader.gradient_accumulation_steps", "leader.reference", "leader.accumulate"),
)
_LABELLERS = {
    "implicit": "the policy's own implicit reward",
    "sentiment": "a judge of sentiment alone",
    "gold": "the simulated gold user",
    "external": "an external judge",
}


def model_card(step: Step, whole: bool, place: str, overrides: dict[str, Any]) -> str:
    """Return the README of a policy, as the hub reads it, filled from the records of the steps that made it.

    Parameters
    ----------
    step : complete, `seed_dpo` or `leader`.
    whole : whether the folder holds a whole model rather than an adapter.
    place : where the reader loads it from, a folder or a hub id.
    overrides : that the run was made with.

    Raises
    ------
    FileNotFoundError, ValueError : if a step that it was made from lacks its record.
    """
    run, params = step.run, step.run.params
    public = public_name(params.model)
    method = run.method if step.name == "leader" else "dpo"
    round_ = f", round {step.round} of {params.n_rounds}" if step.round else ""
    base = public or params.model.name_or_path.rstrip("/").rpartition("/")[2]
    # Who loads an adapter needs its base by the name it was trained on; a whole model tells no path of this machine.
    described = f"`{base}`" if whole and not public else base_sentence(params.model)
    return f"""---
{yaml.safe_dump(_front(params, whole, method), sort_keys=False, allow_unicode=True)}---

# {base.rpartition("/")[2]}, trained by {method}{round_}

{"A whole model, made from" if whole else "A LoRA adapter on"} {described}

## How to load it

```python
{_code(params, whole, place)}```

## How it was made

{_making(step, overrides)}

## Evaluation

{_evaluation(step)}
"""


def _front(params: Params, whole: bool, method: str) -> dict[str, Any]:
    name, public = params.model.name_or_path, public_name(params.model)
    source = params.data.source
    is_hub = source != "builtin" and local_file(source, params.root) is None
    front = {
        "base_model": public,
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "license": EMBEDDED_MODELS[name].license if name in EMBEDDED_MODELS else None,
        "datasets": [source] if is_hub else None,
        "tags": [
            "preference-optimization",
            "dpo",
            *(["sgpo"] if params.leader.faces_follower and method != "dpo" else []),
        ],
    }
    return {key: value for key, value in front.items() if value}


def _code(params: Params, whole: bool, place: str) -> str:
    whole_model = f"""\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{place}")
"""
    load = whole_model if whole else loading_code(params.model, place)
    length, temperature = params.generation.max_new_tokens, params.generation.temperature
    return f"""{load}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
messages = [{{"role": "user", "content": "Hello?"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens={length}, do_sample=True, temperature={temperature})
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def _making(step: Step, overrides: dict[str, Any]) -> str:
    run, params, record = step.run, step.run.params, step.record()
    seed = run.step("seed_dpo").record()
    rounds = range(1, (step.round or 0) + 1)
    file = params.root / "params" / f"{params.name}.yaml"
    file = file.relative_to(params.root) if file.is_file() else f"{params.name}.yaml"
    command = f"make reproduce PARAMS={file} SEEDS={run.seed} METHODS={run.method}"
    environment = record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    commit = (environment["git_commit"] or "unknown") + " with changes" * environment["git_dirty"]
    is_file = local_file(params.data.source, params.root) is not None
    source = "a local file" if is_file else f"`{params.data.source}`"
    revision = f" at revision `{params.data.revision}`" if params.data.revision else ""
    labels = "those who made the data" if params.gold is None else "a simulated user (`gold`)"
    lines = [
        f"Method: {_method(step)}",
        f"Data: {source}{revision}; {seed['metrics'].get('n_pairs', 'unknown')} pairs labelled by {labels}",
    ]
    if rounds:
        pairs = [run.step("leader", t).record()["metrics"].get("n_rows", "unknown") for t in rounds]
        judge = _LABELLERS[params.annotation.judge]
        lines.append(f"Pairs trained on in each round, ranked by {judge}: {', '.join(map(str, pairs))}")
    if rounds and params.leader.faces_follower:
        radii = [run.step("follower", t).record()["metrics"]["radius"] for t in rounds]
        lines.append(
            f"Radius of the Wasserstein ball in each round, in margin units: {', '.join(f'{r:g}' for r in radii)}"
        )
    lines += [
        f"Seed of the run: {run.seed}; of the last training: {step.seed}",
        f"Command: `{command}`" + (f", with the overrides `{json.dumps(overrides)}`" if overrides else ""),
        f"Finished {record['finished']} with python {environment['python']}, {packages}; commit {commit}",
    ]
    values = params.flat()
    told = [key for key in _TOLD + (_TOLD_OF_ROUNDS if rounds else ()) if key in values]
    rows = "\n".join(f"| `{key}` | {values[key]} |" for key in told)
    return "\n".join(f"- {line}." for line in lines) + f"\n\n| parameter | value |\n|---|---|\n{rows}"


def _method(step: Step) -> str:
    if step.name == "seed_dpo":
        return "`dpo`, direct preference optimization on the labelled seed alone"
    mode = step.run.params.leader.mode
    return f"`{step.run.method}`, leader mode `{mode}` ({MODES[mode].about}); made with an implementation of {_PAPER}"


def _evaluation(step: Step) -> str:
    """Tabulate SFT, seed and this policy; an evaluation of something else, or of other params, says nothing here."""
    run = step.run if step.round else step.run.seed_only
    evaluation = run.step("evaluation")
    try:
        evaluation.check()
        summary = evaluation.load("summary.json")
    except (FileNotFoundError, ValueError):
        return "Not evaluated."
    policies = ["sft", "dpo", *([f"round-{step.round}"] if step.round else [])]
    table = summary_table({name: summary[name] for name in policies if name in summary})
    confidence = run.params.evaluation.confidence
    n_prompts = evaluation.record()["metrics"].get("n_prompts", "the")
    return (
        f"On {n_prompts} prompts that no training has seen; mean and {confidence:.0%} interval over prompts, for this "
        f"run alone.\n\n{_markdown(table)}"
    )


def _markdown(table: pd.DataFrame) -> str:
    rows = [["policy", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
