"""What a table says of runs: means, intervals, and how far one run lies from another."""

import json

from sgpo_lib.evaluation.report import recorded_spread, summary_table

SUMMARY = {"round-1": {"gold_reward": {"mean": 0.5, "low": 0.4, "high": 0.6}, "n_prompts": 96}}


def test_a_single_run_shows_the_spread_that_runs_of_several_seeds_recorded(tmp_path):
    methods = {"ssapo": {"round-1": {"gold_reward": 0.07}}}
    (tmp_path / "between_runs.json").write_text(json.dumps({"seeds": [0, 1], "made_with": "", "methods": methods}))
    table = summary_table(SUMMARY, recorded_spread(tmp_path, "ssapo"))
    assert table.loc["round-1", "gold reward"] == "0.500 ± 0.070 [0.400, 0.600]"


def test_where_none_is_recorded_for_the_method_none_is_shown(tmp_path):
    assert (
        summary_table(SUMMARY, recorded_spread(tmp_path, "spa")).loc["round-1", "gold reward"] == "0.500 [0.400, 0.600]"
    )
