"""A frozen audio encoder hears every view once: its pooled audio stands for the waveforms while the heads are trained.

Letters: N utterances of a data set, B of a batch, V views of each, P epochs until the augmentations repeat, d_a width
of the pooled audio. A block is the pooled audio (N, d_a) of all utterances in one view of one epoch; `view_keys` says
what it follows from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import metadata

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from datasets.fingerprint import Hasher
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lascl.data import SpeechCollator, SpeechDataset
from lascl.data.augmentation import build_augmentation
from lascl.data.checked_audio import content_hashes
from lascl.data.dataset import class_indices
from lascl.modeling_lascl import LaSCLForAudioClassification, LaSCLModel
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.digests import digest_of
from lascl.training.views import Block, ViewStore


# What makes no view, of the settings and weights that surround one. All the rest is taken to make it: a setting that
# is new and not named here costs an encoding too many, and never trains one variant on another's audio.
NO_PART_OF_A_VIEW = {
    # Labels are not heard; lengths follow from the files; which view and which epoch is said with each key.
    "data": (
        *("labels", "label_names", "label_masks", "corpora"),
        *("durations_s", "num_views", "augmentation_period", "_epoch"),
    ),
    # What becomes of pooled audio, what is trained, and names.
    "configuration": (
        *("text_config", "text_encoder", "text_encoder_revision", "text_pooling", "label_template", "projection_dim"),
        *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
        *("label_anchors", "prediction_head", "classifier_labels", "id2label", "label2id"),
        *("freeze_feature_encoder", "freeze_audio_encoder", "standardise_audio"),
        *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
    ),
    "weights": ("audio_projection.", "text_projection.", "label_features", "pooled_mean", "pooled_std"),
}
PART = 4096  # rows of a block that are read at once
# Whose versions are kept in a key: another one may read, augment or encode otherwise.
PACKAGES = ("lascl", "audiomentations", "numpy", "soundfile", "soxr", "torch", "transformers")


class PooledDataset(Dataset):
    """Some utterances of a `SpeechDataset`, which must have an `augmentation_period`, as pooled audio.

    Args:
        speech: the utterances that were embedded, with all their views.
        rows: which of them, in this order.
        blocks: of `speech`, from `embed_views`; read row by row.
        num_views: V, of those of `speech`; 1 is the clean view alone.
        transform: of (V, d_a), such as what `standardiser` gives; by default none.
    """

    def __init__(
        self,
        speech: SpeechDataset,
        rows: Sequence[int],
        blocks: dict[tuple[int, int], torch.Tensor | Block],
        *,
        num_views: int,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.ids = [speech.ids[row] for row in rows]
        self.labels = [speech.labels[row] for row in rows]
        self.durations_s, self.label_names = [speech.durations_s[row] for row in rows], speech.label_names
        self.speech, self.rows, self.blocks, self.num_views = speech, list(rows), blocks, num_views
        self.transform = transform

    def set_epoch(self, epoch: int):
        self.speech.set_epoch(epoch)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        """`id`, `label` (int) and `pooled_audio` (V, d_a), the clean view first."""
        row, epoch = self.rows[index], self.speech.epoch  # the clean view has no epochs
        views = torch.stack([self.blocks[view, epoch if view else 0][row] for view in range(self.num_views)])
        pooled = self.transform(views) if self.transform else views
        return {"id": self.ids[index], "label": self.labels[index], "pooled_audio": pooled}


def collate_pooled(items: list[dict]) -> dict[str, torch.Tensor]:
    """Rows view by view, as `SpeechCollator` has them: `pooled_audio` (V x B, d_a), `labels` (V x B,)."""
    pooled = torch.stack([item["pooled_audio"] for item in items], dim=1)  # (V, B, d_a)
    labels = class_indices([item["label"] for item in items])
    return {"pooled_audio": pooled.flatten(0, 1), "labels": labels.repeat(len(pooled))}


def standardiser(model: LaSCLModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What `model.standardise` does now, on the CPU and without the model; `None` if that is nothing."""
    if not model.config.standardise_audio:
        return None
    return partial(_standardised, model.pooled_mean.cpu().clone(), model.pooled_std.cpu().clone())


def _standardised(mean: torch.Tensor, std: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    return (pooled - mean) / std


def parts_of(block: torch.Tensor | Block, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """Some rows of a block (n, d_a), a few thousand at once."""
    return (block[list(rows[start : start + PART])] for start in range(0, len(rows), PART))


def blocks_of(speech: SpeechDataset, num_views: int) -> list[tuple[int, int]]:
    """View and epoch of every block: the clean view once, each augmented one in every epoch of the period."""
    return [(0, 0), *((view, epoch) for epoch in range(speech.augmentation_period) for view in range(1, num_views))]


def view_keys(
    model: LaSCLModel, speech: SpeechDataset, feature_extractor, *, weights: str | None = None
) -> dict[tuple[int, int], str]:
    """The name of every block of `speech`, by view and epoch: a hash of all that its pooled audio follows from.

    That are what is in the files, wherever they lie, their ids, the limit of their length and the sampling rate; for an
    augmented view also the augmentation's settings, its seed, the view and the epoch; the feature extractor's settings;
    the model's configuration and its weights up to the pooled audio before it is standardised; precision and versions.
    Two blocks of one name are alike; what only rounds otherwise (the size of batches, the number of processes) is no
    part of it. Equal in every process and after every start.

    Args:
        weights: stands for the model's weights where they are not there to be looked at (a model on the device `meta`).
    """
    settings = {name: value for name, value in vars(speech).items() if name not in NO_PART_OF_A_VIEW["data"]}
    hashes = content_hashes(speech.paths)
    settings["paths"] = [hashes[str(path)] for path in speech.paths]
    # Built anew, because a transform keeps what it drew last.
    settings["augmentation"] = build_augmentation(speech.augmentation_name, speech.sampling_rate)
    drawn = [settings.pop(name) for name in ("augmentation_name", "augmentation", "seed")]
    clean = _digest(
        {
            "data": settings,
            "feature_extractor": [type(feature_extractor).__name__, feature_extractor.to_dict()],
            "configuration": {
                name: _without_names(value) if name == "audio_config" else value
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


def _without_names(audio_config: dict) -> dict:
    """Of an encoder's configuration, which a saved checkpoint has with other names; a type is that of the weights."""
    names = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
    return {name: value for name, value in audio_config.items() if name not in names}


def _digest(content) -> str:
    """BLAKE2b, 128 bits, of JSON; `datasets` knows how to hash what JSON does not know, such as a transform."""
    text = json.dumps(content, sort_keys=True, default=Hasher.hash)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def embed_views(
    model: LaSCLForAudioClassification,
    speech: SpeechDataset,
    collator: SpeechCollator,
    view_cache: dict[str, torch.Tensor | Block],
    args: LaSCLTrainingArguments,
    store: ViewStore | None = None,
) -> dict[tuple[int, int], torch.Tensor | Block]:
    """The blocks of `speech` by view and epoch, (N, d_a) each, not standardised. `view_cache` holds blocks by
    `view_keys`, and `store` on disk: what is there is taken from it, what is not is put there.

    A block is always the whole data set in the same batches, whatever else there is to do, so that the same command
    rounds alike wherever it went on. Several processes embed a share of each, and all come to know all. The model is in
    evaluation mode meanwhile.
    """
    state, was_training = PartialState(), model.training
    # The first process's names hold for all: who went another way would wait for ever.
    own = view_keys(model.lascl, speech, collator.feature_extractor) if state.is_main_process else None
    keys = broadcast_object_list([own])[0]
    todo = [place for place, key in keys.items() if not _is_known(key, view_cache, store)]
    mine = _by_length(speech)[state.process_index :: state.num_processes]
    is_shown = todo and state.is_main_process and not args.disable_tqdm
    model.eval()
    with (
        _not_standardised(model.config),
        tqdm(total=len(todo) * len(mine), desc="Encoding all views", unit="view", disable=not is_shown) as progress,
    ):
        for view, epoch in todo:
            key = keys[view, epoch]
            # Alone, another run that makes the same is waited for; processes of one run wait for each other already.
            waits = store is not None and state.num_processes == 1
            with store.making(key) if waits else nullcontext():
                if not (waits and _is_known(key, view_cache, store)):
                    batches = _embed(model, OneView(speech, mine, view, epoch), collator, args, progress)
                    view_cache[key] = _keep(batches, key, (len(speech), model.config.pooled_size), store)
    model.train(was_training)
    if store is not None and todo:
        store.shrink()
    return {place: view_cache[key] for place, key in keys.items()}


def _is_known(key: str, view_cache: dict[str, torch.Tensor | Block], store: ViewStore | None) -> bool:
    """Whether every process has this block, in `view_cache` after this."""
    if key not in view_cache and store is not None and (found := store.find(key)) is not None:
        view_cache[key] = found
    known = [key in view_cache]
    return all(gather_object(known) if PartialState().num_processes > 1 else known)


def _by_length(speech: SpeechDataset) -> list[int]:
    """Rows in order of length, so that little is padding."""
    return sorted(range(len(speech)), key=lambda row: speech.durations_s[row])


@contextmanager
def _not_standardised(config) -> Iterator[None]:
    """While what is encoded is to serve every fold, whose statistics differ."""
    before, config.standardise_audio = config.standardise_audio, False
    try:
        yield
    finally:
        config.standardise_audio = before


@torch.no_grad()
def _embed(model, dataset: OneView, collator, args, progress) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Rows of the data set that `dataset` is a part of, with their pooled audio (B, d_a), batch by batch."""
    loader = DataLoader(
        dataset,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=collator,
    )
    start = 0
    for batch in loader:
        labels = batch.pop("labels")
        pooled = model.lascl(**send_to_device(batch, model.device)).pooled_audio.float().cpu()
        yield dataset.rows[start : start + len(labels)], pooled
        start += len(labels)
        progress.update(len(labels))


def _keep(batches, key: str, shape: tuple[int, int], store: ViewStore | None) -> torch.Tensor | Block:
    """A block (N, d_a) of what all processes have embedded, in the store if there is one."""
    state = PartialState()
    if state.num_processes > 1:
        batches = gather_object(list(batches))
    if store is not None and state.is_local_main_process:
        with store.writing(key, *shape) as write:
            for rows, pooled in batches:
                write(rows, pooled)
    if store is not None:
        state.wait_for_everyone()
        if (found := store.find(key)) is not None:
            return found
        if state.num_processes == 1:
            raise OSError(f"{store.folder} does not keep what is written there. Give another --views_dir.")
    block = torch.empty(shape)
    for rows, pooled in batches:
        block[rows] = pooled
    return block


class OneView(Dataset):
    """One view in one epoch of some rows of a `SpeechDataset`, as items for `SpeechCollator`."""

    def __init__(self, speech: SpeechDataset, rows: list[int], view: int, epoch: int):
        self.speech, self.rows, self.view, self.epoch = speech, rows, view, epoch

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        row = self.rows[number]
        return {"label": self.speech.labels[row], "views": [self.speech.view(row, self.view, self.epoch)]}
