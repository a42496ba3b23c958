"""Is B better than A? `lascl-compare A B`: paired, over the same utterances, respecting speakers.

Each is a run directory, or a CSV file that any system wrote: columns `id` and `prediction` (or, instead, one
`probability_<label>` a label); `reference` and `speaker` if there are any, else they are the other side's.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from lascl.console import unless_pipe_closes
from lascl.evaluation.intervals import ROUNDING, speaker_counts, speaker_standard_error, t_interval
from lascl.evaluation.metrics import SCORE_NAMES, SCORES, scores_from_counts
from lascl.evaluation.predictions import PROBABILITY, head_probabilities, own_words_of, words_with_columns
from lascl.evaluation.report_data import parsed_file
from lascl.evaluation.results import read_run
from lascl.options import HEADS, compare_options


ALPHA = 0.05


def compare_runs(run_a: str | Path, run_b: str | Path, *, head: str = "model", common: bool = False) -> dict:
    """Compares two runs, utterance by utterance, over all their folds together.

    The difference B - A of a score is computed on the same utterances. Its standard error is that of
    `speaker_standard_error`, each resample holding the same speakers for both runs, so what is hard for both cancels
    out. The 95 % interval is difference +- t * error, and p is two-sided, both from Student's t with S - 1 degrees of
    freedom. They speak of other speakers; that training again, with another seed, moves scores too is not in them.
    Each p stands alone: it is not corrected for looking at three scores.

    Args:
        run_a, run_b: run directories, or CSV files as described above; one of them knows references and speakers.
        head: `model` (the column `prediction`), `label` or `classifier`, of both runs.
        common: compare the utterances that both runs tested, where they tested different ones.

    Returns:
        `a`, `b`, `head`, `num_utterances`, `num_speakers`, and under `wa`, `ua` and `macro_f1`: `a`, `b`, `difference`,
        as fractions; `interval` [low, high] and `p`, None where speakers say nothing about chance: there is one, or the
        difference is the same for each (if that is none: [0, 0] and 1); and `sentence`, the answer in words.

    Raises:
        ValueError: not a run directory, other utterances (unless `common`), or the same with other references or
            speakers, other labels, or no columns for the head.
    """
    if head not in HEADS:
        raise ValueError(f"head is {head!r}. Choose one of {', '.join(HEADS)}.")
    a, b = _read(run_a), _read(run_b)
    both = [id for id in a if id in b]
    if not both or (not common and len(both) < max(len(a), len(b))):
        alone = [
            f"{next(id for id in one if id not in other)!r} is in {run} alone"
            for one, other, run in ((a, b, run_a), (b, a, run_b))
            if one.keys() - other.keys()
        ]
        raise ValueError(
            f"The runs tested different utterances: {len(both)} are in both, of {len(a)} in {run_a} and {len(b)} in "
            f"{run_b}; {' and '.join(alone)}. "
            + ("Give --common to compare those in both." if both else "There is nothing to compare.")
        )
    for column in ("reference", "speaker"):
        _complete(a, b, column, run_a, run_b)
        differ = [id for id in both if a[id][column] != b[id][column]]
        if differ:
            raise ValueError(
                f"{len(differ)} of {len(both)} utterances have another {column} in {run_b} than in {run_a}; the first "
                f"is {differ[0]!r}: {b[differ[0]][column]!r}, not {a[differ[0]][column]!r}. Compare runs of one corpus "
                "with one set of labels."
            )
    rows_a, rows_b = [a[id] for id in both], [b[id] for id in both]
    choices = [words_with_columns(rows) for rows in (rows_a, rows_b)]
    if all(choices) and choices[0] != choices[1]:
        raise ValueError(
            f"The runs chose between different labels: {', '.join(choices[0])} in {run_a}; {', '.join(choices[1])} in "
            f"{run_b}. Compare runs with one set of labels."
        )
    predictions = [_predictions(rows, head, run) for rows, run in ((rows_a, run_a), (rows_b, run_b))]
    references, speakers = ([row[column] for row in rows_a] for column in ("reference", "speaker"))
    labels = sorted({*references, *predictions[0], *predictions[1]})
    counts = np.stack([speaker_counts(chosen, references, speakers, labels) for chosen in predictions], axis=1)
    found = {
        "a": str(run_a),
        "b": str(run_b),
        "head": head,
        "num_utterances": len(both),
        "num_speakers": len(counts),
    }
    return found | compare_counts(counts)


def compare_counts(counts: np.ndarray) -> dict[str, dict]:
    """What `compare_runs` says under `wa`, `ua` and `macro_f1`, from confusion counts of each speaker under A and B,
    (S, 2, K, K)."""
    scores = scores_from_counts(counts.sum(axis=0))  # (2, 3)
    differences, intervals, p_values = paired_difference(counts)
    result = {}
    for column, name in enumerate(SCORES):
        numbers = {
            "a": float(scores[0, column]),
            "b": float(scores[1, column]),
            "difference": float(differences[column]),
            "interval": intervals[column],
            "p": p_values[column],
        }
        result[name] = {**numbers, "sentence": _sentence(SCORE_NAMES[name], numbers, len(counts))}
    return result


def _read(source: str | Path) -> dict[str, dict[str, str]]:
    """The rows of a run directory or of a system's own file, by id."""
    if Path(source).is_file():
        return _read_file(Path(source))
    rows = [row for fold in read_run(source).values() for row in fold]
    if not rows:
        raise ValueError(f"{source} is not a run directory: it holds no fold-*/predictions.csv with a row.")
    return {row["id"]: row for row in rows}


def _read_file(path: Path) -> dict[str, dict[str, str]]:
    prefix = PROBABILITY["label"]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}).") from None
    labels = [column.removeprefix(prefix) for column in columns if column.startswith(prefix)]
    if "id" not in columns or not (labels or "prediction" in columns):
        raise ValueError(
            f"{path} must have the columns id and prediction (or probability_<label> for each label); found "
            f"{', '.join(columns) or 'nothing'}."
        )
    found = {}
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():  # how csv marks cells too many and too few
            raise ValueError(f"{path}: row {number} has not one cell for each column.")
        if row["id"] in found:
            raise ValueError(f"{path}: the id {row['id']!r} stands in two rows.")
        if "prediction" not in row:
            known = [label for label in labels if row[prefix + label] or "corpus" not in columns]
            try:
                row["prediction"] = max(known, key=lambda label: float(row[prefix + label]))
            except ValueError as error:
                raise ValueError(f"{path}: row {number} has a probability that is no number ({error}).") from None
        found[row["id"]] = row
    if not found:
        raise ValueError(f"{path} holds no row.")
    return found


def _complete(a: dict[str, dict], b: dict[str, dict], column: str, run_a, run_b):
    """Gives the side that lacks a column the other's values."""
    for rows, others in ((a, b), (b, a)):
        for id, row in rows.items():
            if column not in row and id in others:
                if column not in others[id]:
                    raise ValueError(f"Neither {run_a} nor {run_b} has the column {column}: one of them must.")
                row[column] = others[id][column]


def _predictions(rows: list[dict[str, str]], head: str, run_dir: str | Path) -> list[str]:
    if head != "label":
        column = {"model": "prediction", "classifier": "prediction_classifier"}[head]
        if column not in rows[0]:
            raise ValueError(f"{run_dir} has no predictions of the {head}. Compare another head.")
        return [row[column] for row in rows]
    labels = words_with_columns(rows)
    protocol = Path(run_dir) / "protocol.json"
    own = own_words_of(rows, parsed_file(protocol) if protocol.is_file() else {})
    probabilities = head_probabilities(rows, labels, head, own) if labels else None
    if probabilities is None:
        raise ValueError(f"{run_dir} has no probabilities of the label head. Compare another head.")
    return [labels[k] for k in probabilities.argmax(axis=1)]


def paired_difference(counts: np.ndarray) -> tuple[np.ndarray, list[list[float] | None], list[float | None]]:
    """The difference of each score between two runs, with its interval and p; formulae in `compare_runs`.

    Args:
        counts: (S, 2, K, K), the confusion matrices of both runs for each speaker.

    Returns:
        Differences, second run less first, (3,) in the order of `SCORES`; intervals [low, high]; p. One speaker has no
        interval and no p, nor has a difference that is the same whichever speakers are drawn, unless it is 0.
    """

    def difference_of(sums):
        return scores_from_counts(sums[..., 1, :, :]) - scores_from_counts(sums[..., 0, :, :])

    difference, degrees = difference_of(counts.sum(axis=0)), len(counts) - 1
    if not degrees:
        return difference, [None] * len(SCORES), [None] * len(SCORES)
    error = speaker_standard_error(counts, difference_of)
    difference, error = (np.where(np.abs(values) > ROUNDING, values, 0) for values in (difference, error))
    known = (error > 0) | (difference == 0)
    p = 2 * stats.t.sf(np.abs(difference) / np.where(error > 0, error, 1), degrees)
    intervals = t_interval(difference, error, len(counts))
    return (
        difference,
        [interval.tolist() if is_known else None for interval, is_known in zip(intervals, known)],
        [float(value) if is_known else None for value, is_known in zip(p, known)],
    )


def _sentence(name: str, numbers: dict, num_speakers: int) -> str:
    points = 100 * numbers["difference"]
    if numbers["p"] is None:
        why = "one speaker" if num_speakers == 1 else f"{num_speakers} speakers who all differ alike"
        return f"{name}: B - A is {points:+.1f} points; {why} cannot say whether that is chance."
    low, high = (100 * end for end in numbers["interval"])
    if low == high == 0:
        return f"{name}: A and B score the same, whichever of the {num_speakers} speakers are drawn."
    evidence = f"95 % interval {low:+.1f} to {high:+.1f}, p {_p_value(numbers['p'])}"
    if numbers["p"] >= ALPHA:
        return f"{name}: no difference is shown, nor that there is none: B - A is {points:+.1f} points ({evidence})."
    return f"{name}: B is {'better' if points > 0 else 'worse'} than A by {abs(points):.1f} points ({evidence})."


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def comparison_cells(result: dict) -> list[list[str]]:
    """What `compare_runs` found, a row a score: its name, A, B and B - A in per cent, 95 % interval and p."""
    rows = []
    for name in SCORES:
        numbers = result[name]
        interval = p = ""
        if numbers["p"] is not None:
            interval = "{:+.1f} to {:+.1f}".format(*(100 * end for end in numbers["interval"]))
            p = _p_value(numbers["p"]).removeprefix("= ")
        a, b, difference = (100 * numbers[key] for key in ("a", "b", "difference"))
        rows.append([SCORE_NAMES[name], f"{a:.1f}", f"{b:.1f}", f"{difference:+.1f}", interval, p])
    return rows


def comparison_text(result: dict) -> str:
    """What `compare_runs` found, as a table in per cent and sentences."""
    lines = [
        f"A: {result['a']}",
        f"B: {result['b']}",
        f"Of both: {HEADS[result['head']]}, on the same {result['num_utterances']} utterances of "
        f"{result['num_speakers']} speakers; per cent.",
        "",
        "| score | A | B | B - A | 95 % interval | p |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in comparison_cells(result)]
    lines += ["", *(result[name]["sentence"] for name in SCORES)]
    return "\n".join([*lines, "Intervals and p speak of other speakers, not of training again with another seed."])


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Prints the comparison of two runs; exits with code 2 and one sentence when they cannot be compared."""
    args = compare_options(argv)
    try:
        result = compare_runs(args.run_a, args.run_b, head=args.head, common=args.common)
    except (ValueError, OSError) as error:
        print(f"lascl-compare: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(result, indent=2, ensure_ascii=False) if args.json else comparison_text(result))


if __name__ == "__main__":
    main()
