"""From the predictions of the folds to the numbers of a run."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import yaml

from lascl.evaluation.intervals import speaker_counts, speaker_interval
from lascl.evaluation.metrics import SCORES, expected_calibration_error, sample_std, score


# The columns of each head: `probability_<label>` is the label head's.
PROBABILITY = {"label": "probability_", "classifier": "probability_classifier_"}


def read_predictions(path: str | Path) -> list[dict[str, str]]:
    """The rows of a `predictions.csv`.

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
    return rows


def score_rows(rows: list[dict[str, str]], labels: list[str], prediction_head: str | None = None) -> dict:
    """`score` of the model's own head, with the scores of the classifier under `classifier`.

    Args:
        rows: of a `predictions.csv`, or of `predict_fold`; without `prediction_classifier` there is no `classifier`.
        labels: all classes.
        prediction_head: `label` or `classifier`, the head that `prediction` is from.

    Returns:
        Both also have `ece`, the expected calibration error, where the head's probability columns are there and finite
        (they are not once training has diverged); the model's own head has it only if `prediction_head` is given,
        because both heads may have predicted the same.
    """
    references = [row["reference"] for row in rows]
    scores = {
        **score([row["prediction"] for row in rows], references, labels=labels),
        **_calibration(rows, labels, prediction_head),
    }
    if "prediction_classifier" in rows[0]:
        classifier = score([row["prediction_classifier"] for row in rows], references, labels=labels)
        scores["classifier"] = {
            **{name: classifier[name] for name in SCORES},
            **_calibration(rows, labels, "classifier"),
        }
    return scores


def head_probabilities(rows: list[dict[str, str]], labels: list[str], head: str) -> np.ndarray | None:
    """(n, K) probabilities of the head `label` or `classifier`; None if a label has no column."""
    columns = [f"{PROBABILITY[head]}{label}" for label in labels]
    if any(column not in row for row in rows for column in columns):
        return None
    return np.array([[float(row[column]) for column in columns] for row in rows])


def _calibration(rows, labels, head) -> dict:
    probabilities = None if head is None else head_probabilities(rows, labels, head)
    if probabilities is None or not np.isfinite(probabilities).all():
        return {}
    references = [labels.index(row["reference"]) for row in rows]
    return {"ece": expected_calibration_error(probabilities, references)}


def read_run(run_dir: str | Path) -> dict[int, list[dict[str, str]]]:
    """The rows of each fold that has a `predictions.csv`, by the fold's number.

    Raises:
        ValueError: an utterance that was tested twice.
    """
    paths = {int(path.parent.name.removeprefix("fold-")): path for path in Path(run_dir).glob("fold-*/predictions.csv")}
    folds = {number: read_predictions(paths[number]) for number in sorted(paths)}
    times = Counter(row["id"] for rows in folds.values() for row in rows)
    twice = [id for id, count in times.items() if count > 1]
    if twice:
        raise ValueError(f"{run_dir}: the utterance {twice[0]!r} was tested twice. Delete the folds of another run.")
    return folds


def summarise_run(run_dir: str | Path, labels: list[str]) -> dict:
    """The content of `results.json`, computed from the `predictions.csv` of every fold that has one.

    Which head `prediction` is from is read from `recipe.yaml`, if there is one. Equal predictions give equal numbers.

    Returns:
        `folds`: the scores of each fold, with its number under `fold`; `pooled`: of all utterances together, with
        `num_speakers` and, for both heads, `intervals`, the 95 % interval [low, high] of each score over speakers
        (`lascl.evaluation.speaker_interval`), None for a score that is the same whichever speakers are drawn, and
        None instead of all three with one speaker; `mean` and `std`: over the folds (`std` with
        n - 1, 0 for one fold); `improvised`, where `protocol.json` tells which utterances are (IEMOCAP): as `pooled`,
        of these alone. Fractions in [0, 1].

    Raises:
        ValueError: an utterance that was tested twice, no utterance in a fold, or a label that is none.
    """
    recipe = Path(run_dir) / "recipe.yaml"
    head = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("prediction_head") if recipe.is_file() else None
    runs_folds = read_run(run_dir)
    folds = []
    for number, rows in runs_folds.items():
        try:
            folds.append({"fold": number, **score_rows(rows, labels, head)})
        except ValueError as error:
            raise ValueError(f"fold-{number}/predictions.csv: {error}") from None
    rows = [row for rows in runs_folds.values() for row in rows]
    protocol = Path(run_dir) / "protocol.json"
    told = json.loads(protocol.read_text(encoding="utf-8")) if protocol.is_file() else {}
    improvised = [row for row in rows if row["id"] in set(told.get("improvised_ids", ()))]
    return {
        "folds": folds,
        "pooled": _pooled(rows, labels, head),
        **({"improvised": _pooled(improvised, labels, head)} if improvised else {}),
        "mean": _over_folds(folds, np.mean),
        "std": _over_folds(folds, sample_std),
    }


def _pooled(rows, labels, head) -> dict:
    scores = score_rows(rows, labels, head)
    scores["num_speakers"] = len({row["speaker"] for row in rows})
    scores["intervals"] = _intervals(rows, labels, "prediction")
    scores["classifier"]["intervals"] = _intervals(rows, labels, "prediction_classifier")
    return scores


def _intervals(rows, labels, column) -> dict | None:
    predictions, references, speakers = ([row[name] for row in rows] for name in (column, "reference", "speaker"))
    return named_intervals(speaker_interval(speaker_counts(predictions, references, speakers, labels)))


def named_intervals(intervals: np.ndarray | None) -> dict[str, list[float] | None] | None:
    """What `speaker_interval` gives for the three scores, by their names; None where there is no interval."""
    if intervals is None:
        return None
    # Far finer than the resampling's own noise, and coarse enough that another scipy writes the same file.
    return {name: ends if np.isfinite(ends).all() else None for name, ends in zip(SCORES, intervals.round(6).tolist())}


def _over_folds(folds, function) -> dict:
    def summary(scores: list[dict]) -> dict:
        names = [name for name in (*SCORES, "ece") if all(name in fold for fold in scores)]
        return {name: float(function([fold[name] for fold in scores])) for name in names}

    return {**summary(folds), "classifier": summary([fold["classifier"] for fold in folds])}


def results_cells(results: dict) -> tuple[list[str], list[list[str]], list[str]]:
    """`results.json` as a table in per cent.

    Returns:
        The head; the rows, each as many cells: a fold each, then the mean over folds, then all utterances together;
        and the notes under the table: what its brackets mean, why an interval is missing, and the classes that a fold
        lacks.
    """
    head = ["fold", "utterances", "WA", "UA", "macro-F1", "WA, classifier", "UA, classifier"]
    rows = [[str(fold["fold"]), str(fold["n"]), *map(per_cent, _columns(fold))] for fold in results["folds"]]
    means = [per_cent(mean) for mean in _columns(results["mean"])]
    if len(results["folds"]) > 1:
        means = [f"{mean} ± {per_cent(std)}" for mean, std in zip(means, _columns(results["std"]))]
    pooled = results["pooled"]
    together = {"pooled": pooled, "improvised only, pooled": results.get("improvised")}
    rows += [
        ["mean over folds", "", *means],
        *([name, str(scores["n"]), *_pooled_cells(scores)] for name, scores in together.items() if scores),
    ]
    notes = []
    if any((pooled["intervals"] or {}).values()):
        notes.append(f"In brackets: 95 % interval over the {pooled['num_speakers']} speakers.")
    notes += dict.fromkeys(f"{why_no_interval(pooled)}." for name in SCORES if not interval_of(pooled, name))
    notes += [
        f"Fold {fold['fold']} has no true {', '.join(fold['absent'])}: left out of its UA and macro-F1."
        for fold in results["folds"]
        if fold["absent"]
    ]
    return head, rows, notes


def results_table(results: dict) -> str:
    """`results_cells` as a Markdown table, with its notes."""
    head, rows, notes = results_cells(results)
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def interval_of(scores: dict, name: str) -> list[float] | None:
    """[low, high] of a pooled score; None where speakers say nothing about it."""
    return (scores["intervals"] or {}).get(name)


def why_no_interval(scores: dict) -> str:
    """The reason, of pooled scores that lack an interval."""
    if scores["num_speakers"] == 1:
        return "No interval: one speaker says nothing about others"
    return f"No interval where the score is the same whichever of the {scores['num_speakers']} speakers are drawn"


def with_interval(cell: str, interval: list[float] | None) -> str:
    """A cell of a table with its interval in per cent, if there is one, in brackets."""
    return cell if interval is None else f"{cell} [{per_cent(interval[0])}, {per_cent(interval[1])}]"


def _pooled_cells(scores: dict) -> list[str]:
    intervals = [interval_of(scores, name) for name in SCORES]
    intervals += [interval_of(scores["classifier"], name) for name in ("wa", "ua")]
    return [with_interval(per_cent(value), interval) for value, interval in zip(_columns(scores), intervals)]


def _columns(scores: dict) -> list:
    return [*(scores[name] for name in SCORES), *(scores["classifier"][name] for name in ("wa", "ua"))]


def per_cent(fraction: float) -> str:
    """With one decimal."""
    return f"{100 * fraction:.1f}"
