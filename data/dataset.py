"""From rows of a corpus to batches: views of utterances, then padded tensors.

Letters: B utterances, V views of each, K labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import datasets
import numpy as np
import torch

from lascl.data.audio import read_audio
from lascl.data.augmentation import EDITIONS, augment, build_augmentation
from lascl.data.decoded import DecodedAudio, decoding_keys
from lascl.data.features import extract_features
from lascl.data.segments import recordings_of
from lascl.data.votes import shares_of
from lascl.data.words import annotated_words, corpus_names, corpus_of_rows


class SpeechDataset(torch.utils.data.Dataset):
    """Utterances of a corpus as audio: the first view clean, each further view augmented.

    Augmentation is drawn from a generator keyed by (seed, epoch, utterance, view), so the audio does not depend on
    the number of workers or processes, on the order, or on an interruption. `set_epoch` must be called at the start
    of every epoch (`LaSCLTrainer` does).

    Args:
        corpus: from `load_corpus`.
        rows: which of its rows, in this order.
        sampling_rate: of the audio, in Hz.
        max_duration_s: longer utterances are cut to their first so many seconds.
        augmentation: a name of `lascl.data.augmentation.AUGMENTATIONS`, or a function of one's own, of samples (n,)
            float32 and their rate in Hz, that returns samples. What it draws from Python's, numpy's or torch's global
            generators is a draw of its own for each utterance, view and epoch, and the same every time; workers that
            are spawned must be able to pickle it. With `none` there is one view only. (Paper unclear: what "without
            augmentation" does with the second of 2N instances; a plain copy would add cost and no information.)
        num_views: V, views of each utterance in a batch; 1 is the clean view alone.
        augmentation_edition: of `lascl.data.augmentation.EDITIONS`: 1 makes what older versions made, more slowly.
        augmentation_period: P, after so many epochs the augmented views repeat; `None`: never.
        seed: of the augmentation.
        decoded: where samples are kept that were decoded and resampled once; by default they are in every epoch.
        words: what the `labels` are numbers of, by default all words of the table. A row of another word has the label
            -1: it can be predicted and neither trained on nor scored by number; so has one without a label.

    Of a table that learns from votes, `label_shares` (n, K) are the shares of `words` for each row, and the `label` of
    an item is its row of them; else they are `None`. `labels` are numbers in any case.

    With several corpora `corpora` are the names of the rows' and `label_masks` (n, K) are the `words` that each row's
    corpus annotates; both are `None` with one.

    Raises:
        ValueError: an unknown augmentation or edition, or `num_views` or `augmentation_period` below 1.
    """

    def __init__(
        self,
        corpus: datasets.Dataset,
        rows: Sequence[int],
        *,
        sampling_rate: int,
        max_duration_s: float,
        augmentation: str | Callable[[np.ndarray, int], np.ndarray] = "none",
        num_views: int = 1,
        augmentation_edition: int = EDITIONS[-1],
        augmentation_period: int | None = None,
        seed: int = 0,
        decoded: DecodedAudio | None = None,
        words: Sequence[str] | None = None,
    ):
        if num_views < 1:
            raise ValueError(f"num_views must be at least 1; found {num_views}.")
        if augmentation_period is not None and augmentation_period < 1:
            raise ValueError(f"augmentation_period must be at least 1; found {augmentation_period}.")
        # Plain lists, and a column at once: one row of an Arrow table costs more than a thousand of a list.
        columns = {name: corpus[name][:] for name in ("id", "label", "duration_s")}
        columns["audio"] = recordings_of(corpus)  # paths, and segments of what is at one
        self.ids, self.labels, durations_s, self.paths = ([column[row] for row in rows] for column in columns.values())
        self.label_names = corpus.features["label"].names  # what a label's number means
        self.corpora, self.label_masks, self.label_shares = None, None, None
        self._name_labels(corpus, rows, words)
        self.durations_s = [min(duration_s, max_duration_s) for duration_s in durations_s]
        self.sampling_rate, self.max_duration_s, self.seed = sampling_rate, float(max_duration_s), seed
        self.num_views = 1 if augmentation == "none" else num_views
        self.augmentation_period = 1 if self.num_views == 1 else augmentation_period
        self.augmentation_name, self.augmentation_edition = augmentation, augmentation_edition
        self.augmentation = build_augmentation(augmentation, sampling_rate, augmentation_edition)
        self.decoded = decoded
        self.decoded_keys = decoding_keys(self.paths, sampling_rate) if decoded else [None] * len(self.paths)
        # In shared memory, so that workers which outlive an epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def _name_labels(self, corpus: datasets.Dataset, rows: Sequence[int], words: Sequence[str] | None):
        """Sets what follows from the words that are learned, and from the corpus of each row."""
        names = self.label_names
        if words is not None:
            number_of = {word: number for number, word in enumerate(words)}
            self.labels = [-1 if label is None else number_of.get(names[label], -1) for label in self.labels]
            self.label_names = list(words)
        else:
            self.labels = [-1 if label is None else label for label in self.labels]
        shares = shares_of(corpus)
        if shares is not None:
            columns = [names.index(word) for word in self.label_names]
            self.label_shares = torch.from_numpy(shares[list(rows)][:, columns]).float()  # (n, K)
        of_rows = corpus_of_rows(corpus)
        if of_rows is None:
            return
        self.corpora = [of_rows[row] for row in rows]
        annotates = annotated_words(corpus)  # (C, K) of the table's words
        own = np.zeros((len(annotates), len(self.label_names)), dtype=bool)
        for number, word in enumerate(self.label_names):
            if word in names:
                own[:, number] = annotates[:, names.index(word)]
        self.label_masks = torch.from_numpy(own[np.searchsorted(corpus_names(corpus), self.corpora)])  # (n, K)

    @property
    def epoch(self) -> int:
        """Whose augmentations are drawn now."""
        return int(self._epoch)

    def set_epoch(self, epoch: int):
        self._epoch.fill_(epoch % self.augmentation_period if self.augmentation_period else epoch)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        """`id`, `label` (int, of votes their shares (K,)) and `views`: V arrays (samples,), float32; with several
        corpora `label_mask` (K,)."""
        clean = self._read(index)
        augmented = [self._augment(clean, index, view, self.epoch) for view in range(1, self.num_views)]
        mask = {} if self.label_masks is None else {"label_mask": self.label_masks[index]}
        label = self.labels[index] if self.label_shares is None else self.label_shares[index]
        return {"id": self.ids[index], "label": label, **mask, "views": [clean, *augmented]}

    def view(self, index: int, view: int, epoch: int) -> np.ndarray:
        """One view (samples,) of an utterance as a given epoch has it; view 0 is the clean one."""
        clean = self._read(index)
        return self._augment(clean, index, view, epoch) if view else clean

    def _read(self, index: int) -> np.ndarray:
        rate, limit_s, key = self.sampling_rate, self.max_duration_s, self.decoded_keys[index]
        read = functools.partial(read_audio, self.paths[index], sampling_rate=rate, max_duration_s=limit_s)
        if key is None:
            return read()
        return self.decoded.read(key, read, most_samples=limit_s * rate, sampling_rate=rate)

    def _augment(self, clean: np.ndarray, index: int, view: int, epoch: int) -> np.ndarray:
        return augment(
            clean,
            self.sampling_rate,
            name=self.augmentation,
            seed=self.seed,
            epoch=epoch,
            utterance_id=f"{self.ids[index]}/{view}",
        )


@functools.cache
def _probe(sampling_rate: int) -> np.ndarray:
    """One second of a loud voice-like sound, (samples,) float32: at this level a normalising extractor's own epsilon,
    1e-7 of the variance, tells nothing."""
    times_s = np.arange(sampling_rate) / sampling_rate
    harmonics = sum(np.sin(2 * np.pi * 140 * k * times_s + k * k) / k for k in range(1, 20))
    noise = np.random.default_rng(0).standard_normal(sampling_rate)
    return (0.2 * harmonics + 0.02 * noise).astype(np.float32)


def is_heard(
    augmentation: str | Callable[[np.ndarray, int], np.ndarray],
    feature_extractor,
    *,
    and_then: Callable[[torch.Tensor], torch.Tensor] = lambda features: features,
) -> bool:
    """Whether an augmentation changes what a feature extractor gives to a model, found by passing a probe through it:
    as it is and as each of eight draws augments it. Heard is what moves the features by more than 5e-4 of their
    standard deviation (root mean square) in one draw at least: the faintest noise of `AUGMENTATIONS` moves a waveform
    by 1e-3, gain moves one that is normalised by 1e-4.

    Args:
        augmentation: as of `SpeechDataset`; `none` is not heard.
        feature_extractor: of a checkpoint.
        and_then: what the model does to the features first of all.
    """
    rate = feature_extractor.sampling_rate
    probe, transform = _probe(rate), build_augmentation(augmentation, rate)
    name = feature_extractor.model_input_names[0]
    clean = and_then(extract_features(feature_extractor, [probe])[name])
    for draw in range(8):
        view = augment(probe, rate, name=transform, seed=0, epoch=draw, utterance_id="probe")
        moved = and_then(extract_features(feature_extractor, [view])[name]) - clean
        if moved.square().mean().sqrt() > 5e-4 * clean.std():
            return True
    return False


def targets_of(labels) -> torch.Tensor:
    """What n utterances are trained on: (n,) integers, the numbers of their classes; or (n, K) float32, the votes or
    shares of their listeners for each of K words.

    Votes are told as labels of a floating type, and not under another name: whatever hands `labels` on (stock's
    Trainer, accelerate, a collator of one's own) hands them on too, and no utterance can have the one without the
    other.

    Raises:
        ValueError: one fraction an utterance, votes below 0 or not finite, labels of some and votes of others, or an
            ignored label (-100 by custom).
    """
    if isinstance(labels, (list, tuple)) and len({np.ndim(label) for label in labels}) > 1:
        raise ValueError("Some labels are numbers of a class, others votes for each word. Give all in one way.")
    if isinstance(labels, (list, tuple)) and any(isinstance(label, (torch.Tensor, np.ndarray)) for label in labels):
        labels = torch.stack([torch.as_tensor(label) for label in labels])
    labels = torch.as_tensor(labels)
    if not len(labels):
        return labels.long()
    if labels.ndim == 2:
        if not bool((labels.isfinite() & (labels >= 0)).all()):
            row = int((~(labels.isfinite() & (labels >= 0)).all(dim=1)).nonzero()[0])
            raise ValueError(f"Votes must be finite and at least 0; found {labels[row].tolist()} in row {row}.")
        return labels.float()
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            "A label must be the number of one class, or a row of votes, (n, K); found the shape "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    if int(labels.min()) < 0:
        raise ValueError(
            f"A label must be the number of one class, from 0; found {int(labels.min())}. Nothing is ignored in the "
            "joint loss: leave such utterances out, or give votes, of which a row may be zero."
        )
    return labels.long()


def repeated(targets: torch.Tensor, num_views: int) -> torch.Tensor:
    """What `targets_of` gives for B utterances, view by view: (V x B,) or (V x B, K)."""
    return targets.repeat(num_views, *[1] * (targets.ndim - 1))


def stacked_label_masks(items: list[dict], num_views: int) -> dict[str, torch.Tensor]:
    """`label_mask` (V x B, K) of bool, view by view, of B items that hold one (K,) each: the words that the corpus of
    each annotates. Empty of items that hold none."""
    if "label_mask" not in items[0]:
        return {}
    masks = torch.stack([torch.as_tensor(item["label_mask"], dtype=torch.bool) for item in items])  # (B, K)
    return {"label_mask": masks.repeat(num_views, 1)}


class SpeechCollator:
    """Pads a batch of `SpeechDataset` items with the checkpoint's own feature extractor.

    Rows come view by view: all clean utterances, then all first augmentations, and so on: (V x B) rows, `labels`
    repeated accordingly ((V x B,), or (V x B, K) of items whose `label` is a row of votes, see `targets_of`), and
    `label_mask` (V x B, K) if the items hold it. `lengths` are plain numbers, for which no
    GPU has to be waited for: what `attention_mask` sums to.
    """

    def __init__(self, feature_extractor):
        self.feature_extractor = feature_extractor

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor | list[int]]:
        num_views = len(items[0]["views"])
        audio: list[np.ndarray] = [item["views"][view] for view in range(num_views) for item in items]
        batch = extract_features(self.feature_extractor, audio)
        labels = targets_of([item["label"] for item in items])
        lengths = batch["attention_mask"].sum(dim=-1).tolist()
        masks = stacked_label_masks(items, num_views)
        return {**batch, "labels": repeated(labels, num_views), "lengths": lengths, **masks}
