"""`LaSCLTrainer`: transformers' Trainer, extended at its seams.

Letters: W processes, B rows of a batch on one process, K labels, D width of the joint space.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from lascl.evaluation import score
from lascl.modeling_lascl import joint_loss


class LaSCLTrainer(Trainer):
    """Trains a `LaSCLForAudioClassification` on the paper's joint loss (eq. 9).

    To stock it adds: the loss over the embeddings of all processes, a learning rate of its own for the audio encoder,
    each loss term in the log, the epoch told to the training data set (if it has `set_epoch`), and WA, UA and
    macro-F1 of both heads from `evaluate()`. Takes the arguments of `Trainer` but `compute_loss_func`; `args` is a
    `LaSCLTrainingArguments`.

    Raises:
        ValueError: `compute_loss_func` is given.
    """

    def __init__(self, *args, **kwargs):
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "LaSCLTrainer computes the joint loss; override compute_loss instead of compute_loss_func."
            )
        kwargs.setdefault("compute_metrics", score_both_heads)
        super().__init__(*args, **kwargs)
        self.add_callback(_TellEpoch())
        self._term_sums, self._num_losses = defaultdict(float), 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 9 over the rows of all processes while training, over the local rows in evaluation.

        Every process computes the whole loss from the gathered rows, and DDP averages: W processes of B rows give the
        gradients of one process with W x B rows. The K label embeddings enter once.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        audio_embeds, class_logits = outputs.audio_embeds, outputs.class_logits  # (B, D), (B, K)
        if model.training and self.accelerator.num_processes > 1:
            if model is self.accelerator.unwrap_model(model):
                raise RuntimeError(
                    f"{self.accelerator.num_processes} processes, but the model is not wrapped in DDP: each would "
                    "train alone. On a CPU, add --use_cpu true."
                )
            audio_embeds = self._gather_rows(audio_embeds)  # (W x B, D)
            class_logits = self._gather_rows(class_logits)  # (W x B, K)
            labels = self.accelerator.gather(labels)  # (W x B,)
        config = self.accelerator.unwrap_model(model).config
        loss, terms = joint_loss(
            audio_embeds,
            outputs.label_embeds,
            class_logits,
            labels,
            contrastive_temperature=config.contrastive_temperature,
            contrastive_weight=config.contrastive_weight,
            divergence_weight=config.divergence_weight,
            label_anchors=config.label_anchors,
        )
        if model.training:
            self._num_losses += 1
            for name, term in terms.items():
                self._term_sums[name] += term.detach()
        return (loss, outputs) if return_outputs else loss

    def _gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """(W x B, ...): the rows (B, ...) of all processes, in their order, with gradients through the local ones.

        Each process sees the whole loss, but reaches the encoder through its own rows alone; summed over the
        processes that is the whole gradient, and DDP takes the mean instead: so the local rows' gradient counts W
        times. Nothing is communicated in backward but what DDP does.
        """
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, len(rows)
        everyone = self.accelerator.gather(rows.detach())  # (W x B, ...)
        local = rows + (world - 1) * (rows - rows.detach())  # the value of `rows`, W times its gradient
        return torch.cat([everyone[: rank * size], local, everyone[(rank + 1) * size :]])

    def log(self, logs, start_time=None):
        """Adds the mean of each loss term since the last log. No reduction: all processes saw the same values."""
        if "loss" in logs and self._num_losses:
            for name, total in self._term_sums.items():
                logs[name] = float(total) / self._num_losses
            self._term_sums, self._num_losses = defaultdict(float), 0
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        """The stock optimiser with `encoder_learning_rate` for the audio encoder and `learning_rate` for the rest;
        no weight decay on biases, norms and layer weights."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = {name for name in self.get_decay_parameter_names(model) if "layer_weights" not in name}
            groups = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups["audio_encoder." in name, name in decayed].append(parameter)
            optimizer_cls, optimizer_kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, model
            )
            self.optimizer = optimizer_cls(
                [
                    {
                        "params": parameters,
                        "lr": self.args.encoder_learning_rate if in_encoder else self.args.learning_rate,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    # The rest comes first: the `learning_rate` in Trainer's log is the first group's.
                    for (in_encoder, decays), parameters in sorted(groups.items())
                ],
                **optimizer_kwargs,
            )
        return self.optimizer


def score_both_heads(prediction) -> dict[str, float]:
    """WA, UA and macro-F1 of `logits`, and of `class_logits` with the prefix `classifier_`, for Trainer."""
    (logits, class_logits), references = prediction.predictions, prediction.label_ids
    metrics = {}
    for prefix, head in (("", logits), ("classifier_", class_logits)):
        scores = score(np.argmax(head, axis=-1), references)
        metrics |= {f"{prefix}{name}": scores[name] for name in ("wa", "ua", "macro_f1")}
    return metrics


class _TellEpoch(TrainerCallback):
    """Tells the training data its epoch, also in an epoch that is resumed: accelerate tells neither a resumed one
    nor, with several processes, any."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch + 1e-6))
