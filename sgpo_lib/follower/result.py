"""What a follower returns, whichever solver it is: one worst-case distribution and the proof of its value."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from sgpo_lib.follower.loss import Loss, Pieces
from sgpo_lib.follower.support import Support


class Moves(NamedTuple):
    """Mass that leaves its margin: a fraction of pair i goes to a target. A pair may have several moves.

    Attributes
    ----------
    pair : ndarray of int, shape (M,)
    target : ndarray, shape (M,)
        In the units of the margins.
    fraction : ndarray, shape (M,)
        Of the pair's own mass 1/N, in (0, 1].
    """

    pair: np.ndarray
    target: np.ndarray
    fraction: np.ndarray


class Atoms(NamedTuple):
    """A discrete distribution over margins, with the pair that each atom came from.

    Attributes
    ----------
    position : ndarray, shape (A,)
    weight : ndarray, shape (A,)
        Sums to 1.
    pair : ndarray of int, shape (A,)
    """

    position: np.ndarray
    weight: np.ndarray
    pair: np.ndarray


@dataclass(frozen=True, eq=False)
class WorstCase:
    """A worst-case margin distribution in a W1 ball around N margins, all arrays in the caller's order.

    Attributes
    ----------
    value : float
        Expected loss under the worst case.
    dual_value : float
        An upper bound of every value in the ball. ``dual_value - value`` is the certificate: at rounding
        level, it proves that the value is optimal.
    price : float
        lambda*, the dual variable of the budget: how much the value rises per unit of radius.
    nominal : float
        Expected loss without the adversary.
    margins : ndarray, shape (N,)
        The centre: the caller's margins, clipped to the support.
    support : (a, b)
    radius : float
        Transport allowed, in margin units per pair.
    transport : float
        Transport spent, in margin units per pair.
    n_clipped : int
        How many margins lay outside the support.
    moves : Moves
        Where mass went; all other mass stays at its margin.
    loss : function of an array
    """

    value: float
    dual_value: float
    price: float
    nominal: float
    margins: np.ndarray = field(repr=False)
    support: tuple[float, float]
    radius: float
    transport: float
    n_clipped: int
    moves: Moves = field(repr=False)
    loss: Loss = field(repr=False)

    @property
    def gap(self) -> float:
        """The certificate ``dual_value - value``."""
        return self.dual_value - self.value

    @cached_property
    def moved(self) -> np.ndarray:
        """t_i, shape (N,): the fraction of pair i that the adversary moves."""
        return self._sum_over_moves(self.moves.fraction)

    @cached_property
    def displacement(self) -> np.ndarray:
        """d_i, shape (N,): how far down the moved part of pair i goes, on average; 0 where nothing moves.

        For the exact follower this is the margin's distance to a.
        """
        pair = self.moves.pair
        distance = self._sum_over_moves(self.moves.fraction * (self.margins[pair] - self.moves.target))
        # A pair with several moves is assigned the same quotient several times, not divided again.
        distance[pair] = distance[pair] / self.moved[pair]
        return distance

    def summary(self) -> dict[str, float]:
        """Return the numbers a report wants, as plain Python ones."""
        names = ("value", "dual_value", "gap", "nominal", "price", "radius", "transport", "n_clipped")
        numbers = {name: getattr(self, name) for name in names}
        low, high = (float(end) for end in self.support)
        return numbers | {
            "n_moved": int(np.count_nonzero(self.moved)),
            "support_low": low,
            "support_high": high,
        }

    def atoms(self) -> Atoms:
        """Return the distribution itself: the mass that stays, in pair order, then the mass that moves."""
        stays = np.flatnonzero(self.moved < 1)
        position = np.concatenate([self.margins[stays], self.moves.target])
        fraction = np.concatenate([1 - self.moved[stays], self.moves.fraction])
        return Atoms(position, fraction / self.margins.size, np.concatenate([stays, self.moves.pair]))

    def pair_weights(self) -> np.ndarray:
        """Return w_i = sum_k s_ik, shape (N,): the weights of the paper's Algorithm 1, line 7.

        The constraint of Theorem 3.3 makes every one of them 1, so weighting by them is plain DPO.
        """
        atoms = self.atoms()
        return np.bincount(atoms.pair, atoms.weight, self.margins.size) * self.margins.size

    def masses_and_shifts(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """Return (s, q) of Theorem 3.3, each of shape (N, K).

        Each atom is booked under the piece that is active where it lies: s_ik is the fraction of pair i
        there, q_ik its displacement times s_ik, so that its position is xi_i - q_ik / s_ik.

        Parameters
        ----------
        pieces : Pieces
            The K lines, in the space of the margins.
        """
        atoms = self.atoms()
        active = np.argmax(np.multiply.outer(atoms.position, pieces.slopes) + pieces.intercepts, axis=1)
        fraction = atoms.weight * self.margins.size
        shift = fraction * (self.margins[atoms.pair] - atoms.position)
        shape = (self.margins.size, len(pieces))
        cell = np.ravel_multi_index((atoms.pair, active), shape)
        s, q = (np.bincount(cell, x, minlength=shape[0] * shape[1]).reshape(shape) for x in (fraction, shift))
        return s, q

    def piece_slopes(self, pieces: Pieces) -> np.ndarray:
        """Return sum_k s_ik a_k, shape (N,): each pair's slope in the loss of leader mode `pieces`.

        That loss, sum_k s_ik (a_k xi_i + b_k) - a_k q_ik, is linear in the margin.
        """
        s, _ = self.masses_and_shifts(pieces)
        return s @ np.asarray(pieces.slopes)

    def per_pair(self) -> dict[str, np.ndarray]:
        """Return what a leader needs to know of each pair, as columns of shape (N,)."""
        return {
            "margin": self.margins,
            "moved": self.moved,
            "displacement": self.displacement,
            "price": np.full(self.margins.size, self.price),
        }

    def _sum_over_moves(self, weights: np.ndarray) -> np.ndarray:
        return np.bincount(self.moves.pair, weights, minlength=self.margins.size).astype(float)  # int if no moves


class Follower(Protocol):
    """Whoever answers the leader: `worst_case`, which is exact; `Grouped`, `ConvexProgram`, `Published` to compare.

    Each is called with margins of shape (N,), the radius in their units, the support or its rule, and the loss.
    """

    def __call__(self, margins, radius: float, support: Support | None, loss: Loss) -> WorstCase:
        """Return the worst case that this follower finds."""


def concatenate(parts: list[WorstCase], n_clipped: int) -> WorstCase:
    """Join the worst cases of consecutive groups of pairs, each group weighted by its size.

    The price is the mean of the groups' prices, which is how fast the joint value rises with their common
    radius. All parts must share support, loss and radius.
    """
    sizes = np.array([part.margins.size for part in parts])
    starts = np.cumsum(sizes) - sizes

    def mean(name: str) -> float:
        return float(np.average([getattr(part, name) for part in parts], weights=sizes))

    return WorstCase(
        value=mean("value"),
        dual_value=mean("dual_value"),
        price=mean("price"),
        nominal=mean("nominal"),
        margins=np.concatenate([part.margins for part in parts]),
        support=parts[0].support,
        radius=parts[0].radius,
        transport=mean("transport"),
        n_clipped=n_clipped,
        moves=Moves(
            np.concatenate([part.moves.pair + start for part, start in zip(parts, starts, strict=True)]),
            np.concatenate([part.moves.target for part in parts]),
            np.concatenate([part.moves.fraction for part in parts]),
        ),
        loss=parts[0].loss,
    )
