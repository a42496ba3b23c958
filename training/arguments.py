"""Training arguments: transformers' own, with the paper's values as defaults and a few fields of LaSCL."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.training_args import ParallelMode
from transformers.utils import is_in_notebook

from lascl.data.augmentation import EDITIONS
from lascl.training.stock_fields import OWN_GROUPS, REFUSED, refuse
from lascl.training.workers import FEWEST_ROWS, default_workers


PROBED_STEPS = 10**6  # of a training that is never done, to see whether its schedule can be built


@dataclass
class LaSCLTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's recipe (section 3.2) as defaults.

    Fields of its own: `encoder_learning_rate`, `num_views`, `augmentation`, `global_batch_size`,
    `bucket_by_length`, `utterances_per_class`, `corpus_exponent`, `contrastive_chunk_size`, `contrastive_chunk_s`,
    `augmentation_period`, `augmentation_seed`, `augmentation_edition`. Defaults that differ from stock: `learning_rate`
    (1e-3, for all but the audio encoder), `num_train_epochs` (50), `lr_scheduler_type` (cosine), `warmup_steps` (0.1, a
    share of all steps), `weight_decay` (0.01), and, for convenience, `logging_strategy` and `save_strategy` (each
    epoch), `save_total_limit` (2), `report_to` (nothing), `restore_callback_states_from_checkpoint` (true: logs go on
    where they stopped), `disable_tqdm` (bars on a terminal or in a notebook alone), `dataloader_num_workers` (what the
    machine has, see `lascl.training.workers`), `dataloader_pin_memory` (where there is a GPU),
    `ddp_find_unused_parameters` (true, also with gradient checkpointing) and `remove_unused_columns` (must stay false:
    batches are made from columns that no model takes).

    A field of stock's that nothing here would act by is refused by name (`lascl.training.stock_fields`). What would
    choose a checkpoint, stop or lower a rate by a score of the evaluation (`load_best_model_at_end`,
    `metric_for_best_model`, `save_strategy` best, the schedulers `reduce_lr_on_plateau` and `greedy`) must be told a
    `metric_for_best_model` of a data set called `validation`, such as `validation_ua`: never by the test.

    Batches come from `lascl.data.UtteranceBatchSampler` instead of a `train_sampling_strategy` of stock's: each
    utterance once an epoch, unless `utterances_per_class` balances the classes of every batch, or the data set is of
    several corpora, which `corpus_exponent` weighs.

    `per_device_train_batch_size` is derived: `global_batch_size` / (processes x accumulation steps). Accumulation cuts
    the contrastive batch into so many parts: an utterance is contrasted with those of its own part only. Where a
    process has not enough memory for its share of the batch, `contrastive_chunk_size` is so many utterances (with all
    their views) that it embeds at once, or `contrastive_chunk_s` so many seconds of audio (with their padding, and of
    Whisper with its whole window): the loss and its gradients stay those of the whole batch
    (`lascl.training.gradient_cache`), for one more forward pass.

    Paper unclear: warm-up length and weight decay are not given; we take 10 % of the steps and AdamW's usual 0.01.

    Raises:
        ValueError: a global batch that cannot be divided so, another `per_device_train_batch_size` than the derived
            one, a chunk below 1, of both kinds or under DeepSpeed, FSDP or ZeRO-3, an augmentation period below 1, a
            field of `REFUSED` in `lascl.training.stock_fields`, a choice by anything but the validation, an optimiser
            with parameter groups of its own (GaLore, APOLLO, LOMO), several GPUs in one process, or several processes
            that do not know of each other (torchrun on a CPU without `use_cpu`), or an optimiser, a schedule or a
            loader of batches that does not take its settings.
        ImportError: an optimiser whose package is not installed.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Of everything but the audio encoder."})
    encoder_learning_rate: float = field(default=1e-4, metadata={"help": "Of the audio encoder."})
    num_views: int = field(default=2, metadata={"help": "Views of each utterance: one clean, the rest augmented."})
    augmentation: str = field(default="mixed", metadata={"help": "See lascl.data.augmentation.AUGMENTATIONS."})
    global_batch_size: int = field(
        default=32, metadata={"help": "Utterances an optimiser step, whatever the number of processes."}
    )
    bucket_by_length: bool = field(
        default=False, metadata={"help": "Utterances of like length share a batch: less padding."}
    )
    utterances_per_class: int | None = field(
        default=None, metadata={"help": "So many of each class in a batch; by default as they come."}
    )
    corpus_exponent: float = field(
        default=0.5,
        metadata={"help": "Of several corpora each fills its size to this power of a batch: 0 alike, 1 by size."},
    )
    augmentation_period: int | None = field(
        default=None,
        metadata={"help": "Augmented views repeat after so many epochs; a frozen encoder hears each but once."},
    )
    augmentation_seed: int | None = field(
        default=None, metadata={"help": "Draws the augmentations; by default seed does."}
    )
    augmentation_edition: int = field(
        default=EDITIONS[-1], metadata={"help": "1 makes what older versions made of the same draws, more slowly."}
    )
    contrastive_chunk_size: int | None = field(
        default=None, metadata={"help": "Utterances a process embeds at once: same gradients, less memory."}
    )
    contrastive_chunk_s: float | None = field(
        default=None, metadata={"help": "Or so many seconds of audio, padding counted; one utterance at least."}
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that read and augment; by default what the machine has."}
    )
    per_device_train_batch_size: int | None = None  # derived
    logging_nan_inf_filter: bool = False
    num_train_epochs: float = 50.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    weight_decay: float = 0.01
    logging_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    report_to: None | str | list[str] = "none"  # noqa: RUF036, HfArgumentParser wants stock's order
    remove_unused_columns: bool | None = False
    restore_callback_states_from_checkpoint: bool = True
    # Layer-drop, and loss terms of weight 0, leave parameters without a gradient; stock forgets that when it
    # checkpoints.
    ddp_find_unused_parameters: bool | None = True
    # Pinning without an accelerator does nothing but warn.
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)

    @property
    def views_an_utterance(self) -> int:
        """V: as many as `num_views`, but without augmentation one, since a copy would say nothing."""
        return 1 if self.augmentation == "none" else self.num_views

    def __post_init__(self):
        refuse_sharded_weights(self.fsdp, self.fsdp_config, self.deepspeed)
        refuse(vars(self), REFUSED)
        if self.disable_tqdm is None and not (sys.stderr.isatty() or is_in_notebook()):
            self.disable_tqdm = True  # in a file bars are thousands of lines
        self.chooses_workers = self.dataloader_num_workers is None
        if self.chooses_workers:
            wanted = bool(self.dataloader_persistent_workers or self.dataloader_prefetch_factor)  # of workers, if any
            found = default_workers(has_accelerator=torch.cuda.is_available() and not self.use_cpu)
            self.dataloader_num_workers = max(found, int(wanted))
        given = self.per_device_train_batch_size
        if given is None:  # stock reads it before it is known how many processes there are
            launched = int(os.environ.get("WORLD_SIZE", "1"))
            parts = launched * max(1, self.gradient_accumulation_steps)
            self.per_device_train_batch_size = max(1, self.global_batch_size // parts)
        super().__post_init__()
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.world_size or (launched > 1 and self.parallel_mode != ParallelMode.DISTRIBUTED):
            raise ValueError(
                f"Launched as {launched} processes, but they do not form a group: each would train alone. On a CPU, "
                "add --use_cpu true."
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.n_gpu} GPUs and would use DataParallel, whose loss sees only a part of each "
                "batch. Start with `accelerate launch` or set CUDA_VISIBLE_DEVICES to one GPU."
            )
        parts = self.world_size * self.gradient_accumulation_steps
        if self.global_batch_size < parts or self.global_batch_size % parts:
            raise ValueError(
                f"global_batch_size must be a multiple of processes x gradient_accumulation_steps = "
                f"{self.world_size} x {self.gradient_accumulation_steps}; found {self.global_batch_size}."
            )
        derived = self.global_batch_size // parts
        if given not in (None, derived):  # a copy of these arguments brings the derived value back
            raise ValueError(
                f"per_device_train_batch_size is derived from global_batch_size ({derived} here); found {given}. Set "
                "global_batch_size."
            )
        self.per_device_train_batch_size = derived
        self._check_chunks()
        if self.augmentation_period is not None and self.augmentation_period < 1:
            raise ValueError(f"augmentation_period must be at least 1; found {self.augmentation_period}.")
        if self.augmentation_edition not in EDITIONS:
            known = " or ".join(map(str, EDITIONS))
            raise ValueError(f"augmentation_edition must be {known}; found {self.augmentation_edition}.")
        if not 0 <= self.corpus_exponent <= 1:
            raise ValueError(f"corpus_exponent must lie between 0 and 1; found {self.corpus_exponent}.")
        self._check_choice()
        self._check_numbers()
        self._check_optimiser()

    def workers_for(self, dataset) -> dict[str, int | bool | None]:
        """`num_workers`, `persistent_workers` and `prefetch_factor` of a loader: none for data that need not be made
        (`is_at_hand`), and, unless workers were asked for, none for a few rows."""
        has_few = hasattr(dataset, "__len__") and len(dataset) < FEWEST_ROWS
        is_small = self.chooses_workers and has_few
        num_workers = 0 if is_small or getattr(dataset, "is_at_hand", False) else self.dataloader_num_workers
        return {
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0 and self.dataloader_persistent_workers,
            "prefetch_factor": self.dataloader_prefetch_factor if num_workers else None,
        }

    @property
    def chooses(self) -> str | None:
        """The field by which a score of the evaluation decides something, if there is one."""
        watching = {
            "load_best_model_at_end": self.load_best_model_at_end,
            "save_strategy": self.save_strategy == "best",
            "lr_scheduler_type": self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
            "metric_for_best_model": self.metric_for_best_model is not None,
        }
        return next((name for name, is_watching in watching.items() if is_watching), None)

    def _check_chunks(self):
        given = {name: getattr(self, name) for name in ("contrastive_chunk_size", "contrastive_chunk_s")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"Chunks are counted in one way; found {given}. Set one of the two.")
        for name, value in given.items():
            if name == "contrastive_chunk_size" and value < 1:
                raise ValueError(f"contrastive_chunk_size must be at least 1; found {value}.")
            if not value > 0:
                raise ValueError(f"contrastive_chunk_s must be above 0 seconds; found {value}.")
            # It also comes from the configuration of `accelerate launch`, and then leaves `deepspeed` empty.
            if self.deepspeed_plugin:
                raise ValueError(
                    f"{name} works in one process or under DDP; DeepSpeed expects one backward pass a step. Use "
                    "gradient_checkpointing there."
                )

    def _check_numbers(self):
        """What numpy, torch and accelerate would find only after minutes of encoding, or never."""
        for name in ("learning_rate", "encoder_learning_rate", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0; found {getattr(self, name):g}.")
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16 needs a GPU; on a CPU leave it out, or take bf16.")
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be above 0; found {self.num_train_epochs:g}.")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**32:
                raise ValueError(f"{name} must be at least 0 and below 2**32; found {value}.")
        loader = {
            "batch_size": self.per_device_eval_batch_size,
            "num_workers": self.dataloader_num_workers,
            "persistent_workers": self.dataloader_persistent_workers,
            "prefetch_factor": self.dataloader_prefetch_factor,
        }
        try:
            torch.utils.data.DataLoader([0], **loader)
        except ValueError as error:
            given = ", ".join(f"{name} {value}" for name, value in loader.items() if value is not None)
            raise ValueError(f"No batches can be loaded with {given}: {error}") from None

    def _check_choice(self):
        metric = (self.metric_for_best_model or "none").removeprefix("eval_")
        if self.chooses and not metric.startswith("validation_"):
            value = getattr(self, self.chooses)
            raise ValueError(
                f"{self.chooses} {getattr(value, 'value', value)} would choose by {metric}, which may be the test's; "
                "with train.py set selection: best_validation, with LaSCLTrainer set metric_for_best_model to "
                'validation_ua and eval_dataset to {"validation": ...}.'
            )

    def _check_optimiser(self):
        optimiser = getattr(self.optim, "value", self.optim)
        if optimiser.startswith(OWN_GROUPS):
            raise ValueError(
                f"optim {optimiser} groups the parameters itself, which loses encoder_learning_rate; set another, "
                "such as adamw_torch_fused, or lora_rank for less memory."
            )
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(self)  # raises where its package is not installed
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            return
        one = torch.nn.Parameter(torch.zeros(1))
        try:
            optimizer = kind([one], **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"optim {optimiser} does not take these settings: {error}.") from None
        except Exception:  # of the machine rather than of what was typed
            return
        schedule = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        try:
            get_scheduler(
                self.lr_scheduler_type,
                optimizer,
                num_warmup_steps=self.get_warmup_steps(PROBED_STEPS),
                num_training_steps=PROBED_STEPS,
                scheduler_specific_kwargs=self.lr_scheduler_kwargs,
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"lr_scheduler_type {schedule} does not take lr_scheduler_kwargs {self.lr_scheduler_kwargs}: {error}."
            ) from None


def refuse_sharded_weights(fsdp, fsdp_config, deepspeed):
    """Refuses FSDP and DeepSpeed's ZeRO stage 3, by whichever way they were asked for: by these fields of
    `TrainingArguments`, or by `accelerate launch`, whose configuration arrives as environment variables. Weights in
    pieces are not gathered when a fold is saved.

    Raises:
        ValueError: one of them is on.
    """
    remedy = (
        "Use several GPUs by DDP with contrastive_chunk_size, gradient_checkpointing or bf16, or DeepSpeed ZeRO-2 "
        "(recipes/accelerate/)."
    )
    # Some versions of transformers fill the configuration in, with all that is off.
    is_configured = any(fsdp_config.values()) if isinstance(fsdp_config, dict) else bool(fsdp_config)
    if (fsdp and str(fsdp).lower() != "false") or is_configured or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(f"FSDP is not supported: a fold trained so could not be saved. {remedy}")
    settings = [deepspeed] if deepspeed else []
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")
        settings += [{"zero_optimization": {"stage": stage}}, os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")]
    for setting in settings:
        stage = _deepspeed_settings(setting).get("zero_optimization", {}).get("stage")
        if str(stage) == "3":
            raise ValueError(f"DeepSpeed ZeRO-3 is not supported: a fold trained so could not be saved. {remedy}")


def _deepspeed_settings(given) -> dict:
    """Of a mapping, a file or its text; empty for what stock will say something about."""
    if isinstance(given, str):
        try:
            text = Path(given).read_text(encoding="utf-8") if given.endswith(".json") else given
            given = json.loads(text)
        except (OSError, ValueError):
            return {}
    given = getattr(given, "config", given)  # of an HfDeepSpeedConfig
    return given if isinstance(given, dict) else {}
