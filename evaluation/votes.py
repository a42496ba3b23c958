"""What listeners said of an utterance, and how answers are scored by it.

The votes of a row of `predictions.csv` are its columns `votes_<word>`, for the words that are kept; its shares are they
divided by their sum. A row without votes takes no part here.

Letters: n utterances, K words, S speakers, M bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lascl.evaluation.intervals import speaker_interval
from lascl.evaluation.predictions import NO_ANSWER, NO_REFERENCE, head_probabilities


COLUMN = "votes_"  # and a word
SCORES = ("jsd", "soft_accuracy", "calibration_error")
SCORE_NAMES = {
    "jsd": "Jensen-Shannon divergence",
    "soft_accuracy": "soft accuracy",
    "calibration_error": "calibration error",
}
BINS = 15
DISPUTED = 10  # utterances that a report shows


def most_voted(votes: np.ndarray) -> np.ndarray:
    """(n,) the word with most votes of (n, K) votes or shares, as a number; -1 where two or more share that, or none
    has any."""
    largest = votes.max(axis=1, keepdims=True)
    is_alone = (np.isclose(votes, largest, rtol=1e-6, atol=0).sum(axis=1) == 1) & (largest[:, 0] > 0)
    return np.where(is_alone, votes.argmax(axis=1), -1)


def votes_of(rows: Sequence[Mapping[str, str]], labels: Sequence[str]) -> np.ndarray:
    """(n, K) the votes of rows of a `predictions.csv`, 0 where a cell is empty or missing."""
    return np.array([[float(row.get(f"{COLUMN}{label}") or 0) for label in labels] for row in rows]).reshape(
        len(rows), len(labels)
    )


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(n,) the Jensen-Shannon divergence of rows of two matrices (n, K) of probabilities, in bits (Lin 1991, IEEE
    Transactions on Information Theory 37(1)): H((p + q) / 2) - (H(p) + H(q)) / 2, with 0 log 0 = 0. 0 where both are
    the same, 1 where they share no word."""
    return np.clip(_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2, 0, 1)


def _entropy(p: np.ndarray) -> np.ndarray:
    """(n,) in bits, of rows (n, K)."""
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(axis=1)


def scores_against_votes(
    rows: Sequence[Mapping[str, str]],
    labels: list[str],
    head: str | None,
    own: Mapping[str, list[str]] | None = None,
) -> dict | None:
    """How near the answers of both heads are to what listeners said; `None` where nobody voted.

    * `jsd`: the mean Jensen-Shannon divergence of the head's probabilities and the shares, in bits; lower is better;
    * `soft_accuracy`: the mean share of listeners who said what the head answers;
    * `calibration_error`: the expected calibration error (`expected_calibration_error`) with that share in the place of
      right or wrong: how far the head's confidence in its answer is from the share of listeners who would agree.

    Args:
        rows: of a `predictions.csv`, those without a reference among them.
        labels: all K words.
        head: `label` or `classifier`, the head that `prediction` is from; `None`: unknown, then only its soft accuracy
            is.
        own: of `own_words_of`: probabilities are then those of a corpus's own words among each other.

    Returns:
        `n`, the rows with votes, `num_speakers`, these scores (fractions, and bits), those of the classifier under
        `classifier`, each with `intervals`, 95 % over speakers (None where there is none); `ceiling`, see
        `listeners_ceiling`, where votes are counts. Scores that need probabilities are missing where a head's are not
        there or not finite.
    """
    rows = [row for row in rows if any(row.get(f"{COLUMN}{label}") for label in labels)]
    votes = votes_of(rows, labels)
    rows, votes = [row for row, told in zip(rows, votes) if told.sum()], votes[votes.sum(axis=1) > 0]
    if not rows:
        return None
    shares = votes / votes.sum(axis=1, keepdims=True)  # (n, K)
    speakers = [row["speaker"] for row in rows]
    found = {"n": len(rows), "num_speakers": len(set(speakers))}
    found |= _of_head(rows, labels, shares, speakers, "prediction", head, own)
    if rows[0].get("prediction_classifier") is not None:
        found["classifier"] = _of_head(rows, labels, shares, speakers, "prediction_classifier", "classifier", own)
    ceiling = listeners_ceiling(votes, labels)
    return {**found, **({"ceiling": ceiling} if ceiling else {})}


def _of_head(rows, labels, shares, speakers, column, head, own) -> dict:
    number_of = {label: number for number, label in enumerate(labels)}
    agreeing = np.array(
        [0.0 if row[column] == NO_ANSWER else told[number_of[row[column]]] for row, told in zip(rows, shares)]
    )
    columns, names = [np.ones(len(rows)), agreeing], ["soft_accuracy"]  # of each row, to be summed
    probabilities = head_probabilities(list(rows), labels, head, own) if head else None
    if probabilities is not None and np.isfinite(probabilities).all():
        names = list(SCORES)
        columns.append(jensen_shannon(probabilities, shares))
        confidence = probabilities.max(axis=1)
        bins = np.minimum(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence, side="left"), BINS - 1)
        in_bin = np.eye(BINS)[bins]  # (n, M)
        columns += [*(in_bin * confidence[:, None]).T, *(in_bin * agreeing[:, None]).T]
    everyone, of_row = np.unique(np.array(speakers), return_inverse=True)
    sums = np.zeros((len(everyone), len(columns)))
    np.add.at(sums, of_row, np.stack(columns, axis=1))  # (S, ...)
    values = dict(zip(names, _from_sums(sums.sum(axis=0)).tolist()))
    intervals = speaker_interval(sums, _from_sums)
    told = None
    if intervals is not None:
        ends = intervals.round(6).tolist()
        told = {name: pair if np.isfinite(pair).all() else None for name, pair in zip(names, ends)}
    return {**values, "intervals": told}


def _from_sums(sums: np.ndarray) -> np.ndarray:
    """(..., 1) soft accuracy, or (..., 3) `SCORES`, of the sums that `_of_head` makes of rows."""
    n, agreeing = np.maximum(sums[..., 0], 1), sums[..., 1]
    if sums.shape[-1] == 2:
        return (agreeing / n)[..., None]
    confidence, agreed = sums[..., 3 : 3 + BINS], sums[..., 3 + BINS :]
    error = np.abs(agreed - confidence).sum(axis=-1) / n
    return np.stack([sums[..., 2] / n, agreeing / n, error], axis=-1)


def listeners_ceiling(votes: np.ndarray, labels: Sequence[str]) -> dict | None:
    """What listeners reach themselves: each is left out in turn, and answers for the others. `None` where votes are no
    counts, or no utterance has two.

    Args:
        votes: (n, K) counts; each vote is taken for a listener.

    Returns:
        `n`, the utterances with two votes or more, and `votes`, how many these have on average; `soft_accuracy`: the
        share of the others who said the same; `wa` and `ua`: whether it is the word with most of the others' votes, a
        word that shares that with m - 1 others counting 1 / m, over all votes, and as the mean over the words (of each
        word, over the utterances and by the share of it). Utterances weigh alike, however many votes they have.
    """
    if not np.allclose(votes, votes.round()):
        return None
    votes = votes[votes.sum(axis=1) >= 2]
    if not len(votes):
        return None
    total = votes.sum(axis=1, keepdims=True)  # (n, 1)
    soft = (votes * (votes - 1) / (total * (total - 1))).sum(axis=1)
    agreed, weights = np.zeros((2, len(labels)))
    right = 0.0
    for counts in votes:
        for word in np.flatnonzero(counts):
            others = counts.copy()
            others[word] -= 1
            best = np.flatnonzero(others == others.max())
            share = counts[word] / counts.sum()
            right += share * (word in best) / len(best)
            # The reference is what most of the others said, and recall is by reference, as a model's is.
            weights[best] += share / len(best)
            agreed[word] += share * (word in best) / len(best)
    recall = agreed[weights > 0] / weights[weights > 0]
    return {
        "n": len(votes),
        "votes": float(total.mean()),
        "soft_accuracy": float(soft.mean()),
        "wa": float(right / len(votes)),
        "ua": float(recall.mean()),
    }


def votes_cells(results: dict) -> tuple[list[str], list[list[str]], list[str]] | None:
    """The scores against votes as a table: the head; the rows, a head of the model each, then what listeners reach; and
    notes. `None` where nobody voted. Fractions are in per cent, the divergence in bits."""
    told = results.get("votes")
    if told is None:
        return None
    head = ["against the votes", *(f"{SCORE_NAMES[name]}{' (bits)' if name == 'jsd' else ''}" for name in SCORES)]
    rows = [["this model", *(_cell(told, name) for name in SCORES)]]
    if "classifier" in told:
        rows.append(["classifier", *(_cell(told["classifier"], name) for name in SCORES)])
    notes = [
        f"Of {told['n']} utterances that somebody voted on, those without a majority among them. In brackets: 95 % "
        f"interval over the {told['num_speakers']} speakers. Soft accuracy: the share of listeners who said what is "
        "answered. Calibration error: how far the confidence is from that share."
    ]
    if ceiling := told.get("ceiling"):
        rows.append(["a listener, against the others", "", f"{100 * ceiling['soft_accuracy']:.1f}", ""])
        notes.append(
            f"What listeners reach, one left out against the rest, over {ceiling['n']} utterances of "
            f"{ceiling['votes']:.1f} votes: the word that most of the rest chose in {100 * ceiling['wa']:.1f} % (WA), "
            f"as a mean over words {100 * ceiling['ua']:.1f} % (UA)."
        )
    return head, rows, notes


def _cell(scores: dict, name: str) -> str:
    if name not in scores:
        return ""
    number = "{:.3f}".format if name == "jsd" else lambda value: f"{100 * value:.1f}"
    ends = (scores["intervals"] or {}).get(name)
    return number(scores[name]) + ("" if ends is None else f" [{number(ends[0])}, {number(ends[1])}]")


def most_disputed(rows: Sequence[Mapping[str, str]], labels: list[str], count: int = DISPUTED) -> list[dict]:
    """The utterances that listeners agreed on least: the highest entropy of shares, the first ids of equals.

    Returns:
        Of each `id`, `speaker`, `shares` in words (`anger 40 %, fear 40 %, ...`, the largest first), `answer`, and
        `agreeing`, the share of listeners who said that. Only of utterances on which two words have votes.
    """
    votes = votes_of(rows, labels)
    voted = [number for number in range(len(rows)) if (votes[number] > 0).sum() > 1]
    shares = votes[voted] / votes[voted].sum(axis=1, keepdims=True)
    entropy = _entropy(shares).round(9)
    order = sorted(range(len(voted)), key=lambda k: (-entropy[k], rows[voted[k]]["id"]))[:count]
    return [
        {
            "id": rows[voted[k]]["id"],
            "speaker": rows[voted[k]]["speaker"],
            "shares": ", ".join(
                f"{labels[word]} {100 * shares[k][word]:.0f} %"
                for word in np.argsort(-shares[k], kind="stable")
                if shares[k][word]
            ),
            "reference": rows[voted[k]]["reference"] if rows[voted[k]]["reference"] != NO_REFERENCE else "none",
            "answer": rows[voted[k]]["prediction"],
            "agreeing": dict(zip(labels, shares[k].tolist())).get(rows[voted[k]]["prediction"], 0.0),
        }
        for k in order
    ]
