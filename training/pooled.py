"""A frozen audio encoder hears every view once: its pooled audio stands for the waveforms while the heads are trained.

Letters: N utterances of a data set, B of a batch, V views of each, P epochs until the augmentations repeat, d_a width
of the pooled audio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lascl.data import SpeechDataset
from lascl.modeling_lascl import LaSCLForAudioClassification
from lascl.training.arguments import LaSCLTrainingArguments


class PooledDataset(Dataset):
    """Some utterances of a `SpeechDataset`, which must have an `augmentation_period`, as pooled audio.

    Args:
        speech: the utterances that were embedded, with all their views.
        rows: which of them, in this order.
        blocks: from `embed_views`.
        num_views: V, of those of `speech`; 1 is the clean view alone.
        transform: of (n, d_a), such as `LaSCLModel.standardise`; by default none.
    """

    def __init__(
        self,
        speech: SpeechDataset,
        rows: Sequence[int],
        blocks: dict[tuple, torch.Tensor],
        *,
        num_views: int,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.ids = [speech.ids[row] for row in rows]
        self.labels = [speech.labels[row] for row in rows]
        self.durations_s = [speech.durations_s[row] for row in rows]
        self.speech, self.num_views = speech, num_views
        self.pooled = {}  # (n, d_a) by view and epoch; the clean view has no epochs
        for view, epoch in blocks_of(speech, num_views):
            pooled = blocks[block_name(speech, view, epoch)][list(rows)]
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
    labels = torch.tensor([item["label"] for item in items], dtype=torch.long)
    return {"pooled_audio": pooled.flatten(0, 1), "labels": labels.repeat(len(pooled))}


def blocks_of(speech: SpeechDataset, num_views: int) -> list[tuple[int, int]]:
    """View and epoch of every block: the clean view once, each augmented one in every epoch of the period."""
    return [(0, 0), *((view, epoch) for epoch in range(speech.augmentation_period) for view in range(1, num_views))]


def block_name(speech: SpeechDataset, view: int, epoch: int) -> tuple:
    """What a block of views depends on, beside the corpus and the encoder."""
    return ("clean",) if view == 0 else (speech.augmentation_name, speech.seed, epoch, view)


@torch.no_grad()
def embed_views(
    model: LaSCLForAudioClassification,
    speech: SpeechDataset,
    collator: Callable,
    blocks: dict[tuple, torch.Tensor],
    args: LaSCLTrainingArguments,
):
    """Adds the pooled audio (N, d_a) of all utterances to `blocks`, one block for each view of each epoch, by
    `block_name`, unless it is there.

    A block is always the whole data set in the same batches, whatever else there is to do, so that the same command
    rounds alike wherever it went on. Several processes embed a share of each, and all come to know all. The model is in
    evaluation mode meanwhile.
    """
    state, was_training = PartialState(), model.training
    todo = [place for place in blocks_of(speech, speech.num_views) if block_name(speech, *place) not in blocks]
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
                inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
                vectors.extend(model.lascl(**inputs).pooled_audio.float().cpu())
                progress.update(len(batch["labels"]))
            found = list(zip(mine, vectors, strict=True))
            found = gather_object(found) if state.num_processes > 1 else found
            found.sort(key=lambda entry: entry[0])
            blocks[block_name(speech, view, epoch)] = torch.stack([vector for _, vector in found])  # (N, d_a)
    model.train(was_training)


class OneView(Dataset):
    """One view in one epoch of some rows of a `SpeechDataset`, as items for `SpeechCollator`."""

    def __init__(self, speech: SpeechDataset, rows: list[int], view: int, epoch: int):
        self.speech, self.rows, self.view, self.epoch = speech, rows, view, epoch

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        row = self.rows[number]
        return {"label": self.speech.labels[row], "views": [self.speech.view(row, self.view, self.epoch)]}
