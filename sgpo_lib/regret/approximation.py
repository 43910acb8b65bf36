"""What the paper's three approximations of the follower cost, and their bounds (Propositions 3.2, D.12-D.14).

*Optimism* is the exact worst-case loss less the approximate one: how much safer the approximation makes the
policy look. Every approximation weakens the adversary, so optimism is never negative.
"""

import numpy as np

from sgpo_lib.follower import Grouped, Pieces, logistic_loss, tangents, worst_case


def tangent_gap(pieces: Pieces, support) -> float:
    """Δ_pl(K): the largest ℓ - ℓ̃ on the support, exact.

    Between crossings of neighbouring tangents ℓ minus a line is convex, so the maximum is at a crossing or
    at an end of the support.
    """
    order = np.argsort(pieces.slopes)
    slopes, intercepts = pieces.slopes[order], pieces.intercepts[order]
    crossings = -np.diff(intercepts) / np.diff(slopes)
    points = np.concatenate([np.clip(crossings, *support), support])
    return float((logistic_loss(points) - pieces(points)).max())


def pieces_optimism(margins, radius: float, support, counts) -> tuple[np.ndarray, np.ndarray]:
    """Optimism and its bound Δ_pl(K) (Proposition D.12) for K evenly spaced tangents, K in `counts`.

    Counts of the form 2^j + 1 have nested knots, for which Proposition 3.2 makes optimism fall with K.
    """
    exact = worst_case(margins, radius, support).value
    lines = [tangents(int(count), support) for count in counts]
    approximate = [worst_case(margins, radius, support, pieces).value for pieces in lines]
    return exact - np.array(approximate), np.array([tangent_gap(pieces, support) for pieces in lines])


def grouping_optimism(margins, radius: float, support, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Optimism and its bound for groups of each size, every group with the budget `radius` of its own.

    Proposition D.13 bounds it by a Hausdorff distance of whole balls. What its proof needs is the
    distance of one global worst case to the grouped ball: that law overspends T_g - radius in group g, and
    moving less there repairs it, so optimism <= mean over pairs of (T_g - radius)+.
    """
    exact = worst_case(margins, radius, support)
    transport = exact.moved * exact.displacement
    optimism, bound = [], []
    for size in sizes:
        optimism.append(exact.value - Grouped(int(size))(margins, radius, support).value)
        groups = [transport[start : start + size] for start in range(0, len(margins), size)]
        bound.append(sum(len(g) * max(g.mean() - radius, 0.0) for g in groups) / len(margins))
    return np.array(optimism), np.array(bound)


def binning_optimism(margins, radius: float, support, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Optimism and the bound claimed for it when mass may not leave its bin of the margin axis (App. F.3).

    Bins hold `size` neighbouring margins each and span from their lowest to their highest margin; the
    outermost reach to the ends of the support. The claim is the average bin width.
    """
    exact = worst_case(margins, radius, support).value
    ordered = np.sort(margins)
    optimism, claim = [], []
    for size in sizes:
        bins = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        edges = [[part[0], part[-1]] for part in bins]
        edges[0][0], edges[-1][1] = support
        values = [
            worst_case(part, radius, tuple(edge)).value * len(part) for part, edge in zip(bins, edges, strict=True)
        ]
        optimism.append(exact - sum(values) / len(margins))
        claim.append(np.mean(np.diff(edges)))
    return np.array(optimism), np.array(claim)


def bisected_value(margins, radius: float, support, tolerance: float, loss=logistic_loss) -> tuple[float, float]:
    """Solve the follower by bisection on its price until the certified gap is at most `tolerance`.

    At a price λ exactly the pairs whose chord is steeper than λ move. A price too low overspends, one too
    high leaves budget over; the mixture of the two laws that spends the budget exactly is feasible, and the
    dual at either price bounds every value from above. This is a follower with inner tolerance η
    (Proposition D.14).

    Returns
    -------
    value of the feasible law, certified gap to the optimum.
    """
    margins = np.clip(margins, *support)
    loss_now, distance = loss(margins), margins - support[0]
    gain = loss(np.array([support[0]]))[0] - loss_now

    def respond(price):
        moving = gain > price * distance
        dual = price * radius + np.where(moving, gain - price * distance, 0).mean()
        return (moving * distance).mean(), (moving * gain).mean(), dual

    cheap, dear = (0.0, *respond(0.0)), (1.0, 0.0, 0.0, radius)
    if cheap[1] <= radius:
        return float(loss_now.mean() + cheap[2]), 0.0
    while True:
        share = (radius - dear[1]) / (cheap[1] - dear[1])
        value, upper = dear[2] + share * (cheap[2] - dear[2]), min(cheap[3], dear[3])
        price = (cheap[0] + dear[0]) / 2
        if upper - value <= tolerance or price in (cheap[0], dear[0]):
            return float(loss_now.mean() + value), float(upper - value)
        answer = (price, *respond(price))
        cheap, dear = (cheap, answer) if answer[1] <= radius else (answer, dear)


def tolerance_optimism(margins, radius: float, support, tolerances) -> tuple[np.ndarray, np.ndarray]:
    """Optimism of `bisected_value` and the gap it certified, for each tolerance."""
    exact = worst_case(margins, radius, support).value
    solved = [bisected_value(margins, radius, support, tolerance) for tolerance in tolerances]
    return exact - np.array([value for value, _ in solved]), np.array([gap for _, gap in solved])


def cumulative_optimism(margins, radius: float, support, n_pieces: int, group_size: int, tolerance: float):
    """All three approximations at once: optimism, and Proposition D.14's bound Δ_pl(K) + d_H + η.

    d_H is replaced by the overspending bound of `grouping_optimism`, on the piecewise-linear loss.
    """
    pieces = tangents(n_pieces, support)
    loss = pieces
    starts = range(0, len(margins), group_size)
    parts = [margins[start : start + group_size] for start in starts]
    solved = [bisected_value(part, radius, support, tolerance, loss) for part in parts]
    sizes = np.array([len(part) for part in parts]) / len(margins)
    value, slack = (sizes @ np.array(column) for column in zip(*solved, strict=True))
    exact = worst_case(margins, radius, support).value
    surrogate = worst_case(margins, radius, support, loss)
    transport = surrogate.moved * surrogate.displacement
    over = sum(sizes[k] * max(transport[s : s + group_size].mean() - radius, 0.0) for k, s in enumerate(starts))
    return exact - value, tangent_gap(pieces, support) + over + slack
