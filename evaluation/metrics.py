"""The field's scores, defined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score


def score(predictions: Sequence, references: Sequence, *, labels: Sequence | None = None) -> dict:
    r"""Scores predicted against true emotions.

    * WA, weighted accuracy: the share of utterances predicted right.
    * UA, unweighted accuracy: the mean over classes of the recall, R_k = right in class k / utterances of class k.
    * macro-F1: the mean over classes of F1_k = 2 P_k R_k / (P_k + R_k), 0 where both are 0.

    A class without a true utterance has no recall: it is left out of UA and macro-F1 and named in `absent`.

    Args:
        predictions, references: (n,) labels, names or indices.
        labels: all classes, in the order of the confusion matrix; by default those that occur, sorted.

    Returns:
        `n`; `wa`, `ua`, `macro_f1` as fractions in [0, 1]; `recall` by class; `confusion`, counts with references in
        rows and predictions in columns; `labels`; `absent`.

    Raises:
        ValueError: no utterances, lengths that differ, or a value that is not in `labels`.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if len(predictions) != len(references) or not len(references):
        raise ValueError(
            f"Expected as many predictions as references, at least one; found {len(predictions)} and {len(references)}."
        )
    occurring = set(predictions.tolist()) | set(references.tolist())
    labels = sorted(occurring) if labels is None else list(labels)
    if not occurring <= set(labels):
        raise ValueError(f"{sorted(occurring - set(labels))[0]!r} is not one of the labels {labels}.")
    true = set(references.tolist())
    present = [label for label in labels if label in true]
    recall = recall_score(references, predictions, labels=present, average=None, zero_division=0)
    return {
        "n": len(references),
        "wa": float(accuracy_score(references, predictions)),
        "ua": float(np.mean(recall)),
        "macro_f1": float(f1_score(references, predictions, labels=present, average="macro", zero_division=0)),
        "recall": dict(zip(present, recall.tolist())),
        "confusion": confusion_matrix(references, predictions, labels=labels).tolist(),
        "labels": labels,
        "absent": [label for label in labels if label not in true],
    }
