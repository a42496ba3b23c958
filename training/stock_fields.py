"""What LaSCL does with each field of `transformers.TrainingArguments`: it is used, or setting it is refused by name.

A flag that is accepted and ignored misleads whoever set it. Every field of stock's stands in one of the tables, also
those that only some versions of transformers have; a test walks the fields of the installed version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


# Stock's Trainer or LaSCL acts by these, in `LaSCLTrainer` and in `train.py`.
USED = {
    *("output_dir", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "warmup_ratio", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "gradient_accumulation_steps", "per_device_eval_batch_size"),
    *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level", "log_level_replica"),
    *("logging_dir", "disable_tqdm", "report_to", "run_name", "project", "debug", "skip_memory_metrics"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "seed", "data_seed", "full_determinism", "use_cpu"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
    *("ddp_backend", "ddp_timeout"),
    "local_rank",  # launchers set it; stock reads it from the environment
}
# Used, but not with every value: `LaSCLTrainingArguments` checks them.
CHECKED = {
    *("per_device_train_batch_size", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("fsdp", "fsdp_config", "deepspeed"),
}
# Nothing acts by these, or not as they say. The remedy completes the sentence.
REFUSED = {
    "accelerator_config": "training batches come from UtteranceBatchSampler, which accelerate does not split",
    "auto_find_batch_size": "a smaller batch is another loss; set contrastive_chunk_size to need less memory",
    "average_tokens_across_devices": "the loss does not count tokens",
    "dataloader_drop_last": "every utterance is trained on once an epoch, and every one is tested",
    "group_by_length": "set bucket_by_length or utterances_per_class",
    "include_num_input_tokens_seen": "audio has no tokens; the log has the share of padding",
    "label_names": "batches have `labels`",
    "label_smoothing_factor": "it would smooth the cross entropy alone; set target_smoothing",
    "length_column_name": "set bucket_by_length, which takes the corpus's duration_s",
    "liger_kernel_config": "there are no such kernels for speech encoders",
    "logging_nan_inf_filter": "a loss that is not finite is logged as it is",
    "neftune_noise_alpha": "audio has no token embeddings to add noise to; set augmentation",
    "optim_target_modules": "the optimisers that want it are refused",
    "parallelism_config": "processes are data-parallel; start them with `accelerate launch`",
    "remove_unused_columns": "batches are made from columns that no model takes",
    "train_sampling_strategy": "set bucket_by_length or utterances_per_class",
    "use_cache": "nothing is generated",
    "use_liger_kernel": "there are no such kernels for speech encoders",
}
# `LaSCLTrainer` acts by these as stock does, `train.py` does not.
NOT_IN_RECIPES = {
    "batch_eval_metrics": "train.py computes the scores itself",
    "bf16_full_eval": "predictions are made in float32",
    "do_eval": "train.py always trains, validates and predicts; see folds and eval_strategy",
    "do_predict": "train.py always trains, validates and predicts; see folds",
    "do_train": "train.py always trains, validates and predicts; see folds",
    "enable_jit_checkpoint": "an interrupted run goes on from its last checkpoint; set save_steps",
    "eval_do_concat_batches": "train.py computes the scores itself",
    "eval_use_gather_object": "train.py computes the scores itself",
    "fp16_full_eval": "predictions are made in float32",
    "greater_is_better": "set selection: best_validation",
    "hub_always_push": "push_to_hub publishes each fold once, to its own branch",
    "hub_revision": "push_to_hub publishes each fold once, to its own branch",
    "hub_strategy": "push_to_hub publishes each fold once, to its own branch",
    "hub_token": "it would be written to files; log in with `hf auth login`, or set HF_TOKEN",
    "ignore_data_skip": "an interrupted run ends as if it had not been",
    "include_for_metrics": "train.py computes the scores itself",
    "load_best_model_at_end": "set selection: best_validation",
    "metric_for_best_model": "set selection: best_validation",
    "prediction_loss_only": "train.py computes the scores itself",
    "restore_callback_states_from_checkpoint": "an interrupted run ends as if it had not been",
    "resume_from_checkpoint": "the same command goes on by itself where output_dir was left",
    "save_on_each_node": "the run directory is one for all nodes",
    "save_only_model": "an interrupted run could not go on without the optimiser's state",
}
# Of publishing, fields of `Recipe`; and in `LaSCLTrainer` stock's own.
PUBLISHING = {"push_to_hub", "hub_model_id", "hub_private_repo"}
# Optimisers that group the parameters themselves would lose the audio encoder's own learning rate, and those that step
# inside backward the gradient cache.
OWN_GROUPS = ("galore", "apollo", "lomo", "adalomo")


def set_fields(given: Mapping, table: Mapping[str, str]) -> list[str]:
    """Which fields of `table` are set in `given`, to another value than LaSCL's default."""
    from lascl.training.arguments import LaSCLTrainingArguments

    defaults = {}
    for field in dataclasses.fields(LaSCLTrainingArguments):
        is_made = field.default is dataclasses.MISSING
        defaults[field.name] = field.default_factory() if is_made else field.default
    return [name for name in table if name in given and not _same(given[name], defaults.get(name))]


def _same(value, default) -> bool:
    if dataclasses.is_dataclass(value):  # stock makes one of nothing, and a copy of the arguments brings it back
        return value == type(value)()
    nothing = ((None, "", [], {}), (False, "no"))
    return value == default or any(value in spellings and default in spellings for spellings in nothing)


def refuse(given: Mapping, table: Mapping[str, str]):
    """Raises ValueError, one sentence, if a field of `table` is set in `given`."""
    for name in set_fields(given, table):
        raise ValueError(f"{name} is not used here: {table[name]}; leave it out. Found {given[name]!r}.")


def known_fields() -> set[str]:
    """Every field of stock's that has a place in a table."""
    return USED | CHECKED | PUBLISHING | REFUSED.keys() | NOT_IN_RECIPES.keys()


def unknown_fields() -> list[str]:
    """Fields of the installed transformers that have none."""
    from transformers import TrainingArguments

    return sorted({field.name for field in dataclasses.fields(TrainingArguments)} - known_fields())
