"""The map of a run: what is done, what is next, what has to be done again."""

from made_up import compute, make_graph, write_params

from sgpo_lib.runs import Run
from sgpo_lib.runs.overview import overview


def test_the_first_row_that_is_not_done_is_the_next_step(tmp_path):
    run = Run.open(write_params(tmp_path))
    for n_done, step in enumerate(run.step("evaluation").history):
        states = overview(run)["state"].tolist()
        assert states == ["done"] * n_done + ["to do"] * (len(states) - n_done)
        assert overview(run).index[n_done] == step.notebook
        compute(step.begin())
    assert (overview(run)["state"] == "done").all()


def test_what_was_made_from_something_else_is_to_be_done_again(tmp_path):
    file = write_params(tmp_path)
    make_graph(Run.open(file))
    changed = overview(Run.open(file, overrides={"follower.radius": 0.3}))
    states = changed["state"]
    assert states["01_seed_dpo"] == "done"
    assert (states["03_dro_reweighting"] == "to do again").all()
