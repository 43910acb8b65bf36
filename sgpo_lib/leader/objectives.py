"""What a mode lowers: which trainer, on which loss. Each loads what it needs when it is asked for, TRL among it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl import DPOTrainer

    from sgpo_lib.follower import Support
    from sgpo_lib.params.schema import LeaderParams


@dataclass(frozen=True)
class Objective:
    """Which trainer lowers which loss.

    Attributes
    ----------
    trainer : a subclass of `trl.DPOTrainer`; None for `WeightedDPOTrainer`.
    arguments : keyword arguments of the trainer.
    config : options of `trl.DPOConfig`.
    """

    trainer: "type[DPOTrainer] | None" = None
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def weighs_rows(self) -> bool:
        """Whether each row has a loss of its own, which the column `loss_weight` multiplies."""
        return self.trainer is None and "batch_loss" not in self.arguments


def weighted(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
    """The logistic loss with the rows' columns."""
    return Objective()


def solved_again(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
    """The follower's value of each batch."""
    from sgpo_lib.follower import sgpo_loss

    return Objective(arguments={"batch_loss": partial(sgpo_loss, radius=radius, support=support)})


def distrusting_high_losses(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
    """Dr. DPO."""
    from sgpo_lib.leader.losses import dr_dpo_loss

    return Objective(arguments={"batch_loss": partial(dr_dpo_loss, beta=leader.dr_beta)})


def trusting_high_losses(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
    """KLDPO."""
    from sgpo_lib.leader.losses import kl_dpo_loss

    return Objective(arguments={"batch_loss": partial(kl_dpo_loss, temperature=leader.kl_temperature)})


def forgetting_outliers(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
    """Hölder-DPO."""
    from sgpo_lib.leader.losses import density_power_loss

    return Objective(arguments={"batch_loss": partial(density_power_loss, gamma=leader.hoelder_gamma)})


def noise_detecting(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
    """SPA."""
    from sgpo_lib.leader.spa import NoiseDetectingTrainer

    return Objective(NoiseDetectingTrainer, {"label_smoothing": leader.label_smoothing})


def robust(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
    """TRL's robust loss."""
    from sgpo_lib.leader.known_references import KnownReferencesTrainer

    config = {"loss_type": ["robust"], "label_smoothing": leader.label_smoothing}
    return Objective(KnownReferencesTrainer, config=config)


def trl_loss(name: str) -> Callable[..., Objective]:
    """A loss that TRL has, by its name in `DPOConfig.loss_type`."""

    def objective(leader: "LeaderParams", radius: float, support: "Support | None") -> Objective:
        from sgpo_lib.leader.known_references import KnownReferencesTrainer

        return Objective(KnownReferencesTrainer, config={"loss_type": [name]})

    return objective
