"""Pictures show the numbers they are given, and a model's words are never taken for markup."""

import numpy as np
import pandas as pd
import pytest
from made_up_judgements import judgements

from sgpo_lib import plots
from sgpo_lib.evaluation import comparison, contrasts
from sgpo_lib.runs.study import study_of


def results(n_seeds: int = 3) -> pd.DataFrame:
    rows = []
    for variant in ("self-dpo", "ssapo"):
        for seed in range(n_seeds):
            for t, policy in enumerate(("sft", "dpo", "round-1", "round-2")):
                gold = 0.1 * t + 0.01 * seed + 0.05 * (variant == "ssapo")
                row = {"group": "", "variant": variant, "method": variant, "seed": seed, "policy": policy}
                row |= {"gold_reward": gold, "gold_reward_vs_sft": gold, "kl": 2.0 * t, "words": 30.0 - t}
                rows.append(row | {"is_final": policy == "round-2"})
    return pd.DataFrame(rows)


def pairs(n_seeds: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"margin": np.sort(rng.normal(0.3, 0.3, 20)), "decile": np.repeat(np.arange(1, 11), 2)}).assign(
            group="", variant=variant, seed=seed, round=t, moved=0.0, agrees_with_gold=rng.random(20) < 0.6
        )
        for variant in ("self-dpo", "ssapo")
        for seed in range(n_seeds)
        for t in (1, 2)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_every_picture_of_a_study_is_drawn_for_one_seed_and_for_several(n_seeds):
    study = study_of("p.yaml", list(range(n_seeds)), ["self-dpo", "ssapo"])
    judged = judgements({("", "self-dpo"): [0.1] * n_seeds, ("", "ssapo"): [0.2, 0.3, 0.1][:n_seeds]}, kls=(6.0,))
    table, means = comparison.per_run(judged), comparison.means(judged)
    differences = contrasts.contrasts(judged, study)
    compared = plots.methods_compared(table, means, differences, "gold_reward_vs_sft")
    assert [axis.get_xlabel() for axis in compared.axes[1:]] == ["difference, as trained", "difference, at 6 nats"]
    figures = [
        compared,
        plots.rounds_compared(means, pairs(n_seeds)),
        plots.reward_against_kl(table),
        plots.labels_by_decile(pairs(n_seeds), table["variant"]),
    ]
    for figure in figures:
        figure.draw_without_rendering()


def test_an_arm_is_drawn_from_the_labels_it_spends_to_those_it_is_worth_or_the_curves_end():
    curve = pd.DataFrame({"n_labels": [16, 1440], "mean": [0.1, 0.4], "low": [0.0, 0.3], "high": [0.2, 0.5]})
    arms = pd.DataFrame(
        {"variant": ["mid", "high"], "n_labels": 48, "mean": [0.2, 0.6], "low": [0.1, 0.5], "high": [0.3, 0.7]}
        | {"equivalent": [71.0, np.inf], "equivalent_low": [30.0, 900.0], "equivalent_high": [200.0, np.inf]}
    )
    figure = plots.label_curve(curve.assign(fitted=curve["mean"]), arms, "gold reward")
    figure.draw_without_rendering()
    drawn = [line.get_xydata()[0].tolist() for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert [71, 0.2] in drawn
    assert [1440, 0.6] in drawn


def test_paths_in_the_plane_of_reward_and_kl_are_means_over_seeds():
    axis = plots.reward_against_kl(results()).axes[0]
    path = next(line for line in axis.lines if line.get_label() == "ssapo")
    np.testing.assert_allclose(path.get_xdata(), [0, 2, 4, 6])
    np.testing.assert_allclose(path.get_ydata(), np.array([0.05, 0.15, 0.25, 0.35]) + 0.01)


@pytest.mark.parametrize("n", [6, 21, 48, 93])  # where rounding puts Wilson's bound beyond a share of 0 or 1
@pytest.mark.parametrize("agrees", [True, False])
def test_labels_that_are_all_right_or_all_wrong_can_be_drawn(n, agrees):
    pairs = pd.DataFrame({"margin": np.linspace(-1, 1, 5 * n), "agrees_with_gold": agrees})
    share = plots.margins_and_agreement(pairs).axes[1].lines[0].get_ydata()
    np.testing.assert_array_equal(share, float(agrees))
    plots.self_labels_by_round({1: {"agreement": float(agrees), "n_pairs": n, "margin_mean": 0.1}})


def test_gains_without_a_gold_user_show_every_rate_that_is_known():
    value = {"mean": 60.0, "low": 55.0, "high": 66.0}
    summary = {name: {"words": value, "kl": value} for name in ("sft", "dpo")}
    assert len(plots.gains(summary).axes) == 2
    summary["dpo"] |= {"preference_accuracy": value, "length_balanced_accuracy": value | {"mean": 57.0}}
    figure = plots.gains(summary)
    drawn = {line.get_ydata()[0] for line in figure.axes[0].lines if len(line.get_ydata()) == 1}
    assert len(figure.axes) == 3
    assert {60.0, 57.0} <= drawn


def test_policies_scaled_to_a_kl_are_drawn_in_the_plane_of_reward_and_kl_only():
    def row(kl, **more):
        names = ("gold_reward", "win_rate", "length_controlled_win_rate")
        return (
            {name: {"mean": 60.0 + kl, "low": 55.0, "high": 90.0} for name in names}
            | {"kl": {"mean": kl, "low": kl, "high": kl}}
            | more
        )

    summary = {"sft": row(0.0), "dpo": row(8.0), "dpo @ 6 nats": row(6.0, matched_kl=6.0), "round-1": row(14.0)}
    axes = plots.gains(summary).axes
    assert [len(axis.get_xticklabels()) for axis in axes[:2]] == [3, 2]
    points = {line.get_xdata()[0] for line in axes[2].lines if len(line.get_xdata()) == 1}
    assert points == {0.0, 8.0, 6.0, 14.0}
    np.testing.assert_array_equal(axes[2].lines[0].get_xdata(), [0.0, 8.0, 14.0])


def test_prompts_with_the_same_last_message_keep_their_own_answers():
    user = [{"role": "user", "content": "Go on."}]
    prompts = {"a": user, "b": [{"role": "system", "content": "Be brief."}, *user]}
    rows = [
        {"prompt_id": key, "prompt": prompt, "policy": policy, "sample": sample, "response": f"{policy} to {key}" + end}
        for policy in ("sft", "dpo")
        for key, prompt in prompts.items()
        for sample, end in enumerate(("", " again"))
    ]
    shown = plots.answers_by_policy(pd.DataFrame(rows), n_prompts=2).data
    assert shown.to_dict("list") == {
        "prompt": ["Go on."] * 2,
        "sft": ["sft to a", "sft to b"],
        "dpo": ["dpo to a", "dpo to b"],
    }


def test_a_models_words_are_shown_and_not_taken_for_markup():
    table = pd.DataFrame(
        {"prompt": [[{"role": "user", "content": "<b>?"}]], "chosen": ["<script>x</script>"], "rejected": ["a & b"]}
    )
    page = plots.side_by_side(table.assign(margin=0.5)).to_html()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "+0.50" in page
