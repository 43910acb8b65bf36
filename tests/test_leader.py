import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import DPOConfig, DPOTrainer

from sgpo_lib.leader import WeightedDPOTrainer, train, transport_rows, with_references
from sgpo_lib.params import LoraParams, ModelParams, TrainingParams
from sgpo_lib.policy import Policy

BETA = 0.1
TRAINING = TrainingParams(learning_rate=1e-2, num_train_epochs=3, per_device_train_batch_size=4, max_length=128)


def _logistic(margins):
    return np.logaddexp(0, -margins)


def _pairs(n: int, rng: np.random.Generator) -> pd.DataFrame:
    columns = ["ref_chosen_logps", "ref_rejected_logps", "chosen_log_prob", "rejected_log_prob"]
    return pd.DataFrame(rng.normal(-50, 5, (n, 4)), columns=columns)


def _margins(rows: pd.DataFrame) -> np.ndarray:
    gained = rows["chosen_log_prob"] - rows["ref_chosen_logps"]
    return (BETA * (gained - rows["rejected_log_prob"] + rows["ref_rejected_logps"])).to_numpy()


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.floats(0, 5)), min_size=1, max_size=20))
def test_weighted_loss_over_the_rows_is_the_expected_loss_under_the_worst_case(worst):
    moved, displacement = np.array(worst).T
    pairs = _pairs(len(worst), np.random.default_rng(0))
    rows = transport_rows(pairs, moved, displacement, BETA)
    margins = _margins(pairs)
    expected = np.mean((1 - moved) * _logistic(margins) + moved * _logistic(margins - displacement))
    assert np.mean(rows["weight"] * _logistic(_margins(rows))) == pytest.approx(expected, rel=1e-9)
    assert rows["weight"].mean() == pytest.approx(1)


def test_an_idle_follower_leaves_plain_dpo_rows():
    pairs = _pairs(5, np.random.default_rng(1))
    rows = transport_rows(pairs, np.zeros(5), np.zeros(5), BETA)
    pd.testing.assert_frame_equal(rows, pairs.assign(weight=1.0))


def test_references_are_the_answering_policy_or_the_sft_model():
    pairs = _pairs(3, np.random.default_rng(2)).drop(columns=["ref_chosen_logps", "ref_rejected_logps"])
    pairs = pairs.assign(chosen_reference_log_prob=-1.0, rejected_reference_log_prob=-2.0)
    assert (with_references(pairs, "previous")["ref_chosen_logps"] == pairs["chosen_log_prob"]).all()
    assert (with_references(pairs, "initial")["ref_rejected_logps"] == -2.0).all()


@pytest.fixture
def policy(tiny_model) -> Policy:
    lora = LoraParams(r=4, lora_alpha=8)
    return Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=lora))


def _conversations(n: int) -> list[dict]:
    def assistant(text):
        return [{"role": "assistant", "content": text}]

    topics = ["rain", "late trains", "goldfish", "a long walk", "old friends", "cold soup"]
    return [
        {
            "prompt": [{"role": "user", "content": f"Write about {topics[i % 6]}."}],
            "chosen": assistant(f"I love {topics[i % 6]}, really."),
            "rejected": assistant("No."),
        }
        for i in range(n)
    ]


def _trainer(kind, policy, rows, tmp_path, **kwargs):
    policy.make_trainable(0)
    config = DPOConfig(str(tmp_path), beta=BETA, bf16=False, use_cpu=True, report_to="none", **kwargs)
    model, tokenizer = policy.model, policy.tokenizer
    trainer = kind(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a fresh adapter changes nothing, and all margins would be 0
        for name, weight in model.named_parameters():
            if "lora_B.default" in name:
                weight.normal_(std=0.5, generator=generator)
    return trainer


def _loss_and_gradient(trainer) -> tuple[float, torch.Tensor]:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    gradients = [w.grad.flatten() for n, w in trainer.model.named_parameters() if w.grad is not None and "default" in n]
    return loss.item(), torch.cat(gradients)


def test_unit_weights_give_the_loss_and_gradient_of_stock_trl(tiny_model, tmp_path):
    results = []
    for kind, weight in ((DPOTrainer, None), (WeightedDPOTrainer, 1.0)):
        lora = LoraParams(r=4, lora_alpha=8)
        policy = Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=lora))
        rows = [row | ({} if weight is None else {"weight": weight}) for row in _conversations(6)]
        results.append(_loss_and_gradient(_trainer(kind, policy, rows, tmp_path, per_device_train_batch_size=6)))
    (stock, stock_gradient), (ours, our_gradient) = results
    assert ours == pytest.approx(stock, rel=1e-5)
    assert ours != pytest.approx(np.log(2), rel=1e-3)
    torch.testing.assert_close(our_gradient, stock_gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_of_weight_times_loss(policy, tmp_path):
    rows = [row | {"weight": float(i)} for i, row in enumerate(_conversations(4))]
    trainer = _trainer(WeightedDPOTrainer, policy, rows, tmp_path, per_device_train_batch_size=4)
    together, _ = _loss_and_gradient(trainer)
    trainer.model.eval()
    alone = []
    for row in trainer.train_dataset:
        batch = trainer._prepare_inputs(trainer.data_collator([row | {"weight": 1.0}]))
        alone.append(trainer.compute_loss(trainer.model, batch).item())
    assert together == pytest.approx(np.mean([i * loss for i, loss in enumerate(alone)]), rel=1e-5)


def test_another_loss_than_sigmoid_is_refused(policy, tmp_path):
    with pytest.raises(ValueError, match=r"sigmoid.*ipo"):
        _trainer(WeightedDPOTrainer, policy, _conversations(2), tmp_path, loss_type=["ipo"])


def _rows(policy: Policy, n: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    ids = [[rng.integers(2, 500, size).tolist() for _ in range(n)] for size in (12, 6, 4)]
    rows = pd.DataFrame(dict(zip(["prompt_ids", "chosen_ids", "rejected_ids"], ids, strict=True)))
    from sgpo_lib.annotation import rescore

    return with_references(rescore(policy, rows), "previous").assign(weight=1.0)


def test_training_opens_the_margins_and_lowers_the_loss(policy):
    log = train(policy, _rows(policy), TRAINING, BETA, seed=0)
    assert log["loss"].iloc[0] == pytest.approx(np.log(2), abs=1e-3)
    assert log["rewards/margins"].iloc[-1] > 0.01
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]


def test_the_same_seed_trains_the_same_adapter(tiny_model):
    weights = []
    for _ in range(2):
        lora = LoraParams(r=4, lora_alpha=8)
        policy = Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=lora))
        train(policy, _rows(policy), TRAINING, BETA, seed=7)
        weights.append({n: w.clone() for n, w in policy.model.named_parameters() if ".default." in n})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
