"""Labels: how much each weighs, and which are flipped on purpose."""

import numpy as np
import pandas as pd

from sgpo_lib.data.selection import random_subset


def loss_weights(pairs: pd.DataFrame) -> pd.Series:
    """Return what each pair's loss is multiplied by, shape (N,): its own `weight` where the data has one, else 1.

    Raises
    ------
    ValueError : a weight is negative or not finite, or all are 0.
    """
    if "weight" not in pairs:
        return pd.Series(1.0, index=pairs.index)
    weights = pairs["weight"].astype(float)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise ValueError(f"{bad.sum()} of {len(pairs)} pairs have a weight that is negative or not finite")
    if not weights.any():
        raise ValueError(f"all {len(pairs)} pairs have weight 0, so that there is nothing to train on")
    return weights


def flip_labels(pairs: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Swap chosen and rejected in exactly `round(share * N)` of the N rows.

    Parameters
    ----------
    pairs : DataFrame, N rows
        Columns that describe a reply move with it: `chosen_model` is swapped with `rejected_model`.
    share : float in [0, 1]
    seed : int
        With one seed, the rows flipped at a smaller share are among those flipped at a larger.

    Returns
    -------
    DataFrame, N rows
        A copy with the boolean column `flipped`.

    Raises
    ------
    ValueError
        `share` is not in [0, 1], or the pairs are marked as flipped already.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of labels to flip must be from 0 to 1, not {share}")
    if "flipped" in pairs:
        raise ValueError("these pairs have a column 'flipped' already: flip the original labels instead")
    flipped = np.zeros(len(pairs), dtype=bool)
    flipped[random_subset(len(pairs), round(share * len(pairs)), seed)] = True
    noisy = pairs.copy()
    for name in pairs.columns:
        other = name.replace("chosen", "rejected", 1)
        if name.startswith("chosen") and other in pairs:
            noisy[name] = pairs[name].where(~flipped, pairs[other])
            noisy[other] = pairs[other].where(~flipped, pairs[name])
    noisy["flipped"] = flipped
    return noisy
