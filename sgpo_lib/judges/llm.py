"""A language model behind an endpoint says which of two answers people would prefer.

The question is alpaca-eval's own, read from the installed package (Li et al. 2023; Dubois et al. 2024, arXiv
2404.04475). Each pair is asked in both orders, because judges favour a place (Wang et al. 2023, arXiv 2305.17926).
"""

import importlib.util
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from sgpo_lib.data.prompts import conversation_text
from sgpo_lib.judges.endpoint import Endpoint, EndpointError

_SHORTEST_RANKING = 40  # tokens

_MARKUP = " \t\n`\"'*."

_REMINDER = "This is not the form that was asked for. Answer again in exactly that form, with nothing else."


@dataclass(frozen=True)
class LLMJudge:
    """Pairwise preferences of the model behind an endpoint.

    Attributes
    ----------
    endpoint : who is asked. Its `max_tokens` must hold the answer: a few for a classifier such as the default,
        about 100 for a ranking, several hundred for a chain of thought.
    annotator : folder of `alpaca_eval/evaluators_configs` whose prompt is used: one that asks for the better
        model's name or for a ranking, as plain text. The default is the prompt of AlpacaEval 2.0; of the answer
        the word is read, not its log-probability, which not every server tells.
    n_tries : how often one verdict is asked for before it stays unread; later tries are told that the form was
        wrong. What the endpoint refuses, as content filters do, is unread at once.
    max_unread : share of comparisons, rounded up to a whole one, whose verdicts may stay unread and count as ties.
    """

    endpoint: Endpoint
    annotator: str = "alpaca_eval_clf_gpt4_turbo"
    n_tries: int = 3
    max_unread: float = 0.1

    def __post_init__(self):  # noqa: D105
        if self.n_tries < 1:
            raise ValueError(f"n_tries is {self.n_tries}, but a verdict takes at least one.")
        ranks = self._annotator.names[0] == "model_1"  # a misspelt name is said here, before answers are generated
        if ranks and self.endpoint.max_tokens < _SHORTEST_RANKING:
            raise ValueError(
                f"{self.annotator} asks for a ranking of both models, which does not fit into max_tokens = "
                f"{self.endpoint.max_tokens}: allow 100."
            )

    def compare(self, prompts: Sequence[list[dict]], first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
        """Ask which of two answers to each prompt is better, in both orders.

        Parameters
        ----------
        prompts : N conversations.
        first, second : N answers each, such as a policy's and the baseline's; `preference` is then the policy's
            `win` of AlpacaEval, and its mean the win rate.

        Returns
        -------
        DataFrame, N rows: `preference` for the first answer, the mean over the two orders, so 1 or 0 where they
        agree and 1/2 where they do not; `in_order` and `swapped`, the preference for the first answer with each
        order (1 or 0, NaN where it stays unread, which counts as 1/2); `asked`, False for two equal answers,
        a tie by nature.

        Warns
        -----
        UserWarning : with the number of verdicts that stay unread, and why.

        Raises
        ------
        EndpointError : if the endpoint fails, or more than `max_unread` stays unread; what it has answered is kept.
        """
        rows = list(zip(prompts, first, second, strict=True))
        asked = np.array([a != b for _, a, b in rows], dtype=bool)
        questions = [self._annotator.ask(p, a, b) for p, a, b in rows if a != b]
        questions += [self._annotator.ask(p, b, a) for p, a, b in rows if a != b]
        shown_first_wins = self._verdicts(questions)
        in_order, shown_first_wins_swapped = np.split(shown_first_wins, 2)

        table = pd.DataFrame({"preference": 0.5, "in_order": 0.5, "swapped": 0.5, "asked": asked})
        table.loc[asked, "in_order"], table.loc[asked, "swapped"] = in_order, 1 - shown_first_wins_swapped
        table["preference"] = (table["in_order"].fillna(0.5) + table["swapped"].fillna(0.5)) / 2
        return table

    @cached_property
    def _annotator(self) -> "_Annotator":
        return _Annotator.load(self.annotator)

    def _verdicts(self, questions: list[list[dict]]) -> np.ndarray:
        """Return for each question whether the answer shown first wins: 1 or 0, NaN if unread; shape (N,)."""
        verdicts = np.full(len(questions), np.nan)
        n_borne = 2 * math.ceil(self.max_unread * len(questions) / 2 - 1e-9)  # a comparison is two questions
        unanswered: dict[int, str] = {}
        conversations = dict(enumerate(questions))
        for _ in range(self.n_tries):
            if not conversations:
                break
            replies = self.endpoint.complete(list(conversations.values()), max(0, n_borne - len(unanswered)))
            again = {}
            for (index, conversation), reply in zip(conversations.items(), replies, strict=True):
                if reply.text is None:
                    unanswered[index] = reply.problem
                    continue
                verdicts[index] = self._annotator.read(reply.text, reply.is_cut)
                if np.isnan(verdicts[index]):
                    answered = {"role": "assistant", "content": reply.text or "(no answer)"}
                    again[index] = [*conversation, answered, {"role": "user", "content": _REMINDER}]
            conversations = again
        n_unread = len(unanswered) + len(conversations)
        if n_unread:
            told = (
                f"{n_unread} of {len(questions)} verdicts of {self.endpoint.model!r} stay unread: "
                f"{len(conversations)} could not be read in {self.n_tries} tries, {len(unanswered)} have no answer"
                + "".join(f" (one of them: {problem})" for problem in list(unanswered.values())[:1])
            )
            if n_unread > n_borne:
                raise EndpointError(
                    f"{told}. That is more than max_unread = {self.max_unread:g} allows. The replies are in "
                    f"{self.endpoint.cache_dir}: where thoughts or reasons come before the verdict allow more "
                    "max_tokens, or choose another model or annotator; or bear more ties by a higher max_unread."
                )
            warnings.warn(f"{told}. They count as ties.", stacklevel=3)
        return verdicts


@dataclass(frozen=True)
class _Annotator:
    """A prompt of alpaca-eval: what it asks, and the names that it gives to the two answers."""

    messages: tuple[tuple[str, str], ...]
    names: tuple[str, str]

    @classmethod
    def load(cls, name: str) -> "_Annotator":
        folder = Path(importlib.util.find_spec("alpaca_eval").submodule_search_locations[0], "evaluators_configs")
        file = folder / name / "configs.yaml"
        config = yaml.safe_load(file.read_text())[name] if file.exists() else {}
        options = config.get("completion_parser_kwargs", {})
        if config.get("fn_completion_parser") == "logprob_parser":
            names = tuple(options["denominator_tokens"])
        elif config.get("fn_completion_parser") == "ranking_parser":
            first = options.get("model_1_name", "model_1")
            names = (first, {"model_1": "model_2", "m": "M"}.get(first, ""))
        else:
            names = ()
        template = (folder / config["prompt_template"]).read_text() if names else ""
        messages = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", template, flags=re.DOTALL)
        if not (messages and all(names)):
            raise ValueError(
                f"{name!r} is not an annotator that can be used here: choose a folder of {folder} whose prompt is in "
                "ChatML and whose configs.yaml has fn_completion_parser ranking_parser or logprob_parser, such as "
                "'alpaca_eval_clf_gpt4_turbo', 'alpaca_eval_clf_cot_gpt4_turbo' or 'alpaca_eval_gpt4'."
            )
        return cls(tuple((role, text.strip()) for role, text in messages), names)

    def ask(self, prompt: list[dict], first: str, second: str) -> list[dict]:
        """Fill the prompt in. All at once and after its messages are told apart, so no answer can act as markup."""
        values = {"instruction": conversation_text(prompt), "output_1": first, "output_2": second}
        return [
            {"role": role, "content": re.sub(r"\{(instruction|output_1|output_2)\}", lambda m: values[m[1]], text)}
            for role, text in self.messages
        ]

    def read(self, reply: str, is_cut: bool = False) -> float:
        """Return 1 if the reply prefers the first answer, 0 if the second, NaN if it cannot be told.

        Read are a ranking of both names, wherever it stands in the reply; a last line that is a bare name, which
        is all of a short reply and the end of a chain of thought, or says that the best one is that name; and an
        object that names a model. Anything else, such as a ranking that was cut short, is no verdict. A reply that
        is cut at the longest length may be unfinished thought: it is read only if the bare name is all of it.
        """
        if is_cut:
            name = reply.strip(_MARKUP)
            return float(name == self.names[0]) if name in self.names else np.nan
        names = "|".join(map(re.escape, self.names))
        ranked = re.findall(rf"""model["']?\s*:\s*["']?({names})["']?\s*,\s*["']?rank["']?\s*:\s*["']?(\d+)""", reply)
        if ranked:
            ranks = dict(ranked)
            clear = len(ranked) == len(ranks) == len(set(ranks.values())) == 2
            return float(int(ranks[self.names[0]]) < int(ranks[self.names[1]])) if clear else np.nan
        last_line = reply.strip().rpartition("\n")[2].strip(_MARKUP)
        if last_line in self.names:
            return float(last_line == self.names[0])
        named = re.fullmatch(rf"""\{{\s*["']?model["']?\s*:\s*["']?({names})["']?\s*\}}""", reply.strip())
        said = re.fullmatch(rf"(?i:.*\b(?:best|better|prefer\w*)\b.*\bis\W+)({names})", last_line)
        verdict = named or (None if re.search(r"(?i)\bnot\b|n['’]t\b|\bwors", reply) else said)
        return float(verdict[1] == self.names[0]) if verdict else np.nan
