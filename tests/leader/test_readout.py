"""The curves read out: what is said is what happened, also where it is bad news."""

import pandas as pd
import pytest

from sgpo_lib.leader import in_words


def log(losses, chosen=(0.0, 0.1), rejected=(0.0, -0.1)):
    steps = len(losses)
    rewards = {"rewards/chosen": chosen[:steps], "rewards/rejected": rejected[:steps]}
    return pd.DataFrame({"step": range(1, steps + 1), "loss": losses} | rewards)


@pytest.mark.parametrize(
    ("losses", "said", "unsaid"),
    [
        ((0.693, 0.611), "fell from 0.693 to 0.611", "rose** from"),
        ((0.611, 0.693), "**rose** from 0.611 to 0.693", "fell from"),
        ((0.6930, 0.6932), "stayed at 0.693", "from"),
        ((0.693,), "no curve", "loss fell"),
    ],
)
def test_the_loss_is_said_to_do_what_it_did(losses, said, unsaid):
    words = in_words(log(losses))
    assert said in words
    assert unsaid not in words.split(" The chosen")[0]


def test_chosen_answers_that_become_less_likely_are_told():
    words = in_words(log((0.7, 0.6), chosen=(0.0, -0.2), rejected=(0.0, -0.5)))
    assert "chosen answers' reward fell by 0.200 and the rejected ones' fell by 0.500" in words
    assert "less likely" in words
    assert "less likely" not in in_words(log((0.7, 0.6)))
