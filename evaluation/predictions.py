"""What a `predictions.csv` says, and how its rows are scored.

Of several corpora a row has a `corpus`, whose own words are those that it annotates: among them the row's answer was
chosen. Cells are empty where a head does not know a word.

Letters: n rows, K labels.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lascl.evaluation.intervals import speaker_counts
from lascl.evaluation.metrics import SCORES, expected_calibration_error, score


# The columns of each head: `probability_<label>` is the label head's.
PROBABILITY = {"label": "probability_", "classifier": "probability_classifier_"}
HEAD_NAMES = {"label": "the label head", "classifier": "the classifier head", "both": "the mean of both heads"}
NO_REFERENCE = ""  # of an utterance for which no word has most votes: it is scored against its votes alone
NO_ANSWER = ""  # of a head that knows none of the words among which it had to choose


def read_predictions(path: str | Path, *, undecided: bool = False) -> list[dict[str, str]]:
    """The rows of a `predictions.csv`.

    Args:
        undecided: also those without a reference, on which listeners voted without any word having most.

    Raises:
        ValueError: a column that every `predictions.csv` has is missing, or a row has too few or too many cells; the
            message names it and the file.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for column in ("id", "speaker", "reference", "prediction", "prediction_classifier"):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: the column {column!r} is missing; this is no predictions.csv of a run.")
        rows = list(reader)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():  # how csv marks cells too many and too few
            raise ValueError(f"{path}: row {number} has not one cell for each column. Is the file cut off?")
    return [row for row in rows if undecided or row["reference"] != NO_REFERENCE]


def words_with_columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The words that a head of these rows may answer, sorted: those of the classifier's columns, which are of the same
    words as the label head's."""
    prefix = PROBABILITY["classifier"]
    return sorted(column.removeprefix(prefix) for column in rows[0] if column.startswith(prefix))


def trained_words(rows: Sequence[Mapping[str, str]]) -> set[str]:
    """The words that the model of a fold was trained on: those for which its classifier has no empty cell."""
    return {word for word in words_with_columns(rows) if rows[0][f"{PROBABILITY['classifier']}{word}"] != ""}


def own_words_of(rows: Sequence[Mapping[str, str]], protocol: Mapping) -> dict[str, list[str]] | None:
    """By corpus, the words that it annotates, as `protocol.json` tells them, or else those that its rows have as a
    reference; `None` of one corpus."""
    if not rows or "corpus" not in rows[0]:
        return None
    told, found = protocol.get("own_words", {}), {}
    for row in rows:
        found.setdefault(row["corpus"], set()).add(row["reference"])
    return {corpus: sorted({*told.get(corpus, ()), *words}) for corpus, words in sorted(found.items())}


def labels_of(rows: Sequence[Mapping[str, str]], labels: list[str], own: Mapping[str, list[str]] | None) -> list[str]:
    """Those of the labels that these rows' corpora annotate; of one corpus, all."""
    if own is None:
        return labels
    annotated = set().union(*(own[corpus] for corpus in {row["corpus"] for row in rows}))
    return [label for label in labels if label in annotated]


def score_rows(
    rows: list[dict[str, str]],
    labels: list[str],
    prediction_head: str | None = None,
    own: Mapping[str, list[str]] | None = None,
) -> dict:
    """`score` of the model's own head, with the scores of the classifier under `classifier`.

    Args:
        rows: of a `predictions.csv`, or of `predict_fold`; without `prediction_classifier` there is no `classifier`.
        labels: all classes.
        prediction_head: `label`, `classifier` or `both`, what `prediction` is from.
        own: of `own_words_of`: probabilities are then those of a corpus's own words among each other.

    Returns:
        Both also have `ece`, the expected calibration error, where the head's probability columns are there and finite
        (they are not once training has diverged); the model's own head has it only if `prediction_head` is given,
        because both heads may have predicted the same. An empty prediction is no right answer: then `labels` and
        `confusion` have the class "" too, which is never true.
    """
    references = [row["reference"] for row in rows]

    def scored(column: str) -> dict:
        return score([row[column] for row in rows], references, labels=classes_of(rows, labels, column))

    scores = {**scored("prediction"), **_calibration(rows, labels, prediction_head, own)}
    if "prediction_classifier" in rows[0]:
        classifier = scored("prediction_classifier")
        scores["classifier"] = {
            **{name: classifier[name] for name in SCORES},
            **_calibration(rows, labels, "classifier", own),
        }
    return scores


def classes_of(rows: Sequence[Mapping[str, str]], labels: list[str], column: str) -> list[str]:
    """The classes of a column of predictions: the labels and, if a head had to choose among words of a corpus of which
    it knows none, the empty one."""
    has_none = "corpus" in rows[0] and any(row[column] == NO_ANSWER for row in rows)
    return [*labels, NO_ANSWER] if has_none and NO_ANSWER not in labels else labels


def counts_of(rows: Sequence[Mapping[str, str]], classes: Sequence[str], column: str = "prediction") -> np.ndarray:
    """(S, K, K) `speaker_counts` of a column of predictions."""
    predictions, references, speakers = ([row[name] for row in rows] for name in (column, "reference", "speaker"))
    return speaker_counts(predictions, references, speakers, classes)


def head_probabilities(
    rows: list[dict[str, str]], labels: list[str], head: str, own: Mapping[str, list[str]] | None = None
) -> np.ndarray | None:
    """(n, K) probabilities of the head `label` or `classifier`, or of `both`; None if a label has no column. Of several
    corpora an empty cell is 0.

    Of both, among the words S that the classifier knows it is (l + m c) / 2, with l the label head's probabilities, c
    the classifier's among S and m the sum of l over S; other words keep their l. So does `mean_of_heads` of the model.

    Args:
        own: of `own_words_of`: only the words of a row's corpus count, and sum to 1 (NaN where they have no share).
    """
    if head == "both":
        return _of_both_heads(rows, labels, own)
    columns = [f"{PROBABILITY[head]}{label}" for label in labels]
    if any(column not in row for row in rows for column in columns):
        return None
    empty = "0" if "corpus" in rows[0] else ""  # which is no number
    cells = [[row[column] for column in columns] for row in rows]
    probabilities = np.array([[float(empty if cell == "" else cell) for cell in row] for row in cells])  # (n, K)
    if own is None:
        return probabilities
    probabilities = np.where(_is_own(rows, labels, own), probabilities, 0)
    sums = probabilities.sum(axis=1, keepdims=True)
    return np.divide(probabilities, sums, out=np.full_like(probabilities, np.nan), where=sums > 0)


def _is_own(rows, labels, own) -> np.ndarray:
    """(n, K) of bool: which words the corpus of each row annotates."""
    by_corpus = {corpus: np.isin(labels, words) for corpus, words in own.items()}
    return np.array([by_corpus[row["corpus"]] for row in rows])


def _of_both_heads(rows, labels, own) -> np.ndarray | None:
    of_labels, of_classes = (head_probabilities(rows, labels, head, own) for head in ("label", "classifier"))
    if of_labels is None or of_classes is None:
        return of_labels
    known = np.array([[row[f"{PROBABILITY['classifier']}{label}"] != "" for label in labels] for row in rows])
    known = known if own is None else known & _is_own(rows, labels, own)  # (n, K)
    share = np.where(known, of_labels, 0).sum(axis=1, keepdims=True)  # (n, 1)
    return np.where(known, (of_labels + share * of_classes) / 2, of_labels)


def _calibration(rows, labels, head, own) -> dict:
    probabilities = None if head is None else head_probabilities(rows, labels, head, own)
    if probabilities is None or not np.isfinite(probabilities).all():
        return {}
    references = [labels.index(row["reference"]) for row in rows]
    return {"ece": expected_calibration_error(probabilities, references)}
