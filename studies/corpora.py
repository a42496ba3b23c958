"""A study over several corpora, corpus by corpus: what `table.md` shows above its other numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lascl.evaluation.metrics import sample_std
from lascl.evaluation.report_data import parsed_file
from lascl.evaluation.results import per_cent


def summarise_corpora(runs: dict[str, list[Path]]) -> list[dict] | None:
    """UA of each corpus over its own words, and the mean over corpora, of variants and floors; `None` of one corpus.

    Args:
        runs: by name, the run directories, one a seed. A floor has one, as no seed changes it.

    Returns:
        A row each: `name`; `transductive`; `corpora`, by name the `mean` and `std` (n - 1; 0 for one) over seeds;
        `mean`, of the mean over corpora, the same and `se`, the mean over seeds of its standard error over speakers
        (`lascl.evaluation.corpora.scores_by_corpus`), None where a corpus has none; `unseen`, the mean over corpora
        that have words which were never trained of the UA over these, None if none has; and `words`, by corpus and
        word of these, `recall`, `precision` and `share` of the utterances, means over seeds.
    """
    rows = []
    for name, seeds in runs.items():
        found = [parsed_file(run / "results.json") for run in seeds]
        if "corpora" not in found[0]:
            return None
        means = [results["mean_over_corpora"] for results in found]
        errors = [mean["se"]["ua"] for mean in means]
        unseen = [mean["unseen_words"]["ua"] for mean in means if "unseen_words" in mean]
        rows.append(
            {
                "name": name,
                "transductive": bool(found[0].get("transductive")),
                "corpora": {
                    corpus: _over_seeds([results["corpora"][corpus]["ua"] for results in found])
                    for corpus in found[0]["corpora"]
                },
                "mean": {
                    **_over_seeds([mean["ua"] for mean in means]),
                    "se": None if None in errors else float(np.mean(errors)),
                },
                "unseen": _over_seeds(unseen) if unseen else None,
                "words": _unseen_words(found),
            }
        )
    return rows


def _over_seeds(values: list[float]) -> dict:
    return {"mean": float(np.mean(values)), "std": sample_std(values)}


def _unseen_words(found: list[dict]) -> dict[str, dict]:
    """By corpus and word that no other corpus has: means over seeds of recall and precision, and the word's share."""
    words = {}
    for corpus, scores in found[0]["corpora"].items():
        for word in scores.get("unseen_words", {}).get("words", []):
            of_seeds = [_recall_and_precision(results["corpora"][corpus], word) for results in found]
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
    corpora, words = list(rows[0]["corpora"]), sorted({word for row in rows for word in row["words"]})
    heads = ["UA by corpus", *corpora, "mean", *(f"{word}*" for word in words)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [_cell(row["corpora"][corpus]) for corpus in corpora]
        error = row["mean"]["se"]
        mean = f"**{per_cent(row['mean']['mean'])}**" + ("" if error is None else f" ± {per_cent(error)}")
        told = [row["words"].get(word) for word in words]
        cells += [mean, *(f"{per_cent(w['recall'])} / {per_cent(w['precision'])}" if w else "-" for w in told)]
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
    if words:
        notes.append(" * Recall / precision of a word that no other corpus has: nothing was trained on it.")
    return "\n".join([*lines, "", "".join(notes)])


def _cell(over_seeds: dict) -> str:
    spread = f" ± {per_cent(over_seeds['std'])}" if over_seeds["std"] else ""
    return per_cent(over_seeds["mean"]) + spread
