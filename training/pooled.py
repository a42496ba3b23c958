"""A frozen audio encoder hears every view once: its pooled audio stands for the waveforms while the heads are trained.

Letters: N utterances of a data set, B of a batch, V views of each, P epochs until the augmentations repeat, d_a width
of the pooled audio. A block is the pooled audio (N, d_a) of all utterances in one view of one epoch; `view_keys` says
what it follows from. Of several corpora each has blocks of its own, which follow from its recordings alone: another
choice of corpora encodes nothing anew.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import metadata
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from datasets.fingerprint import Hasher
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lascl.data import Fold, SpeechCollator, SpeechDataset
from lascl.data.augmentation import build_augmentation
from lascl.data.checked_audio import content_hashes
from lascl.data.dataset import repeated, stacked_label_masks, targets_of
from lascl.modeling_lascl import LaSCLForAudioClassification, LaSCLModel, not_standardised, pooled_statistics
from lascl.training.announced import announcement_of
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.digests import digest_of
from lascl.training.views import Block, JoinedBlock, ViewStore


# What makes no view, of the settings and weights that surround one. All the rest is taken to make it: a setting that
# is new and not named here costs an encoding too many, and never trains one variant on another's audio.
NO_PART_OF_A_VIEW = {
    # Labels are not heard; lengths follow from the files; which view and which epoch is said with each key, and the
    # edition by the transform itself; a copy of decoded samples is the samples.
    "data": (
        *("labels", "label_names", "label_masks", "label_shares", "corpora"),
        *("durations_s", "num_views", "augmentation_edition", "augmentation_period", "_epoch"),
        *("decoded", "decoded_keys"),
    ),
    # What becomes of pooled audio, what is trained, and names.
    "configuration": (
        *("text_config", "text_encoder", "text_encoder_revision", "text_pooling", "projection_dim"),
        *("label_template", "label_phrasings", "label_temperatures"),
        *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
        *("label_anchors", "prediction_head", "classifier_labels", "id2label", "label2id"),
        *("freeze_feature_encoder", "freeze_audio_encoder", "standardise_audio", "pooled_dropout"),
        *("target_smoothing", "class_weights"),
        *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
    ),
    "weights": ("audio_projection.", "text_projection.", "label_features", "pooled_mean", "pooled_std"),
}
PART = 4096  # rows of a block that are read at once
FEWEST_OF_A_SPEAKER = 5  # recordings; with fewer, a speaker's statistics would be of these words rather than this voice
# Whose versions are kept in a key: another one may read, augment or encode otherwise.
PACKAGES = ("lascl", "audiomentations", "numpy", "soundfile", "soxr", "torch", "transformers")


class PooledDataset(Dataset):
    """Some utterances of a `SpeechDataset`, which must have an `augmentation_period`, as pooled audio.

    Args:
        speech: the utterances that were embedded, with all their views.
        rows: which of them, in this order.
        blocks: of `speech`, by view and epoch, from `embed_views`; read row by row.
        num_views: V, of those of `speech`; 1 is the clean view alone.
        statistics: of `speech`, by which its audio is standardised; by default it is not.
    """

    is_at_hand = True  # no worker could be faster

    def __init__(
        self,
        speech: SpeechDataset,
        rows: Sequence[int],
        blocks: dict[tuple[int, int], torch.Tensor | Block | JoinedBlock],
        *,
        num_views: int,
        statistics: Statistics | None = None,
    ):
        self.ids = [speech.ids[row] for row in rows]
        self.labels = [speech.labels[row] for row in rows]
        self.durations_s, self.label_names = [speech.durations_s[row] for row in rows], speech.label_names
        self.corpora = None if speech.corpora is None else [speech.corpora[row] for row in rows]
        self.label_masks = None if speech.label_masks is None else speech.label_masks[list(rows)]  # (n, K)
        self.label_shares = None if speech.label_shares is None else speech.label_shares[list(rows)]  # (n, K)
        self.speech, self.rows, self.blocks, self.num_views = speech, list(rows), blocks, num_views
        self.statistics = statistics

    def set_epoch(self, epoch: int):
        self.speech.set_epoch(epoch)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        """`id`, `label` (int, of votes their shares (K,)), `pooled_audio` (V, d_a), the clean view first; of several
        corpora `label_mask` (K,)."""
        row, epoch = self.rows[index], self.speech.epoch  # the clean view has no epochs
        views = torch.stack([self.blocks[view, epoch if view else 0][row] for view in range(self.num_views)])
        pooled = self.statistics.standardised(views, row) if self.statistics else views
        label = self.labels[index] if self.label_shares is None else self.label_shares[index]
        item = {"id": self.ids[index], "label": label, "pooled_audio": pooled}
        return item if self.label_masks is None else {**item, "label_mask": self.label_masks[index]}


def collate_pooled(items: list[dict]) -> dict[str, torch.Tensor]:
    """Rows view by view, as `SpeechCollator` has them: `pooled_audio` (V x B, d_a), `labels` (V x B,), of votes
    (V x B, K), and `label_mask` (V x B, K) if the items hold it."""
    pooled = torch.stack([item["pooled_audio"] for item in items], dim=1)  # (V, B, d_a)
    labels = repeated(targets_of([item["label"] for item in items]), len(pooled))
    batch = {"pooled_audio": pooled.flatten(0, 1), "labels": labels}
    return batch | stacked_label_masks(items, len(pooled))


class Statistics(NamedTuple):
    """By what the pooled audio of N utterances is standardised.

    Args:
        means, stds: (G, d_a) of G groups of utterances.
        groups: of each utterance its group; N numbers, -1 of what is on no side of the fold.
    """

    means: torch.Tensor
    stds: torch.Tensor
    groups: Sequence[int]

    def standardised(self, pooled: torch.Tensor, row: int) -> torch.Tensor:
        """(V, d_a) of the views of an utterance."""
        group = self.groups[row]
        if group < 0:
            raise IndexError(f"Row {row} is on no side of the fold whose statistics these are.")
        return (pooled - self.means[group]) / self.stds[group]


def statistics_of(
    model: LaSCLModel,
    block: torch.Tensor | Block,
    fold: Fold,
    *,
    corpora: Sequence[str] | None,
    speakers: Sequence[str],
) -> Statistics | None:
    """What the model's `standardise_audio` takes for the utterances of a fold: nothing, what the model holds of all
    training utterances, or statistics by group (`group_statistics`).

    Args:
        block: (N, d_a), the clean views, not standardised.
        corpora, speakers: N names each; `None`: all are of one corpus.
    """
    mode = model.config.standardise_audio
    if mode == "none":
        return None
    if mode == "training":
        whole = [buffer.cpu().clone().unsqueeze(0) for buffer in (model.pooled_mean, model.pooled_std)]
        return Statistics(*whole, [0] * len(speakers))
    return group_statistics(
        block, fold, ["all"] * len(speakers) if corpora is None else corpora, speakers if mode == "speaker" else None
    )


def group_statistics(
    block: torch.Tensor | Block, fold: Fold, corpora: Sequence[str], speakers: Sequence[str] | None
) -> Statistics:
    """`pooled_statistics` of the clean views by corpus, or by speaker.

    Of a corpus those of its utterances on the training side, whatever side is standardised; of a corpus that has none
    there, those on the same side. Of a speaker those of all its utterances on the same side; with fewer than
    `FEWEST_OF_A_SPEAKER`, the corpus's. No label is used.

    Args:
        block: (N, d_a).
        corpora, speakers: N names each; `speakers` is `None`: by corpus.
    """
    sides = {"train": fold.train, "validation": fold.validation, "test": fold.test}
    trained = _by_name(corpora, fold.train)
    groups, sources = [-1] * len(corpora), {}  # `sources`: by group, whose statistics it takes
    for side, rows in sides.items():
        for name, members in _by_name(corpora, rows).items():
            group = ("corpus", "train" if name in trained else side, name)
            sources[group] = trained.get(name, members)
            _assign(groups, members, group)
        for name, members in _by_name(speakers, rows).items() if speakers else ():
            if len(members) >= FEWEST_OF_A_SPEAKER:
                group = ("speaker", side, name)
                sources[group] = members
                _assign(groups, members, group)
    used = {group: number for number, group in enumerate(dict.fromkeys(group for group in groups if group != -1))}
    found = [pooled_statistics(parts_of(block, sources[group])) for group in used]
    means, stds = (torch.stack(values).float() for values in zip(*found))
    return Statistics(means, stds, [used.get(group, -1) for group in groups])


def _by_name(names: Sequence[str], rows: Sequence[int]) -> dict[str, list[int]]:
    """By name, which of these rows have it, in their order."""
    found = {}
    for row in rows:
        found.setdefault(names[row], []).append(row)
    return found


def _assign(groups: list, rows: Sequence[int], group):
    for row in rows:
        groups[row] = group


def parts_of(block: torch.Tensor | Block, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """Some rows of a block (n, d_a), a few thousand at once."""
    return (block[list(rows[start : start + PART])] for start in range(0, len(rows), PART))


def blocks_of(speech: SpeechDataset, num_views: int) -> list[tuple[int, int]]:
    """View and epoch of every block: the clean view once, each augmented one in every epoch of the period."""
    return [(0, 0), *((view, epoch) for epoch in range(speech.augmentation_period) for view in range(1, num_views))]


def by_corpus(speech: SpeechDataset) -> list[tuple[list[int], SpeechDataset]]:
    """The corpora of a data set, each the rows it has there and these alone; of one corpus, the data set itself."""
    if speech.corpora is None:
        return [(list(range(len(speech))), speech)]
    names = _by_name(speech.corpora, range(len(speech)))
    return [(names[name], _part(speech, names[name])) for name in sorted(names)]


def _part(speech: SpeechDataset, rows: list[int]) -> SpeechDataset:
    """Some utterances of a data set, everything else as it is; for their audio alone, which has no labels."""
    part = copy.copy(speech)
    for name in ("ids", "paths", "labels", "durations_s", "decoded_keys"):
        setattr(part, name, [getattr(speech, name)[row] for row in rows])
    part.corpora = part.label_masks = part.label_shares = None
    return part


def joined(parts: list[tuple[list[int], SpeechDataset]], blocks: list) -> torch.Tensor | Block | JoinedBlock:
    """The blocks of `by_corpus` as one of the whole data set."""
    return blocks[0] if len(parts) == 1 else JoinedBlock(blocks, [rows for rows, _ in parts])


def known_block(
    model: LaSCLModel, speech: SpeechDataset, feature_extractor, view_cache: dict[str, torch.Tensor | Block]
) -> torch.Tensor | Block | JoinedBlock | None:
    """The clean views of a data set, if `view_cache` has them all."""
    parts = by_corpus(speech)
    found = [view_cache.get(view_keys(model, part, feature_extractor)[0, 0]) for _, part in parts]
    return None if any(block is None for block in found) else joined(parts, found)


def view_keys(
    model: LaSCLModel, speech: SpeechDataset, feature_extractor, *, weights: str | None = None
) -> dict[tuple[int, int], str]:
    """The name of every block of `speech`, which is one corpus, by view and epoch: a hash of all that its pooled audio
    follows from.

    That are what is in the files, wherever they lie, the limit of their length and the sampling rate; for an augmented
    view also the utterances' ids, the augmentation's settings, its seed, the view and the epoch; the extractor's
    settings; the model's configuration and its weights up to the pooled audio before it is standardised; precision and
    versions. Two blocks of one name are alike; what only rounds otherwise (the size of batches, the number of
    processes) is no part of it. Equal in every process and after every start.

    Args:
        weights: stands for the model's weights where they are not there to be looked at (a model on the device `meta`).
    """
    settings = {name: value for name, value in vars(speech).items() if name not in NO_PART_OF_A_VIEW["data"]}
    hashes = content_hashes(speech.paths)
    settings["paths"] = [hashes[path] for path in speech.paths]
    # Built anew, because a transform keeps what it drew last.
    settings["augmentation"] = build_augmentation(
        speech.augmentation_name, speech.sampling_rate, speech.augmentation_edition
    )
    drawn = [settings.pop(name) for name in ("ids", "augmentation_name", "augmentation", "seed")]
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
    `view_keys`, and `store` on disk: what is there is taken from it, what is not is put there, each corpus for itself.

    A block is always a whole corpus in the same batches, whatever else there is to do, so that the same command
    rounds alike wherever it went on. Several processes embed a share of each, and all come to know all. The model is in
    evaluation mode meanwhile.
    """
    state, was_training = PartialState(), model.training
    # The first process's names hold for all: who went another way would wait for ever.
    parts = by_corpus(speech)
    named = parts if state.is_main_process else []
    own = [view_keys(model.lascl, part, collator.feature_extractor) for _, part in named]
    keys = broadcast_object_list([own])[0]  # of each corpus, by view and epoch
    todo = [
        (key, part, place)
        for (_, part), places in zip(parts, keys)
        for place, key in places.items()
        if not _is_known(key, view_cache, store)
    ]
    shares = [_by_length(part)[state.process_index :: state.num_processes] for _, part, _ in todo]
    is_shown = todo and state.is_main_process and not args.disable_tqdm
    model.eval()
    # What is encoded is to serve every fold, whose statistics differ.
    if todo and state.is_main_process:
        with not_standardised(model.config):
            places = [(part, place) for _, part, place in todo]
            print(announcement_of(model, places, collator, args, store), flush=True)
    with (
        not_standardised(model.config),
        tqdm(total=sum(map(len, shares)), desc="Encoding all views", unit="view", disable=not is_shown) as progress,
    ):
        for (key, part, place), mine in zip(todo, shares):
            # Alone, another run that makes the same is waited for; processes of one run wait for each other already.
            waits = store is not None and state.num_processes == 1
            with store.making(key) if waits else nullcontext():
                if not (waits and _is_known(key, view_cache, store)):
                    shape = (len(part), model.config.pooled_size)
                    # Alone, a kill loses nothing: what an earlier start has written of the block is not heard again.
                    batch_size = args.per_device_eval_batch_size if waits else None
                    num_begun = store.begun(key, *shape, batch_size) if waits else 0
                    progress.update(num_begun)
                    batches = _embed(model, OneView(part, mine[num_begun:], *place), collator, args, progress)
                    view_cache[key] = _keep(batches, key, shape, store, batch_size)
    model.train(was_training)
    if store is not None and todo:
        store.shrink()
    return {place: joined(parts, [view_cache[places[place]] for places in keys]) for place in keys[0]}


def _is_known(key: str, view_cache: dict[str, torch.Tensor | Block], store: ViewStore | None) -> bool:
    """Whether every process has this block, in `view_cache` after this."""
    if key not in view_cache and store is not None and (found := store.find(key)) is not None:
        view_cache[key] = found
    known = [key in view_cache]
    return all(gather_object(known) if PartialState().num_processes > 1 else known)


def _by_length(speech: SpeechDataset) -> list[int]:
    """Rows in order of length, so that little is padding."""
    return sorted(range(len(speech)), key=lambda row: speech.durations_s[row])


@torch.no_grad()
def _embed(model, dataset: OneView, collator, args, progress) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Rows of the data set that `dataset` is a part of, with their pooled audio (B, d_a), batch by batch."""
    loader = DataLoader(
        dataset,
        batch_size=args.per_device_eval_batch_size,
        collate_fn=collator,
        **args.workers_for(dataset),
    )
    start = 0
    for batch in loader:
        labels = batch.pop("labels")
        pooled = model.lascl(**send_to_device(batch, model.device)).pooled_audio.float().cpu()
        yield dataset.rows[start : start + len(labels)], pooled
        start += len(labels)
        progress.update(len(labels))


def _keep(
    batches, key: str, shape: tuple[int, int], store: ViewStore | None, batch_size: int | None
) -> torch.Tensor | Block:
    """A block (N, d_a) of what all processes have embedded, in the store if there is one."""
    state = PartialState()
    if state.num_processes > 1:
        batches = gather_object(list(batches))
    if store is not None and state.is_local_main_process:
        with store.writing(key, *shape, batch_size=batch_size) as write:
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
        # No label: one that the fold does not train on has no number.
        return {"label": 0, "views": [self.speech.view(self.rows[number], self.view, self.epoch)]}
