"""How much a follower can matter: the share of DPO's gradient weights that it changes."""

from sgpo_lib.follower.flips import WorstFlips
from sgpo_lib.follower.loss import sigmoid
from sgpo_lib.follower.result import WorstCase


def influence(worst: WorstCase | WorstFlips, reference: str = "previous") -> float:
    """Return the relative change of the pairs' pulls at the start of training: sum |pull - DPO's| / sum DPO's.

    A pair's pull is how hard the loss pushes its margin x up, minus the loss's slope. DPO pulls with sigma(-x);
    leader mode `transport`, whose loss is (1 - t) l(x) + t l(x - d), with (1 - t) sigma(-x) + t sigma(d - x);
    leader mode `flips`, whose loss is l(x) + q x, with sigma(-x) - q.

    Bound for `transport`: at every point of training, the pulls change by at most radius / 4 a pair, whatever the
    support and the grouping. Proof: sigma is 1/4-Lipschitz, so pair i's pull changes by t_i |sigma(d_i - x) -
    sigma(-x)| <= t_i d_i / 4, and sum_i t_i d_i <= N radius. QED. DPO's mean pull turns this into a share:

    - reference `previous`: all margins start at 0, where DPO pulls with 1/2, so influence <= radius / 2. It is
      near that for small displacements, where sigma is almost straight.
    - reference `initial`: margins start where the follower saw them, so influence <= radius / (4 mean sigma(-x)).

    Bound for `flips`: the pulls change by mean q <= mean p + sqrt(radius / 2) a pair. Proof: Pinsker's inequality
    says |q_i - p_i| <= sqrt(D_i / 2) for the divergence D_i of pair i, and the mean of roots is at most the root of
    the mean. QED.

    Parameters
    ----------
    worst : WorstCase, in margin space, or WorstFlips
    reference : {"previous", "initial"}
        The policy that the leader's margins are measured against: the one before this round, or the SFT model.

    Returns
    -------
    float, >= 0; 0.05 is a change of five per cent.

    Raises
    ------
    ValueError
        If there is no such reference.
    """
    starts = {"previous": 0 * worst.margins, "initial": worst.margins}
    if reference not in starts:
        raise ValueError(f'reference must be "previous" or "initial", but is {reference!r}')
    start = starts[reference]
    dpo = sigmoid(-start)
    if isinstance(worst, WorstFlips):
        change = worst.flip_probability
    else:
        change = worst.moved * (sigmoid(worst.displacement - start) - dpo)
    return float(abs(change).sum() / dpo.sum())
