"""A finished run as its files tell it: what a report reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from lascl.evaluation.metrics import SCORES, calibration_bins, sample_std
from lascl.evaluation.predictions import HEAD_NAMES, own_words_of, read_predictions
from lascl.evaluation.results import interval_of, per_cent, summarise_run, with_interval


@dataclass(frozen=True)
class Run:
    """The files of a run directory.

    Args:
        name: of the folder.
        results: what `results.json` must say, computed from the predictions.
        recipe, environment: `recipe.yaml`, `environment.json`.
        protocol: `protocol.json`; empty for a run without it.
        num_skipped: rows of `skipped.csv`.
        predictions: the rows of `predictions.csv` by fold number, those with a reference.
        undecided: the rows without one, on which listeners voted without any word having most.
        histories: `log_history.json` by fold number; only the folds that have it.
        embeddings: the arrays of `embeddings.npz` by fold number; only the folds that have it.
    """

    name: str
    results: dict
    recipe: dict
    environment: dict
    protocol: dict
    num_skipped: int
    predictions: dict[int, list[dict[str, str]]]
    undecided: list[dict[str, str]]
    histories: dict[int, list[dict]]
    embeddings: dict[int, dict[str, np.ndarray]]

    @property
    def labels(self) -> list[str]:
        return [label for label in self.results["pooled"]["labels"] if label]  # an empty one is no answer

    @property
    def own_words(self) -> dict[str, list[str]] | None:
        """By corpus the words that it annotates; None of one corpus."""
        return own_words_of(self.rows, self.protocol)

    @property
    def histories_by_fold(self) -> list[list[dict] | None]:
        """The log of each fold that was tested, None where there is none."""
        return [self.histories.get(number) for number in self.predictions]

    @property
    def has_label_space(self) -> bool:
        """Whether training tied utterances to label embeddings: without, their places among each other are chance."""
        return self.recipe.get("label_anchors", True) and self.recipe.get("contrastive_weight", 1) > 0

    @property
    def rows(self) -> list[dict[str, str]]:
        """The predictions of all folds."""
        return [row for rows in self.predictions.values() for row in rows]


def load_run(run_dir: str | Path, results: dict | None = None) -> Run:
    """Reads a run directory.

    Args:
        results: what `summarise_run` says of it, if that was computed just now; else it is, and compared.

    Raises:
        ValueError: no finished run is there, a file of it cannot be read, or `results.json` does not follow from the
            predictions; the message names the file.
    """
    folder = Path(run_dir)
    if (folder / "full-data").is_dir() and not any(folder.glob("fold-*")):
        raise ValueError(
            f"{folder} has no tested fold, only the model of all its data, of which no score can tell. Train without "
            "--folds none."
        )
    for name in ("results.json", "recipe.yaml", "environment.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}. Give the folder of a finished run: train.py's output_dir.")
    told = parsed_file(folder / "results.json")
    try:
        numbers = [fold["fold"] for fold in told["folds"]]
        told["pooled"]["labels"], told["mean"]["classifier"], told["std"]["classifier"]
    except (KeyError, TypeError):
        raise ValueError(f"{folder / 'results.json'} is not what train.py writes. Run train.py again.") from None
    for number in numbers:
        if not (folder / f"fold-{number}" / "predictions.csv").is_file():
            raise ValueError(f"{folder} has no fold-{number}/predictions.csv, which results.json speaks of.")
    recipe, environment = parsed_file(folder / "recipe.yaml"), parsed_file(folder / "environment.json")
    everything = {
        number: read_predictions(folder / f"fold-{number}" / "predictions.csv", undecided=True) for number in numbers
    }
    protocol = folder / "protocol.json"
    histories = {number: folder / f"fold-{number}" / "log_history.json" for number in numbers}
    embeddings = {number: folder / f"fold-{number}" / "embeddings.npz" for number in numbers}
    return Run(
        name=folder.resolve().name,
        results=_recomputed(folder, told) if results is None else results,
        recipe=recipe,
        environment=environment,
        protocol=parsed_file(protocol) if protocol.is_file() else {},
        num_skipped=_count_rows(folder / "skipped.csv"),
        predictions={number: [row for row in rows if row["reference"]] for number, rows in everything.items()},
        undecided=[row for rows in everything.values() for row in rows if not row["reference"]],
        histories={number: parsed_file(path) for number, path in histories.items() if path.is_file()},
        embeddings={number: _arrays(path) for number, path in embeddings.items() if path.is_file()},
    )


def _recomputed(folder: Path, told: dict) -> dict:
    """The scores of a run from its predictions. Raises ValueError where its files tell other ones."""
    remedy = (
        "One of the two was changed. If the predictions are right, give the training command again, which writes "
        "results.json anew; else bring the old predictions.csv back."
    )
    try:
        found = summarise_run(folder, told["pooled"]["labels"])
    except ValueError as error:
        raise ValueError(f"{folder}: {error} {remedy}") from None
    numbers = [[fold["fold"] for fold in results["folds"]] for results in (told, found)]
    if numbers[0] != numbers[1]:
        raise ValueError(
            f"{folder}/results.json has the folds {numbers[0]}, the predictions are of {numbers[1]}. {remedy}"
        )
    parts = [(f"fold-{new['fold']}", old, new) for old, new in zip(told["folds"], found["folds"])]
    for part, told_scores, scores in [*parts, ("all folds together", told["pooled"], found["pooled"])]:
        for name in ("n", *SCORES, "confusion"):
            old, new = told_scores.get(name), scores[name]
            # What was summed in another order is the same.
            if np.shape(old) != np.shape(new) or not np.allclose(old, new, rtol=0, atol=1e-9):
                raise ValueError(
                    f"{folder}, {part}: {name} is {old} in results.json and {new} in the predictions. {remedy}"
                )
    return found


def parsed_file(path: Path):
    """The content of a JSON or YAML file of a run. Raises ValueError, naming it, if it is damaged."""
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}).") from None


def _count_rows(path: Path) -> int:
    if not path.is_file():
        return 0
    with open(path, encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in ("ids", "audio_embeds", "label_embeds", "labels")}
    except Exception as error:  # zipfile.BadZipFile, KeyError, ValueError, EOFError: whatever a broken file gives
        raise ValueError(f"{path} cannot be read ({error}). Delete it: the report then goes without.") from None


def speaker_accuracy(rows: list[dict[str, str]]) -> dict[str, tuple[int, int]]:
    """Of each speaker, how many utterances are predicted right, and how many there are."""
    counts = {}
    for row in rows:
        right, n = counts.get(row["speaker"], (0, 0))
        counts[row["speaker"]] = (right + (row["prediction"] == row["reference"]), n + 1)
    return counts


def reliability(confidences: np.ndarray, right: np.ndarray, num_bins: int = 15) -> dict[str, np.ndarray]:
    """What a reliability diagram shows (Guo et al. 2017, section 2).

    Confidences fall into bins of equal width (m / M, (m + 1) / M]; one of 0 is in the first.

    Args:
        confidences: (n,) the probability of the predicted class, in [0, 1].
        right: (n,) whether the prediction is right.

    Returns:
        `count`, `confidence` and `accuracy`, each (num_bins,): utterances in a bin, and their means, NaN in an empty
        bin.
    """
    count, confidence, num_right = calibration_bins(confidences, right, num_bins)
    with np.errstate(invalid="ignore"):
        return {"count": count, "confidence": confidence / count, "accuracy": num_right / count}


def best_epoch_on_test(histories: Iterable[list[dict] | None]) -> dict | None:
    """Mean and standard deviation over folds of WA and UA at the epoch that is best on the test side itself.

    Some papers report this; it is optimistic, since the test chooses the epoch. Each fold's epoch is the first of the
    highest UA.

    Args:
        histories: the `log_history.json` of each fold, or None where there is none.

    Returns:
        `mean` and `std` (n - 1, 0 for one fold) with `wa` and `ua`, fractions; `None` unless every fold logged
        `test_ua` and `test_wa`.
    """
    best = []
    for history in histories:
        tested = [entry for entry in history or () if {"test_ua", "test_wa"} <= entry.keys()]
        if not tested:
            return None
        best.append(max(tested, key=lambda entry: entry["test_ua"]))
    values = {name: [entry[f"test_{name}"] for entry in best] for name in ("wa", "ua")}
    return {
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "std": {name: sample_std(v) for name, v in values.items()},
    }


def latex_row(run: Run, *, intervals: bool = False) -> str:
    """`name & WA & UA & F1 \\\\` in per cent, under a line that says what the numbers are and which folds were run.

    Args:
        intervals: of all utterances together, with their 95 % interval over speakers in brackets (none where speakers
            say nothing about others), instead of the mean and standard deviation over the folds.
    """
    results, n = run.results, len(run.results["folds"])
    planned = run.protocol.get("num_folds", n)
    folds = f"{n} of {planned} folds" if n < planned else "one fold" if n == 1 else f"{n} folds"
    cells = [f"{100 * results['mean'][name]:.1f}" for name in SCORES]
    spread = folds if n == 1 else f"mean and standard deviation (n - 1) over {folds}"
    if intervals:
        spread = f"all utterances of {folds}, 95 % interval over {results['pooled']['num_speakers']} speakers"
        cells = [
            with_interval(per_cent(results["pooled"][name]), interval_of(results["pooled"], name)) for name in SCORES
        ]
    elif n > 1:
        cells = [rf"${cell} \pm {100 * results['std'][name]:.1f}$" for cell, name in zip(cells, SCORES)]
    if n < planned:
        spread += ": NOT the full cross-validation"
    head = run.recipe.get("prediction_head", "label")
    if results.get("transductive"):
        spread += "; transductive: unlabelled audio of the tested side was used"
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    name = " ".join(run.name.split()).translate(str.maketrans({**special, **{c: f"\\{c}" for c in "&%$#_{}"}}))
    return f"% run & WA & UA & macro-F1, per cent; {spread}; {HEAD_NAMES[head]}\n{name} & {' & '.join(cells)} \\\\"
