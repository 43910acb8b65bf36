"""What the curves of a training say, in words."""

import pandas as pd

_SAME = 0.0005  # what three decimals do not show


def in_words(log: pd.DataFrame) -> str:
    """Say how loss and rewards moved between the first and the last logged step, and what that means.

    Parameters
    ----------
    log : a row per logged step, as `sgpo_lib.leader.train` returns it.
    """
    first, last = log.iloc[0], log.iloc[-1]
    if len(log) == 1:
        return f"One step was logged, at a loss of {first['loss']:.3f}: that is no curve."
    change = last["loss"] - first["loss"]
    if abs(change) < _SAME:
        loss = f"The loss stayed at {last['loss']:.3f}: on these pairs the policy has learnt nothing."
    elif change < 0:
        loss = (
            f"The loss fell from {first['loss']:.3f} to {last['loss']:.3f}: the policy tells chosen from rejected "
            "answers better than at the start."
        )
    else:
        loss = (
            f"The loss **rose** from {first['loss']:.3f} to {last['loss']:.3f}: the policy tells the last batches' "
            "chosen answers from the rejected worse than the first ones'. Batches differ, so a small rise may be "
            "chance; a large one says that the learning rate is too high, or that the pairs contradict each other."
        )
    chosen, rejected = (last[f"rewards/{side}"] - first[f"rewards/{side}"] for side in ("chosen", "rejected"))
    rewards = f"The chosen answers' reward {_moved(chosen)} and the rejected ones' {_moved(rejected)}"
    if chosen < -_SAME and chosen > rejected:
        return f"{loss} {rewards}: it makes both less likely, and gains only because the rejected ones lose more."
    return f"{loss} {rewards}."


def _moved(change: float) -> str:
    return "stayed" if abs(change) < _SAME else f"{'rose' if change > 0 else 'fell'} by {abs(change):.3f}"
