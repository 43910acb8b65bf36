"""Leader modes: how a round's pairs, and their worst case, become a loss. The one place to add a mode.

With l(-x) = x + l(x), nearly every mode's loss of a pair has the form

    weight * [(1 - moved) * l(margin) + moved * l(margin - displacement)] + slope * margin

of `sgpo_lib.leader.losses.weighted_logistic`, so that one trainer serves them all. A mode changes the loss of a
pair, never how many rows, steps or shuffles a round has.

What params may ask for, the methods, and the table of notebook 04 are read off `MODES`. Nothing is loaded here that
training needs; a mode's `objective` loads it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sgpo_lib.leader import objectives
from sgpo_lib.leader.objectives import Objective

if TYPE_CHECKING:
    import pandas as pd

    from sgpo_lib.follower import Support
    from sgpo_lib.params.schema import LeaderParams, Params


def _plain(pairs: "pd.DataFrame", worst: Mapping | None, leader: "LeaderParams") -> dict[str, Any]:
    return {}


def _none(params: "Params") -> str | None:
    return None


@dataclass(frozen=True)
class Mode:
    """One way for pairs to become a loss.

    Attributes
    ----------
    loss : LaTeX of a pair's loss, in the notation of notebook 04.
    about : what it is, in a few words.
    method : the method that trains in this mode on self-annotated pairs.
    sets : params that the method sets besides, as dotted keys.
    faces_follower : whether it trains on a worst case.
    columns : gives the columns of `weighted_logistic` that are not at their neutral value, each of shape (N,), for
        N pairs, their worst case (columns as the follower's `per_pair` has them, None without follower) and the params.
    objective : gives the trainer and its options, for the leader's params and the follower's radius and support.
    obstacle : says what keeps the mode from working with other params, if anything does.
    """

    loss: str
    about: str
    method: str
    sets: dict[str, Any] = field(default_factory=dict)
    faces_follower: bool = False
    columns: Callable[["pd.DataFrame", Mapping | None, "LeaderParams"], dict[str, Any]] = _plain
    objective: Callable[["LeaderParams", float, "Support | None"], Objective] = objectives.weighted
    obstacle: Callable[["Params"], str | None] = _none


def _needs_pieces(params):
    return None if params.follower.n_pieces else "needs pieces: set follower.n_pieces (paper: 6)"


def _needs_one_price(params):
    return "needs one price for all pairs: set follower.group_size to null" if params.follower.group_size else None


def _needs_calibration(params):
    missing = "needs labelled pairs to calibrate flip probabilities on: set data.n_calibration (such as 32)"
    return None if params.data.n_calibration else missing


def _transport(pairs, worst, leader):
    return {"loss_moved": worst["moved"], "loss_displacement": worst["displacement"]}


def _random(pairs, worst, leader):
    dealt = np.random.default_rng(0).permutation(len(pairs))
    return {name: np.asarray(values)[dealt] for name, values in _transport(pairs, worst, leader).items()}


def _envelope(pairs, worst, leader):
    moved = np.asarray(worst["moved"])
    counts = np.asarray(pairs["margin"] == worst["margin"], dtype=float)  # a margin clipped to the support does not
    return {"loss_weight": counts * (1 - moved), "loss_slope": -counts * moved * np.asarray(worst["price"])}


def _flips(pairs, worst, leader):
    # Frozen, as `transport` freezes its displacements: the round's pairs share one budget, solved on the margins that
    # the follower saw. `flip_loss` would give every batch its own, and with reference `previous` it would begin at
    # margins of 0, where no flip is worse than another.
    return {"loss_slope": worst["flip_probability"]}


def _pieces(pairs, worst, leader):
    return {"loss_weight": np.zeros(len(pairs)), "loss_slope": worst["piece_slope"]}


def _smoothed(pairs, worst, leader):
    return {"loss_slope": np.full(len(pairs), leader.label_smoothing)}


MODES: dict[str, Mode] = {
    "transport": Mode(
        r"(1-t_i)\,\ell(\xi_i)+t_i\,\ell(\xi_i-d_i)",
        "the worst case, with each displacement frozen",
        "ssapo",
        faces_follower=True,
        columns=_transport,
    ),
    "random": Mode(
        r"(1-t_{\rho(i)})\,\ell(\xi_i)+t_{\rho(i)}\,\ell(\xi_i-d_{\rho(i)})",
        "placebo: the worst case's displacements, dealt to random pairs",
        "ssapo-random",
        faces_follower=True,
        columns=_random,
    ),
    "envelope": Mode(
        r"(1-t_i)\,\ell(\xi_i)-t_i\lambda^*\xi_i",
        "the exact gradient of eq. (4), where the ball moves with the policy (Danskin)",
        "ssapo-envelope",
        {"leader.reference": "initial"},
        faces_follower=True,
        columns=_envelope,
        obstacle=_needs_one_price,
    ),
    "pieces": Mode(
        r"\sum_k s_{ik}(a_k\xi_i+b_k)-a_kq_{ik}",
        r'"weight the per-pair loss contributions by $s_{ik}$": linear in $\xi_i$',
        "ssapo-pieces",
        {"follower.n_pieces": 6},
        faces_follower=True,
        columns=_pieces,
        obstacle=_needs_pieces,
    ),
    "flips": Mode(
        r"(1-q_i)\,\ell(\xi_i)+q_i\,\ell(-\xi_i)=\ell(\xi_i)+q_i\,\xi_i",
        "each label is wrong with the follower's worst calibrated probability",
        "ssapo-flips",
        faces_follower=True,
        columns=_flips,
        obstacle=_needs_calibration,
    ),
    "sgpo": Mode(
        r"V\text{ of the batch}",
        "the follower solved again in every step",
        "sgpo",
        {"leader.reference": "initial"},
        faces_follower=True,
        objective=objectives.solved_again,
    ),
    "dpo": Mode(
        r"\ell(\xi_i)",
        "no follower: plain self-annotation, or an external judge's pairs",
        "self-dpo",
    ),
    "label-smoothing": Mode(
        r"(1-\alpha)\,\ell(\xi_i)+\alpha\,\ell(-\xi_i)=\ell(\xi_i)+\alpha\,\xi_i",
        "every label is wrong with the same probability",
        "label-smoothing",
        columns=_smoothed,
    ),
    "spa": Mode(
        r"\ell(\xi_i)+\alpha\,\xi_i\text{ where the label looks wrong}",
        "Spread Preference Annotation (Kim et al., ICLR 2025)",
        "spa",
        objective=objectives.noise_detecting,
    ),
    "robust": Mode(
        r"\frac{(1-\alpha)\,\ell(\xi_i)-\alpha\,\ell(-\xi_i)}{1-2\alpha}",
        "TRL's; label smoothing's unbiased opposite",
        "robust",
        objective=objectives.robust,
    ),
    "dr-dpo": Mode(
        r"-\beta'\log\operatorname{mean}e^{-\ell/\beta'}\text{ of the batch}",
        "distrusts pairs of high loss: the follower's opposite",
        "dr-dpo",
        objective=objectives.distrusting_high_losses,
    ),
    "kl-dpo": Mode(
        r"w_i\,\ell(\xi_i),\;w_i=\min(10,e^{(\ell_i-\bar\ell)/\tau})\text{ fixed}",
        "KLDPO (NeurIPS 2025): trusts pairs of high loss, Dr. DPO's mirror image",
        "kl-dpo",
        objective=objectives.trusting_high_losses,
    ),
    "hoelder-dpo": Mode(
        r"\sigma(\xi_i)^{1+\gamma}+\sigma(-\xi_i)^{1+\gamma}-\tfrac{1+\gamma}\gamma\,\sigma(\xi_i)^\gamma",
        "density power divergence, as in Hölder-DPO (NeurIPS 2025): wrong labels lose their pull",
        "hoelder-dpo",
        objective=objectives.forgetting_outliers,
    ),
    "ipo": Mode(
        r"(\bar\Delta_i-\tfrac1{2\beta})^2",
        "TRL's, on log-ratios per token",
        "ipo",
        objective=objectives.trl_loss("ipo"),
    ),
    "sppo": Mode(
        r"(\Delta_i^w-\tfrac1{2\beta})^2+(\Delta_i^l+\tfrac1{2\beta})^2",
        "TRL's `sppo_hard`: Self-Play Preference Optimization (Wu et al., ICLR 2025)",
        "sppo",
        objective=objectives.trl_loss("sppo_hard"),
    ),
}
"""Every leader mode by the name that `leader.mode` takes."""


def as_table() -> str:
    """Return all modes with their losses as a Markdown table."""
    rows = [f"| `{name}` | ${mode.loss}$ | {mode.about} | `{mode.method}` |" for name, mode in MODES.items()]
    return "\n".join(["| `leader.mode` | loss of a pair | | method |", "|---|---|---|---|", *rows])


def with_references(pairs: "pd.DataFrame", reference: str) -> "pd.DataFrame":
    """Add TRL's `ref_chosen_logps` and `ref_rejected_logps` (nats) from what annotation already knows.

    Parameters
    ----------
    reference : "previous": the policy that answered, pi_{t-1}, so every margin restarts at 0;
        "initial": the SFT model, so every margin starts where the follower found it.
    """
    known = {"previous": "log_prob", "initial": "reference_log_prob"}[reference]
    return pairs.assign(ref_chosen_logps=pairs[f"chosen_{known}"], ref_rejected_logps=pairs[f"rejected_{known}"])


def training_rows(pairs: "pd.DataFrame", worst: Mapping | None, leader: "LeaderParams") -> "pd.DataFrame":
    """Turn a round's pairs into what the leader's mode trains on: the same N rows, whatever the mode.

    Parameters
    ----------
    pairs : N rows, as `sgpo_lib.annotation` leaves them.
    worst : columns of shape (N,): `margin`, `moved`, `displacement`, `price` and, for `pieces`, `piece_slope`; for
        `flips` `flip_probability`; as notebook 03 leaves them. None for a mode without follower.

    Returns
    -------
    DataFrame, N rows, with `ref_chosen_logps`, `ref_rejected_logps` and the columns that the mode's loss has.
    The mean of the rows' losses is the mode's objective, for `pieces` up to a constant.
    """
    rows = with_references(pairs, leader.reference).reset_index(drop=True)
    columns = MODES[leader.mode].columns(rows, worst, leader)
    return rows.assign(**{name: np.asarray(values, dtype=float) for name, values in columns.items()})


def objective(leader: "LeaderParams", radius: float = 0.0, support: "Support | None" = None) -> Objective:
    """Return what the leader's mode lowers on its `training_rows`.

    Parameters
    ----------
    radius, support : of the follower, which `sgpo` solves again in every step.
    """
    return MODES[leader.mode].objective(leader, radius, support)
