"""A study over several corpora, corpus by corpus: what `table.md` shows above its other numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lascl.evaluation.metrics import sample_std
from lascl.evaluation.report_data import parsed_file
from lascl.evaluation.results import per_cent


def summarise_corpora(runs: dict[str, list[Path]]) -> list[dict] | None:
    """UA of each corpus over its own words, and the mean over corpora, of variants and floors; `None` where all are of
    one corpus. A run over one corpus beside them has that corpus's alone, under the name of its folder.

    Args:
        runs: by name, the run directories, one a seed. A floor has one, as no seed changes it.

    Returns:
        A row each: `name`; `transductive`; `corpora`, by name the `mean` and `std` (n - 1; 0 for one) over seeds;
        `mean`, None of one corpus, of the mean over corpora the same and `se`, the mean over seeds of its standard
        error over speakers (`lascl.evaluation.corpora.scores_by_corpus`), None where a corpus has none; `unseen`, the
        mean over corpora that have words which were never trained of the UA over these, None if none has; and `words`,
        by corpus and word of these, `recall`, `precision` and `share` of the utterances, means over seeds.
    """
    of_runs = {name: [parsed_file(run / "results.json") for run in seeds] for name, seeds in runs.items()}
    if not any("corpora" in found[0] for found in of_runs.values()):
        return None
    rows = []
    for name, found in of_runs.items():
        alone = None if "corpora" in found[0] else _only_corpus(runs[name][0])
        by_corpus = [{alone: results["pooled"]} if alone else results["corpora"] for results in found]
        means = [] if alone else [results["mean_over_corpora"] for results in found]
        unseen = [mean["unseen_words"]["ua"] for mean in means if "unseen_words" in mean]
        rows.append(
            {
                "name": name,
                "transductive": bool(found[0].get("transductive")),
                "corpora": {
                    corpus: _over_seeds([scores[corpus]["ua"] for scores in by_corpus]) for corpus in by_corpus[0]
                },
                "mean": _mean_over_corpora(means) if means else None,
                "unseen": _over_seeds(unseen) if unseen else None,
                "words": _unseen_words(by_corpus),
            }
        )
    return rows


def _only_corpus(run: Path) -> str:
    """The name under which several corpora would have that of a run: its folder's, or what the recipe calls it."""
    recipe = parsed_file(run / "recipe.yaml")
    return Path(recipe["data_dir"]).stem if recipe.get("data_dir") else recipe["corpus"]


def _mean_over_corpora(means: list[dict]) -> dict:
    errors = [mean["se"]["ua"] for mean in means]
    return {
        **_over_seeds([mean["ua"] for mean in means]),
        "se": None if None in errors else float(np.mean(errors)),
    }


def _over_seeds(values: list[float]) -> dict:
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
    heads = ["UA by corpus", *corpora, "mean", *(f"{word}*" for word in words)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [_cell(row["corpora"].get(corpus)) for corpus in corpora]
        told = [row["words"].get(word) for word in words]
        cells += [
            _mean_cell(row["mean"]),
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
