"""What a study's rounds were made of: pairs, followers, trainings, from the records that the steps left."""

import time

import numpy as np
import pandas as pd

from sgpo_lib import follower
from sgpo_lib.annotation import preferred
from sgpo_lib.runs.study import Study


def pairs_of_rounds(study: Study) -> pd.DataFrame:
    """Collect the pairs with a preference that every run trained on, with what the follower did to them.

    Returns
    -------
    DataFrame, a row per pair: `group`, `variant`, `seed`, `round`, `margin`, `moved` (0 where no follower
    moves margins), `decile` (1..10, of the margin within its run and round) and `agrees_with_gold` where known.
    """
    parts = []
    for variant in study.variants:
        for seed in study.seeds:
            run = study.run(variant, seed)
            for t in run.rounds:
                pairs = preferred(run.step("annotation", t).load("pairs.parquet"))
                part = pairs[[name for name in ("margin", "agrees_with_gold") if name in pairs]].copy()
                has_follower = run.params.leader.faces_follower
                worst = run.step("follower", t).load("worst_case.parquet") if has_follower else {}
                part["moved"] = worst.get("moved", 0.0)
                part["decile"] = np.ceil(10 * part["margin"].rank(method="first") / len(part)).astype(int)
                parts.append(part.assign(group=variant.group, variant=variant.label, seed=seed, round=t))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def solved_followers(study: Study) -> pd.DataFrame:
    """Collect what the followers of a study found.

    Returns
    -------
    DataFrame, a row per variant with a follower, seed and round: `radius` (in nats for mode `flips`), `nominal`,
    `value`, `transport`, `gap`, `n_moved` (of `n_pairs`), `influence` and the `seconds` of the solve. What a follower
    on labels does not have is missing.
    """
    rows = []
    for variant in study.variants:
        for seed in study.seeds:
            run = study.run(variant, seed)
            for t in run.rounds if run.params.leader.faces_follower else ():
                record = run.step("follower", t).record()
                n_pairs = run.step("annotation", t).record()["metrics"]["n_pairs"]
                names = ("radius", "nominal", "value", "transport", "gap", "n_moved", "influence")
                numbers = {name: record["metrics"].get(name) for name in names}
                rows.append(
                    {"group": variant.group, "variant": variant.label, "seed": seed, "round": t}
                    | numbers
                    | {"n_pairs": n_pairs, "seconds": record["seconds"]["follower"]}
                )
    return pd.DataFrame(rows)


def trainings(study: Study) -> pd.DataFrame:
    """Collect what each round of a study was trained with: methods that differ here differ by more than their loss.

    Returns
    -------
    DataFrame, a row per variant, seed and round: `n_rows`, the optimiser's `n_steps`, and `lr_sum`, the learning rates
    of these added up.
    """
    rows = []
    for variant in study.variants:
        for seed in study.seeds:
            run = study.run(variant, seed)
            for t in run.rounds:
                metrics = run.step("leader", t).record()["metrics"]
                rows.append(
                    {"group": variant.group, "variant": variant.label, "seed": seed, "round": t}
                    | {name: metrics[name] for name in ("n_rows", "n_steps", "lr_sum")}
                )
    return pd.DataFrame(rows)


def approximations(
    margins: np.ndarray, radius: float, pieces: tuple[int, ...], group_sizes: tuple[int, ...]
) -> pd.DataFrame:
    """Compare the exact worst case of margins, shape (N,), with that of tangents and of groups: the paper's Table 4.

    Returns
    -------
    DataFrame, a row per follower: `follower`, `value` (nats per pair), `lost` (the exact value less it) and the
    `seconds` of the best of five solves.
    """
    low, high = follower.resolve_support(follower.RangeSupport(), margins)
    problems = {"exact": (follower.worst_case, follower.logistic_loss)}
    for k in pieces:
        problems[f"K = {k}"] = (follower.worst_case, follower.tangents(k, (low, high)))
    for size in group_sizes:
        problems[f"groups of {size}"] = (follower.Grouped(size), follower.logistic_loss)
    rows = []
    for name, (solve, loss) in problems.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            worst = solve(margins, radius, (low, high), loss)
            times.append(time.perf_counter() - start)
        rows.append({"follower": name, "n_pairs": len(margins), "value": worst.value, "seconds": min(times)})
    table = pd.DataFrame(rows)
    table.insert(3, "lost", table["value"].iloc[0] - table["value"])
    return table
