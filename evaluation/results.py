"""From the predictions of the folds to the numbers of a run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from lascl.evaluation.metrics import score


SCORES = ("wa", "ua", "macro_f1")


def read_predictions(path: str | Path) -> list[dict[str, str]]:
    """The rows of a `predictions.csv`.

    Raises:
        ValueError: a column that every `predictions.csv` has is missing; the message names it and the file.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for column in ("id", "speaker", "reference", "prediction", "prediction_classifier"):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: the column {column!r} is missing; this is no predictions.csv of a run.")
        return list(reader)


def score_rows(rows: list[dict[str, str]], labels: list[str]) -> dict:
    """`score` of the model's own head, with the scores of the classifier under `classifier`."""
    references = [row["reference"] for row in rows]
    classifier = score([row["prediction_classifier"] for row in rows], references, labels=labels)
    return {
        **score([row["prediction"] for row in rows], references, labels=labels),
        "classifier": {name: classifier[name] for name in SCORES},
    }


def summarise_run(run_dir: str | Path, labels: list[str]) -> dict:
    """The content of `results.json`, computed from the `predictions.csv` of every fold that has one.

    Returns:
        `folds`: the scores of each fold, with its number under `fold`; `pooled`: of all utterances together; `mean`
        and `std`: over the folds (`std` with n - 1, 0 for one fold). Fractions in [0, 1].

    Raises:
        ValueError: an utterance that was tested twice.
    """
    folds, pooled = [], []
    for path in sorted(Path(run_dir).glob("fold-*/predictions.csv"), key=lambda path: _fold_number(path.parent)):
        rows = read_predictions(path)
        folds.append({"fold": _fold_number(path.parent), **score_rows(rows, labels)})
        pooled += rows
    ids = [row["id"] for row in pooled]
    if len(set(ids)) != len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise ValueError(f"{run_dir}: the utterance {twice!r} was tested twice. Delete the folds of another run.")
    return {
        "folds": folds,
        "pooled": score_rows(pooled, labels),
        "mean": _over_folds(folds, np.mean),
        "std": _over_folds(folds, lambda values: np.std(values, ddof=1) if len(values) > 1 else 0.0),
    }


def _over_folds(folds, function) -> dict:
    summary = {name: float(function([fold[name] for fold in folds])) for name in SCORES}
    classifier = {name: float(function([fold["classifier"][name] for fold in folds])) for name in SCORES}
    return {**summary, "classifier": classifier}


def _fold_number(folder: Path) -> int:
    return int(folder.name.removeprefix("fold-"))


def results_table(results: dict) -> str:
    """`results.json` as a Markdown table in per cent, with the classes that a fold lacks under it."""
    lines = [
        "| fold | utterances | WA | UA | macro-F1 | WA, classifier | UA, classifier |",
        "|---|---|---|---|---|---|---|",
    ]
    for fold in results["folds"]:
        lines.append(f"| {fold['fold']} | {fold['n']} | {_per_cent(fold)} |")
    deviation = results["std"] if len(results["folds"]) > 1 else None
    lines.append(f"| mean over folds | | {_per_cent(results['mean'], deviation)} |")
    lines.append(f"| pooled | {results['pooled']['n']} | {_per_cent(results['pooled'])} |")
    absent = [
        f"Fold {fold['fold']} has no true {', '.join(fold['absent'])}: left out of its UA and macro-F1."
        for fold in results["folds"]
        if fold["absent"]
    ]
    return "\n".join([*lines, *(["", *absent] if absent else [])])


def _per_cent(scores: dict, deviation: dict | None = None) -> str:
    values = [scores[name] for name in SCORES] + [scores["classifier"][name] for name in ("wa", "ua")]
    if deviation is None:
        return " | ".join(f"{100 * value:.1f}" for value in values)
    spreads = [deviation[name] for name in SCORES] + [deviation["classifier"][name] for name in ("wa", "ua")]
    return " | ".join(f"{100 * value:.1f} ± {100 * spread:.1f}" for value, spread in zip(values, spreads))
