"""What the tests of saved policies share: one of each kind, changed as a training would change it."""

import pytest
from small_model import changed_policy


def changed_and_saved(tiny_model, folder, lora):
    """Save a policy of the tiny model whose trained weights are moved by seeded noise."""
    policy = changed_policy(tiny_model, lora, 0.3 if lora else 0.03)
    policy.save(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tiny_model, tmp_path_factory):
    """Folder of a saved adapter on the tiny model."""
    from sgpo_lib.params import LoraParams

    return changed_and_saved(tiny_model, tmp_path_factory.mktemp("policies") / "adapter", LoraParams(r=4, lora_alpha=8))


@pytest.fixture(scope="session")
def whole(tiny_model, tmp_path_factory):
    """Folder of a saved policy all of whose weights were trained."""
    return changed_and_saved(tiny_model, tmp_path_factory.mktemp("policies") / "whole", None)
