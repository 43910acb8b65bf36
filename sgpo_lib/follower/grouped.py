"""The follower in groups of pairs that cannot share a budget, as the paper solves it."""

from dataclasses import dataclass

from sgpo_lib.follower.exact import clip_to_support, worst_case
from sgpo_lib.follower.inputs import checked_count, checked_margins
from sgpo_lib.follower.loss import Loss, logistic_loss
from sgpo_lib.follower.result import WorstCase, concatenate
from sgpo_lib.follower.support import Support, resolve_support


@dataclass(frozen=True)
class Grouped:
    """Solve consecutive groups of pairs on their own, each with the whole radius.

    The value is never above that of `worst_case`, since no group can lend its budget to another. It is here
    for the paper's Table 4; the exact follower has no need of groups.

    Attributes
    ----------
    group_size : int >= 1
        Pairs in a group, the paper's G; the last group may be smaller.

    Raises
    ------
    ValueError
        If the group size is not a whole number from 1 on.
    """

    group_size: int

    def __post_init__(self):
        """Check the group size."""
        checked_count(self.group_size, "group_size")

    def __call__(self, margins, radius: float, support: Support | None = None, loss: Loss = logistic_loss) -> WorstCase:
        """Take and return what `worst_case` does; ``dual_value`` certifies each group's optimality, not the whole's.

        A support rule looks at all margins, so that all groups share one window.
        """
        margins = checked_margins(margins)
        low, high = resolve_support(support, margins)
        n_clipped = clip_to_support(margins, low, high)
        starts = range(0, margins.size, self.group_size)
        parts = [worst_case(margins[i : i + self.group_size], radius, (low, high), loss) for i in starts]
        return concatenate(parts, n_clipped)
