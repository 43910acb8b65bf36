"""Memory that answering, scoring and training take."""

from sgpo_lib.params.schema import Params
from sgpo_lib.params.training import TrainingParams
from sgpo_lib.plan.machines import Machine
from sgpo_lib.plan.shape import Shape
from sgpo_lib.plan.stages import Lengths


def memory(
    params: Params, shape: Shape, machine: Machine, lengths: Lengths, other_checkpointing: bool = False
) -> dict[str, dict[str, float]]:
    """Bytes per device at the peak, by what they are for, of "answering" (generation and scoring), "seed" and "leader".

    Parameters
    ----------
    other_checkpointing : gradient checkpointing as the params do not have it.
    """
    own = lengths.max_prompt + lengths.max_response
    longest = {"seed": own if params.gold else params.seed_dpo.max_length, "leader": own}
    trainings = {"seed": params.seed_dpo, "leader": params.leader}
    return {"answering": _answering_memory(params, shape, lengths)} | {
        name: _training_memory(
            shape,
            machine,
            training,
            min(longest[name], training.max_length),
            training.gradient_checkpointing != other_checkpointing,
        )
        for name, training in trainings.items()
    }


def _answering_memory(params: Params, shape: Shape, lengths: Lengths) -> dict[str, float]:
    """Nothing is sharded here. With all weights trained, the SFT model waits in host memory, and all is float32."""
    rows, vocab, full = params.generation.batch_size, shape.config.vocab_size, shape.params.lora is None
    width = 4 if full else shape.dtype.itemsize
    wider = width / shape.dtype.itemsize
    scored = max(1024, lengths.max_response)  # positions whose logits scoring holds at once
    widened = params.model.scoring_dtype == "float32" and width < 4
    return {
        "weights": shape.total * 4 if full else shape.frozen_bytes + shape.trainable * 4,
        "float32 copy for scoring": (shape.total - shape.trainable) * 4 if widened else 0,
        "KV cache": rows * (lengths.max_prompt + lengths.max_response) * shape.cache_bytes * wider,
        "activations": wider * shape.passing_bytes(max(rows * lengths.max_prompt, scored)),
        "logits": max(16 * rows, (width + 8) * scored) * vocab,
    }


def _training_memory(
    shape: Shape, machine: Machine, training: TrainingParams, longest: int, checkpointing: bool
) -> dict[str, float]:
    """Fully sharded: float32 master weights where all are trained, else frozen ones in the type of the products."""
    n, full = machine.n, shape.params.lora is None
    sequences = 2 * training.per_device_train_batch_size
    tokens = sequences * longest
    # While gradients accumulate, sharded training does not exchange them, and each device keeps them all.
    shards_of_gradients = n if training.gradient_accumulation_steps == 1 else 1
    working = shape.passing_bytes(tokens)
    if n > 1:  # two layers gathered, a layer's gradients, and embedding and head with their gradients
        outside = shape.total - shape.layer * shape.config.num_hidden_layers
        working += (4 if full else shape.dtype.itemsize) * (3 * shape.layer + 2 * outside)
    tile = min(4096, tokens) * min(32768, shape.config.vocab_size)  # of TRL's fused head
    parts = {
        "weights": (4 * shape.trainable + shape.frozen_bytes) / n,
        "gradients": 4 * shape.trainable / shards_of_gradients,
        "optimiser": 8 * shape.trainable / n,
        "activations": shape.activation_bytes(sequences, longest, checkpointing),
        "logits": tile * (2 if machine.is_gpu else 14) + (4 * shape.head if full else 0),
        "working": working,
    }
    # AdamW's own step needs a copy of what it updates, when the activations are gone.
    passing = parts["activations"] + parts["logits"] + parts["working"]
    parts["working"] += max(0, 4 * shape.trainable / n - passing)
    return parts
