"""Ask every policy of a run the same thing: SFT, seed DPO and each round, side by side.

    python -m sgpo_lib.steps.talk params/smollm2-135m.yaml --method ssapo --seed 0

Each line typed is a prompt of its own. The policies draw with the same random numbers, so that where they differ
they differ by what was trained. An empty line, the end of the input or an interruption ends it.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path

import pandas as pd

from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.policy.chat import typed_lines
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.sampling import generate
from sgpo_lib.policy.scoring import sequence_log_probs
from sgpo_lib.runs.step import Run


class Talk:
    """The finished policies of a run, to ask; reads the run and changes nothing.

    Attributes
    ----------
    weights : `{name: folder}` of the policies there are, in the order of training; None is the SFT model.

    Raises
    ------
    FileNotFoundError, ValueError : if not even the seed has been trained, or it was with other params.
    """

    def __init__(self, run: Run):
        """Load the SFT model and find the run's policies."""
        self.run = run
        seed_dpo = run.step("seed_dpo")
        seed_dpo.check()
        self.weights: dict[str, Path | None] = {"sft": None, "dpo": seed_dpo.load("policy")}
        for t in run.rounds:
            if run.step("leader", t).record_file.exists():
                self.weights[f"round-{t}"] = run.step("leader", t).load("policy")
        self._policy = Policy.load(run.params.model)

    def ask(self, text: str, seed: int = 0) -> pd.DataFrame:
        """Have each policy answer a prompt.

        Parameters
        ----------
        seed : of the random numbers, the same for all policies.

        Returns
        -------
        DataFrame, a row per policy: `response`; `gold_reward`, where there is a gold user; `implicit_reward`
        (beta times `log_ratio`); `log_ratio`, log pi(y|x) - log pi_SFT(y|x) of the policy's own answer, in nats. Its
        mean over many answers is the KL from the SFT model.

        Raises
        ------
        ValueError : if the prompt is empty, or does not fit into the model's context with its answer.
        """
        if not text.strip():
            raise ValueError("There is no prompt: type what the policies are to answer.")
        options, rows = self.run.params.generation, {}
        for name, weights in self.weights.items():
            with contextlib.redirect_stderr(io.StringIO()):  # a bar for each answer would be longer than the answers
                self._policy.use(weights)
                (answer,) = generate(
                    self._policy,
                    [[{"role": "user", "content": text}]],
                    1,
                    seed,
                    options.temperature,
                    options.max_new_tokens,
                    options.max_prompt_length,
                ).to_dict("records")
                ids = [answer["prompt_ids"]], [answer["response_ids"]]
                log_ratio = 0.0 if weights is None else self._log_ratio(*ids)
            rows[name] = {
                "response": answer["response"],
                "implicit_reward": self.run.params.beta * log_ratio,
                "log_ratio": log_ratio,
            }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")
        if self.run.params.gold is not None:
            gold = GoldJudge(**self.run.params.gold.model_dump()).score(table["response"])
            table.insert(1, "gold_reward", gold)
        return table

    def _log_ratio(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> float:
        own, sft = (sequence_log_probs(self._policy, prompt_ids, response_ids, reference=r)[0] for r in (False, True))
        return float(own - sft)


def as_text(table: pd.DataFrame) -> str:
    """Lay out what `Talk.ask` returns for a terminal, a few lines a policy."""
    lines = []
    for name, row in table.iterrows():
        numbers = [f"gold {row['gold_reward']:+.2f}"] if "gold_reward" in row else []
        numbers += [f"implicit reward {row['implicit_reward']:+.2f}", f"{row['log_ratio']:+.1f} nats from SFT"]
        lines.append(f"{name:8} {row['response']}\n{'':8} {', '.join(numbers)}")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, load the run's policies, and answer line by line."""
    parser = argparse.ArgumentParser(prog="python -m sgpo_lib.steps.talk", description=__doc__.splitlines()[0])
    parser.add_argument("params_file", nargs="?", default="params/smollm2-135m.yaml")
    parser.add_argument("--method", default="ssapo")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--overrides", help="as the run had them, such as '{\"follower.radius\": 0.3}'")
    asked = parser.parse_args()
    try:
        talk = Talk(Run.open(asked.params_file, asked.seed, asked.method, asked.overrides))
        print(f"{', '.join(talk.weights)} listen; an empty line ends it.")
        for number, line in enumerate(typed_lines()):
            try:
                print(as_text(talk.ask(line, number)), flush=True)
            except ValueError as error:
                print(f"{error}\n", file=sys.stderr)
    except KeyboardInterrupt:
        print()
    except (OSError, RuntimeError, ValueError, FloatingPointError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
