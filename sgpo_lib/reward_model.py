"""Reward models as judges: sequence classifiers of transformers that score one answer, or compare two.

Knows conversations and scores; what is done with the scores is known to `sgpo_lib.annotation` and
`sgpo_lib.evaluation`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sgpo_lib.policy import choose_device, choose_dtype
from sgpo_lib.preference_formats import user_text


@dataclass
class _Classifier:
    """A sequence classifier with one output, and its tokenizer.

    Attributes
    ----------
    model, tokenizer : as transformers loads them.
    batch_size : texts scored at once.
    max_length : tokens; of longer texts the beginning is cut off, with a warning.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16
    max_length: int = 4096

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 16,
        max_length: int = 4096,
    ):
        """Load a folder or hub id; device and dtype as in `sgpo_lib.params.ModelParams`.

        Raises
        ------
        ConnectionError : if the model is neither a folder nor in the hub's reach.
        ValueError : if it has no trained head, or one with more than one output.
        """
        device = choose_device(device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, revision=revision, dtype=choose_dtype(dtype, device), output_loading_info=True
            )
        except OSError as error:
            raise ConnectionError(
                f"The reward model {str(name_or_path)!r} could not be loaded: it is not a folder here, and the hub did "
                f"not give it ({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from error
        if report["missing_keys"]:
            raise ValueError(
                f"{str(name_or_path)!r} holds no trained reward head (missing: "
                f"{', '.join(sorted(report['missing_keys'])[:3])}), so its scores would be random. Name a model that was "
                "saved as a sequence classifier."
            )
        if model.config.num_labels != 1:
            raise ValueError(
                f"{str(name_or_path)!r} has {model.config.num_labels} outputs; a reward model has one, the reward."
            )
        return cls(model.to(device).eval(), tokenizer, batch_size, max_length)

    @torch.inference_mode()
    def _logits(self, encoded: Sequence[list[int]]) -> np.ndarray:
        """Return the model's output for each sequence of token ids, shape (N,)."""
        room = min(self.max_length, getattr(self.model.config, "max_position_embeddings", None) or self.max_length)
        too_long = sum(len(ids) > room for ids in encoded)
        if too_long:
            warnings.warn(
                f"{too_long} of {len(encoded)} texts are longer than {room} tokens and lose their first ones.",
                stacklevel=3,
            )
        encoded = [ids[-room:] for ids in encoded]
        # Without a padding token classifiers of decoders take one sequence at a time; any other choice of one
        # could move the position that they read the reward from.
        can_pad = self.tokenizer.pad_token_id is not None and self.model.config.pad_token_id is not None
        batch_size = self.batch_size if can_pad else 1
        order = np.argsort([-len(ids) for ids in encoded], kind="stable")
        logits = np.zeros(len(encoded))
        with tqdm(total=len(encoded), desc="judge", unit="text") as progress:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                inputs = self._padded([encoded[i] for i in batch])
                logits[batch] = self.model(**inputs).logits.reshape(len(batch)).double().cpu().numpy()
                progress.update(len(batch))
        if not np.isfinite(logits).all():
            raise FloatingPointError(
                f"{(~np.isfinite(logits)).sum()} of {len(logits)} rewards are not finite: try dtype float32."
            )
        return logits

    def _padded(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, sequences))
        pad = self.model.config.pad_token_id or 0
        ids = [[*sequence, *[pad] * (longest - len(sequence))] for sequence in sequences]
        mask = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences]
        device = self.model.device
        return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


class RewardModelJudge(_Classifier):
    """Scores an answer by itself: any sequence-classification reward model with one output.

    The conversation is written with the tokenizer's chat template; a tokenizer without one, such as those of
    encoders, gets the user's text and the answer as a pair of texts.
    """

    def score(self, prompts: Sequence[list[dict]], responses: Sequence[str]) -> np.ndarray:
        """Return the reward of each response, shape (N,), in the model's own units; higher is better."""
        encoded = []
        for prompt, response in zip(prompts, responses, strict=True):
            if self.tokenizer.chat_template is None:
                encoded.append(self.tokenizer(user_text(prompt), response)["input_ids"])
            else:
                conversation = [*prompt, {"role": "assistant", "content": response}]
                encoded.append(self.tokenizer.apply_chat_template(conversation, return_dict=False))
        return self._logits(encoded)


class PairwiseRewardModelJudge(_Classifier):
    """Compares two answers that it reads together, as PairRM does (Jiang, Ren and Lin, ACL 2023).

    Supported is a model with one output, the logit that the first answer is better, on the text
    `<|source|>prompt<|candidate1|>first<|candidate2|>second`; one that transformers cannot load by itself is
    loaded by its own package and given to the constructor. PairRM itself, whose weights could not be fetched
    where this was written, has not been run.
    """

    def compare(self, prompts: Sequence[list[dict]], first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
        """Compare two answers to each prompt, in both orders.

        Returns
        -------
        DataFrame, N rows: `preference` for the first answer in [0, 1], the mean of `in_order` and `swapped`, the
        probabilities that it is better where it is read first and where it is read second.
        """
        rows = list(zip(prompts, first, second, strict=True))
        texts = [self._text(p, a, b) for p, a, b in rows] + [self._text(p, b, a) for p, a, b in rows]
        in_order, swapped = np.split(self._logits([self.tokenizer(text)["input_ids"] for text in texts]), 2)
        table = pd.DataFrame({"in_order": _sigmoid(in_order), "swapped": _sigmoid(-swapped)})
        table.insert(0, "preference", (table["in_order"] + table["swapped"]) / 2)
        return table

    @staticmethod
    def _text(prompt: list[dict], first: str, second: str) -> str:
        return f"<|source|>{user_text(prompt)}<|candidate1|>{first}<|candidate2|>{second}"


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).sigmoid().numpy()
