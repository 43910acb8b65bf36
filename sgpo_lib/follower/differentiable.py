"""Worst-case losses as differentiable functions of a batch of margins: drop-ins for the DPO loss."""

from typing import TYPE_CHECKING

from sgpo_lib.follower.flips import worst_flips
from sgpo_lib.follower.inputs import checked_radius
from sgpo_lib.follower.support import RangeSupport, Support, resolve_support

if TYPE_CHECKING:
    import torch


def sgpo_loss(margins: "torch.Tensor", radius: float, support: Support | None = None) -> "torch.Tensor":
    """Return V, the largest expected logistic loss within W1 distance `radius` of a batch of margins.

    With the follower's solution (t, p) of the batch (fractions moved to a, and price), V is

        V = p radius + (1/N) sum_i (1 - t_i) l(x_i) + t_i (l(a) - p (x_i - a)),

    because p (radius - transport) = 0. By Danskin's theorem the gradient of V holds t and p fixed, so that
    automatic differentiation of this line gives the exact gradient of the leader's objective, eq. (4):

        dV/dx_i = (1/N) [(1 - t_i) l'(x_i) - t_i p].

    The follower is solved again at each call; radius 0 is the DPO loss.

    Parameters
    ----------
    margins : Tensor, shape (N,), any floating type and device
        NaN and infinite margins give a NaN or infinite loss: looking for them would make a GPU wait.
    radius : float >= 0
        Mean transport per pair, in margin units.
    support : (a, b), rule, or None for ``RangeSupport(0.1)``
        A rule is held fixed in the gradient. Margins outside the window are clipped, and get no gradient.

    Returns
    -------
    Tensor, scalar, of the margins' type and device.

    Raises
    ------
    ValueError
        If margins are not a vector of at least one number, the radius is negative or not finite, or a
        support given as numbers is empty or not finite.
    """
    import torch
    from torch.nn.functional import logsigmoid

    if margins.ndim != 1 or margins.numel() == 0:
        raise ValueError(f"margins must have shape (N,) with N >= 1, but have {tuple(margins.shape)}")
    radius = checked_radius(radius)
    support = RangeSupport() if support is None else support
    # Sums over a batch lose digits in half and single precision. Apple's GPUs have no double.
    precise = torch.float32 if margins.device.type == "mps" else torch.float64
    x = margins.to(precise)

    with torch.no_grad():
        if callable(support):
            low, high = support(x)
        else:
            low, high = (x.new_full((), end) for end in resolve_support(support, None))
    x = x.clamp(low, high)
    with torch.no_grad():
        moved, price = _solve(x, low, radius)
        low_loss = -logsigmoid(low)
    losses = (1 - moved) * -logsigmoid(x) + moved * (low_loss - price * (x - low))
    return (losses.mean() + price * radius).to(margins.dtype)


def _solve(x: "torch.Tensor", low: "torch.Tensor", radius: float) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return t_i in the caller's order and the price, without a value ever leaving the device."""
    import torch
    from torch.nn.functional import logsigmoid

    budget = radius * x.numel()
    ordered, order = torch.sort(x, stable=True)
    costs = ordered - low
    spent = torch.cumsum(costs, 0)
    affordable = (budget - (spent - costs)) / costs
    # A margin at `low` costs nothing: it counts as moved wherever there is any budget.
    affordable = torch.where(costs > 0, affordable, float(budget > 0))
    moved = torch.empty_like(x).scatter_(0, order, affordable.clamp(0, 1))

    rank = torch.searchsorted(spent, x.new_full((1,), budget), right=True)
    boundary = ordered.gather(0, rank.clamp(max=x.numel() - 1))
    slope = (logsigmoid(boundary) - logsigmoid(low)) / (boundary - low)
    # A chord is no steeper than the tangent at its low end and no flatter than that at its high end; where
    # the boundary is within rounding of `low`, this is worth more than the quotient.
    slope = torch.minimum(torch.maximum(slope.nan_to_num(), torch.sigmoid(-boundary)), torch.sigmoid(-low))
    return moved, torch.where(rank < x.numel(), slope, 0.0).squeeze(0)


def flip_loss(margins: "torch.Tensor", flip_probability, radius: float) -> "torch.Tensor":
    """Return V, the worst expected loss of a batch whose labels may be wrong, with its exact gradient.

    By Danskin's theorem the gradient holds the adversary's q fixed:

        dV/dx_i = (1/N) (q_i - sigma(-x_i)),   zero at x = logit(1 - p_i) / (1 + 1 / price):

    margins stop at shrunken log-odds of the label being right instead of growing without end. The search for q
    is repeated at each call, on the CPU, so a GPU waits for it.

    Parameters
    ----------
    margins : Tensor, shape (N,), any floating type and device
    flip_probability : array_like or Tensor, shape (N,), or a number
    radius : float >= 0, in nats per pair
        0 is label smoothing with p_i.

    Returns
    -------
    Tensor, scalar, of the margins' type and device.

    Raises
    ------
    ValueError
        As `worst_flips`.
    """
    import torch
    from torch.nn.functional import softplus

    # Sums over a batch lose digits in half and single precision. Apple's GPUs have no double.
    x = margins.to(torch.float32 if margins.device.type == "mps" else torch.float64)
    if isinstance(flip_probability, torch.Tensor):
        flip_probability = flip_probability.detach().double().cpu().numpy()
    worst = worst_flips(x.detach().double().cpu().numpy(), flip_probability, radius)
    q = torch.as_tensor(worst.flip_probability, dtype=x.dtype, device=x.device)
    return (softplus(-x) + q * x).mean().to(margins.dtype)
