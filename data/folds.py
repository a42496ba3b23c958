"""Folds that no speaker crosses."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import datasets
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold


@dataclass(frozen=True)
class Fold:
    """One split of a corpus, as row indices into it. `number` counts from 1."""

    number: int
    train: list[int]
    test: list[int]

    def check_speakers(self, corpus: datasets.Dataset):
        """Raises ValueError if a speaker is on both sides, or a side is empty: such a score means nothing."""
        speakers = corpus["speaker"][:]
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


def make_folds(corpus: datasets.Dataset, num_folds: int | None = None, *, seed: int = 0) -> list[Fold]:
    """Speaker-independent folds; they do not depend on the order of the rows.

    Without `num_folds` they are the corpus's own: its `fold` column, else its sessions. With `num_folds`, or for want
    of their own (then five, or as many as there are speakers), `emodb` and `synthetic` are cut into runs of
    neighbouring speakers (EmoDB's usual five pairs, 03 + 08, 09 + 10, ...); elsewhere speakers are grouped so that the
    folds are alike in size and labels (scikit-learn's `StratifiedGroupKFold`, seeded).

    Args:
        corpus: from `load_corpus`.
        num_folds: at least 2, at most the number of speakers.
        seed: of the grouping.

    Returns:
        The folds, numbered from 1 in the order of their names; each utterance is tested in exactly one.

    Raises:
        ValueError: fewer speakers than folds, fewer than two folds, or a speaker whom the corpus's own folds put on
            two sides.
    """
    if num_folds is None and "fold" in corpus.column_names:
        names = corpus["fold"][:]
    elif num_folds is None and None not in corpus["session"][:]:
        names = corpus["session"][:]
    else:
        num_speakers = len(set(corpus["speaker"][:]))
        names = _group_speakers(corpus, min(5, num_speakers) if num_folds is None else num_folds, seed)
    if len(set(names)) < 2:
        raise ValueError(f"Cross-validation needs two folds at least; all utterances are in fold {names[0]!r}.")
    # 10 after 9, not after 1.
    order = sorted(
        set(names), key=lambda name: (not str(name).isdecimal(), int(name) if str(name).isdecimal() else name)
    )
    folds = []
    for number, name in enumerate(order, start=1):
        train, test = [], []
        for row, own in enumerate(names):
            (test if own == name else train).append(row)
        fold = Fold(number, train, test)
        fold.check_speakers(corpus)
        folds.append(fold)
    return folds


def _group_speakers(corpus, num_folds: int, seed: int) -> list[int]:
    """The fold of each row, 0 to `num_folds` - 1."""
    speakers, labels = np.array(corpus["speaker"][:]), np.array(corpus["label"][:])
    num_speakers = len(set(speakers.tolist()))
    if not 2 <= num_folds <= num_speakers:
        raise ValueError(f"num_folds must lie between 2 and the number of speakers, {num_speakers}; found {num_folds}.")
    if corpus.info.dataset_name in ("emodb", "synthetic"):
        runs = np.array_split(sorted(set(speakers.tolist())), num_folds)
        return [next(number for number, run in enumerate(runs) if speaker in run) for speaker in speakers]
    # Sorted, because the splitter numbers speakers as they appear.
    rows = np.lexsort((np.array(corpus["id"][:]), speakers))
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    names = np.zeros(len(rows), dtype=int)
    with warnings.catch_warnings():
        # A label of fewer utterances than folds cannot be everywhere; the report says where it is absent.
        warnings.filterwarnings("ignore", "The least populated class")
        try:
            for number, (_, test) in enumerate(splitter.split(rows, labels[rows], groups=speakers[rows])):
                names[rows[test]] = number
        except ValueError as error:  # every label has fewer utterances than there are folds
            raise ValueError(f"{len(rows)} utterances cannot fill {num_folds} folds ({error}).") from None
    if len(set(names.tolist())) < num_folds:
        raise ValueError(f"{num_speakers} speakers cannot fill {num_folds} folds alike. Use fewer folds.")
    return names.tolist()
