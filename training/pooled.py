"""A frozen audio encoder hears every view once: its pooled audio stands for the waveforms while the heads are trained.

Letters: N utterances of a data set, B of a batch, V views of each, P epochs until the augmentations repeat, d_a width
of the pooled audio.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lascl.data import SpeechDataset
from lascl.modeling_lascl import LaSCLForAudioClassification
from lascl.training.arguments import LaSCLTrainingArguments


class PooledDataset(Dataset):
    """The utterances of a `SpeechDataset`, which must have an `augmentation_period`, as pooled audio.

    Args:
        speech: which utterances, and how many views.
        vectors: by `key` of each view: (d_a,), from `embed_views`.
        transform: of (n, d_a), such as `LaSCLModel.standardise`; by default none.
    """

    def __init__(
        self,
        speech: SpeechDataset,
        vectors: dict[tuple, torch.Tensor],
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        def rows(view: int, epoch: int) -> torch.Tensor:
            pooled = torch.stack([vectors[key(speech, row, view, epoch)] for row in range(len(speech))])  # (N, d_a)
            return transform(pooled) if transform else pooled

        self.speech = speech
        self.ids, self.labels, self.durations_s = speech.ids, speech.labels, speech.durations_s
        self.clean = rows(0, 0)
        self.augmented = {
            (view, epoch): rows(view, epoch)
            for view in range(1, speech.num_views)
            for epoch in range(speech.augmentation_period)
        }

    def set_epoch(self, epoch: int):
        self.speech.set_epoch(epoch)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        """`id`, `label` (int) and `pooled_audio` (V, d_a), the clean view first."""
        augmented = [self.augmented[view, self.speech.epoch][index] for view in range(1, self.speech.num_views)]
        pooled = torch.stack([self.clean[index], *augmented])  # (V, d_a)
        return {"id": self.ids[index], "label": self.labels[index], "pooled_audio": pooled}


def collate_pooled(items: list[dict]) -> dict[str, torch.Tensor]:
    """Rows view by view, as `SpeechCollator` has them: `pooled_audio` (V x B, d_a), `labels` (V x B,)."""
    pooled = torch.stack([item["pooled_audio"] for item in items], dim=1)  # (V, B, d_a)
    labels = torch.tensor([item["label"] for item in items], dtype=torch.long)
    return {"pooled_audio": pooled.flatten(0, 1), "labels": labels.repeat(len(pooled))}


def key(speech: SpeechDataset, index: int, view: int, epoch: int) -> tuple:
    """What a view's audio depends on, beside the corpus; the clean one on no augmentation."""
    heard = (speech.ids[index], speech.sampling_rate, speech.max_duration_s)
    return (*heard, speech.augmentation_name, speech.seed, epoch, view) if view else heard


@torch.no_grad()
def embed_views(
    model: LaSCLForAudioClassification,
    datasets: list[SpeechDataset],
    collator: Callable,
    known: dict[tuple, torch.Tensor],
    args: LaSCLTrainingArguments,
):
    """Adds the pooled audio (d_a,) of all views of all epochs to `known`, by `key`, unless it is there.

    The model is in evaluation mode meanwhile. Several processes embed a share each, and all come to know all of it.
    """
    state = PartialState()
    todo = {
        key(speech, index, view, epoch): (speech, index, view, epoch)
        for speech in datasets
        for index in range(len(speech))
        for view in range(speech.num_views)
        for epoch in (range(speech.augmentation_period) if view else [0])
    }
    todo = [(name, place) for name, place in todo.items() if name not in known]
    # In order of length, so that little is padding.
    todo.sort(key=lambda entry: entry[1][0].durations_s[entry[1][1]])
    mine = todo[state.process_index :: state.num_processes]
    loader = DataLoader(
        _Views([place for _, place in mine]),
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=collator,
    )
    was_training = model.training
    model.eval()
    vectors = []
    for batch in tqdm(loader, desc="Encoding all views", disable=not (todo and state.is_main_process)):
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        vectors.extend(model.lascl(**inputs).pooled_audio.float().cpu())
    model.train(was_training)
    found = [(name, vector) for (name, _), vector in zip(mine, vectors, strict=True)]
    known.update(gather_object(found) if state.num_processes > 1 else found)


class _Views(Dataset):
    """Single views as items for `SpeechCollator`."""

    def __init__(self, places: list[tuple]):
        self.places = places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, number: int) -> dict:
        speech, index, view, epoch = self.places[number]
        return {"label": speech.labels[index], "views": [speech.view(index, view, epoch)]}
