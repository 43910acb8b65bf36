"""The order of rows within an optimiser's step: those of about one length come together, so that less is padded."""

from collections.abc import Iterator, Sequence

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler


class SortedWithinSteps(Sampler[int]):
    """Rows at random, and those of a step by their lengths.

    A step takes the mean over its rows, so its gradient is that of any other order, up to rounding. Not so for losses
    of whole batches, nor for the rows of a last step that has fewer.
    """

    def __init__(self, lengths: Sequence[int], per_step: int, seed: int):
        """Take each row's length, how many rows a step has on all devices, and the seed of the random order.

        For the same seed, each step has the rows that accelerate's own random order gives it.
        """
        self._lengths, self._per_step = lengths, per_step
        self._order = SeedableRandomSampler(range(len(lengths)), data_seed=seed)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Give the rows' indices; every pass has another order."""
        order = list(self._order)
        for start in range(0, len(order), self._per_step):
            yield from sorted(order[start : start + self._per_step], key=self._lengths.__getitem__)

    def set_epoch(self, epoch: int) -> None:
        """Go to a pass by its number; `accelerate` calls this."""
        self._order.set_epoch(epoch)
