"""What the tests of saved policies share: one of each kind, changed as a training would change it."""

import pytest


def changed_and_saved(tiny_model, folder, lora):
    """Save a policy of the tiny model whose trained weights are moved by seeded noise."""
    import torch

    from sgpo_lib.params import ModelParams
    from sgpo_lib.policy import Policy

    policy = Policy.load(ModelParams(name_or_path=str(tiny_model), device="cpu", dtype="float32", lora=lora))
    policy.make_trainable(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += (0.3 if lora else 0.03) * torch.randn(parameter.shape, generator=generator)
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
