"""The order within steps: the same rows in each step as at random, sorted, another order in every pass."""

from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.leader.step_order import SortedWithinSteps


def steps(order, per_step):
    order = list(order)
    return [order[start : start + per_step] for start in range(0, len(order), per_step)]


@given(st.lists(st.integers(1, 99), min_size=1, max_size=30), st.integers(1, 9), st.integers(0, 9), st.integers(0, 3))
def test_every_step_has_its_random_rows_by_length(lengths, per_step, seed, epoch):
    ours, random = SortedWithinSteps(lengths, per_step, seed), SeedableRandomSampler(lengths, data_seed=seed)
    for sampler in (ours, random):
        sampler.set_epoch(epoch)
    for mine, theirs in zip(steps(ours, per_step), steps(random, per_step), strict=True):
        assert set(mine) == set(theirs)
        assert [lengths[i] for i in mine] == sorted(lengths[i] for i in theirs)


def test_every_pass_has_another_order():
    sampler = SortedWithinSteps([1] * 50, 8, 0)
    assert list(sampler) != list(sampler)
    assert len(sampler) == 50
