"""TRL's own tests of its DPOTrainer, run with our trainers in its place: what passes, what is refused, what fails.

python benchmarks/passes_trls_own_dpo_tests.py path/to/trl                # a checkout; prints Markdown
python benchmarks/passes_trls_own_dpo_tests.py path/to/trl --stand-ins    # without the hub: random tiny models

The installed TRL is tested, with the checkout's tests: take the tag of that version. Only what passes with TRL's own
trainer is asked of ours. A refusal is an error that `sgpo_lib.leader.trainer` raises on purpose.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

TRAINERS = {"TRL": "DPOTrainer", "references": "KnownReferencesTrainer", "weighted": "WeightedDPOTrainer"}
TESTS = Path("tests") / "test_dpo_trainer.py"

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
LARGEST = 1_000_000  # weights of a stand-in
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAID = [
    (f"{subject} is {opinion[0]}.", f"{subject} is {opinion[1]}, I think.")
    for subject in ("Rain", "Patience", "A late train", "Cold soup", "An old friend")
    for opinion in (("good", "worse than nothing"), ("a gift", "overrated"), ("rare", "nowhere to be found"))
]


class Outcomes:
    """Pytest plugin that notes each test's outcome, and whether an error was a refusal of ours."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.of.setdefault(report.nodeid.split("::", 1)[-1], [report.outcome, ""])

    def pytest_exception_interact(self, node, call, report):
        last = call.excinfo.traceback[-1]
        ours = isinstance(call.excinfo.value, ValueError) and last.path.parent.name == "leader"
        message = str(call.excinfo.value).strip().splitlines() or [call.excinfo.typename]
        self.of[report.nodeid.split("::", 1)[-1]] = ["refused" if ours else "failed", message[0][:160]]


def run_tests(checkout: Path, trainer: str, out: Path) -> None:
    """Run the tests in this process with `trainer` as TRL's DPOTrainer; write the outcomes."""
    import pytest
    import trl
    from trl import import_utils

    # Tests of another version may ask for optional packages that the installed TRL has no question for.
    for question in re.findall(r"is_\w+_available", (checkout / "tests" / "testing_utils.py").read_text()):
        if not hasattr(import_utils, question):
            setattr(import_utils, question, lambda: False)
    if trainer != "DPOTrainer":
        from sgpo_lib import leader

        trl.DPOTrainer = getattr(leader, trainer)
    outcomes = Outcomes()
    options = ["-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "TestDPOTrainer"]
    pytest.main([*options, f"--rootdir={checkout}", str(checkout / TESTS)], plugins=[outcomes])
    out.write_text(json.dumps(outcomes.of))


def make_stand_ins(source: str) -> list[str]:
    """Write random tiny models and data under the names that TRL's tests load, relative to the working folder.

    Returns
    -------
    Names of the models that could not be made.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [side for pair in SAID for side in pair],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    missing = []
    for name in sorted(set(re.findall(r'"(trl-internal-testing/tiny-[\w.-]+)"', source))):
        kind = re.match(r".*/tiny-(\w+)", name)[1]
        try:
            cls = getattr(transformers, kind)
            known = set(cls.config_class().to_dict())
            sizes = {key: value for key, value in SMALL.items() if key in known}
            config = cls.config_class(**sizes, vocab_size=len(wrapped), pad_token_id=0, eos_token_id=2)
            with torch.device("meta"):
                weights = sum(weight.numel() for weight in cls(config).parameters())
            if weights > LARGEST:
                raise ValueError("not tiny")
            torch.manual_seed(0)
            model = cls(config)
            model.save_pretrained(name)
            wrapped.save_pretrained(name)
        except Exception:  # an architecture with needs of its own: its tests are not run
            missing.append(name.split("/")[1])

    def message(role: str, text: str) -> dict:
        return {"role": role, "content": text}

    pairs = [
        (
            {"role": "user", "content": f"What about {good.split(' is ')[0]}?"},
            message("assistant", good),
            message("assistant", bad),
        )
        for good, bad in SAID
    ]
    plain = [{"prompt": "Say it:", "chosen": f" {good}", "rejected": f" {bad}"} for good, bad in SAID]
    talk = [{"prompt": [asked], "chosen": [good], "rejected": [bad]} for asked, good, bad in pairs]
    tool = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    whole = {
        "standard": [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in plain],
        "conversational": [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in talk],
    }
    unpaired = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in plain]
    write_dataset(
        "zen",
        {
            "standard_preference": plain,
            "standard_implicit_prompt_preference": whole["standard"],
            "standard_unpaired_preference": unpaired,
            "conversational_preference": talk,
            "conversational_implicit_prompt_preference": whole["conversational"],
        },
    )
    write_dataset("harmony", {"preference": talk})
    tools = json.dumps([{"type": "function", "function": tool}])
    write_dataset("toolcall", {"preference": [row | {"tools": tools} for row in talk]})
    return missing


def write_dataset(name: str, configurations: dict[str, list[dict]]) -> None:
    """Write a folder that `datasets.load_dataset` reads as a data set of the hub."""
    folder = Path("trl-internal-testing", name)
    lines = ["---", "configs:"]
    for configuration, rows in configurations.items():
        (folder / configuration).mkdir(parents=True)
        lines += [f"- config_name: {configuration}", "  data_files:"]
        for split, part in {"train": rows, "test": rows[:2]}.items():
            path = folder / configuration / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
            lines += [f"  - split: {split}", f"    path: {configuration}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def main() -> None:
    """Run the tests three times, each in a process of its own, and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--stand-ins", action="store_true", help="random tiny models and data instead of the hub's")
    parser.add_argument("--run", nargs=2, metavar=("TRAINER", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    checkout = asked.checkout.resolve()
    if not (checkout / TESTS).is_file():
        parser.error(f"{checkout} is not a checkout of TRL: it has no {TESTS}.")
    if asked.run:
        run_tests(checkout, asked.run[0], Path(asked.run[1]))
        return

    import torch
    import transformers
    import trl

    with tempfile.TemporaryDirectory() as scratch:
        here, missing = Path(__file__).resolve(), []
        os.chdir(scratch)
        if asked.stand_ins:
            missing = make_stand_ins((checkout / TESTS).read_text())
        path = os.pathsep.join([str(here.parent.parent), os.environ.get("PYTHONPATH", "")])
        variables = {"PYTHONPATH": path} | ({"HF_HUB_OFFLINE": "1"} if asked.stand_ins else {})
        made = {}
        for name, trainer in TRAINERS.items():
            command = [sys.executable, str(here), str(checkout), "--run", trainer, f"{name}.json"]
            subprocess.run(command, env=os.environ | variables, stdout=sys.stderr, check=True)
            made[name] = json.loads(Path(f"{name}.json").read_text())

    version = (checkout / "VERSION").read_text().strip()
    if all(outcome != "passed" for outcome, _ in made["TRL"].values()):
        sys.exit(f"No test passes with TRL's own trainer: {made['TRL']}")
    runnable = [test for test, (outcome, _) in made["TRL"].items() if outcome == "passed"]
    print(f"Made by `python {here.parent.name}/{here.name}`: tests of TRL {version}, on {platform.machine()};", end=" ")
    print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}.\n")
    print(f"Of {len(made['TRL'])} tests {len(runnable)} pass with TRL's own trainer here", end="")
    print(", on random stand-ins for models and data.\n" if asked.stand_ins else ".\n")
    if missing:
        print(f"Not made: {', '.join(missing)}.\n")
    print("| trainer | pass | refused | fail |\n|---|---:|---:|---:|")
    for name, trainer in list(TRAINERS.items())[1:]:
        count = Counter(made[name].get(test, ["failed"])[0] for test in runnable)
        print(f"| {trainer} | {count['passed']} | {count['refused']} | {count['failed']} |")
    failed = []
    for name, trainer in list(TRAINERS.items())[1:]:
        results = {test: made[name].get(test, ["failed", "not run"]) for test in runnable}
        refused = [test.split("::")[1] for test, (outcome, _) in results.items() if outcome == "refused"]
        if refused:
            print(f"\nRefused by {trainer}: {', '.join(refused)}.")
        failed += [
            f"{trainer}, {test}: {message}"
            for test, (outcome, message) in results.items()
            if outcome not in ("passed", "refused")
        ]
    if failed:
        sys.exit("\n".join(["", "Failed:", *failed]))


if __name__ == "__main__":
    main()
