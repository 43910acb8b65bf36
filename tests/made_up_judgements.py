"""Judgements of runs that were never made: each variant's last policy gains what one says, seed by seed."""

import numpy as np
import pandas as pd


def judgements(
    gains: dict[tuple[str, str], list[float]], kls: tuple[float, ...] = (), n_forms: int = 4
) -> pd.DataFrame:
    """Rows as `judgements` and `with_quantities` give them; forms differ, alike for all variants, by 0.1 and more.

    Parameters
    ----------
    gains : of (group, variant), for seed 0, 1, ... At a KL of `kls` the last policy gains half as much.
    """
    rows = []
    for (group, variant), values in gains.items():
        for seed, gain in enumerate(values):
            run = {"group": group, "variant": variant, "method": variant, "seed": seed}
            for policy, at_kl, earned in (
                ("sft", np.nan, 0.0),
                ("dpo", np.nan, 0.0),
                ("round-1", np.nan, gain),
                *(("round-1", kl, gain / 2) for kl in kls),
            ):
                for prompt in range(3 * n_forms):
                    value = earned + 0.1 * (prompt % n_forms)
                    rows.append(
                        run
                        | {"policy": policy, "is_final": policy == "round-1", "matched_kl": at_kl}
                        | {"prompt_id": f"p{prompt}", "form": f"form {prompt % n_forms}", "sample": 0}
                        | {"gold_reward": value, "gold_reward_vs_sft": earned, "words": 20.0, "kl": 2.0}
                    )
    return pd.DataFrame(rows)
