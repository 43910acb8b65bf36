"""Make labelled pairs of a principle of one's own: one writes the good answers, the model's own are the other side.

    python examples/own_principle.py my_answers.jsonl my_pairs.jsonl

Lines of the input have `prompt`, `chosen` and any further columns; the output has `rejected` as well, what the SFT
model of the params answers today. Both are then data for a params file (see docs/my-own-principle.md).
"""

import argparse
import json
from pathlib import Path

from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy, generate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("answers", type=Path)
parser.add_argument("pairs", type=Path)
parser.add_argument("--params", default="params/smollm2-135m.yaml", help="whose model and generation")
parser.add_argument("--seed", type=int, default=0)
asked = parser.parse_args()

params = load_params(asked.params)
rows = [json.loads(line) for line in asked.answers.read_text(encoding="utf-8").splitlines() if line.strip()]
policy, how = Policy.load(params.model), params.generation
prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
own = generate(policy, prompts, 1, asked.seed, how.temperature, how.max_new_tokens, how.max_prompt_length)
with asked.pairs.open("w", encoding="utf-8") as file:
    for row, rejected in zip(rows, own["response"], strict=True):
        file.write(json.dumps(row | {"rejected": rejected}, ensure_ascii=False) + "\n")
print(f"{len(rows)} pairs in {asked.pairs}")
