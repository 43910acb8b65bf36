"""Params of runs that take seconds."""

from pathlib import Path

import yaml


def write_tiny_params(root: Path, model: Path) -> Path:
    """Write a complete params file for a tiny model to `root/params/`; its runs land in `root/runs/`."""
    training = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_length": 128, "warmup_steps": 0}
    values = {
        "model": {
            "name_or_path": str(model),
            "device": "cpu",
            "dtype": "float32",
            "lora": {"r": 4, "lora_alpha": 8},
        },
        "data": {"source": "builtin", "n_seed": 8, "n_prompts": [4, 4], "n_evaluation": 5, "reshuffle": True},
        "beta": 0.1,
        "generation": {"temperature": 1.0, "max_new_tokens": 8, "max_prompt_length": 96, "batch_size": 8},
        "gold": {"word_limit": 1, "word_penalty": 0.1},
        "seed_dpo": {**training, "num_train_epochs": 2},
        "follower": {"radius": 0.01, "support": {"rule": "range", "tau": 0.1}},
        "leader": {**training, "accumulate": False},
        "evaluation": {"confidence": 0.95, "n_bootstrap": 200},
    }
    path = root / "params" / "tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
