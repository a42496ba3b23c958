"""From the predictions of the folds to the numbers of a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import yaml

from lascl.evaluation.corpora import PARTS, scores_by_corpus
from lascl.evaluation.intervals import named_intervals, speaker_interval
from lascl.evaluation.metrics import SCORE_NAMES, SCORES, sample_std
from lascl.evaluation.predictions import (
    NO_ANSWER,
    classes_of,
    counts_of,
    labels_of,
    own_words_of,
    read_predictions,
    score_rows,
)
from lascl.evaluation.votes import scores_against_votes, votes_cells


def read_run(run_dir: str | Path, *, undecided: bool = False) -> dict[int, list[dict[str, str]]]:
    """The rows of each fold that has a `predictions.csv`, by the fold's number.

    Args:
        undecided: of `read_predictions`.

    Raises:
        ValueError: an utterance that was tested twice.
    """
    paths = {int(path.parent.name.removeprefix("fold-")): path for path in Path(run_dir).glob("fold-*/predictions.csv")}
    folds = {number: read_predictions(paths[number], undecided=undecided) for number in sorted(paths)}
    times = Counter(row["id"] for rows in folds.values() for row in rows)
    twice = [id for id, count in times.items() if count > 1]
    if twice:
        raise ValueError(f"{run_dir}: the utterance {twice[0]!r} was tested twice. Delete the folds of another run.")
    return folds


def summarise_run(run_dir: str | Path, labels: list[str]) -> dict:
    """The content of `results.json`, computed from the `predictions.csv` of every fold that has one.

    Which head `prediction` is from is read from `recipe.yaml`, if there is one. Equal predictions give equal numbers.

    Of several corpora an answer is one of the words of the utterance's own corpus, and a fold's labels are those of the
    corpora that it tests.

    Returns:
        `folds`: the scores of each fold, with its number under `fold`; `pooled`: of all utterances together, with
        `num_speakers` and, for both heads, `intervals`, the 95 % interval [low, high] of each score over speakers
        (`lascl.evaluation.speaker_interval`), None for a score that is the same whichever speakers are drawn, and
        None instead of all three with one speaker; `mean` and `std`: over the folds (`std` with
        n - 1, 0 for one fold); `improvised`, where `protocol.json` tells which utterances are (IEMOCAP): as `pooled`,
        of these alone. Of several corpora what `scores_by_corpus` says, and of each fold the `corpora` that it tests;
        `transductive` where audio of the tested side was used (`protocol.json`). `votes`, where listeners voted:
        `scores_against_votes`, also of utterances without a word that most chose. Fractions in [0, 1].

    Raises:
        ValueError: an utterance that was tested twice, no utterance in a fold, or a label that is none.
    """
    recipe = Path(run_dir) / "recipe.yaml"
    head = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("prediction_head") if recipe.is_file() else None
    runs_folds, labels = read_run(run_dir), [label for label in labels if label != NO_ANSWER]
    rows = [row for rows in runs_folds.values() for row in rows]
    protocol = Path(run_dir) / "protocol.json"
    told = json.loads(protocol.read_text(encoding="utf-8")) if protocol.is_file() else {}
    own = own_words_of(rows, told)
    folds = []
    for number, of_fold in runs_folds.items():
        try:
            scores = score_rows(of_fold, labels_of(of_fold, labels, own), head, own)
            tested = {"corpora": sorted({row["corpus"] for row in of_fold})} if own else {}
            folds.append({"fold": number, **tested, **scores})
        except ValueError as error:
            raise ValueError(f"fold-{number}/predictions.csv: {error}") from None
    everything = [row for rows in read_run(run_dir, undecided=True).values() for row in rows]
    by_votes = scores_against_votes([row for row in everything if not own or row["corpus"] in own], labels, head, own)
    improvised = [row for row in rows if row["id"] in set(told.get("improvised_ids", ()))]
    return {
        **({"transductive": True} if told.get("transductive") else {}),
        "folds": folds,
        "pooled": _pooled(rows, labels, head, own),
        **({"improvised": _pooled(improvised, labels, head, own)} if improvised else {}),
        "mean": _over_folds(folds, np.mean),
        "std": _over_folds(folds, sample_std),
        **({"votes": by_votes} if by_votes else {}),
        **(scores_by_corpus(runs_folds, labels, head, own) if own else {}),
    }


def _pooled(rows, labels, head, own) -> dict:
    scores = score_rows(rows, labels, head, own)
    scores["num_speakers"] = len({row["speaker"] for row in rows})
    scores["intervals"] = _intervals(rows, labels, "prediction")
    scores["classifier"]["intervals"] = _intervals(rows, labels, "prediction_classifier")
    return scores


def _intervals(rows, labels, column) -> dict | None:
    return named_intervals(speaker_interval(counts_of(rows, classes_of(rows, labels, column), column)))


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
    rows = [[_named_fold(fold), str(fold["n"]), *map(per_cent, _columns(fold))] for fold in results["folds"]]
    means = [per_cent(mean) for mean in _columns(results["mean"])]
    if len(results["folds"]) > 1:
        means = [f"{mean} ± {per_cent(std)}" for mean, std in zip(means, _columns(results["std"]))]
    pooled = results["pooled"]
    together = {"pooled": pooled, "improvised only, pooled": results.get("improvised")}
    if "corpora" in results:  # whose words differ: a mean over classes of several would speak of none
        together = {}
    rows += [
        ["mean over folds", "", *means],
        *([name, str(scores["n"]), *_pooled_cells(scores)] for name, scores in together.items() if scores),
    ]
    notes = []
    if together and any((pooled["intervals"] or {}).values()):
        notes.append(f"In brackets: 95 % interval over the {pooled['num_speakers']} speakers.")
    missing = [name for name in SCORES if together and not interval_of(pooled, name)]
    notes += dict.fromkeys(f"{why_no_interval(pooled)}." for name in missing)
    notes += [
        f"Fold {fold['fold']} has no true {', '.join(fold['absent'])}: left out of its UA and macro-F1."
        for fold in results["folds"]
        if fold["absent"]
    ]
    return head, rows, notes


def _named_fold(fold: dict) -> str:
    """A fold's number and, of several corpora, those that it tests."""
    return " ".join([str(fold["fold"]), *([f"({', '.join(fold['corpora'])})"] if "corpora" in fold else [])])


def corpora_cells(results: dict) -> tuple[list[str], list[list[str]], list[str]] | None:
    """The scores by corpus as a table in per cent.

    Returns:
        As `results_cells`: a row a corpus, then their mean. `None` of a run over one corpus.
    """
    if "corpora" not in results:
        return None
    corpora, mean = results["corpora"], results["mean_over_corpora"]
    places = {
        **{SCORE_NAMES[name]: ((), name) for name in ("ua", "wa", "macro_f1")},
        **{f"UA, {part.replace('_', ' ')}": ((part,), "ua") for part in PARTS if part in mean},
        "UA, classifier": (("classifier",), "ua"),
        "WA, classifier": (("classifier",), "wa"),
    }
    rows = []
    for corpus, scores in corpora.items():
        unseen = scores.get("unseen_words", {}).get("words", [])
        words = ", ".join(f"{word}*" if word in unseen else word for word in scores["labels"] if word)
        cells = [_cell_with_error(scores, *place) for place in places.values()]
        rows.append([corpus, str(scores["n"]), words, *cells])
    rows.append(["mean over corpora", "", "", *(_cell_with_error(mean, *place) for place in places.values())])
    notes = [
        "Over each corpus's own words unless all words are named: those of all corpora together.",
        "In brackets: 95 % interval over the corpus's speakers. After ±: the standard error of the mean, speakers "
        "resampled inside each corpus; it speaks of other speakers of these corpora, not of other corpora.",
    ]
    if "unseen_words" in mean:
        notes.insert(1, "A star: no utterance of this word was trained on; the classifier cannot answer it.")
    if results.get("transductive"):
        notes.append("Transductive: unlabelled audio of the tested side was used, see the protocol.")
    return ["corpus", "utterances", "its words", *places], rows, notes


def _cell_with_error(scores: dict, parts: tuple[str, ...], name: str) -> str:
    """A score with its interval, or of a mean with its standard error; empty where there is none."""
    for part in parts:
        scores = scores.get(part, {})
    if name not in scores:
        return ""
    if "num_corpora" in scores:
        error = scores["se"][name]
        return per_cent(scores[name]) + ("" if error is None else f" ± {per_cent(error)}")
    return with_interval(per_cent(scores[name]), interval_of(scores, name))


def results_table(results: dict) -> str:
    """`corpora_cells`, if there are several, `results_cells`, and `votes_cells`, if listeners voted, as tables in
    Markdown, with their notes."""
    tables = [table for table in (corpora_cells(results), results_cells(results), votes_cells(results)) if table]
    return "\n\n".join(_markdown(*table) for table in tables)


def _markdown(head: list[str], rows: list[list[str]], notes: list[str]) -> str:
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in (head, *rows)]
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
