"""A frozen audio encoder hears every view once: its pooled audio stands for the waveforms while the heads are trained.

Letters: N utterances of a data set, B of a batch, V views of each, P epochs until the augmentations repeat, d_a width
of the pooled audio. A block is the pooled audio (N, d_a) of all utterances in one view of one epoch; `view_keys` says
what it follows from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib import metadata

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from datasets.fingerprint import Hasher
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lascl.data import SpeechCollator, SpeechDataset
from lascl.data.augmentation import build_augmentation
from lascl.data.checked_audio import file_stamp
from lascl.data.dataset import class_indices
from lascl.modeling_lascl import LaSCLForAudioClassification, LaSCLModel
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.digests import digest_of


# What makes no view, of the settings and weights that surround one. All the rest is taken to make it: a setting that
# is new and not named here costs an encoding too many, and never trains one variant on another's audio.
NO_PART_OF_A_VIEW = {
    # Labels are not heard; lengths follow from the files; which view and which epoch is said with each key.
    "data": ("labels", "label_names", "durations_s", "num_views", "augmentation_period", "_epoch"),
    # What becomes of pooled audio, what is trained, and names.
    "configuration": (
        *("text_config", "text_encoder", "text_encoder_revision", "text_pooling", "label_template", "projection_dim"),
        *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
        *("label_anchors", "prediction_head", "classifier_labels", "id2label", "label2id"),
        *("freeze_feature_encoder", "freeze_audio_encoder"),
        *("architectures", "auto_map", "transformers_version", "_name_or_path"),
    ),
    "weights": ("audio_projection.", "text_projection.", "label_features"),
}
# Whose versions are kept in a key: another one may read, augment or encode otherwise.
PACKAGES = ("lascl", "audiomentations", "numpy", "soundfile", "soxr", "torch", "transformers")


class PooledDataset(Dataset):
    """Some utterances of a `SpeechDataset`, which must have an `augmentation_period`, as pooled audio.

    Args:
        speech: the utterances that were embedded, with all their views.
        rows: which of them, in this order.
        blocks: of `speech`, from `embed_views`.
        num_views: V, of those of `speech`; 1 is the clean view alone.
        transform: of (n, d_a), such as `LaSCLModel.standardise`; by default none.
    """

    def __init__(
        self,
        speech: SpeechDataset,
        rows: Sequence[int],
        blocks: dict[tuple[int, int], torch.Tensor],
        *,
        num_views: int,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.ids = [speech.ids[row] for row in rows]
        self.labels = [speech.labels[row] for row in rows]
        self.durations_s, self.label_names = [speech.durations_s[row] for row in rows], speech.label_names
        self.speech, self.num_views = speech, num_views
        self.pooled = {}  # (n, d_a) by view and epoch; the clean view has no epochs
        for view, epoch in blocks_of(speech, num_views):
            pooled = blocks[view, epoch][list(rows)]
            self.pooled[view, epoch] = transform(pooled) if transform else pooled

    def set_epoch(self, epoch: int):
        self.speech.set_epoch(epoch)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        """`id`, `label` (int) and `pooled_audio` (V, d_a), the clean view first."""
        views = [self.pooled[view, self.speech.epoch if view else 0][index] for view in range(self.num_views)]
        return {"id": self.ids[index], "label": self.labels[index], "pooled_audio": torch.stack(views)}


def collate_pooled(items: list[dict]) -> dict[str, torch.Tensor]:
    """Rows view by view, as `SpeechCollator` has them: `pooled_audio` (V x B, d_a), `labels` (V x B,)."""
    pooled = torch.stack([item["pooled_audio"] for item in items], dim=1)  # (V, B, d_a)
    labels = class_indices([item["label"] for item in items])
    return {"pooled_audio": pooled.flatten(0, 1), "labels": labels.repeat(len(pooled))}


def blocks_of(speech: SpeechDataset, num_views: int) -> list[tuple[int, int]]:
    """View and epoch of every block: the clean view once, each augmented one in every epoch of the period."""
    return [(0, 0), *((view, epoch) for epoch in range(speech.augmentation_period) for view in range(1, num_views))]


def view_keys(
    model: LaSCLModel, speech: SpeechDataset, feature_extractor, *, weights: str | None = None
) -> dict[tuple[int, int], str]:
    """The name of every block of `speech`, by view and epoch: a hash of all that its pooled audio follows from.

    That are the files, their ids, the limit of their length and the sampling rate; for an augmented view also the
    augmentation's settings, its seed, the view and the epoch; the feature extractor's settings; the model's
    configuration and its weights up to the pooled audio; precision and versions. Two blocks of one name are alike; what
    only rounds otherwise (the size of batches, the number of processes) is no part of it. Equal in every process and
    after every start.

    Args:
        weights: stands for the model's weights where they are not there to be looked at (a model on the device `meta`).
    """
    settings = {name: value for name, value in vars(speech).items() if name not in NO_PART_OF_A_VIEW["data"]}
    settings["paths"] = [(os.path.abspath(path), file_stamp(path)) for path in speech.paths]
    # Built anew, because a transform keeps what it drew last.
    settings["augmentation"] = build_augmentation(speech.augmentation_name, speech.sampling_rate)
    drawn = [settings.pop(name) for name in ("augmentation_name", "augmentation", "seed")]
    clean = _digest(
        {
            "data": settings,
            "feature_extractor": [type(feature_extractor).__name__, feature_extractor.to_dict()],
            "configuration": {
                name: value
                for name, value in model.config.to_dict().items()
                if name not in NO_PART_OF_A_VIEW["configuration"]
            },
            "weights": weights
            or digest_of(
                {
                    name: tensor
                    for name, tensor in model.state_dict().items()
                    if not name.startswith(NO_PART_OF_A_VIEW["weights"])
                }
            ),
            "precision": [
                model.device.type,
                torch.get_float32_matmul_precision(),
                torch.is_autocast_enabled(model.device.type) and str(torch.get_autocast_dtype(model.device.type)),
            ],
            "versions": {name: metadata.version(name) for name in PACKAGES},
        }
    )
    return {
        (view, epoch): _digest([clean, drawn, view, epoch]) if view else clean
        for view, epoch in blocks_of(speech, speech.num_views)
    }


def _digest(content) -> str:
    """BLAKE2b, 128 bits, of JSON; `datasets` knows how to hash what JSON does not know, such as a transform."""
    text = json.dumps(content, sort_keys=True, default=Hasher.hash)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@torch.no_grad()
def embed_views(
    model: LaSCLForAudioClassification,
    speech: SpeechDataset,
    collator: SpeechCollator,
    view_cache: dict[str, torch.Tensor],
    args: LaSCLTrainingArguments,
) -> dict[tuple[int, int], torch.Tensor]:
    """The blocks of `speech` by view and epoch, (N, d_a) each. `view_cache` holds blocks by `view_keys`: what is there
    is taken from it, what is not is put there.

    A block is always the whole data set in the same batches, whatever else there is to do, so that the same command
    rounds alike wherever it went on. Several processes embed a share of each, and all come to know all. The model is in
    evaluation mode meanwhile.
    """
    state, was_training = PartialState(), model.training
    # The first process's names hold for all: who went another way would wait for ever.
    keys = broadcast_object_list([view_keys(model.lascl, speech, collator.feature_extractor)])[0]
    todo = [place for place in keys if keys[place] not in view_cache]
    # In order of length, so that little is padding.
    order = sorted(range(len(speech)), key=lambda row: speech.durations_s[row])
    mine = order[state.process_index :: state.num_processes]
    model.eval()
    is_shown = todo and state.is_main_process and not args.disable_tqdm
    with tqdm(total=len(todo) * len(mine), desc="Encoding all views", unit="view", disable=not is_shown) as progress:
        for view, epoch in todo:
            loader = DataLoader(
                OneView(speech, mine, view, epoch),
                batch_size=args.per_device_eval_batch_size,
                num_workers=args.dataloader_num_workers,
                collate_fn=collator,
            )
            vectors = []
            for batch in loader:
                labels = batch.pop("labels")
                vectors.extend(model.lascl(**send_to_device(batch, model.device)).pooled_audio.float().cpu())
                progress.update(len(labels))
            found = list(zip(mine, vectors, strict=True))
            found = gather_object(found) if state.num_processes > 1 else found
            found.sort(key=lambda entry: entry[0])
            view_cache[keys[view, epoch]] = torch.stack([vector for _, vector in found])  # (N, d_a)
    model.train(was_training)
    return {place: view_cache[key] for place, key in keys.items()}


class OneView(Dataset):
    """One view in one epoch of some rows of a `SpeechDataset`, as items for `SpeechCollator`."""

    def __init__(self, speech: SpeechDataset, rows: list[int], view: int, epoch: int):
        self.speech, self.rows, self.view, self.epoch = speech, rows, view, epoch

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        row = self.rows[number]
        return {"label": self.speech.labels[row], "views": [self.speech.view(row, self.view, self.epoch)]}
