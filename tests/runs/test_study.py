"""Studies: what they may hold, and the design that they must settle beforehand."""

import json
from pathlib import Path

import pytest

from sgpo_lib.runs.study import Study, Variant, find_study, study_of

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "params" / "studies").glob("*.yaml"))
DESIGNED = {"adversary", "wrong-labels", "label-efficiency", "rounds", "labelled-pairs"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_has_valid_params_for_every_variant_and_says_what_the_paper_claims(path):
    study = find_study(path)
    for variant in study.variants:
        params = study.run(variant, study.seeds[0]).params
        if study.primary and study.primary.at_kl:
            assert study.primary.at_kl in params.evaluation.match_kl
    assert study.claim.startswith("Paper, ")
    assert study.title.endswith("?")


def test_every_shipped_study_settles_its_primary_contrast_and_looks():
    assert {path.stem for path in STUDIES} == DESIGNED
    studies = [find_study(path) for path in STUDIES]
    assert all(study.primary and study.looks for study in studies)
    assert min(len(study.seeds) for study in studies) >= 5


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        ([{"method": "ssapo"}, {"method": "ssapo", "name": "again"}], "share a folder"),
        ([{"method": "ssapo"}, {"method": "spa", "name": "ssapo"}], "share a name"),
        ([{"method": "ssapi"}], "no method ssapi"),
        ([{"method": "spa"}], "baselines dpo"),
        ([{"method": "dpo", "overides": {}}], r"no key 'variants.0.overides'; did you mean 'overrides'\?"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_with_the_reason(tmp_path, variants, problem):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"params": "p.yaml", "seeds": [0], "baselines": ["dpo"], "variants": variants}))
    with pytest.raises(ValueError, match=rf"(?s)mine\.yaml is not a study.*{problem}"):
        find_study(path)


SEEDS = {"seeds": list(range(20)), "looks": [10, 20]}
PRIMARY = {"treatment": "ssapo", "control": "dpo"}


@pytest.mark.parametrize(
    ("design", "problem"),
    [
        ({"primary": PRIMARY | {"treatment": "sapo"}}, "names 'sapo', which is no variant; did you mean 'ssapo'"),
        ({"primary": PRIMARY | {"control": "dpo at 1,440"}}, "no variant; there are: dpo, noisy: dpo, ssapo"),
        ({"primary": PRIMARY | {"control": ["ssapo"]}}, "'ssapo' against itself"),
        ({"primary": PRIMARY | {"at_kls": 6}}, "no key 'primary.at_kls'; did you mean 'at_kl'"),
        ({"primary": PRIMARY | {"quantity": "luck"}}, "'primary.quantity': Input should be 'gold_reward_vs_sft'"),
        ({"primary": PRIMARY, "looks": []}, r"looks are \[\], but must be rising numbers of seeds"),
        ({"primary": PRIMARY, "looks": [20, 10]}, "rising"),
        ({"primary": PRIMARY, "looks": [1, 20]}, "at least 2"),
        ({"primary": PRIMARY, "looks": [10]}, "the last look is at 10 seeds, but there are 20"),
        ({"primary": PRIMARY, "seeds": [0, 1, 1], "looks": [3]}, "a seed is named twice"),
        ({"looks": [20]}, "looks without a primary contrast"),
        ({"primary": PRIMARY, "equivalence": 0}, "'equivalence': Input should be greater than 0"),
    ],
)
def test_a_design_that_cannot_be_followed_is_refused_with_the_reason(tmp_path, design, problem):
    variants = [
        {"method": "dpo"},
        {"method": "dpo", "group": "noisy", "params": "q.yaml"},
        {"method": "ssapo"},
    ]
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"params": "p.yaml", "variants": variants} | SEEDS | design))
    with pytest.raises(ValueError, match=rf"(?s)mine\.yaml is not a study.*{problem}"):
        find_study(path)


def test_a_look_keeps_the_design_and_takes_the_first_seeds(tmp_path):
    path = tmp_path / "mine.yaml"
    variants = [{"method": "dpo"}, {"method": "ssapo"}]
    path.write_text(json.dumps({"params": "p.yaml", "variants": variants, "primary": PRIMARY} | SEEDS))
    study = find_study(path)
    assert study.primary.control == ["dpo"]
    assert study.first(10).seeds == study.seeds[:10]
    assert study.first(10).looks == [10, 20]
    assert study.first(None) == study


def test_a_study_that_is_not_there_is_answered_with_those_that_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"adversary\.yaml.*wrong-labels\.yaml"):
        find_study("params/studies/adversity.yaml")


def test_methods_side_by_side_are_a_study_without_a_file():
    study = study_of("params/study.yaml", [0, 1], ["spa", "ssapo"], {"beta": 0.2})
    assert isinstance(study, Study)
    assert study.variants[1] == Variant(method="ssapo", overrides={"beta": 0.2})
    assert study_of("params/study.yaml", [0, 1], ["spa", "ssapo"], '{"beta": 0.2}') == study


def test_a_study_file_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("params: p.yaml\nseeds: [0]\nvariants: [{method: dpo}]\nseeds: [1]\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*'seeds' is given on line 2 and again on line 4"):
        find_study(path)
