"""A study over several corpora, corpus by corpus.

Letters: S speakers of a corpus, K words of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lascl.evaluation.corpora import scores_by_corpus
from lascl.evaluation.intervals import speaker_standard_error
from lascl.evaluation.metrics import SCORES, sample_std, scores_from_counts
from lascl.evaluation.predictions import NO_ANSWER, counts_of, head_probabilities, own_words_of
from lascl.evaluation.report_data import parsed_file
from lascl.evaluation.results import per_cent, read_run


UA = SCORES.index("ua")


def summarise_corpora(
    runs: dict[str, list[Path]], floors: Mapping[str, Sequence[str]] | None = None
) -> list[dict] | None:
    """UA of each corpus over its own words, and the mean over corpora, of variants and floors; `None` where all are of
    the same one. A run over one corpus beside them has that corpus's alone, under the name of its folder.

    Args:
        runs: by name, the run directories, one a seed. A floor has one, as no seed changes it.
        floors: by the name of each, the variants that it is the floor of.

    Returns:
        A row each, and another, `<name>, label head`, of a variant that answers with both heads: `name`;
        `transductive`; `corpora`, by name the `mean` and `std` (n - 1; 0 for one) over seeds;
        `mean`, None of one corpus, of the mean over corpora the same and `se`, the mean over seeds of its standard
        error over speakers (`lascl.evaluation.corpora.scores_by_corpus`), None where a corpus has none; `unseen`, the
        mean over corpora that have words which were never trained of the UA over these, None if none has; and `words`,
        by corpus and word of these, `recall`, `precision` and `share` of the utterances, means over seeds; and of what
        has a floor `over_floor`, `difference_over_corpora` of the two.
    """
    of_runs = {name: [parsed_file(run / "results.json") for run in seeds] for name, seeds in runs.items()}
    alone = {name: _only_corpus(runs[name][0]) for name, found in of_runs.items() if "corpora" not in found[0]}
    if len(alone) == len(runs) and len(set(alone.values())) == 1:
        return None
    floor_of = {variant: floor for floor, variants in (floors or {}).items() for variant in variants}
    # Of each seed's run the rows of each fold: read once, and only where they are needed.
    folds = cache(lambda name: [read_run(run) for run in runs[name]])
    rows = []
    for name, found in of_runs.items():
        floor = folds(floor_of[name]) if name in floor_of else None
        over_floor = floor and difference_over_corpora(floor, folds(name))
        rows.append(_row(name, found, alone.get(name), over_floor))
        is_floor = name in (floors or {})  # which has its recipe from the runs that it is the floor of
        if (
            name not in alone
            and not is_floor
            and parsed_file(runs[name][0] / "recipe.yaml").get("prediction_head") == "both"
        ):
            seeds = [_by_label_head(*one) for one in zip(folds(name), runs[name], found)]
            of_label, answered = map(list, zip(*seeds))
            over_floor = floor and difference_over_corpora(floor, answered)
            rows.append(_row(f"{name}, label head", of_label, None, over_floor))
    return rows


def _row(name: str, found: list[dict], alone: str | None, over_floor: dict | None) -> dict:
    """Of the results of each seed; `alone` is the name of the only corpus."""
    by_corpus = [{alone: results["pooled"]} if alone else results["corpora"] for results in found]
    means = [] if alone else [results["mean_over_corpora"] for results in found]
    unseen = [mean["unseen_words"]["ua"] for mean in means if "unseen_words" in mean]
    return {
        "name": name,
        "transductive": bool(found[0].get("transductive")),
        "corpora": {corpus: over_seeds([scores[corpus]["ua"] for scores in by_corpus]) for corpus in by_corpus[0]},
        "mean": _mean_over_corpora(means) if means else None,
        "unseen": over_seeds(unseen) if unseen else None,
        "words": _unseen_words(by_corpus),
        "over_floor": over_floor,
    }


def _by_label_head(folds: dict[int, list[dict]], run: Path, results: dict) -> tuple[dict, dict[int, list[dict]]]:
    """What a run that answers with both heads scores by its label head alone, and the rows of its folds so answered."""
    labels = [label for label in results["pooled"]["labels"] if label != NO_ANSWER]
    own = own_words_of([row for rows in folds.values() for row in rows], parsed_file(run / "protocol.json"))
    answered = {}
    for number, rows in folds.items():
        best = head_probabilities(rows, labels, "label", own).argmax(axis=1)
        answered[number] = [{**row, "prediction": labels[k]} for row, k in zip(rows, best)]
    told = {"transductive": results.get("transductive")}
    return {**told, **scores_by_corpus(answered, labels, "label", own)}, answered


def _only_corpus(run: Path) -> str:
    """The name under which several corpora would have that of a run: its folder's, or what the recipe calls it."""
    recipe = parsed_file(run / "recipe.yaml")
    return Path(recipe["data_dir"]).stem if recipe.get("data_dir") else recipe["corpus"]


def _mean_over_corpora(means: list[dict]) -> dict:
    errors = [mean["se"]["ua"] for mean in means]
    return {
        **over_seeds([mean["ua"] for mean in means]),
        "se": None if None in errors else float(np.mean(errors)),
    }


def difference_over_corpora(seeds_a: list[dict[int, list[dict]]], seeds_b: list[dict[int, list[dict]]]) -> dict:
    """UA of B less that of A, each the mean over its seeds, as the mean over corpora; `se` is its standard error,
    sqrt(sum of se_c^2) / C. Paired: a resample of a corpus's speakers has the same for both, so what is hard for both
    cancels out. None where the difference is the same whichever speakers are drawn, or there is one.

    Args:
        seeds_a, seeds_b: of each seed the rows of each fold, as `read_run` has them.

    Returns:
        `difference`, `se` and `by_corpus`, the differences.
    """
    tested = [[[row for rows in folds.values() for row in rows] for folds in seeds] for seeds in (seeds_a, seeds_b)]
    differences, errors = {}, []
    for corpus in sorted({row.get("corpus", "") for row in tested[0][0]}):  # one alone is not named
        sides = [[[row for row in rows if row.get("corpus", "") == corpus] for rows in seeds] for seeds in tested]
        words = {row[name] for side in sides for rows in side for row in rows for name in ("reference", "prediction")}
        counts = np.stack([mean_counts(side, sorted(words)) for side in sides], axis=1)  # (S, 2, K, K)
        differences[corpus] = float(_ua_difference(counts.sum(axis=0)[None])[0, 0])
        errors.append(speaker_standard_error(counts, _ua_difference)[0] if len(counts) > 1 else 0.0)
    return {
        "difference": float(np.mean(list(differences.values()))),
        "se": float(np.sqrt(np.square(errors).sum()) / len(errors)) if all(errors) else None,
        "by_corpus": differences,
    }


def mean_counts(seeds: list[list[dict]], words: list[str]) -> np.ndarray:
    """(S, K, K): confusion matrices by speaker, the mean over the rows of seeds."""
    return np.mean([counts_of(rows, words) for rows in seeds], axis=0)


def _ua_difference(counts: np.ndarray) -> np.ndarray:
    """(R, 1) of sums over speakers (R, 2, K, K)."""
    scores = scores_from_counts(counts)[..., UA]  # (R, 2)
    return scores[:, 1:] - scores[:, :1]


def over_seeds(values: list[float]) -> dict:
    """Mean and standard deviation (n - 1; 0 for one)."""
    return {"mean": float(np.mean(values)), "std": sample_std(values)}


def _unseen_words(by_corpus: list[dict]) -> dict[str, dict]:
    """By corpus and word that no other corpus has: means over seeds of recall and precision, and the word's share."""
    words = {}
    for corpus, scores in by_corpus[0].items():
        for word in scores.get("unseen_words", {}).get("words", []):
            of_seeds = [_recall_and_precision(scores[corpus], word) for scores in by_corpus]
            recall, precision, share = np.mean(of_seeds, axis=0).tolist()
            words[f"{corpus}: {word}"] = {"recall": recall, "precision": precision, "share": share}
    return words


def _recall_and_precision(scores: dict, word: str) -> tuple[float, float, float]:
    """Of one word in one corpus; a precision of 0 where it was never answered."""
    confusion, number = np.array(scores["confusion"]), scores["labels"].index(word)
    right, true, answered = confusion[number, number], confusion[number].sum(), confusion[:, number].sum()
    return right / true, right / max(answered, 1), true / confusion.sum()


def corpora_table(rows: list[dict], seeds: list[int]) -> str:
    """`summarise_corpora` as Markdown, in per cent."""
    corpora = sorted({corpus for row in rows for corpus in row["corpora"]})
    words = sorted({word for row in rows for word in row["words"]})
    has_floor = any(row["over_floor"] for row in rows)
    heads = ["UA by corpus", *corpora, "mean", *(["over its floor"] if has_floor else [])]
    heads += [f"{word}*" for word in words]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [_cell(row["corpora"].get(corpus)) for corpus in corpora]
        told = [row["words"].get(word) for word in words]
        cells += [
            _mean_cell(row["mean"]),
            *([_points(row["over_floor"])] if has_floor else []),
            *(f"{per_cent(w['recall'])} / {per_cent(w['precision'])}" if w else "-" for w in told),
        ]
        lines.append(f"| {row['name']}{' †' if row['transductive'] else ''} | {' | '.join(cells)} |")
    notes = [
        f"Over each corpus's own words. Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"
        if len(seeds) > 1
        else f"Over each corpus's own words; seed {seeds[0]}",
        "; of the mean over corpora ± is the standard error over speakers, who are resampled inside each corpus: it "
        "speaks of other speakers of these corpora, not of other corpora.",
    ]
    if any(row["transductive"] for row in rows):
        notes.append(" † Transductive: unlabelled audio of the tested corpus was used to standardise.")
    if has_floor:
        notes.append(
            " Over its floor: in points, of logistic regression on the same folds, states and statistics, paired by "
            "speaker, ± the standard error."
        )
    if words:
        notes.append(" * Recall / precision of a word that no other corpus has: nothing was trained on it.")
    return "\n".join([*lines, "", "".join(notes)])


def _cell(over_seeds: dict | None) -> str:
    if over_seeds is None:
        return "-"
    spread = f" ± {per_cent(over_seeds['std'])}" if over_seeds["std"] else ""
    return per_cent(over_seeds["mean"]) + spread


def _mean_cell(mean: dict | None) -> str:
    if mean is None:
        return "-"
    return f"**{per_cent(mean['mean'])}**" + ("" if mean["se"] is None else f" ± {per_cent(mean['se'])}")


def _points(over_floor: dict | None) -> str:
    if over_floor is None:
        return "-"
    error = over_floor["se"]
    return f"{100 * over_floor['difference']:+.1f}" + ("" if error is None else f" ± {per_cent(error)}")
