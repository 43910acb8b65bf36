"""Two lines become a study that can be run."""

import pytest

from sgpo_lib.runs.compare import variant_of, write_study
from sgpo_lib.runs.study import find_study


def test_a_line_is_a_method_with_a_label_and_overrides():
    variant = variant_of("ssapo {follower.radius: 0.3, leader.replay: 0.5}")
    assert variant.method == "ssapo+follower.radius-0.3+leader.replay-0.5"
    assert variant.overrides == {"follower.radius": 0.3, "leader.replay": 0.5}
    assert variant_of("self-dpo").overrides == {}


def test_the_study_of_two_is_found_beside_the_runs(tiny_params_file):
    path = write_study("self-dpo", "ssapo {follower.radius: 0.3}", str(tiny_params_file), [0, 1])
    study = find_study(path)
    assert path == tiny_params_file.parent.parent / "runs/studies" / f"{study.name}.yaml"
    assert [variant.name for variant in study.variants] == ["self-dpo", "ssapo {follower.radius: 0.3}"]
    assert study.baselines == ["self-dpo"]
    assert study.run(study.variants[1], 1).params.follower.radius == 0.3


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("ssapo", "ssapo", "share a folder"),
        ("ssapo", "sapo", "no method"),
        ("ssapo", "ssapo {follower.radus: 1}", "did you mean"),
        ("ssapo", "ssapo follower.radius=1", "no method with settings"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_written(tiny_params_file, first, second, message):
    with pytest.raises(ValueError, match=message):
        write_study(first, second, str(tiny_params_file), [0])
    assert not (tiny_params_file.parent.parent / "runs").exists()
