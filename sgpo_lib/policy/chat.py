"""Talk with what was trained, beside the SFT model it began from.

    python -m sgpo_lib.policy.chat runs/smollm2-135m/seed-0/ssapo/round-3/policy

Each line typed is answered by both, each in a conversation of its own. Below stands by how many nats the policy
finds its own answer more likely than the SFT model would: the reward that it has learnt, up to the factor beta. An
empty line, the end of the input or an interruption ends the conversation.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from sgpo_lib.policy.loading import saved_params
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.sampling import generate
from sgpo_lib.policy.scoring import sequence_log_probs


@dataclass(frozen=True)
class Turn:
    """What one line was answered.

    Attributes
    ----------
    sft, policy : the answers.
    n_tokens : of the policy's answer.
    log_ratio : log pi(y|x) - log pi_SFT(y|x) of the policy's answer y in its own conversation x, in nats, both at
        temperature 1.
    """

    sft: str
    policy: str
    n_tokens: int
    log_ratio: float


@dataclass
class Conversation:
    """One conversation with the policy and one with the SFT model, asked the same.

    Both draw with the same random numbers, so that equal models give equal answers.
    """

    policy: Policy
    temperature: float
    max_new_tokens: int
    seed: int
    _n_turns: int = 0
    _with_policy: list[dict] = field(default_factory=list)
    _with_sft: list[dict] = field(default_factory=list)

    def say(self, text: str) -> Turn:
        """Ask both; a line that is refused leaves the conversations as they were.

        Raises
        ------
        ValueError : if a conversation with its next answer no longer fits into the model's context.
        """
        asked = {"role": "user", "content": text}
        with self.policy.reference() as model:
            sft = self._answer(replace(self.policy, model=model), [*self._with_sft, asked])
        own = self._answer(self.policy, [*self._with_policy, asked])
        ids = [own["prompt_ids"]], [own["response_ids"]]
        log_prob, reference = (sequence_log_probs(self.policy, *ids, reference=which)[0] for which in (False, True))
        self._with_sft += [asked, {"role": "assistant", "content": sft["response"]}]
        self._with_policy += [asked, {"role": "assistant", "content": own["response"]}]
        self._n_turns += 1
        return Turn(sft["response"], own["response"], len(own["response_ids"]), float(log_prob - reference))

    def _answer(self, policy: Policy, history: list[dict]) -> dict:
        drawn = generate(
            policy, [history], 1, self.seed, self.temperature, self.max_new_tokens, first_index=self._n_turns
        )
        return drawn.iloc[0].to_dict()


def typed_lines() -> Iterator[str]:
    """Give what is typed, line by line, until an empty line or the end of the input."""
    prompt = "> " if sys.stdin.isatty() else ""
    with contextlib.suppress(EOFError):
        while line := input(prompt).strip():
            yield line


def chat(conversation: Conversation, beta: float | None) -> None:
    """Answer line by line; what cannot be answered is said, and the conversation goes on."""
    for line in typed_lines():
        try:
            # One bar for each answer and each score would be longer than the answers.
            with contextlib.redirect_stderr(io.StringIO()):
                turn = conversation.say(line)
        except ValueError as error:
            print(f"{error}\n", file=sys.stderr)
            continue
        reward = "" if beta is None else f", implicit reward {beta * turn.log_ratio:+.3f}"
        print(f"SFT     {turn.sft}\npolicy  {turn.policy}")
        print(f"        log pi/pi_SFT {turn.log_ratio:+.3f} nats over {turn.n_tokens} tokens{reward}\n", flush=True)


def main() -> None:
    """Read the command line, load both models, and talk."""
    parser = argparse.ArgumentParser(prog="python -m sgpo_lib.policy.chat", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a saved policy: an adapter, or all weights")
    parser.add_argument("--base", help="the SFT model, as model.name_or_path; an adapter names its own")
    parser.add_argument("--beta", type=float, help="also show the implicit reward, beta times the nats")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda, cuda:1, ...")
    asked = parser.parse_args()
    if asked.temperature <= 0 or asked.max_new_tokens < 1 or asked.seed < 0:
        parser.error("--temperature must be above 0, --max-new-tokens at least 1, and --seed not negative")
    try:
        policy = Policy.load(saved_params(asked.folder, asked.base, device=asked.device), asked.folder)
        chat(Conversation(policy, asked.temperature, asked.max_new_tokens, asked.seed), asked.beta)
    except KeyboardInterrupt:
        print()
    except ValidationError:  # of all that is asked here, only the device is bounded
        parser.error(f"--device {asked.device} is none of auto, cpu, mps, cuda, cuda:1, ...")
    except (OSError, RuntimeError, ValueError, FloatingPointError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
