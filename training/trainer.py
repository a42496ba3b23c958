"""`LaSCLTrainer`: transformers' Trainer, extended at its seams.

Letters: W processes, B_w rows of a batch on process w and B on all, K labels, D width of the joint space.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from lascl.data import SAMPLING_RATE, UtteranceBatchSampler
from lascl.data.dataset import is_heard, targets_of
from lascl.encoders_lascl import WHISPER_FRAMES_PER_S, at_equal_level, valid_lengths
from lascl.evaluation import score
from lascl.evaluation.votes import most_voted
from lascl.modeling_lascl import among_own_words, check_own_words
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.digests import OtherWeights, digest_of
from lascl.training.gradient_cache import cached_forward
from lascl.training.run_directory import write_json
from lascl.training.stock_fields import refuse


try:
    import resource
except ImportError:  # Windows
    resource = None


logger = logging.get_logger(__name__)
LEFT_OUT = "left_out.json"  # in an intermediate checkpoint: a hash of the frozen weights that it goes without
# Of use to a `compute_metrics` of one's own alone; stock itself refuses `batch_eval_metrics` without one.
FOR_OTHER_METRICS = ("eval_do_concat_batches", "include_for_metrics")


class LaSCLTrainer(Trainer):
    """Trains a `LaSCLForAudioClassification` on the paper's joint loss (eq. 9).

    To stock it adds: the loss over the embeddings of all processes, a gradient cache for batches that exceed the
    memory, batches from `UtteranceBatchSampler`, a learning rate of its own for the audio encoder, each loss term, the
    share of padding and the cost of the steps in the log, logs that an interruption does not change, the epoch told to
    the training data set (if it has `set_epoch`), and WA, UA and macro-F1 of both heads from `evaluate()`. Takes the
    arguments of `Trainer` but `compute_loss_func`; `args` is a `LaSCLTrainingArguments`. A training data set with `ids`
    is read in an order that follows from them; `bucket_by_length` needs its `durations_s`, `utterances_per_class` its
    `labels`, and `contrastive_chunk_size` counts its `num_views` (`SpeechDataset` has all four; without, the views are
    those of the arguments). Its `corpora`, if they are several, share batches by `corpus_exponent`.
    `contrastive_chunk_s` goes by the sampling rate of `processing_class`, without one 16 kHz.

    A loss term of one's own is an overridden `compute_loss` that calls this one with `return_outputs=True`. Of a
    training batch, whose (V x B_w, ...) rows are those of this process alone, all clean views first, the outputs have
    `audio_embeds` (V x B_w, D) and `label_embeds` (K, D), both of unit length, `class_logits` (V x B_w, K), and, unless
    the batch is computed in chunks, `logits` (V x B_w, K) and `pooled_audio` (V x B_w, d_a). `log_term` adds it to the
    log.

    `labels` of a batch are numbers of classes, or votes or shares (V x B, K) of a floating type (`joint_loss`), against
    whose most voted word `evaluate()` scores.

    Rows with a `label_mask` (V x B, K) are of several corpora: the loss is over what compares (`joint_loss`), and
    `evaluate()` and `predict()` answer with a row's own words, the logits of others being the lowest finite number.

    Once other words than the classifier's were set, `evaluate()` and `predict()` score the label head alone; their loss
    is then eq. 9 without its cross entropy.

    Whatever chooses by a score of the evaluation needs an `eval_dataset` with the key `validation`, whose `ids` are not
    those of another (`check_validation`).

    Raises:
        ValueError: `compute_loss_func` or an iterable training data set is given, or something would choose by another
            data set than the validation; while training or scoring, labels that are not the numbers of classes, or that
            mean other words than the model's.
    """

    # Whether intermediate checkpoints go without the audio encoder's frozen weights, which are those that this trainer
    # began with. Such a checkpoint is good for going on here, and is no model for `from_pretrained`.
    leaves_out_frozen = False
    # Of `get_train_dataloader`; and of an epoch, what each process has of its batches.
    _sampler, _shares = None, (None, [])

    def __init__(self, *args, **kwargs):
        check_indexed(inspect.signature(Trainer).bind_partial(*args, **kwargs).arguments.get("train_dataset"))
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "LaSCLTrainer computes the joint loss; override compute_loss instead of compute_loss_func."
            )
        kwargs.setdefault("compute_metrics", score_both_heads)
        super().__init__(*args, **kwargs)
        self.data_collator = CheckedLabels(self.data_collator)
        if self.args.chooses:
            check_validation(self.eval_dataset, self.args.chooses)
        if self.compute_metrics is score_both_heads:
            refuse(vars(self.args), dict.fromkeys(FOR_OTHER_METRICS, "score_both_heads does not need it"))
        self.add_callback(_EpochBoundaries())
        self.add_callback(RunningMeans())
        self.clock = StepClock()
        self.add_callback(self.clock)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """This process's share of the batches of `UtteranceBatchSampler`; accelerate's sharding, which repeats
        utterances to fill the last batch, is not needed."""
        if self.train_dataset is None:
            raise ValueError("Training needs a train_dataset.")
        check_indexed(self.train_dataset)
        config, args = self.accelerator.unwrap_model(self.model).config, self.args
        if config.classifier_labels is not None:
            raise ValueError(
                f"The classifier was trained on {', '.join(config.classifier_labels)}, but the model's words are now "
                f"{', '.join(config.labels)}, which cross entropy cannot train. Build a model with these labels, or "
                "give train.py --init_from."
            )
        targets_of(told_targets(self.train_dataset))
        self._warn_of_unheard_augmentation()
        self._sampler, self._shares = build_batch_sampler(self.train_dataset, args), (None, [])
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=self._sampler,
            collate_fn=self.data_collator,
            pin_memory=args.dataloader_pin_memory,
            **args.workers_for(self.train_dataset),
            # Not of every 5.x.
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
            in_order=getattr(args, "dataloader_in_order", True),
        )

    def _warn_of_unheard_augmentation(self):
        """Says so where the augmentation cannot change what the model hears (`lascl.data.dataset.is_heard`)."""
        speech, extractor = getattr(self.train_dataset, "speech", self.train_dataset), self.processing_class
        name = getattr(speech, "augmentation_name", "none")
        config, level = self.accelerator.unwrap_model(self.model).config, {}
        if config.audio_level == "equal":
            level = {"and_then": partial(at_equal_level, attention_mask=None)}
        hears = extractor is None or name == "none" or self.train_dataset.num_views == 1
        hears = hears or is_heard(name, extractor, **level)
        if not hears and self.is_world_process_zero():
            taken_by = "audio_level equal" if level else f"its {type(extractor).__name__}"
            logger.warning(
                f"The augmentation {getattr(name, '__name__', name)} changes nothing that this model hears, since "
                f"{taken_by} takes it back: choose another augmentation, or none, which is cheaper."
            )

    def get_eval_dataloader(self, eval_dataset=None) -> torch.utils.data.DataLoader:
        """Stock's, of labels that mean the model's words."""
        named = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        named = self.eval_dataset if named is None else named
        check_words(named, self.accelerator.unwrap_model(self.model).config)
        with self._workers_for(named):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> torch.utils.data.DataLoader:
        """As `get_eval_dataloader`."""
        check_words(test_dataset, self.accelerator.unwrap_model(self.model).config)
        with self._workers_for(test_dataset):
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def _workers_for(self, dataset):
        """Stock's loaders take their workers from the arguments, whatever the data set: meanwhile these are its own."""
        own = {f"dataloader_{name}": value for name, value in self.args.workers_for(dataset or ()).items()}
        before = {name: getattr(self.args, name) for name in own}
        vars(self.args).update(own)
        try:
            yield
        finally:
            vars(self.args).update(before)

    def hyperparameter_search(self, *args, **kwargs):
        """Stock's, over a data set called `validation` and no other: its objective is the sum of all scores."""
        check_validation(self.eval_dataset, "hyperparameter_search", alone=True)
        return super().hyperparameter_search(*args, **kwargs)

    def get_batch_samples(self, *args, **kwargs):
        """Stock's; the clock runs meanwhile. Of several processes, each batch is told how many utterances all of them
        have, which the sampler knows: nobody has to ask the others."""
        started = time.monotonic()
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.accelerator.num_processes > 1 and self._sampler is not None:
            if self._shares[0] != self._sampler.epoch:
                self._shares = self._sampler.epoch, self._sampler.shares()
            first = self.state.global_step % self._sampler.num_batches * self.args.gradient_accumulation_steps
            for batch, share in zip(batches, self._shares[1][first:]):
                batch["shares"] = share
        self.clock.waited_s += time.monotonic() - started
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 9 over the rows of all processes while training, over the local rows in evaluation.

        Every process computes the whole loss from the gathered rows, and DDP averages: W processes of B / W rows give
        the gradients of one process with B rows. The K label embeddings enter once.
        """
        inputs = dict(inputs)
        labels, label_mask = inputs.pop("labels"), inputs.pop("label_mask", None)  # (B_w,) or (B_w, K), (B_w, K)
        shares = inputs.pop("shares", None)  # W numbers of utterances
        limit = self._limit_of_chunks(inputs, len(labels)) if model.training else {}
        outputs = cached_forward(model, inputs, **limit) if limit else model(**inputs)
        audio_embeds, class_logits = outputs.audio_embeds, outputs.class_logits  # (B_w, D), (B_w, K)
        padding, size = padding_of(inputs)
        if model.training and self.accelerator.num_processes > 1:
            if model is self.accelerator.unwrap_model(model):
                raise RuntimeError(
                    f"{self.accelerator.num_processes} processes, but the model is not wrapped in DDP: each would "
                    "train alone. On a CPU, add --use_cpu true."
                )
            sizes = self._rows_of_processes(len(labels), shares)
            # Stays on the device, and is read when something is logged.
            padding, size = self.accelerator.reduce(torch.tensor([padding, size], device=labels.device), "sum")
            audio_embeds = self._gather_rows(audio_embeds, sizes)  # (B, D)
            class_logits = self._gather_rows(class_logits, sizes)  # (B, K)
            labels = self._gather_rows(labels, sizes)  # (B,) or (B, K)
            label_mask = None if label_mask is None else self._gather_rows(label_mask, sizes)  # (B, K)
        unwrapped, label_embeds = self.accelerator.unwrap_model(model), outputs.label_embeds
        if label_embeds is None:
            label_embeds = unwrapped.get_label_embeddings()  # (K, D)
        loss, terms = unwrapped.joint_loss(audio_embeds, label_embeds, class_logits, labels, label_mask)
        if model.training:
            self._running_means.add({"loss": loss, **terms}, padding, size)
        elif label_mask is not None:
            for head in ("logits", "class_logits"):
                if (logits := getattr(outputs, head)) is not None:
                    setattr(outputs, head, among_own_words(logits, label_mask))
        return (loss, outputs) if return_outputs else loss

    def log_term(self, name: str, term: torch.Tensor):
        """Adds a term of one's own (0-dim, as it is added to the loss) to the log: its mean, under its name, and in the
        `loss`. To be called where it is computed, in an overridden `compute_loss`; in evaluation it does nothing."""
        if self.model.training:
            self._running_means.add_term(name, term)

    def _limit_of_chunks(self, inputs: Mapping, num_rows: int) -> dict[str, int]:
        """What `cached_forward` takes for the chunks that the arguments ask for; empty for a batch that is one."""
        args = self.args
        if "pooled_audio" in inputs:  # no burden: nothing is encoded, so nothing has to be cut
            return {}
        if args.contrastive_chunk_s is not None:
            is_waveform = "input_values" in inputs
            rate = (
                getattr(self.processing_class, "sampling_rate", SAMPLING_RATE)
                if is_waveform
                else 2 * WHISPER_FRAMES_PER_S
            )
            size = max(1, int(args.contrastive_chunk_s * rate))
            longest = inputs["input_values" if is_waveform else "input_features"].shape[-1]
            return {"size_per_chunk": size} if size < num_rows * longest else {}
        num_views = getattr(self.train_dataset, "num_views", args.views_an_utterance)
        rows = (args.contrastive_chunk_size or num_rows) * num_views
        return {"rows_per_chunk": rows} if rows < num_rows else {}

    def _rows_of_processes(self, num_rows: int, shares: list[int] | None) -> list[int]:
        """W numbers of rows: all views of the utterances that each process has. Without `shares`, of a batch that does
        not come from Trainer's loop, the processes tell each other."""
        if shares is None:
            return self.accelerator.gather(torch.tensor([num_rows], device=self.args.device)).tolist()
        num_views, rest = divmod(num_rows, shares[self.accelerator.process_index])
        if rest:
            raise ValueError(f"{num_rows} rows are no whole number of views of {shares} utterances of the processes.")
        return [num_views * share for share in shares]

    def _gather_rows(self, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """(B, ...): the rows (B_w, ...) of all processes, in their order, with gradients through the local ones.

        Each process sees the whole loss, but reaches the encoder through its own rows alone; summed over the
        processes that is the whole gradient, and DDP takes the mean instead: so the local rows' gradient counts W
        times. Nothing is communicated in backward but what DDP does.
        """
        world, rank, longest = len(sizes), self.accelerator.process_index, max(sizes)
        # Collectives want equal shapes: what is short is filled up, and cut off again.
        filled = torch.cat([rows.detach(), rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        everyone = self.accelerator.gather(filled).split(longest)  # W of (longest, ...)
        parts = [part[:size] for part, size in zip(everyone, sizes)]
        if rows.is_floating_point():
            parts[rank] = rows + (world - 1) * (rows - rows.detach())  # the value of `rows`, W times its gradient
        return torch.cat(parts)

    def evaluate(self, *args, **kwargs):
        """Stock's, with the random generator left as it was: training goes on as if nothing had been evaluated."""
        with torch.random.fork_rng(devices=[]):  # data loaders draw from the CPU's
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        """Stock's; a clip of a few samples, on which training goes on, is scored too."""
        backbone = self.accelerator.unwrap_model(self.model).base_model
        before, backbone.takes_odd_audio = backbone.takes_odd_audio, True
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            backbone.takes_odd_audio = before

    def log(self, logs, start_time=None):
        """Adds the mean of each loss term since the last log, the share of the input that was padding, and what the
        steps cost (`StepClock`).

        `loss` and `train_loss` are written from the same sums, which a checkpoint holds, where stock counts from the
        last start. Nothing is reduced: all processes saw the same values.
        """
        if "loss" in logs:
            logs |= self._running_means.since_last_log() | self.clock.since_last_log()
        elif "train_loss" in logs:
            means = self._running_means
            logs["train_loss"] = means.since_the_start()
            logs["train_runtime"] = means.runtime_s()
        super().log(logs, start_time)

    @property
    def _running_means(self) -> RunningMeans:
        # Looked up, because resuming puts a new one in the old one's place.
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, RunningMeans))

    def _save(self, output_dir=None, state_dict=None):
        """Stock's, without what `leaves_out_frozen` leaves out; a hash of that goes along."""
        left_out = self._left_out()
        if left_out:
            whole = self.model.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in whole.items() if name not in left_out}
        super()._save(output_dir, state_dict)
        if left_out and self.args.should_save:
            write_json(Path(output_dir or self.args.output_dir) / LEFT_OUT, {"weights": self._digest_of_left_out})

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Stock's, over the frozen weights that are here: they must be those that the checkpoint was written beside."""
        path = Path(resume_from_checkpoint) / LEFT_OUT
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["weights"] != self._digest_of_left_out:
            raise OtherWeights(
                f"{resume_from_checkpoint} was trained on top of another audio encoder than is loaded now: its weights "
                "have changed since. Give that encoder again (pin it by audio_encoder_revision), or delete "
                f"{path.parent.parent} to train the fold anew."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result):
        """Stock's; what was left out is not missed."""
        missing = [name for name in load_result.missing_keys if name not in self._left_out()]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def _left_out(self) -> dict[str, torch.Tensor]:
        """The parameters that `leaves_out_frozen` leaves out, by name."""
        named = self.model.named_parameters() if self.leaves_out_frozen else ()
        return {name: tensor for name, tensor in named if "audio_encoder." in name and not tensor.requires_grad}

    @cached_property
    def _digest_of_left_out(self) -> str:
        return digest_of(self._left_out())

    def create_optimizer(self, model=None):
        """The stock optimiser with `encoder_learning_rate` for the audio encoder and `learning_rate` for the rest;
        no weight decay on biases, norms and layer weights."""
        if self.optimizer is None:
            given = [] if model is None else [model]  # stock gives it where it takes it: not in transformers 5.0
            model = self.model if model is None else model
            decayed = {name for name in self.get_decay_parameter_names(model) if "layer_weights" not in name}
            groups = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups["audio_encoder." in name, name in decayed].append(parameter)
            optimizer_cls, optimizer_kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, model
            )
            own = {"params", "model", "optimizer_dict"} & optimizer_kwargs.keys()
            if own or not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, torch.optim.Optimizer)):
                raise ValueError(
                    f"{optimizer_cls} groups the parameters itself, and encoder_learning_rate would be lost; give "
                    "LaSCLTrainer a finished optimiser: optimizers=(optimizer, None)."
                )
            groups = [
                {
                    "params": parameters,
                    "lr": self.args.encoder_learning_rate if in_encoder else self.args.learning_rate,
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                # The rest comes first: the `learning_rate` in Trainer's log is the first group's.
                for (in_encoder, decays), parameters in sorted(groups.items())
            ]
            # Stock takes groups from here, and does what else an optimiser of bitsandbytes needs.
            self.optimizer_cls_and_kwargs = optimizer_cls, {**optimizer_kwargs, "params": groups}
            super().create_optimizer(*given)
            self.optimizer_cls_and_kwargs = optimizer_cls, optimizer_kwargs
        return self.optimizer


def padding_of(inputs: Mapping) -> tuple[int, int]:
    """How many of a batch's samples or frames are padding, and how many there are; (0, 0) without a mask. A device is
    waited for only if the batch has no `lengths`."""
    mask, lengths = inputs.get("attention_mask"), inputs.get("lengths")
    if mask is None:
        return 0, 0
    return mask.numel() - (int(valid_lengths(mask).sum()) if lengths is None else sum(lengths)), mask.numel()


def build_batch_sampler(dataset, args: LaSCLTrainingArguments) -> UtteranceBatchSampler:
    """This process's share of the batches that `args` ask for; raises as `UtteranceBatchSampler` does."""
    return UtteranceBatchSampler(
        getattr(dataset, "ids", range(len(dataset))),
        global_batch_size=args.global_batch_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        durations_s=dataset.durations_s if args.bucket_by_length else None,
        labels=classes_of(dataset) if args.utterances_per_class is not None else None,
        utterances_per_class=args.utterances_per_class,
        corpora=getattr(dataset, "corpora", None),
        corpus_exponent=args.corpus_exponent,
        num_processes=args.world_size,
        process_index=args.process_index,
        accumulation_steps=args.gradient_accumulation_steps,
    )


def told_targets(dataset):
    """What a data set says of all its targets, as `targets_of` takes them: `label_shares` (n, K), if it has any, else
    its `labels`; nothing, if it says nothing."""
    shares = getattr(dataset, "label_shares", None)
    return getattr(dataset, "labels", []) if shares is None else shares


def classes_of(dataset) -> list[int]:
    """The class that each utterance counts for where classes are balanced: its label, and of votes the word with most
    of them, the first of equals."""
    targets = targets_of(told_targets(dataset))
    return (targets.argmax(dim=1) if targets.ndim == 2 else targets).tolist()


def check_validation(eval_dataset, who: str, *, alone: bool = False):
    """Raises ValueError unless there is a data set called `validation` (alone, if asked) that shares no utterance with
    the others: whatever chooses by its scores has then not seen the test."""
    named = eval_dataset if isinstance(eval_dataset, Mapping) else {}
    if "validation" not in named or (alone and len(named) > 1):
        found = ", ".join(named) if named else "one without a name" if eval_dataset is not None else "none"
        raise ValueError(
            f"{who} chooses by the evaluation, which may be the test; set eval_dataset to "
            f'{{"validation": ...}}{" alone" if alone else ""}. Found {found}.'
        )
    validated = set(getattr(named["validation"], "ids", ()))
    for name, other in named.items():
        shared = validated & set(getattr(other, "ids", ())) if name != "validation" else None
        if shared:
            raise ValueError(
                f"{who} chooses by the validation, which has {len(shared)} utterances of {name}, {min(shared)!r} the "
                "first; take them out of the validation."
            )


def score_both_heads(prediction) -> dict[str, float]:
    """WA, UA and macro-F1 of `logits`, and of `class_logits` with the prefix `classifier_`, for Trainer; of `logits`
    alone where the classifier does not know the labels. Where labels are votes, against the word with most of them;
    rows in which two words have most, or none has any, are left out, and if all are there are no scores."""
    heads, references = prediction.predictions, prediction.label_ids
    is_decided, metrics = slice(None), {}
    if references.ndim == 2:
        references = most_voted(references)
        is_decided = references >= 0
        if not is_decided.any():
            return {}
    for prefix, head in zip(("", "classifier_"), heads if isinstance(heads, tuple) else (heads,)):
        scores = score(np.argmax(head[is_decided], axis=-1), references[is_decided])
        metrics |= {f"{prefix}{name}": scores[name] for name in ("wa", "ua", "macro_f1")}
    return metrics


def check_indexed(dataset):
    """Raises ValueError for a data set that can only be gone through: batches are drawn by index."""
    if isinstance(dataset, (torch.utils.data.IterableDataset, datasets.IterableDataset)):
        raise ValueError(
            f"train_dataset is a {type(dataset).__name__}, which can only be gone through, but every epoch is drawn by "
            "index. Give a data set with __len__ and __getitem__, such as lascl.data.SpeechDataset."
        )


def check_words(dataset, config):
    """Raises ValueError if the model answers other words than its classifier's and a label of the data set, which must
    tell its `labels` and their `label_names` for that, is not the word of the same number."""
    names = getattr(dataset, "label_names", None)
    if config.classifier_labels is None or names is None:
        return
    targets = targets_of(told_targets(dataset))
    for number in range(targets.shape[1]) if targets.ndim == 2 else sorted(set(targets.tolist())):
        if names[number : number + 1] != config.labels[number : number + 1]:
            raise ValueError(
                f"Label {number} of the data is {names[number]!r}, but the words that the model answers are "
                f"{', '.join(config.labels)}, in this order. Load the corpus with labels of these words "
                "(load_corpus(labels={corpus label: word}), or call set_labels with the corpus's, in its order."
            )


class CheckedLabels:
    """A collator whose batches have numbers of classes or votes for labels (`targets_of`), a number among the words of
    its row's `label_mask`, if there is one."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, items: list) -> dict:
        batch = self.collator(items)
        if "labels" in batch:
            labels = targets_of(batch["labels"])
            if "label_mask" in batch and labels.ndim == 1:
                check_own_words(labels, batch["label_mask"])
        return batch


class _EpochBoundaries(TrainerCallback):
    """Tells the training data its epoch, also in an epoch that is resumed: accelerate tells neither a resumed one
    nor, with several processes, any. And lets what is due at the end of an epoch happen at its last step: stock does so
    after what is due at a step, and a run resumed from a checkpoint of that step would skip it."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        for told in (getattr(train_dataloader, "dataset", None), getattr(train_dataloader, "batch_sampler", None)):
            if hasattr(told, "set_epoch"):
                told.set_epoch(int(state.epoch + 1e-6))

    def on_step_end(self, args, state, control, **kwargs):
        self._set(args, state, control, True)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._set(args, state, control, False)

    def _set(self, args, state, control, due: bool):
        if state.epoch == int(state.epoch):
            control.should_log = due if args.logging_strategy == "epoch" else control.should_log
            control.should_evaluate = due if args.eval_strategy == "epoch" else control.should_evaluate
            control.should_save = due if args.save_strategy == "epoch" else control.should_save


class StepClock(TrainerCallback):
    """What training steps cost on this machine: evaluation, saving and logging do not count."""

    def __init__(self):
        self._start_anew()

    def _start_anew(self):
        self.waited_s = 0.0  # for data
        self.stepped_s = 0.0
        self.num_steps = 0
        self.logged = (0.0, 0.0, 0)

    def on_train_begin(self, args, state, control, **kwargs):
        self._start_anew()

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.stepped_s += time.monotonic() - self.started
        self.num_steps += 1

    def since_last_log(self) -> dict[str, float]:
        """See `rates`; counting starts anew."""
        now = (self.waited_s, self.stepped_s, self.num_steps)
        waited_s, stepped_s, num_steps = (total - before for total, before in zip(now, self.logged))
        self.logged = now
        return self.rates(waited_s, stepped_s, num_steps)

    def since_start(self) -> dict[str, float]:
        """See `rates`; since `train()` was last called."""
        return self.rates(self.waited_s, self.stepped_s, self.num_steps)

    @staticmethod
    def rates(waited_s: float, stepped_s: float, num_steps: int) -> dict[str, float]:
        """Optimiser steps a second, the share of their time that was waiting for data, and the highest memory so far in
        MiB: of tensors on the GPU, else of the process. Empty without steps."""
        if not num_steps:
            return {}
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident_bytes()
        return {
            "steps_per_second": num_steps / (waited_s + stepped_s),
            "data_wait_share": waited_s / (waited_s + stepped_s),
            **({} if peak is None else {"peak_memory_mib": peak / 2**20}),
        }


def peak_resident_bytes() -> int | None:
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RunningMeans(TrainerCallback, ExportableState):
    """What the log needs since its last entry, and since training began; saved with every checkpoint.

    A second `train()` starts anew, unless a checkpoint brings what came before. Sums stay on the device: they are read
    when something is logged or saved, not in every step.
    """

    def __init__(self):
        self._start_anew()

    def _start_anew(self):
        self.has_begun = False  # not of the state: what a checkpoint brings goes on
        self.sums: dict[str, float | torch.Tensor] = {}  # since the last log
        self.num_added, self.padding, self.size = 0, 0, 0
        self.total_loss, self.num_losses = 0.0, 0  # since training began, up to the last log
        self.earlier_s, self.started = 0.0, time.monotonic()  # before the last start

    def on_train_begin(self, args, state, control, **kwargs):
        if self.has_begun:
            self._start_anew()
        self.has_begun, self.started = True, time.monotonic()

    def add(self, terms: dict[str, torch.Tensor], padding: int | torch.Tensor, size: int | torch.Tensor):
        """A batch: its loss and terms (0-dim), and how many of its `size` samples or frames were padding."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.detach().float()
        self.num_added += 1
        self.padding, self.size = self.padding + padding, self.size + size

    def add_term(self, name: str, term: torch.Tensor):
        """A further term of the batch that was added last."""
        for summed in (name, "loss"):
            self.sums[summed] = self.sums.get(summed, 0.0) + term.detach().float()

    def since_last_log(self) -> dict[str, float]:
        """The means; counting starts anew."""
        if not self.num_added:
            return {}
        means = {name: float(total) / self.num_added for name, total in self.sums.items()}
        self.total_loss += float(self.sums["loss"])
        self.num_losses += self.num_added
        if self.size:
            means["padding_share"] = int(self.padding) / int(self.size)
        self.sums, self.num_added, self.padding, self.size = {}, 0, 0, 0
        return means

    def since_the_start(self) -> float:
        """The mean loss of all batches of the training, logged or not; 0 without any."""
        total = self.total_loss + float(self.sums.get("loss", 0.0))
        return total / max(self.num_losses + self.num_added, 1)

    def runtime_s(self) -> float:
        """Seconds spent on the steps that led here; what was done again after an interruption counts once."""
        return self.earlier_s + time.monotonic() - self.started

    def state(self) -> dict:
        attributes = {
            "sums": {name: float(total) for name, total in self.sums.items()},
            "num_added": self.num_added,
            "padding": int(self.padding),
            "size": int(self.size),
            "total_loss": self.total_loss,
            "num_losses": self.num_losses,
            "earlier_s": self.runtime_s(),
        }
        return {"args": {}, "attributes": attributes}
