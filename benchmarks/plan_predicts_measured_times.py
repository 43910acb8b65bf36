"""Does `sgpo_lib.plan` predict what a run took? Rates from two steps, predictions for all others, measured beside.

    python benchmarks/plan_predicts_measured_times.py [figures/smollm2-135m]

The seed DPO gives the rates of generating and training, the first self-annotation that of scoring. Measured
seconds, memory and answer lengths (in words) are those of a run's `timing.md` and `results.json`.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from sgpo_lib.params import Params, load_params
from sgpo_lib.plan.machines import GIB, TWO_CPU_CORES, Machine, Rates
from sgpo_lib.plan.memory import memory
from sgpo_lib.plan.shape import Shape, find_config
from sgpo_lib.plan.stages import Lengths, Stage, stages

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS = 42  # of the builtin prompts in SmolLM2's chat template
TOKENS_PER_WORD = 1.3  # of SmolLM2's answers, the stop token included


def measured_run(folder: Path) -> tuple[Params, dict[str, Lengths], pd.DataFrame]:
    """Return the run's params, each step's lengths in tokens, and its measured seconds and memory by step."""
    result = json.loads((folder / "results.json").read_text())
    name = folder.name
    params = load_params(ROOT / "params" / f"{name}.yaml", result["params"])
    limits = params.generation.max_prompt_length, params.generation.max_new_tokens
    words = {policy: values["words"]["mean"] for policy, values in result["summary"].items()}
    answering = {"seed DPO": [words["sft"]]}
    for t in range(1, params.n_rounds + 1):
        answering[f"annotation {t}"] = answering[f"leader {t}"] = [words["dpo" if t == 1 else f"round-{t - 1}"]]
    answering["evaluation"] = list(words.values())
    lengths = {
        step: Lengths(PROMPT_TOKENS, TOKENS_PER_WORD * sum(of) / len(of), *limits) for step, of in answering.items()
    }
    lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (folder / "timing.md").read_text().splitlines()
    ]
    table = pd.DataFrame(lines[2:], columns=lines[0]).set_index("notebook").astype(float)
    names = {"01_seed_dpo": "seed DPO", "dpo/02_self_annotation-round-1-implicit": "annotation 1"}
    names |= {"dpo/05_evaluation": "evaluation", "05_evaluation": "evaluation"}
    for t in range(1, params.n_rounds + 1):
        names |= {f"02_self_annotation-round-{t}": f"annotation {t}", f"04_weighted_training-round-{t}": f"leader {t}"}
    return params, lengths, table.groupby(table.index.map(lambda name: names.get(name, name))).sum().loc[list(lengths)]


def planned(params: Params, lengths: dict[str, Lengths]) -> dict[str, Stage]:
    """Return the plan of each step at that step's lengths."""
    shape = Shape(find_config(params.model)[0], params.model, on_gpu=False)
    return {
        step: next(stage for stage in stages(params, shape, of) if stage.name == step) for step, of in lengths.items()
    }


# What gives the rates: the first step that does each kind of work, generation with the adapter that most answers have.
FIRST = {"generate": "annotation 1", "score": "annotation 1", "train": "seed DPO"}


def calibrate(plan: dict[str, Stage], measured: pd.DataFrame) -> Rates:
    """One effective FLOP/s for each kind of work."""
    return Rates(*(plan[step].flops[part] / measured.loc[step, part] for part, step in FIRST.items()))


def compare(folder: Path) -> tuple[Rates, pd.DataFrame]:
    """Return the rates, and seconds by step and kind of work: predicted and measured."""
    params, lengths, measured = measured_run(folder)
    plan = planned(params, lengths)
    rates = calibrate(plan, measured)
    times = pd.DataFrame(
        {
            "step": step,
            "work": part,
            "predicted s": stage.seconds(Machine("CPU", 0, rates=rates))[part],
            "measured s": measured.loc[step, part],
            "calibrated on": "yes" if FIRST[part] == step else "",
        }
        for step, stage in plan.items()
        for part in FIRST
        if measured.loc[step, part] > 0
    )
    times.insert(4, "ratio", times["predicted s"] / times["measured s"])
    return rates, times


def compare_memory(folder: Path) -> pd.DataFrame:
    """Return planned GiB and the measured peak of the process, which holds Python and its libraries too."""
    params, lengths, measured = measured_run(folder)
    shape, cpu = Shape(find_config(params.model)[0], params.model, on_gpu=False), Machine("CPU", 0)
    needs = memory(params, shape, cpu, lengths["seed DPO"])
    phases = {"seed DPO": "seed", "annotation 1": "answering", "leader 1": "leader", "evaluation": "answering"}
    rows = [(step, sum(needs[phase].values()) / GIB, measured.loc[step, "peak_gib"]) for step, phase in phases.items()]
    return pd.DataFrame(rows, columns=["step", "planned GiB", "measured GiB of the process"])


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "figures" / "smollm2-135m")
    rates, times = compare(folder)
    held_out = times[times["calibrated on"] == ""]
    for kind in ("generation", "scoring", "training"):
        now, before = getattr(rates, kind) / 1e9, getattr(TWO_CPU_CORES, kind) / 1e9
        print(f"- {kind}: {now:.0f} GFLOP/s effective; sgpo_lib/plan/machines.py has {before:.0f}")
    print(f"\n{times.round(2).to_markdown(index=False)}\n")
    total = held_out["predicted s"].sum() / held_out["measured s"].sum()
    low, high = held_out["ratio"].min(), held_out["ratio"].max()
    print(f"Steps that gave no rate: predicted / measured {total:.2f} in total, {low:.2f} to {high:.2f} each.\n")
    print(compare_memory(folder).round(1).to_markdown(index=False))
