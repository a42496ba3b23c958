"""Folds that no speaker crosses."""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np


@dataclass(frozen=True)
class Fold:
    """One split of a corpus, as row indices into it. `number` counts from 1."""

    number: int
    train: list[int]
    test: list[int]

    def check_speakers(self, corpus: datasets.Dataset):
        """Raises ValueError if a speaker is on both sides, or a side is empty: such a score means nothing."""
        speakers = corpus["speaker"]
        shared = {speakers[row] for row in self.train} & {speakers[row] for row in self.test}
        if shared:
            raise ValueError(
                f"Fold {self.number}: speaker {sorted(shared)[0]!r} is in training and in test. A test fold must hold "
                "whole speakers."
            )
        if not self.train or not self.test:
            raise ValueError(
                f"Fold {self.number}: {len(self.train)} utterances in training and {len(self.test)} in test. Use "
                "fewer folds or more speakers."
            )


def make_folds(corpus: datasets.Dataset, num_folds: int = 5) -> list[Fold]:
    """Speaker-independent folds: the speakers in alphabetical order, cut into `num_folds` runs of nearly equal length.

    EmoDB's ten speakers give the usual five pairs (03 + 08, 09 + 10, ...).

    Args:
        corpus: from `load_corpus`.
        num_folds: at least 2, at most the number of speakers.

    Returns:
        The folds; each utterance is tested in exactly one.

    Raises:
        ValueError: fewer speakers than folds, or fewer than 2 folds.
    """
    speakers = np.array(corpus["speaker"])
    names = sorted(set(speakers.tolist()))
    if not 2 <= num_folds <= len(names):
        raise ValueError(f"num_folds must lie between 2 and the number of speakers, {len(names)}; found {num_folds}.")
    folds = []
    for number, group in enumerate(np.array_split(names, num_folds), start=1):
        is_test = np.isin(speakers, group)
        fold = Fold(number, train=np.flatnonzero(~is_test).tolist(), test=np.flatnonzero(is_test).tolist())
        fold.check_speakers(corpus)
        folds.append(fold)
    return folds
