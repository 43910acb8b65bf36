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
from huggingface_hub import constants
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sgpo_lib.data import hub
from sgpo_lib.data.prompts import conversation_text
from sgpo_lib.policy.checks import check_complete
from sgpo_lib.policy.loading import choose_device, choose_dtype


@dataclass
class _Classifier:
    """A sequence classifier with one output, and its tokenizer.

    Attributes
    ----------
    model, tokenizer : as transformers loads them.
    batch_size : texts scored at once.
    max_length : tokens, unless the tokenizer sets a lower limit; longer texts are cut, with a warning.
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
        options: dict = {}
        if not Path(name_or_path).exists():  # if the hub is silent, only its local cache is asked
            options = {"revision": revision, "local_files_only": hub.why_silent(constants.ENDPOINT) is not None}
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **options)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, dtype=choose_dtype(dtype, device), output_loading_info=True, **options
            )
        except OSError as error:
            raise ConnectionError(
                f"The reward model {str(name_or_path)!r} could not be loaded: it is not a folder here, and the hub did "
                f"not give it ({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from error
        if any("score" in name or "classifier" in name for name in report["missing_keys"]):
            raise ValueError(
                f"{str(name_or_path)!r} holds no trained reward head ({', '.join(sorted(report['missing_keys'])[:3])} "
                "missing), so its scores would be random. Name a model that was saved as a sequence classifier."
            )
        check_complete(report, name_or_path)
        if model.config.num_labels != 1:
            raise ValueError(
                f"{str(name_or_path)!r} has {model.config.num_labels} outputs; a reward model has one, the reward."
            )
        return cls(model.to(device).eval(), tokenizer, batch_size, max_length)

    def _encode(self, *texts, room: int | None = None) -> dict[str, list[int]]:
        """Return the model's inputs for one row, whole or cut to `room` tokens."""
        raise NotImplementedError

    @torch.inference_mode()
    def _logits(self, rows: Sequence[tuple]) -> np.ndarray:
        """Return the model's output for each row of what `_encode` takes, shape (N,)."""
        encoded = [self._encode(*row) for row in rows]
        room = min(self.max_length, self.tokenizer.model_max_length)
        too_long = [i for i, inputs in enumerate(encoded) if len(inputs["input_ids"]) > room]
        if too_long:
            warnings.warn(f"{len(too_long)} of {len(rows)} texts are longer than {room} tokens: cut.", stacklevel=3)
        for i in too_long:
            encoded[i] = self._encode(*rows[i], room=room)

        # Classifiers of decoders read the reward at the last token that is not padding. Where the model names no
        # such token, to choose one could move that place, so texts go in one by one.
        batch_size = 1 if self.model.config.pad_token_id is None else self.batch_size
        order = np.argsort([-len(inputs["input_ids"]) for inputs in encoded], kind="stable")
        logits = np.zeros(len(rows))
        with tqdm(total=len(rows), desc="judge", unit="text") as progress:
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

    def _padded(self, encoded: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(inputs["input_ids"]) for inputs in encoded)
        padding = dict.fromkeys(encoded[0], 0) | {"input_ids": self.model.config.pad_token_id or 0}
        return {
            name: torch.tensor(
                [inputs[name] + [value] * (longest - len(inputs[name])) for inputs in encoded],
                device=self.model.device,
            )
            for name, value in padding.items()
        }


class RewardModelJudge(_Classifier):
    """Scores an answer by itself: any sequence-classification reward model with one output.

    The conversation is written with the tokenizer's chat template; a tokenizer without one, such as those of
    encoders, gets the conversation as text and the answer as a pair of texts.
    """

    def score(self, prompts: Sequence[list[dict]], responses: Sequence[str]) -> np.ndarray:
        """Return the reward of each response, shape (N,), in the model's own units; higher is better."""
        return self._logits(list(zip(prompts, responses, strict=True)))

    def _encode(self, prompt: list[dict], response: str, room: int | None = None) -> dict[str, list[int]]:
        if self.tokenizer.chat_template is None:
            cut = {"truncation": room is not None, "max_length": room}
            return dict(self.tokenizer(conversation_text(prompt), response, return_attention_mask=True, **cut))
        conversation = [*prompt, {"role": "assistant", "content": response}]
        ids = self.tokenizer.apply_chat_template(conversation, return_dict=False)
        ids = ids[-room:] if room else ids  # the reward is read at the end
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}


class PairwiseRewardModelJudge(_Classifier):
    """Compares two answers that it reads together, as PairRM does (Jiang, Ren and Lin, ACL 2023).

    Supported is a model with one output, the logit that the first answer is better. Its input is three encoded
    texts in a row, `<|source|>prompt`, `<|candidate1|>first` and `<|candidate2|>second`. A model that transformers
    cannot load by itself is loaded by its own package and given to the constructor. PairRM itself, whose weights
    could not be fetched where this was written, has not been run.
    """

    def compare(self, prompts: Sequence[list[dict]], first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
        """Compare two answers to each prompt, in both orders.

        Returns
        -------
        DataFrame, N rows: `preference` for the first answer in [0, 1], the mean of `in_order` and `swapped`, the
        probabilities that it is better where it is read first and where it is read second.
        """
        rows = list(zip(prompts, first, second, strict=True))
        logits = self._logits(rows + [(prompt, b, a) for prompt, a, b in rows])
        in_order, swapped = np.split(logits, 2)
        table = pd.DataFrame({"in_order": _sigmoid(in_order), "swapped": _sigmoid(-swapped)})
        table.insert(0, "preference", (table["in_order"] + table["swapped"]) / 2)
        return table

    def _encode(self, prompt: list[dict], first: str, second: str, room: int | None = None) -> dict[str, list[int]]:
        source = self._part("<|source|>" + conversation_text(prompt), room and room // 2)
        left = room and (room - len(source)) // 2  # the same for both, or a cut would decide
        ids = source + self._part("<|candidate1|>" + first, left) + self._part("<|candidate2|>" + second, left)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def _part(self, text: str, room: int | None) -> list[int]:
        return self.tokenizer(text, truncation=room is not None, max_length=room)["input_ids"]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).sigmoid().numpy()
