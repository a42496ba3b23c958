"""The scores of a run over several corpora, each by itself, and their mean.

Letters: C corpora, S speakers of one, K words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lascl.evaluation.intervals import (
    ROUNDING,
    named_intervals,
    speaker_interval,
    speaker_standard_error,
)
from lascl.evaluation.metrics import SCORES, scores_from_counts
from lascl.evaluation.predictions import (
    PROBABILITY,
    classes_of,
    counts_of,
    head_probabilities,
    labels_of,
    score_rows,
)


PARTS = ("all_words", "seen_words", "unseen_words")
OF_SOME_WORDS = ("wa", "ua")  # F1 of some of the words would not count what of the others is taken for them


def scores_by_corpus(
    folds: Mapping[int, list[dict[str, str]]], labels: list[str], head: str | None, own: Mapping[str, list[str]]
) -> dict[str, dict]:
    """Scores of every corpus over its own words, and what they are made of.

    An answer is the likeliest of the words that the utterance's corpus annotates; of the classifier, of those of them
    that it was trained on, so that the others count as wrong.

    Args:
        folds: the rows of each fold.
        labels: all words.
        head: `label`, `classifier` or `both`, what `prediction` is from.
        own: of `lascl.evaluation.predictions.own_words_of`.

    Returns:
        `corpora`: by name, what `score_rows` says over the corpus's own words, with `num_speakers`, and for both heads
        `intervals` and `se`, the standard error of each score over the corpus's speakers (`speaker_standard_error`;
        None where there is one speaker, or where the score is the same whichever are drawn). `all_words`: the same
        scores where the answer is the likeliest of all words of all corpora. `seen_words` and `unseen_words`: WA and UA
        over the utterances whose true word the fold's training had, and over those whose word it never had, with these
        `words` and `n`; there only if some word is unseen.

        `mean_over_corpora`: the plain mean over the corpora, with se = sqrt(sum of se_c^2) / C. Speakers are resampled
        inside each corpus: it speaks of other speakers of these corpora, and not of other corpora. Of parts that only
        some corpora have it is over those, `num_corpora`.
    """
    corpora = {corpus: _of_corpus(corpus, folds, labels, head, own) for corpus in own}
    mean = _mean(list(corpora.values()))
    for part in PARTS:
        having = [scores[part] for scores in corpora.values() if part in scores]
        mean |= {part: _mean(having)} if having else {}
    return {"corpora": corpora, "mean_over_corpora": mean}


def _of_corpus(corpus, folds, labels, head, own) -> dict:
    rows = [row for fold in folds.values() for row in fold if row["corpus"] == corpus]
    words = labels_of(rows, labels, own)
    scores = {**score_rows(rows, words, head, own), "num_speakers": len({row["speaker"] for row in rows})}
    _add_errors(scores, rows, words)
    everything = _over_all_words(rows, labels, head)
    if everything:
        scores["all_words"] = {"classifier": {}}
        _add_errors(scores["all_words"], everything, labels, SCORES)
    unseen = _rows_of_unseen_words(corpus, folds)
    parts = {
        "seen_words": [row for row in rows if row["id"] not in unseen],
        "unseen_words": [row for row in rows if row["id"] in unseen],
    }
    for part, some in parts.items() if unseen else ():
        if some:
            about = {"words": sorted({row["reference"] for row in some}), "n": len(some), "classifier": {}}
            _add_errors(about, some, words, OF_SOME_WORDS)
            scores[part] = about
    return scores


def _add_errors(scores: dict, rows: Sequence[Mapping[str, str]], labels: list[str], names: Sequence[str] = ()):
    """Adds `intervals` and `se` for both heads, and the scores themselves that are named."""
    told = names or SCORES
    for column, target in (("prediction", scores), ("prediction_classifier", scores["classifier"])):
        counts = counts_of(rows, classes_of(rows, labels, column), column)
        if names:
            values = dict(zip(SCORES, scores_from_counts(counts.sum(axis=0)).tolist()))
            target |= {name: values[name] for name in names}
        intervals = named_intervals(speaker_interval(counts))
        target["intervals"] = intervals and {name: intervals[name] for name in told}
        errors = dict(zip(SCORES, _standard_errors(counts)))
        target["se"] = {name: errors[name] for name in told}


def _standard_errors(counts: np.ndarray) -> list[float | None]:
    if len(counts) < 2:
        return [None] * len(SCORES)
    errors = speaker_standard_error(counts, scores_from_counts)
    return [round(float(error), 6) if error > ROUNDING else None for error in errors]


def _over_all_words(rows, labels, head) -> list[dict[str, str]] | None:
    """The rows with the answers that both heads give among all words."""
    answers = {}
    for name, source in (("prediction", head or "label"), ("prediction_classifier", "classifier")):
        probabilities = head_probabilities(rows, labels, source)
        if probabilities is None:
            return None
        answers[name] = [labels[k] for k in probabilities.argmax(axis=1)]
    return [{**row, **dict(zip(answers, chosen))} for row, *chosen in zip(rows, *answers.values())]


def _rows_of_unseen_words(corpus, folds) -> set[str]:
    """The ids of a corpus's utterances whose true word their fold's training never had: its classifier has an empty
    cell for it."""
    column = PROBABILITY["classifier"]
    return {
        row["id"]
        for rows in folds.values()
        for row in rows
        if row["corpus"] == corpus and row.get(f"{column}{row['reference']}") == ""
    }


def _mean(parts: list[dict]) -> dict:
    """The mean of scores over corpora, and its standard error, for both heads."""
    names = [name for name in SCORES if all(name in part for part in parts)]
    errors = {name: [part["se"][name] for part in parts] for name in names}
    return {
        **{name: float(np.mean([part[name] for part in parts])) for name in names},
        "se": {
            name: None if None in values else round(float(np.sqrt(np.square(values).sum()) / len(parts)), 6)
            for name, values in errors.items()
        },
        "num_corpora": len(parts),
        **({"classifier": _mean([part["classifier"] for part in parts])} if "classifier" in parts[0] else {}),
    }
