"""Training on until the policy is as far from the SFT model as asked: the control of whatever gets there otherwise.

Rounds of self-annotation end further from the SFT model than the seed they begin with, and distance alone changes
rewards. Whether the rounds add anything is seen beside the same labels trained on to the same KL.
"""

from collections.abc import Sequence

from transformers import TrainerCallback

from sgpo_lib.params.schema import GenerationParams
from sgpo_lib.policy.kl_matching import estimate_kl
from sgpo_lib.policy.model import Policy

STEPS_APART = 16
"""Steps of the optimiser between two estimates, at least: an estimate costs about as much as eight."""


class UntilKL(TrainerCallback):
    """Ends a training with the first epoch after which KL(pi || SFT) is found to have reached a target.

    It is estimated once the epochs asked for are over, and then after every epoch that ends `STEPS_APART` steps or
    more after the last estimate, the very last one included.

    Attributes
    ----------
    curve : dict[int, float]
        Optimiser's step: the KL after it in nats, the mean of `sgpo_lib.policy.kl_matching.estimate_kl`.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[list[dict]],
        target: float,
        n_least: float,
        generation: GenerationParams,
        seed: int,
    ):
        """Take the policy that is trained.

        Parameters
        ----------
        prompts : answered anew for every estimate, with the same random numbers, those of `seed`.
        target : in nats.
        n_least : epochs that are trained in any case.
        """
        self.curve: dict[int, float] = {}
        self._policy, self._asking = policy, (prompts, generation, seed)
        self._target, self._n_least = target, n_least

    def on_epoch_end(self, args, state, control, **kwargs):
        """Estimate the KL if it is time to, and say whether to go on."""
        n_since = state.global_step - max(self.curve, default=-STEPS_APART)
        if state.epoch < self._n_least or (n_since < STEPS_APART and state.global_step < state.max_steps):
            return
        model = self._policy.model
        was_training = model.training
        model.eval()
        kl = float(estimate_kl(self._policy, *self._asking).mean())
        model.train(was_training)
        self.curve[state.global_step] = kl
        control.should_log = True
        if kl >= self._target:
            control.should_training_stop = True
