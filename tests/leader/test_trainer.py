"""The trainers on their own: TRL's losses wherever TRL trains, and nothing ignored without a word."""

import dataclasses

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM, TrainingArguments
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from sgpo_lib.leader import LOSS_COLUMNS, KnownReferencesTrainer, WeightedDPOTrainer
from sgpo_lib.leader.losses import dr_dpo_loss
from sgpo_lib.leader.packed_batches import pairs_in
from sgpo_lib.leader.packing import PackingError, pack
from sgpo_lib.leader.step_order import SortedWithinSteps
from sgpo_lib.leader.trainer import _HONOURED_OPTIONS

BOTH = pytest.mark.parametrize("kind", [KnownReferencesTrainer, WeightedDPOTrainer])
TEXTS = [
    {"prompt": "What of rain?", "chosen": " I love it, really.", "rejected": " No."},
    {"prompt": "What of late trains?", "chosen": " They teach patience.", "rejected": " Nothing."},
    {"prompt": "What of goldfish?", "chosen": " Quiet friends.", "rejected": " They are cold and wet."},
]
TOKENS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 1], "rejected_ids": [10, 1]},
    {"prompt_ids": [11, 12], "chosen_ids": [13, 1], "rejected_ids": [14, 15, 16, 1]},
]


def _trainer(kind, model, rows, folder, collator=None, batch_loss=None, **options):
    rows = rows if isinstance(rows, IterableDataset) else Dataset.from_list(rows)
    options = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "max_steps": 3} | options
    config = DPOConfig(str(folder), bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, **options)
    given = {"model": str(model), "args": config, "data_collator": collator, "train_dataset": rows}
    return kind(**given) if batch_loss is None else kind(**given, batch_loss=batch_loss)


def _losses(*args, **kwargs) -> list[float]:
    trainer = _trainer(*args, **kwargs)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def tiny_moe(tiny_model, tmp_path_factory):
    """Folder of a mixture of experts with random weights, and the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "moe"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(folder)
    return folder


WITHOUT_PROMPT_TOKENS = {
    "empty prompt": ([TEXTS[0] | {"prompt": ""}, *TEXTS[1:]], {}),
    "nothing shared in an implicit prompt": (
        [{"chosen": "I love it, really.", "rejected": "No."}, {"chosen": "Patience.", "rejected": "Nothing."}],
        {},
    ),
    "cut from the start": (TEXTS, {"max_length": 4, "truncation_mode": "keep_end"}),
    "answers of one token": ([{"prompt": "", "chosen": "<|im_end|>", "rejected": "<|im_end|>"}] * 2, {}),
}


@BOTH
@pytest.mark.parametrize("case", WITHOUT_PROMPT_TOKENS)
def test_pairs_without_prompt_tokens_have_stock_trls_losses(kind, case, tiny_model, tmp_path):
    rows, options = WITHOUT_PROMPT_TOKENS[case]
    stock = _losses(DPOTrainer, tiny_model, rows, tmp_path, **options)
    np.testing.assert_allclose(_losses(kind, tiny_model, rows, tmp_path, **options), stock, rtol=1e-4)


@BOTH
def test_streamed_rows_have_stock_trls_losses(kind, tiny_model, tmp_path):
    def stream():
        return IterableDataset.from_generator(lambda: iter(TEXTS * 2))

    assert stream().column_names is None
    stock = _losses(DPOTrainer, tiny_model, stream(), tmp_path)
    np.testing.assert_allclose(_losses(kind, tiny_model, stream(), tmp_path), stock, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("coefficient", [None, 0.5, 0.0])
def test_a_mixture_of_experts_has_stock_trls_router_loss(kind, coefficient, tiny_moe, tmp_path):
    options = {"router_aux_loss_coef": coefficient}
    stock = _losses(DPOTrainer, tiny_moe, TEXTS, tmp_path, **options)
    assert coefficient != 0.5 or stock[0] > 1
    np.testing.assert_allclose(_losses(kind, tiny_moe, TEXTS, tmp_path, **options), stock, rtol=1e-4)


@BOTH
def test_rows_that_are_tokens_already_have_the_losses_of_their_text(kind, tiny_model, tmp_path):
    from_text = _trainer(kind, tiny_model, TEXTS, tmp_path)
    tokens = [{key: row[key] for key in TOKENS[0]} for row in from_text.train_dataset]
    assert _losses(kind, tiny_model, tokens, tmp_path) == _losses(kind, tiny_model, TEXTS, tmp_path)


@BOTH
def test_tokens_whose_prompt_fills_max_length_are_left_out_with_a_warning(kind, tiny_model, tmp_path):
    rows = [*TOKENS, {"prompt_ids": [5] * 8, "chosen_ids": [6], "rejected_ids": [7]}]
    with pytest.warns(UserWarning, match=r"1 of 3 rows of the train data.*max_length=8"):
        trainer = _trainer(kind, tiny_model, rows, tmp_path, max_length=8)
    assert trainer.train_dataset.to_list() == TOKENS


@BOTH
def test_a_users_own_collator_makes_the_batches(kind, tiny_model, tmp_path):
    class Reversing(DataCollatorForPreference):
        def torch_call(self, examples):
            swapped = {"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"}
            return super().torch_call([{swapped.get(k, k): v for k, v in row.items()} for row in examples])

    stock, ours = (_losses(k, tiny_model, TOKENS, tmp_path, collator=Reversing(1)) for k in (DPOTrainerOnTokens, kind))
    np.testing.assert_allclose(ours, stock, rtol=1e-4)


class DPOTrainerOnTokens(DPOTrainer):
    """Stock TRL but for its tokenisation."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


@BOTH
def test_a_users_metrics_are_computed_from_stock_trls_logits(kind, tiny_model, tmp_path):
    seen = []
    for trainer_class in (DPOTrainer, kind):
        trainer = _trainer(trainer_class, tiny_model, TEXTS, tmp_path)
        trainer.compute_metrics = lambda predictions: {"mean": float(predictions.predictions.mean())}
        seen.append(trainer.evaluate(Dataset.from_list(TEXTS))["eval_mean"])
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)


def test_images_are_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="train data has images"):
        _trainer(WeightedDPOTrainer, tiny_model, [row | {"image": "a.png"} for row in TEXTS], tmp_path)


def test_the_loss_is_that_of_its_four_columns(tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    numbers = {
        "loss_weight": rng.uniform(0, 2, 3),
        "loss_slope": rng.normal(size=3),
        "loss_moved": np.array([0.0, 0.25, 1.0]),
        "loss_displacement": rng.uniform(0, 3, 3),
        "ref_chosen_logps": rng.normal(-10, 5, 3),
        "ref_rejected_logps": rng.normal(-10, 5, 3),
    }
    rows = [row | {name: values[i] for name, values in numbers.items()} for i, row in enumerate(TEXTS)]
    margins = [
        _trainer(
            WeightedDPOTrainer, tiny_model, [{k: v for k, v in row.items() if k not in LOSS_COLUMNS}], tmp_path
        ).evaluate(Dataset.from_list([{k: v for k, v in row.items() if k not in LOSS_COLUMNS}]))["eval_rewards/margins"]
        for row in rows
    ]
    weight, slope, moved, displacement = list(numbers.values())[:4]
    low = np.logaddexp(0, displacement - margins)
    expected = weight * ((1 - moved) * np.logaddexp(0, -np.array(margins)) + moved * low) + slope * margins
    at_once = {"per_device_train_batch_size": 3, "max_steps": 1}
    assert _losses(WeightedDPOTrainer, tiny_model, rows, tmp_path, **at_once)[0] == pytest.approx(
        expected.mean(), rel=1e-4
    )


def test_no_other_column_enters_the_loss(tiny_model, tmp_path):
    rows = [row | {"slope": 3.0, "moved": 1.0, "displacement": 2.0, "price": 1.0} for row in TEXTS]
    plain = _losses(WeightedDPOTrainer, tiny_model, TEXTS, tmp_path)
    assert _losses(WeightedDPOTrainer, tiny_model, rows, tmp_path) == plain


def test_weights_under_another_name_are_not_ignored(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="rename_column"):
        _trainer(WeightedDPOTrainer, tiny_model, [row | {"weight": 2.0} for row in TEXTS], tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("loss_weight", float("nan")),
        ("loss_weight", float("inf")),
        ("loss_weight", -1.0),
        ("loss_weight", None),
        ("loss_slope", float("nan")),
        ("loss_moved", 1.5),
        ("loss_displacement", float("-inf")),
        ("ref_chosen_logps", float("nan")),
    ],
)
def test_a_number_that_cannot_be_trained_with_is_refused_naming_its_row(column, value, tiny_model, tmp_path):
    others = {"ref_rejected_logps": -1.0} if column == "ref_chosen_logps" else {}
    rows = [row | others | {column: 1.0} for row in TEXTS[:2]] + [TEXTS[2] | others | {column: value}]
    with pytest.raises(ValueError, match=rf"Row 2 of the train data has {column}={value}"):
        _trainer(WeightedDPOTrainer, tiny_model, rows, tmp_path)
    with pytest.raises(ValueError, match=rf"Row 2 of the eval data has {column}={value}"):
        _trainer(WeightedDPOTrainer, tiny_model, TEXTS, tmp_path).evaluate(Dataset.from_list(rows))


def test_a_streamed_number_that_cannot_be_trained_with_is_refused_before_its_step(tiny_model, tmp_path):
    rows = [row | {"loss_weight": weight} for row, weight in zip(TEXTS, [1.0, float("nan"), 1.0], strict=True)]
    trainer = _trainer(WeightedDPOTrainer, tiny_model, IterableDataset.from_generator(lambda: iter(rows)), tmp_path)
    with pytest.raises(ValueError, match="Row 1 of the train data has loss_weight=nan"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_weights_that_a_batch_loss_would_ignore_are_refused(tiny_model, tmp_path):
    rows = [row | {"loss_weight": 2.0} for row in TEXTS]
    with pytest.raises(ValueError, match=r"Row 0 of the train data has loss_weight=2.0.*from 1 to 1"):
        _trainer(WeightedDPOTrainer, tiny_model, rows, tmp_path, batch_loss=lambda x: dr_dpo_loss(x, 1.0))


def test_every_option_of_dpo_is_honoured_or_refused(tiny_model, tmp_path):
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {field.name for field in dataclasses.fields(DPOConfig)} - inherited
    assert own >= _HONOURED_OPTIONS
    for option in own - _HONOURED_OPTIONS:
        config = DPOConfig(str(tmp_path), use_cpu=True, bf16=False)
        setattr(config, option, "another value")
        with pytest.raises(ValueError, match=f"would ignore {option}="):
            WeightedDPOTrainer(model=str(tiny_model), args=config, train_dataset=Dataset.from_list(TEXTS))


def test_an_option_that_a_later_trl_adds_is_refused(tiny_model, tmp_path):
    @dataclasses.dataclass
    class LaterConfig(DPOConfig):
        margin_bonus: float = 0.0

    config = LaterConfig(str(tmp_path), use_cpu=True, bf16=False, margin_bonus=0.5)
    with pytest.raises(ValueError, match="ignore margin_bonus"):
        WeightedDPOTrainer(model=str(tiny_model), args=config, train_dataset=Dataset.from_list(TEXTS))


def _with_references(rows: list[dict]) -> list[dict]:
    return [row | {"ref_chosen_logps": -30.0, "ref_rejected_logps": -10.0} for row in rows]


@BOTH
@pytest.mark.parametrize("loaded", [True, False])
def test_known_references_are_used_and_no_reference_model_is_loaded(kind, loaded, tiny_model, tmp_path, monkeypatch):
    policy = AutoModelForCausalLM.from_pretrained(tiny_model) if loaded else str(tiny_model)
    load = dpo_trainer.create_model_from_path
    paths = []
    monkeypatch.setattr(dpo_trainer, "create_model_from_path", lambda path, **o: paths.append(path) or load(path, **o))
    config = DPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_steps=1, logging_steps=1)
    trainer = kind(
        model=policy,
        args=config,
        train_dataset=Dataset.from_list(_with_references(TEXTS)),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    assert len(paths) == (not loaded)
    assert trainer.ref_model is None
    assert not config.precompute_ref_log_probs  # the caller's own stays as it is
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] != pytest.approx(np.log(2), abs=0.1)


@BOTH
def test_data_beside_known_references_is_scored_before_training(kind, tiny_model, tmp_path):
    trainer = _trainer(kind, tiny_model, _with_references(TEXTS), tmp_path)
    assert trainer.evaluate(Dataset.from_list(TEXTS))["eval_loss"] == pytest.approx(np.log(2), abs=1e-4)


@BOTH
def test_data_with_references_can_be_evaluated_after_training(kind, tiny_model, tmp_path):
    trainer = _trainer(kind, tiny_model, _with_references(TEXTS), tmp_path)
    dataset = Dataset.from_list(_with_references(TEXTS))
    before = trainer.evaluate(dataset)
    trainer.train()
    after = trainer.evaluate(dataset)
    assert after["eval_loss"] < before["eval_loss"] - 0.01


@BOTH
def test_half_known_references_are_refused(kind, tiny_model, tmp_path):
    rows = [row | {"ref_chosen_logps": -30.0} for row in TEXTS]
    with pytest.raises(ValueError, match="`ref_rejected_logps` is missing"):
        _trainer(kind, tiny_model, rows, tmp_path)


@BOTH
def test_known_references_and_a_reference_model_are_refused(kind, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="leave out one"):
        kind(
            model=str(tiny_model),
            ref_model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list(_with_references(TEXTS)),
        )


def _packed_and_padded(monkeypatch, *args, **kwargs) -> list[list[float]]:
    """Losses with prompts shared and without, and proof that the first were."""
    calls = []
    monkeypatch.setattr("sgpo_lib.leader.trainer.pack", lambda *rows: calls.append(rows) or pack(*rows))
    packed = _losses(*args, **kwargs)
    assert calls
    monkeypatch.setattr("sgpo_lib.leader.trainer.pairs_in", lambda batch: None)
    n_calls = len(calls)
    padded = _losses(*args, **kwargs)
    assert len(calls) == n_calls
    return [packed, padded]


@pytest.mark.parametrize("batch_loss", [None, lambda margins: dr_dpo_loss(margins, 1.0)], ids=["weighted", "dr-dpo"])
def test_packed_batches_have_the_losses_of_padded_ones(batch_loss, tiny_model, tmp_path, monkeypatch):
    packed, padded = _packed_and_padded(
        monkeypatch, WeightedDPOTrainer, tiny_model, TEXTS, tmp_path, batch_loss=batch_loss, max_steps=6
    )
    np.testing.assert_allclose(packed, padded, rtol=1e-4)
    assert len(set(packed)) > 1


def test_a_model_that_does_not_honour_packed_rows_is_trained_on_padded_ones_and_says_so_once(
    tiny_model, tmp_path, monkeypatch
):
    def fails(*_):
        raise PackingError("its packed log-probabilities are off by 4")

    monkeypatch.setattr("sgpo_lib.leader.trainer.pairs_in", lambda batch: None)
    padded = _losses(WeightedDPOTrainer, tiny_model, TEXTS, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("sgpo_lib.leader.packed_batches.check_packed", fails)
    with pytest.warns(UserWarning, match="off by 4") as warned:
        assert _losses(WeightedDPOTrainer, tiny_model, TEXTS, tmp_path) == padded
    assert sum("off by 4" in str(warning.message) for warning in warned) == 1


def test_autocast_weights_of_the_check_do_not_keep_gradients_from_the_step(tiny_model, tmp_path):
    config = DPOConfig(str(tmp_path), bf16=True, use_cpu=True, report_to="none", per_device_train_batch_size=3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made = WeightedDPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(TEXTS), processing_class=tokenizer
    )
    batch = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    made.compute_loss(made.model, batch).backward()
    assert not [name for name, weight in made.model.named_parameters() if weight.grad is None]


def test_pairs_of_two_prompts_or_of_none_are_not_packed():
    def batch(*rows):
        ids, masks, of_answer = zip(*rows, strict=True)
        columns = {"input_ids": ids, "attention_mask": masks, "completion_mask": of_answer}
        return {name: torch.tensor(values) for name, values in columns.items()}

    chosen = ([5, 6, 7, 8], [1, 1, 1, 1], [0, 0, 1, 1])
    rejected = ([5, 6, 9, 0], [1, 1, 1, 0], [0, 0, 1, 0])
    assert pairs_in(batch(chosen, rejected)) == ([[5, 6]], [[[7, 8], [9]]])
    for other in (
        ([5, 4, 9, 0], [1, 1, 1, 0], [0, 0, 1, 0]),  # another prompt
        ([9, 9, 9, 0], [1, 1, 1, 0], [1, 1, 1, 0]),  # no prompt
        ([5, 6, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]),  # no answer
        ([5, 6, 9, 6], [1, 1, 1, 1], [0, 0, 1, 0]),  # an answer that does not end the text
    ):
        assert pairs_in(batch(chosen, other)) is None


def _step(tiny_model, folder, rows) -> tuple[WeightedDPOTrainer, torch.Tensor]:
    """A trainer after one step of two batches, and what the step added to all weights."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": 0.0}
    trainer = _trainer(WeightedDPOTrainer, tiny_model, rows, folder, optim="sgd", **options)
    before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    trainer.train()
    return trainer, torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before


def test_rows_of_a_step_come_by_length_and_change_weights_as_in_any_order(tiny_model, tmp_path, monkeypatch):
    rows = [{"prompt_ids": [5] * n, "chosen_ids": [8, 9 + n, 1], "rejected_ids": [10 + n, 1]} for n in (7, 2, 9, 4)]
    trainer, change = _step(tiny_model, tmp_path, rows)
    lengths = [len(ids) for ids in trainer.train_dataset["prompt_ids"]]
    assert [lengths[i] for i in trainer._get_train_sampler()] == [2, 4, 7, 9]
    monkeypatch.delattr(WeightedDPOTrainer, "_get_train_sampler")
    _, in_any_order = _step(tiny_model, tmp_path, rows)
    assert in_any_order.norm() > 0
    assert (change - in_any_order).norm() <= 1e-3 * in_any_order.norm()


def test_a_loss_of_whole_batches_keeps_them(tiny_model, tmp_path):
    trainer = _trainer(WeightedDPOTrainer, tiny_model, TOKENS, tmp_path, batch_loss=lambda margins: margins.mean())
    assert not isinstance(trainer._get_train_sampler(), SortedWithinSteps)
