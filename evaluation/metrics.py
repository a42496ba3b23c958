"""The field's scores, defined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import confusion_matrix


SCORES = ("wa", "ua", "macro_f1")
SCORE_NAMES = dict(zip(SCORES, ("WA", "UA", "macro-F1")))


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
    confusion = confusion_matrix(references, predictions, labels=labels)
    utterances = confusion.sum(axis=1)
    recall = {label: float(confusion[k, k] / utterances[k]) for k, label in enumerate(labels) if utterances[k]}
    return {
        "n": len(references),
        **dict(zip(SCORES, scores_from_counts(confusion).tolist())),
        "recall": recall,
        "confusion": confusion.tolist(),
        "labels": labels,
        "absent": [label for label in labels if label not in recall],
    }


def scores_from_counts(confusion: np.ndarray) -> np.ndarray:
    """WA, UA and macro-F1 of one confusion matrix or of many, as `score` defines them.

    With tp_k right, r_k true and p_k predicted utterances of class k, and K the classes that have r_k > 0:
    WA = sum tp_k / sum r_k; UA = mean over K of tp_k / r_k; macro-F1 = mean over K of 2 tp_k / (r_k + p_k).

    Args:
        confusion: (..., K, K) counts, references in rows and predictions in columns, at least one in each matrix.

    Returns:
        (..., 3) fractions in [0, 1], in the order of `SCORES`.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    num_occurring = (true > 0).sum(axis=-1)
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(true + predicted, 1)  # 0, as recall, for a class without a true utterance
    return np.stack(
        [right.sum(axis=-1) / true.sum(axis=-1), recall.sum(axis=-1) / num_occurring, f1.sum(axis=-1) / num_occurring],
        axis=-1,
    )


def expected_calibration_error(probabilities: np.ndarray, references: Sequence[int], *, num_bins: int = 15) -> float:
    """How far a model's confidence is from its accuracy.

    The expected calibration error of Guo et al. (2017, "On Calibration of Modern Neural Networks", eq. 3):
    ECE = sum over bins of |B_m| / n * |acc(B_m) - conf(B_m)|. Confidence is the largest probability of a row, and its
    class (the first, when several share it) is the prediction. The bins have equal width; bin m of M holds confidences
    in ((m - 1) / M, m / M], so a confidence on an edge belongs below it. Empty bins count 0.

    Args:
        probabilities: (n, K), rows that sum to 1.
        references: (n,) true classes, as columns of `probabilities`.
        num_bins: M.

    Returns:
        A fraction in [0, 1]; 0 means that confidence and accuracy agree in every bin. With few utterances it is biased
        upwards: compare models on the same utterances only.

    Raises:
        ValueError: no utterances, other lengths, rows that are not probabilities, or a class without a column.
    """
    probabilities, references = np.asarray(probabilities, dtype=np.float64), np.asarray(references)
    if probabilities.ndim != 2 or not len(references) or len(probabilities) != len(references):
        raise ValueError(
            "Expected a row of probabilities for each reference, at least one; found the shape "
            f"{probabilities.shape} and {len(references)} references."
        )
    # 1e-3: rounded probabilities pass, logits and percentages do not; written so that nan does not either.
    sums = probabilities.sum(axis=1)
    if not (np.all(probabilities >= 0) and np.all(np.abs(sums - 1) <= 1e-3)):
        row = int(np.argmin((probabilities >= 0).all(axis=1) & (np.abs(sums - 1) <= 1e-3)))
        raise ValueError(
            f"Row {row} holds no probabilities: it is {probabilities[row].tolist()}. Give softmax outputs, not logits."
        )
    num_classes = probabilities.shape[1]
    if not np.all((references >= 0) & (references < num_classes)):
        raise ValueError(
            f"Expected references from 0 to {num_classes - 1}, one for each column; found {references.min()} to "
            f"{references.max()}."
        )
    right = probabilities.argmax(axis=1) == references
    _, confidence, num_right = calibration_bins(probabilities.max(axis=1), right, num_bins)
    # |B_m| / n * |acc - conf| is |right answers - summed confidence| / n: no division by an empty bin.
    return float(np.abs(num_right - confidence).sum() / len(references))


def sample_std(values: Sequence[float]) -> float:
    """The standard deviation with n - 1; 0 for one value, which tells nothing of a spread."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def calibration_bins(confidences: np.ndarray, right: np.ndarray, num_bins: int) -> tuple[np.ndarray, ...]:
    """Sums over the bins of `expected_calibration_error`, each (num_bins,): utterances, confidences, right answers.

    Args:
        confidences: (n,) the probability of the predicted class, in [0, 1]; one of 0 is in the first bin.
        right: (n,) whether the prediction is right.
    """
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.searchsorted(inner_edges, confidences, side="left")
    return tuple(np.bincount(bins, weights, minlength=num_bins) for weights in (None, confidences, right))
