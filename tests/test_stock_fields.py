"""Stock's flags: each is used, or refused by name in one sentence before anything is computed; none asks the test."""

import dataclasses
import importlib.util

import pytest
import torch
from tiny import LABELS
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments
from lascl.train import main
from lascl.training.recipe import parse_recipe


STOCK = {field.name: field for field in dataclasses.fields(TrainingArguments)}
# A value that asks for something, of each field that LaSCL refuses everywhere ...
REFUSED = {
    "accelerator_config": {"split_batches": True},
    "auto_find_batch_size": True,
    "average_tokens_across_devices": False,
    "dataloader_drop_last": True,
    "group_by_length": True,
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels", "speakers"],
    "label_smoothing_factor": 0.1,
    "length_column_name": "duration_s",
    "liger_kernel_config": {"rope": True},
    "logging_nan_inf_filter": True,
    "neftune_noise_alpha": 5.0,
    "optim_target_modules": "all-linear",
    "parallelism_config": {"tp_size": 2},
    "remove_unused_columns": True,
    "train_sampling_strategy": "group_by_length",
    "use_cache": True,
    "use_liger_kernel": True,
}
# ... and of those that `train.py` does not act by.
NOT_IN_RECIPES = {
    "batch_eval_metrics": "true",
    "bf16_full_eval": "true",
    "do_eval": "true",
    "do_predict": "true",
    "do_train": "true",
    "enable_jit_checkpoint": "true",
    "eval_do_concat_batches": "false",
    "eval_use_gather_object": "true",
    "fp16_full_eval": "true",
    "greater_is_better": "false",
    "hub_always_push": "true",
    "hub_revision": "main",
    "hub_strategy": "all_checkpoints",
    "hub_token": "abc",
    "ignore_data_skip": "true",
    "include_for_metrics": "inputs",
    "load_best_model_at_end": "true",
    "metric_for_best_model": "test_ua",
    "prediction_loss_only": "true",
    "restore_callback_states_from_checkpoint": "false",
    "resume_from_checkpoint": "/does/not/exist",
    "save_on_each_node": "true",
    "save_only_model": "true",
}


def refusal(action, *args, **kwargs) -> str:
    """What a ValueError or ImportError says; empty if nothing is refused."""
    try:
        action(*args, **kwargs)
    except (ValueError, ImportError) as error:
        return str(error)
    return ""


def test_every_field_of_stock_s_has_a_place():
    """On any version of transformers: a field that is in no table fails here."""
    assert importlib.util.find_spec("lascl.training.stock_fields") is not None
    from lascl.training import stock_fields

    assert stock_fields.unknown_fields() == []
    assert set(REFUSED) == set(stock_fields.REFUSED) and set(NOT_IN_RECIPES) == set(stock_fields.NOT_IN_RECIPES)
    tables = [stock_fields.USED, stock_fields.CHECKED - set(NOT_IN_RECIPES), stock_fields.PUBLISHING, REFUSED]
    tables.append(NOT_IN_RECIPES)
    assert sum(map(len, tables)) == len(set().union(*tables))  # each in one


@pytest.mark.parametrize("name", [name for name in REFUSED if name in STOCK])
def test_what_nothing_acts_by_is_refused(name, tmp_path):
    said = refusal(LaSCLTrainingArguments, str(tmp_path), use_cpu=True, **{name: REFUSED[name]})
    assert said.startswith(f"{name} is not used here: ") and "\n" not in said, said


@pytest.mark.parametrize("name", [name for name in NOT_IN_RECIPES if name in STOCK])
def test_what_train_py_does_not_act_by_is_refused(name):
    said = refusal(parse_recipe, ["emodb", f"--{name}", NOT_IN_RECIPES[name]])
    assert said.startswith(name) and "\n" not in said and "abc" not in said, said


def test_defaults_and_copies_are_not_refused(tmp_path):
    args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True, gradient_accumulation_steps=2)
    again = dataclasses.replace(args, learning_rate=0.5)
    assert (again.per_device_train_batch_size, again.learning_rate) == (args.per_device_train_batch_size, 0.5)
    for name, field in STOCK.items():
        made = field.default is dataclasses.MISSING
        default = getattr(LaSCLTrainingArguments(str(tmp_path), use_cpu=True), name)
        assert made or name in vars(args), (name, default)


def test_a_batch_size_a_process_is_derived_and_never_replaced(tmp_path):
    """8 is stock's default: given, it was taken for not given, and became 32."""
    said = refusal(LaSCLTrainingArguments, str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    assert "per_device_train_batch_size is derived from global_batch_size (32 here); found 8" in said
    given = {"per_device_train_batch_size": 8, "global_batch_size": 8}
    assert LaSCLTrainingArguments(str(tmp_path), use_cpu=True, **given).train_batch_size == 8


@pytest.fixture(scope="module")
def command(emodb_like, audio_encoders, text_encoder):
    return [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--disable_tqdm", "true"),
        *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--folds", "1"),
        *("--num_train_epochs", "1", "--augmentation", "gain"),
    ]


BY_THE_TEST = {
    "the best by test": ("--load_best_model_at_end", "true", "--metric_for_best_model", "test_ua"),
    "the best by stock's loss": ("--load_best_model_at_end", "true"),
    "its direction": ("--metric_for_best_model", "test_ua", "--greater_is_better", "true"),
    "saving": ("--save_strategy", "best"),
    "a schedule": ("--lr_scheduler_type", "reduce_lr_on_plateau"),
    "another schedule": ("--lr_scheduler_type", "greedy"),
    "beside a selection": (
        *("--selection", "best_validation", "--validation", "speaker"),
        *("--metric_for_best_model", "test_ua"),
    ),
    "resuming elsewhere": ("--resume_from_checkpoint", "/does/not/exist"),
    "an optimiser": ("--optim", "galore_adamw", "--optim_target_modules", "all-linear"),
}


@pytest.mark.parametrize("options", BY_THE_TEST.values(), ids=BY_THE_TEST)
def test_nothing_is_begun_that_would_choose_by_the_test_or_ignore_a_flag(command, options, tmp_path, capsys):
    code = 0
    try:
        main([*command, *options, "--max_steps", "1", "--output_dir", str(tmp_path / "run")])
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("train.py: ") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (("--metric_for_best_model", "ua"), "set selection: best_validation"),
        (("--lr_scheduler_type", "reduce_lr_on_plateau"), "may be the test's"),
        (("--lr_scheduler_type", "cosine_with_min_lr"), "lr_scheduler_type cosine_with_min_lr does not take"),
        (("--lr_scheduler_kwargs", '{"no_such": 1}'), "lr_scheduler_type cosine does not take"),
        (("--learning_rate", "-1"), "learning_rate must be at least 0"),
        (("--encoder_learning_rate", "-1"), "encoder_learning_rate must be at least 0"),
        (("--adam_beta1", "2"), "Invalid beta parameter at index 0: 2.0"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--num_train_epochs", "0"), "num_train_epochs must be above 0"),
        (("--max_duration_s", "-1"), "max_duration_s must be above 0"),
        (("--per_device_eval_batch_size", "0"), "No batches can be loaded with batch_size 0"),
        (
            ("--dataloader_persistent_workers", "true", "--dataloader_num_workers", "0"),
            "No batches can be loaded with batch_size 8",
        ),
        (("--fp16", "true", "--use_cpu", "true"), "fp16"),
    ],
    ids=lambda value: value[0].removeprefix("--") if isinstance(value, tuple) else "",
)
def test_what_a_training_could_not_begin_with_is_said_before_anything_is_computed(options, said, tmp_path):
    """Before the corpus is read: else it would be a traceback, after minutes of encoding."""

    def begin():
        recipe, run_dir = parse_recipe(["emodb", *options, "--output_dir", str(tmp_path / "run")])
        recipe.training_arguments(run_dir)

    found = refusal(begin)
    assert said in found and "\n" not in found, found


class Utterances(torch.utils.data.Dataset):
    def __init__(self, *ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)


@pytest.fixture(scope="module")
def model(audio_encoders, text_encoder):
    return LaSCLForAudioClassification.from_encoders(
        audio_encoders["wav2vec2-layer"], text_encoder, LABELS, projection_dim=8
    )


WATCHING = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "validation_ua"}
SETS = {
    "a nameless one": (Utterances("a"), "Found one without a name"),
    "the test": ({"test": Utterances("a")}, "Found test."),
    "a part of the test": (
        {"validation": Utterances("a", "b"), "test": Utterances("b")},
        "which has 1 utterances of test, 'b' the first",
    ),
}


@pytest.mark.parametrize("eval_dataset, words", SETS.values(), ids=SETS)
def test_a_trainer_chooses_by_a_validation_alone(model, eval_dataset, words, tmp_path):
    args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True, **WATCHING)
    said = refusal(LaSCLTrainer, model, args, eval_dataset=eval_dataset)
    assert words in said and "\n" not in said, said
    sets = {"validation": Utterances("a"), "test": Utterances("b")}
    trainer = LaSCLTrainer(model, args, eval_dataset=sets)
    assert "chooses by the evaluation" in refusal(trainer.hyperparameter_search)


@pytest.mark.parametrize("metric", ["ua", "test_ua", "eval_test_ua", "loss", None])
@pytest.mark.parametrize("how", [{"load_best_model_at_end": True}, {"lr_scheduler_type": "reduce_lr_on_plateau"}, {}])
def test_arguments_choose_by_a_validation_alone(how, metric, tmp_path):
    if not how and metric is None:
        how = {"save_strategy": "best"}
    values = {"eval_strategy": "epoch", "metric_for_best_model": metric, **how}
    said = refusal(LaSCLTrainingArguments, str(tmp_path), use_cpu=True, **values)
    assert "would choose by" in said and "validation_ua" in said, said
    for name in ("validation_ua", "eval_validation_loss"):
        assert not refusal(
            LaSCLTrainingArguments, str(tmp_path), use_cpu=True, **{**values, "metric_for_best_model": name}
        )


def test_flags_for_scores_of_one_s_own_are_refused_with_ours(model, tmp_path):
    args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True, eval_do_concat_batches=False)
    assert "eval_do_concat_batches is not used here" in refusal(LaSCLTrainer, model, args)
    LaSCLTrainer(model, args, compute_metrics=lambda prediction: {})
    args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True, batch_eval_metrics=True)
    assert "compute_result" in refusal(LaSCLTrainer, model, args)


@pytest.mark.parametrize("optim", [name.value for name in OptimizerNames])
def test_an_optimiser_has_both_rates_or_is_refused_at_once(model, optim, tmp_path):
    """Those of other packages are refused in one sentence where the package is not there."""
    rates = {"encoder_learning_rate": 0.25, "learning_rate": 0.5, "optim_target_modules": None}
    try:
        args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True, optim=optim, **rates)
    except (ValueError, ImportError) as error:
        own_groups = optim.startswith(("galore", "apollo", "lomo", "adalomo"))
        assert ("groups the parameters itself" in str(error)) == own_groups
        return
    assert not optim.startswith(("galore", "apollo", "lomo", "adalomo"))
    trainer = LaSCLTrainer(model, args)
    groups = trainer.create_optimizer().param_groups
    in_encoder = {id(p) for p in model.lascl.audio_encoder.parameters()}
    assert {(float(group["lr"]), id(p) in in_encoder) for group in groups for p in group["params"]} == {
        *((0.25, True), (0.5, False))
    }
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_a_class_that_groups_parameters_itself_is_refused(model, tmp_path):
    args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True)
    for name in ("params", "model", "optimizer_dict"):
        trainer = LaSCLTrainer(model, args, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 1, name: []}))
        assert "groups the parameters itself" in refusal(trainer.create_optimizer)
