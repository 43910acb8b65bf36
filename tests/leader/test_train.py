"""The leader: rows that carry the worst case, a loss that is TRL's but for the weights, and training that repeats."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from sgpo_lib.annotation import rescore
from sgpo_lib.leader import WeightedDPOTrainer, train, with_references
from sgpo_lib.params import LoraParams, ModelParams, TrainingParams
from sgpo_lib.policy import Policy, sequence_log_probs

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
        rows = [row | ({} if weight is None else {"loss_weight": weight}) for row in _conversations(6)]
        results.append(_loss_and_gradient(_trainer(kind, policy, rows, tmp_path, per_device_train_batch_size=6)))
    (stock, stock_gradient), (ours, our_gradient) = results
    assert ours == pytest.approx(stock, rel=1e-5)
    assert ours != pytest.approx(np.log(2), rel=1e-3)
    torch.testing.assert_close(our_gradient, stock_gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_of_weight_times_loss(policy, tmp_path):
    rows = [row | {"loss_weight": float(i)} for i, row in enumerate(_conversations(4))]
    trainer = _trainer(WeightedDPOTrainer, policy, rows, tmp_path, per_device_train_batch_size=4)
    together, _ = _loss_and_gradient(trainer)
    trainer.model.eval()
    alone = []
    for row in trainer.train_dataset:
        batch = trainer._prepare_inputs(trainer.data_collator([row | {"loss_weight": 1.0}]))
        alone.append(trainer.compute_loss(trainer.model, batch).item())
    assert together == pytest.approx(np.mean([i * loss for i, loss in enumerate(alone)]), rel=1e-5)


def test_another_loss_than_sigmoid_is_refused(policy, tmp_path):
    with pytest.raises(ValueError, match=r"sigmoid.*ipo"):
        _trainer(WeightedDPOTrainer, policy, _conversations(2), tmp_path, loss_type=["ipo"])


def test_options_of_trl_that_would_be_ignored_are_refused(policy, tmp_path):
    for option in ({"f_divergence_type": "js_divergence"}, {"ld_alpha": 0.5}, {"use_weighting": True}):
        with pytest.raises(ValueError, match=next(iter(option))):
            _trainer(WeightedDPOTrainer, policy, _conversations(2), tmp_path, **option)


def test_another_loss_is_refused_also_in_positional_arguments(policy, tmp_path):
    config = DPOConfig(str(tmp_path), loss_type="ipo", use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match="sigmoid"):
        WeightedDPOTrainer(
            policy.model, None, config, None, Dataset.from_list(_conversations(2)), processing_class=policy.tokenizer
        )


def _trained_weights(kind, tiny_model, tmp_path, weights=None):
    lora = LoraParams(r=4, lora_alpha=8)
    policy = Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=lora))
    rows = _conversations(6)
    if weights is not None:
        rows = [row | {"loss_weight": weight} for row, weight in zip(rows, weights, strict=True)]
    trainer = _trainer(kind, policy, rows, tmp_path, per_device_train_batch_size=2, learning_rate=1e-2, max_steps=3)
    trainer.train()
    return torch.cat([w.detach().flatten() for n, w in policy.model.named_parameters() if "default" in n])


def test_training_with_unit_weights_is_training_with_stock_trl(tiny_model, tmp_path):
    stock = _trained_weights(DPOTrainer, tiny_model, tmp_path)
    torch.testing.assert_close(
        _trained_weights(WeightedDPOTrainer, tiny_model, tmp_path, [1.0] * 6), stock, atol=1e-4, rtol=1e-3
    )
    other = _trained_weights(WeightedDPOTrainer, tiny_model, tmp_path, [0.0, 0.0, 0.0, 3.0, 3.0, 0.0])
    assert (other - stock).abs().max() > 1e-2


def test_losses_can_be_evaluated_while_training(policy, tmp_path):
    trainer = _trainer(WeightedDPOTrainer, policy, [row | {"loss_weight": 2.0} for row in _conversations(4)], tmp_path)
    half = trainer.evaluate(Dataset.from_list([row | {"loss_weight": 1.0} for row in _conversations(4)]))["eval_loss"]
    whole = trainer.evaluate(Dataset.from_list([row | {"loss_weight": 2.0} for row in _conversations(4)]))["eval_loss"]
    assert whole == pytest.approx(2 * half, rel=1e-5)


def _rows(policy: Policy, n: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    ids = [[rng.integers(2, 500, size).tolist() for _ in range(n)] for size in (12, 6, 4)]
    rows = pd.DataFrame(dict(zip(["prompt_ids", "chosen_ids", "rejected_ids"], ids, strict=True)))
    return with_references(rescore(policy, rows), "previous").assign(loss_weight=1.0)


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


def test_a_policy_can_be_trained_again_in_the_same_session(policy):
    rows = _rows(policy)
    first, second = (train(policy, rows, TRAINING, BETA, seed=0)["rewards/margins"] for _ in range(2))
    assert second.iloc[0] >= first.iloc[-1] > 0  # it goes on from where it was, a step beyond the last logged margin
    assert second.iloc[-1] > first.iloc[-1]


def test_a_displaced_row_starts_at_minus_its_displacement(policy):
    rows = _rows(policy).assign(loss_moved=[1.0] + [0.0] * 7, loss_displacement=1.6)
    log = train(policy, rows, TRAINING.model_copy(update={"per_device_train_batch_size": 8}), BETA, seed=0)
    assert log["loss"].iloc[0] == pytest.approx((7 * np.log(2) + _logistic(-1.6)) / 8, abs=1e-3)


def test_margins_start_at_0_against_the_previous_policy_and_where_they_were_found_against_the_initial(policy):
    train(policy, _rows(policy), TRAINING, BETA, seed=0)
    pairs = rescore(policy, _rows(policy))
    for side in ("chosen", "rejected"):
        reference = sequence_log_probs(policy, pairs["prompt_ids"], pairs[f"{side}_ids"], reference=True)
        pairs[f"{side}_reference_log_prob"] = reference
    found = BETA * (
        (pairs["chosen_log_prob"] - pairs["chosen_reference_log_prob"])
        - (pairs["rejected_log_prob"] - pairs["rejected_reference_log_prob"])
    )
    assert found.mean() > 0.01
    at_once = TRAINING.model_copy(update={"per_device_train_batch_size": 8, "learning_rate": 1e-9})
    for reference, expected in (("initial", found.mean()), ("previous", 0)):
        log = train(policy, with_references(pairs, reference), at_once, BETA, seed=0)
        assert log["rewards/margins"].iloc[0] == pytest.approx(expected, abs=1e-3)


def test_training_moves_the_margins_that_the_policy_itself_reports(policy):
    rows = _rows(policy)
    train(policy, rows, TRAINING, BETA, seed=0)
    present = rescore(policy, rows)
    gained = present["chosen_log_prob"] - present["rejected_log_prob"]
    before = rows["ref_chosen_logps"] - rows["ref_rejected_logps"]
    assert (gained - before).mean() > 1
    reference = sequence_log_probs(policy, rows["prompt_ids"], rows["chosen_ids"], reference=True)
    np.testing.assert_allclose(reference, rows["ref_chosen_logps"], atol=1e-3)  # the SFT model stays


def test_accumulated_gradients_are_those_of_a_larger_batch(tiny_model):
    adapters = []
    for size, steps in ((4, 1), (2, 2)):
        lora = LoraParams(r=4, lora_alpha=8)
        policy = Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=lora))
        rows = _rows(policy).assign(loss_weight=[0.5, 1.5, 2.0, 0.0, 1.0, 1.0, 1.0, 1.0])
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        train(policy, rows, TRAINING.model_copy(update=sizes), BETA, seed=7)
        adapters.append(torch.cat([w.flatten() for n, w in policy.model.named_parameters() if ".default." in n]))
    torch.testing.assert_close(*adapters, atol=1e-5, rtol=1e-4)


def test_rows_longer_than_max_length_are_refused_because_their_references_are_of_the_whole(policy):
    rows = _rows(policy)  # 12 + 6 tokens
    train(policy, rows, TRAINING.model_copy(update={"max_length": 18}), BETA, seed=0)
    with pytest.raises(ValueError, match=r"8 .*max_length"):
        train(policy, rows, TRAINING.model_copy(update={"max_length": 17}), BETA, seed=0)


def test_all_weights_are_trained_without_another_copy_of_the_model(tiny_model, monkeypatch):
    policy = Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=None))
    rows = _rows(policy)
    monkeypatch.setattr(dpo_trainer, "create_model_from_path", lambda *_, **__: pytest.fail("loads a reference"))
    log = train(policy, rows, TRAINING.model_copy(update={"learning_rate": 1e-3}), BETA, seed=0)
    assert log["rewards/margins"].iloc[-1] > 0.01
    assert all(weight.requires_grad for weight in policy.model.parameters())
