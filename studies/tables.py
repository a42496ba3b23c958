"""Variants of a recipe side by side: the numbers of a study, and its table.

STUDY/<folder_name(variant)>/seed-S/   a run directory each
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lascl.evaluation.compare import compare_counts, compare_runs
from lascl.evaluation.intervals import speaker_interval
from lascl.evaluation.metrics import SCORE_NAMES, SCORES, scores_from_counts
from lascl.evaluation.predictions import counts_of
from lascl.evaluation.report_data import parsed_file
from lascl.evaluation.results import interval_of, named_intervals, read_run, score_rows, with_interval
from lascl.studies.corpora import corpora_table, mean_counts, over_seeds, summarise_corpora


def folder_name(variant: str) -> str:
    """The folder of a variant: its name with everything but letters, digits and `_=.,+-` as `_`, which every file
    system takes."""
    return re.sub(r"[^\w=.,+-]+", "_", variant).strip("._") or "_"


def seed_runs(study: Path, name: str, seeds: list[int]) -> list[Path]:
    """The run directories of a variant."""
    return [study / folder_name(name) / f"seed-{seed}" for seed in seeds]


def summarise_study(
    study: Path,
    names: list[str],
    seeds: list[int],
    *,
    against: str | None = None,
    paper: dict | None = None,
    floors: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """The content of `study.json`.

    With several seeds every number is of the mean over them: a score's `intervals` are over speakers (of each
    resample of speakers, the mean over seeds), and the paired test averages over the seeds whether an utterance is
    predicted right, see `compare_seeds`. What another seed would change is in `std` alone.

    Args:
        study: the study's folder, in which the runs of these variants are finished.
        names: of the variants.
        seeds: of each variant.
        against: the variant that the others are compared with, by default the first. If it is not among `names`,
            nothing is compared.
        paper: (WA, UA) in per cent, either possibly None, that a paper reports; also of rows that are no variant here.
        floors: what `lascl.studies.floors` wrote, once for all seeds, and the variants that each is the floor of.

    Returns:
        `seeds`, `against`, `paper`, `floors`, over several corpora `by_corpus` (`summarise_corpora`), and `variants`,
        the floors behind them: of each its `name`; the pooled `wa`, `ua` and `macro_f1` as
        `by_seed`, `mean` and `std` (n - 1; 0 for one seed); their `intervals`, None with one speaker or where seeds
        tested different utterances; and `comparison`, what `compare_seeds` says of the variant (B) and `against` (A),
        `{"refused": why}` where they cannot be compared, None for `against` itself.

    Raises:
        ValueError: a file of a run is damaged.
    """
    full = names[0] if against is None else against
    runs_of = {name: seed_runs(study, name, seeds) for name in names}
    floors = dict(floors or {})
    runs_of |= {name: seed_runs(study, name, seeds[:1]) for name in floors}
    variants = []
    for name, runs in runs_of.items():
        pooled = [parsed_file(run / "results.json")["pooled"] for run in runs]
        scores = {score: _over_seeds([run[score] for run in pooled]) for score in SCORES}
        intervals = pooled[0].get("intervals") if len(runs) == 1 else _interval_over_seeds(runs)
        comparison = None
        if name != full and full in names:
            try:
                again = len(seeds) if name in floors else 1
                comparison = compare_seeds(runs_of[full], again * runs)
            except ValueError as error:
                comparison = {"refused": str(error).replace(str(study), "STUDY")}
        variants.append({"name": name, **scores, "intervals": intervals, "comparison": comparison})
    by_corpus = summarise_corpora(runs_of, floors)
    return {
        "seeds": seeds,
        "against": against,
        "paper": paper or {},
        **({"floors": floors} if floors else {}),
        **({"by_corpus": by_corpus} if by_corpus else {}),
        "variants": variants,
    }


def _over_seeds(values: list[float]) -> dict:
    return {"by_seed": values, **over_seeds(values)}


def compare_seeds(runs_a: list[Path], runs_b: list[Path]) -> dict:
    """Compares two variants that were each run with the same seeds, on the same utterances.

    Whether an utterance is predicted right is averaged over the seeds first, then speakers are resampled as
    `compare_runs` does: the confusion matrices of the seeds are averaged for each speaker. WA and UA of the averages
    are then the means over seeds; macro-F1 is that of the averaged matrix. The seeds of one utterance are so never
    taken for independent trials, and the interval speaks of other speakers, not of other seeds.

    Args:
        runs_a, runs_b: run directories, one a seed, in the same order.

    Returns:
        As `compare_runs`, without `a` and `b` at the top, which say where the runs lay.

    Raises:
        ValueError: as `compare_runs` does, for the runs of any seed, or if seeds tested different utterances.
    """
    by_seed = [compare_runs(a, b) for a, b in zip(runs_a, runs_b, strict=True)]
    result = {key: value for key, value in by_seed[0].items() if key not in ("a", "b")}
    if len(by_seed) == 1:
        return result
    tested = [_tested(runs) for runs in (runs_a, runs_b)]
    labels = _labels_of([*tested[0], *tested[1]])
    counts = np.stack([mean_counts(by_seed, labels) for by_seed in tested], axis=1)  # (S, 2, K, K)
    return result | compare_counts(counts)


def _tested(runs: list[Path]) -> list[list[dict]]:
    """Of each seed's run its rows, in the order of the ids.

    Raises ValueError where the seeds tested different utterances."""
    found = []
    for run in runs:
        found.append(sorted((row for fold in read_run(run).values() for row in fold), key=lambda row: row["id"]))
        if _ids(found[0]) != _ids(found[-1]):
            raise ValueError(f"The seeds tested different utterances: {runs[0]} and {run}. Run all folds.")
    return found


def _ids(rows: list[dict]) -> list[str]:
    return [row["id"] for row in rows]


def _labels_of(by_seed: list[list[dict]]) -> list[str]:
    return sorted({row[column] for rows in by_seed for row in rows for column in ("reference", "prediction")})


def _interval_over_seeds(runs: list[Path]) -> dict | None:
    """The interval over speakers of each score's mean over the seeds; None where there is none."""
    try:
        by_seed = _tested(runs)
    except ValueError:
        return None
    return _interval_of_mean(by_seed, _labels_of(by_seed))


def _interval_of_mean(by_seed: list[list[dict]], labels: list[str]) -> dict | None:
    counts = np.stack([counts_of(rows, labels) for rows in by_seed], axis=1)  # (S, R, K, K)
    return named_intervals(speaker_interval(counts, lambda sums: scores_from_counts(sums).mean(axis=-2)))


def study_table(results: dict) -> str:
    """`study.json` as Markdown, in per cent: a row a variant, then what the numbers mean and the comparisons in words.
    Over several corpora `corpora_table`, as a score over classes of different corpora says nothing.

    Rows that only the paper has come first. The paper's numbers stand in a column of their own that says so."""
    seeds, paper, several = results["seeds"], results["paper"], len(results["seeds"]) > 1
    if "by_corpus" in results:
        return corpora_table(results["by_corpus"], seeds)
    names = [variant["name"] for variant in results["variants"]]
    full = results["against"] or names[0]
    heads = ["variant", "WA", "UA", "macro-F1", *(["paper, IEMOCAP: WA / UA"] if paper else [])]
    heads += [f"UA against {results['against'] or 'the first'}, points", "p"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in paper:
        if name not in names and name not in results.get("unfinished", ()):
            lines.append(f"| {name} |  |  |  | {_papers(paper, name)} |  |  |")
    for variant in results["variants"]:
        cells = [_cell(variant, score, several) for score in SCORES]
        cells += [_papers(paper, variant["name"])] if paper else []
        cells += _difference_and_p(variant["comparison"])
        lines.append(f"| {variant['name']} | {' | '.join(cells)} |")
    test = f"p of a paired test over speakers on the same utterances, seed {seeds[0]}."
    spread = "In brackets 95 % intervals over speakers"
    if several:
        spread = f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"
        if any(interval_of(variant, score) for variant in results["variants"] for score in SCORES):
            spread += ", in brackets 95 % intervals of the mean over speakers"
        test = "p of a paired test over speakers on the same utterances, their rightness averaged over the seeds."
    if results.get("floors"):
        test += f" Floors, once on the same folds, states and statistics: {', '.join(results['floors'])}."
    lines += ["", f"{spread}; {test}", ""]
    if paper:
        lines += ["The paper's numbers are its own, on IEMOCAP: whatever ran here, they are not from it.", ""]
    for variant in results["variants"]:
        if variant["comparison"]:
            found = variant["comparison"].get("refused") or variant["comparison"]["ua"]["sentence"]
            lines.append(f"* {variant['name']} (B), {full} (A): {found}")
    return "\n".join(lines).rstrip("\n")


def _cell(variant: dict, score: str, several: bool) -> str:
    cell = f"{100 * variant[score]['mean']:.1f}"
    if several:
        cell += f" ± {100 * variant[score]['std']:.1f}"
    return with_interval(cell, interval_of(variant, score))


def _papers(paper: dict, name: str) -> str:
    return " / ".join("-" if value is None else f"{value:.2f}" for value in paper[name]) if name in paper else "-"


def _difference_and_p(comparison: dict | None) -> list[str]:
    if comparison is None or "refused" in comparison:
        return ["", ""] if comparison is None else ["-", "-"]
    p = comparison["ua"]["p"]
    return [f"{100 * comparison['ua']['difference']:+.1f}", "-" if p is None else f"{p:.3f}"]


def choose_on_validation(study: Path, names: list[str], seeds: list[int]) -> dict:
    """Chooses a variant for each fold by its UA in validation, and scores the test of each fold with what was chosen.

    A variant's validation UA in a fold is that of the epoch whose weights were kept. The highest wins, the first of
    equals. The chosen variants' test predictions are pooled over the folds, so every fold is tested once, with
    values that its own test had no part in choosing.

    Returns:
        `seeds`; `validation_ua`, of each variant the mean over folds and seeds; `chosen`, by seed and fold number the
        variant's name; and `wa`, `ua`, `macro_f1`, `intervals` of the chosen, as in `summarise_study`.

    Raises:
        ValueError: a run has no validation, or variants tested other folds.
    """
    validation = {
        name: [_validation_ua(run) for run in seed_runs(study, name, seeds)] for name in names
    }  # a dict by fold for each seed
    chosen, pooled = {}, []
    for index, seed in enumerate(seeds):
        folds = validation[names[0]][index]
        if any(validation[name][index].keys() != folds.keys() for name in names):
            raise ValueError(f"The variants were not run on the same folds with seed {seed}. Run all of them.")
        chosen[str(seed)] = {str(fold): max(names, key=lambda name: validation[name][index][fold]) for fold in folds}
        rows = []
        for fold, name in chosen[str(seed)].items():
            rows += read_run(seed_runs(study, name, [seed])[0])[int(fold)]
        pooled.append(sorted(rows, key=lambda row: row["id"]))
    labels = _labels_of(pooled)
    scores = [score_rows(rows, labels) for rows in pooled]
    same = all(_ids(rows) == _ids(pooled[0]) for rows in pooled)
    return {
        "seeds": seeds,
        "validation_ua": {
            name: float(np.mean([ua for folds in validation[name] for ua in folds.values()])) for name in names
        },
        "chosen": chosen,
        **{score: _over_seeds([run[score] for run in scores]) for score in SCORES},
        "intervals": _interval_of_mean(pooled, labels) if same else None,
    }


def _validation_ua(run: Path) -> dict[int, float]:
    """By fold, the validation UA of the epoch that was kept."""
    best = parsed_file(run / "recipe.yaml").get("selection") == "best_validation"
    found = {}
    for number in read_run(run):
        history = parsed_file(run / f"fold-{number}" / "log_history.json")
        epochs = [entry["validation_ua"] for entry in history if "validation_ua" in entry]
        if not epochs:
            raise ValueError(f"{run}/fold-{number} has no validation to choose by. Set validation.")
        found[number] = max(epochs) if best else epochs[-1]
    return found


def choice_table(results: dict) -> str:
    """What `choose_on_validation` found, as Markdown: variants by their validation UA, then the test of the chosen.

    Test scores of single variants are not shown: whoever picked the best of them would have chosen by the test."""
    ranked = sorted(results["validation_ua"].items(), key=lambda item: -item[1])
    times = [name for folds in results["chosen"].values() for name in folds.values()]
    lines = ["| variant | UA in validation | folds it was chosen for |", "|---" * 3 + "|"]
    lines += [f"| {name} | {100 * ua:.1f} | {times.count(name)} of {len(times)} |" for name, ua in ranked]
    several = len(results["seeds"]) > 1
    cells = [f"{SCORE_NAMES[score]} {_cell(results, score, several)}" for score in SCORES]
    return "\n".join(
        [
            *lines,
            "",
            f"**Tested, each fold with the variant that was best in its own validation: {', '.join(cells)}** "
            f"({'mean ± standard deviation over seeds, ' if several else ''}95 % intervals over speakers in brackets; "
            f"seeds {', '.join(map(str, results['seeds']))}). Nothing was chosen by a test.",
        ]
    )


def protocol_line(run: Path) -> str:
    """What was tested and how, in a line, from the `protocol.json` of a finished run, its results and its recipe."""
    protocol, recipe = parsed_file(run / "protocol.json"), parsed_file(run / "recipe.yaml")
    folds = parsed_file(run / "results.json")["folds"]
    steps = recipe.get("max_steps", -1)
    length = f"{steps} steps" if steps > 0 else f"{recipe['num_train_epochs']:g} epochs"
    return (
        f"{len(folds)} of {protocol['num_folds']} folds, {sum(fold['n'] for fold in folds)} utterances tested; trained "
        f"for {length}, {recipe['global_batch_size']} utterances a step. {' '.join(protocol['notes'])}"
    )
