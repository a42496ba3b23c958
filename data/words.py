"""Which words a corpus annotates: a label is the best of the words that were offered, and says nothing about others.

All of it follows from the table of `load_corpora` alone.

Letters: C corpora, K words, N rows of the table.
"""

from __future__ import annotations

import datasets
import numpy as np

from lascl.data.folds import Column, Fold
from lascl.data.votes import shares_of


def corpus_of_rows(table: datasets.Dataset) -> list[str] | None:
    """(N,) the corpus of each row; `None` for a table of one corpus, which has no such column."""
    return table["corpus"][:] if "corpus" in table.column_names else None


def corpus_names(table: datasets.Dataset) -> list[str]:
    """(C,) the names of the table's corpora, sorted; none for a table of one corpus."""
    return sorted(set(corpus_of_rows(table) or ()))


def annotated_words(table: datasets.Dataset) -> np.ndarray:
    """(C, K) booleans, in the order of `corpus_names` and of the table's label names: whether a corpus has utterances
    of a word, anywhere in the table; where votes are learned, also one that somebody only voted for. (0, K) for a table
    of one corpus."""
    names = corpus_names(table)
    annotates = np.zeros((len(names), len(table.features["label"].names)), dtype=bool)
    if not names:
        return annotates
    numbers, shares = np.searchsorted(names, corpus_of_rows(table)), shares_of(table)
    if shares is None:
        annotates[numbers, table["label"][:]] = True
    else:  # a row's label is among them
        rows, words = np.nonzero(shares)
        annotates[numbers[rows], words] = True
    return annotates


def words_of_fold(table: datasets.Dataset, fold: Fold) -> list[str]:
    """The words that a fold's model learns: those annotated by the corpora that train, sorted. What only validates or
    is tested adds none. Of one corpus, all its words, also one that no training utterance has."""
    words = table.features["label"].names
    of_rows = corpus_of_rows(table)
    if of_rows is None:
        return list(words)
    trains = np.isin(corpus_names(table), list(Column(of_rows).occurring(fold.train)))  # (C,)
    is_learned = annotated_words(table)[trains].any(axis=0)  # (K,)
    return sorted(word for word, learned in zip(words, is_learned) if learned)


def own_words(table: datasets.Dataset) -> dict[str, list[str]] | None:
    """By corpus, the words that it annotates, in the order of the table's label names; `None` for a table of one."""
    words = table.features["label"].names
    annotates = zip(corpus_names(table), annotated_words(table))
    return {name: [word for word, has in zip(words, row) if has] for name, row in annotates} or None
