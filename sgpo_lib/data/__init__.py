"""Prompts and preference pairs: where they come from, which are labelled, how they are split, which labels are wrong.

All data is a pandas DataFrame with one row per prompt or per pair:

- `prompt_id`: 12 hexadecimal digits, the same wherever the same prompt appears;
- `prompt`: a list of chat messages `{"role": ..., "content": ...}` that ends with the user's;
- `form` (builtin prompts, or a column of one's own): what prompts that are alike share;
- `chosen`, `rejected` (labelled data only): the assistant's two replies, as text; `weight`, where labels have one.

This room knows formats, files, the hub and the builtin prompts. It knows no model and no judge.
"""

from sgpo_lib.data.labels import flip_labels, loss_weights
from sgpo_lib.data.prompts import prompt_id, user_text
from sgpo_lib.data.selection import choose_two, farthest_point, random_subset, two_by_gap
from sgpo_lib.data.sources import load, local_file
from sgpo_lib.data.splits import Splits, prepare, split

__all__ = [
    "Splits",
    "choose_two",
    "farthest_point",
    "flip_labels",
    "load",
    "local_file",
    "loss_weights",
    "prepare",
    "prompt_id",
    "random_subset",
    "split",
    "two_by_gap",
    "user_text",
]
