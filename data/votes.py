"""What listeners said of an utterance: their votes, and what is learned from them.

A reader gives a row its `votes`, counts or shares by the corpus's own labels. Here they become columns `votes_<word>`
of the words that are kept, the row's label, and, where votes are learned, its column `shares`.

Letters: N rows of a table, K words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import datasets
import numpy as np


TARGETS = ("corpus", "majority", "votes")
TIES = ("drop", "share")
COLUMN = "votes_"  # and a word
SHARES = "shares"  # the column of a table that learns from votes
# What corpora rate an utterance by, under the names that a table has for it.
RATINGS = {"valence": "valence", "arousal": "arousal", "activation": "arousal", "dominance": "dominance"}
ROUNDING = 1e-6  # relative: shares such as 0.333333 and 0.333334 are as many votes


class NoVotes(ValueError):
    """A corpus has none to learn from."""


def check_targets(targets: str, ties: str):
    """Raises ValueError unless these are of `TARGETS` and `TIES`, and go together."""
    for name, value, known in (("targets", targets, TARGETS), ("ties", ties, TIES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; found {value!r}.")
    if targets == "corpus" and ties != "drop":
        raise ValueError(f"ties {ties} is for targets majority or votes; the corpus's own label is never a tie.")


def check_some_label(name: str, column: str, rows: list[dict], targets: str):
    """Raises ValueError if a corpus's own labels are to be learned and rows have lists of votes instead."""
    lists = [row["id"] for row in rows if row["label"] is None and row.get("votes")]
    if lists and targets == "corpus":
        raise ValueError(
            f"{name}: {column!r} of {lists[0]!r} is a list, of what each listener said. Choose what is learned of it: "
            "targets: majority or votes."
        )


def number_of_votes(cell, where: str) -> float:
    """A cell of a column of votes, empty for none. Raises ValueError, which begins with `where`, unless it is a count
    or a share."""
    text = "" if cell is None else str(cell).strip()
    try:
        number = float(text) if text else 0.0
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{where} is no number of votes: {text!r}. Give a count or a share, or leave it empty.")
    return number


def number_of_rating(cell, where: str) -> float | None:
    """A cell of a rating, empty for none. Raises ValueError, which begins with `where`, unless it is a number."""
    text = "" if cell is None else str(cell).strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} is no number: {text!r}.")
    return number


def vote_columns(columns: Iterable[str]) -> dict[str, str]:
    """By column of a list that has votes, the label voted for: `votes_anger`."""
    return {column: column.removeprefix(COLUMN) for column in columns if column.startswith(COLUMN) and column != COLUMN}


def rating_columns(columns: Sequence[str]) -> dict[str, str]:
    """By column of a list that rates, its name in a table. `arousal` wins over its other name, `activation`."""
    there = {column: name for column, name in RATINGS.items() if column in columns}
    if {"arousal", "activation"} <= there.keys():
        del there["activation"]
    return there


def counted(votes: Iterable[str]) -> dict[str, float]:
    """A list of what each listener said, as votes."""
    return {label: float(count) for label, count in Counter(votes).items()}


def most_of(votes: Mapping[str, float]) -> list[str]:
    """The labels with most votes, sorted: one, or those that share it; none without votes."""
    most = max(votes.values(), default=0.0)
    return sorted(label for label, count in votes.items() if most > 0 and count >= most * (1 - ROUNDING))


def by_word(votes: Mapping[str, float], words: Mapping[str, str]) -> dict[str, float]:
    """Votes for labels as votes for the words that these become; a label that is not kept has no word."""
    found = dict.fromkeys(dict.fromkeys(words.values()), 0.0)
    for label, count in votes.items():
        if label in words:
            found[words[label]] += count
    return found


def choose_targets(
    name: str, rows: list[dict], words: Mapping[str, str], targets: str, ties: str
) -> tuple[list[dict], str]:
    """The rows that are learned or tested, with `label`, the columns of votes and, of `targets: votes` or shared ties,
    `shares` by word; and what became of the others, in a sentence (empty of `targets: corpus`).

    The most voted label is that of all votes, those for labels that are not kept among them: where most say something
    else, an utterance has none of the kept words for its label. Words that join labels (`words`) get the votes of all.

    Args:
        name: of the corpus, for messages.
        rows: of a reader, with `label` (None where the corpus has none) and, if it has any, `votes`.
        words: by label that is kept, the word that it becomes.

    Raises:
        NoVotes: the corpus has none.
    """
    has_votes = any(row.get("votes") for row in rows)
    if targets != "corpus" and not has_votes:
        raise NoVotes(
            f"targets {targets} needs votes, and {name} has none. Give what listeners said (of csv, columns such as "
            "votes_anger), or targets: corpus."
        )
    kept, counts = [], Counter()
    for row in rows:
        votes = row.get("votes") or {}
        told = by_word(votes, words)
        label, shares, found = _target(row["label"], votes, told, words, targets, ties)
        counts[found] += 1
        if label is None and shares is None:
            continue
        columns = {f"{COLUMN}{word}": (told[word] if votes else None) for word in sorted(told)} if has_votes else {}
        learned = {SHARES: shares} if targets == "votes" or ties == "share" else {}
        own = {key: value for key, value in row.items() if key != "votes"}
        kept.append({**own, "label": label, **columns, **learned})
    return kept, "" if targets == "corpus" else _said(name, counts, targets, ties)


def _target(label, votes, told, words, targets, ties) -> tuple[str | None, dict[str, float] | None, str]:
    """Of one row its word, None if it has none, what is learned by word, None if nothing, and what is counted of it.

    Args:
        label: the corpus's.
        votes, told: by label, and by word that is kept.
    """
    if targets == "corpus" or not votes:
        word = words.get(label)
        return word, None if word is None else {word: 1.0}, "label" if word else "nothing"
    others = {label: count for label, count in votes.items() if label not in words}
    # Apart, since a word may be spelt as a label that is not kept.
    most = most_of({**{("word", word): count for word, count in told.items()},
                    **{("label", label): count for label, count in others.items()}})  # fmt: skip
    best = [word for kind, word in most if kind == "word"]
    total = sum(told.values())
    if not total:
        return None, None, "nothing"
    shares = {word: count / total for word, count in told.items() if count}
    if len(most) > 1:
        if ties == "drop" or not best:
            return None, None, "tie"
        return None, shares if targets == "votes" else dict.fromkeys(best, 1 / len(best)), "tie"
    if not best:
        return None, shares if targets == "votes" else None, "another"
    return best[0], shares if targets == "votes" else {best[0]: 1.0}, "majority"


def _said(name: str, counts: Counter, targets: str, ties: str) -> str:
    """What became of all rows, in a sentence."""
    shared = "left out" if ties == "drop" else "shared among the words" if targets == "majority" else "learned as votes"
    parts = [f"{counts['majority']} with a word that most listeners chose"]
    if counts["tie"]:
        parts.append(f"{counts['tie']} with a tie, {shared} (ties: {ties})")
    if counts["another"]:
        learned = "learned by the votes for the words kept" if targets == "votes" else "left out"
        parts.append(f"{counts['another']} for which most chose a word that is not kept, {learned}")
    if counts["label"]:
        parts.append(f"{counts['label']} without votes, by the corpus's label")
    if counts["nothing"]:
        parts.append(f"{counts['nothing']} with neither votes nor a label for the words kept, left out")
    return f"{name}, by votes: {'; '.join(parts)}."


def share_rows(shares: Iterable[Mapping[str, float] | None], words: Sequence[str]) -> list[list[float]]:
    """(N, K): shares by word as rows in the order of `words`."""
    return [[(row or {}).get(word, 0.0) for word in words] for row in shares]


def shares_of(table: datasets.Dataset) -> np.ndarray | None:
    """(N, K) what a table's rows are learned by, in the order of its label names; `None` where labels are learned."""
    if SHARES not in table.column_names:
        return None
    return np.array(table[SHARES][:], dtype=np.float64).reshape(len(table), len(table.features["label"].names))


def votes_of(table: datasets.Dataset) -> dict[str, list[float | None]]:
    """By word, the (N,) votes of a table's rows, None where nobody voted; empty of a table without votes."""
    columns = vote_columns(table.column_names)
    return {word: table[column][:] for column, word in columns.items() if word in table.features["label"].names}


def told_votes(table: datasets.Dataset) -> list[dict[str, float | str]]:
    """Of each row the cells of its votes, by column, as a file has them: empty where nobody voted; nothing of a table
    without votes."""
    columns = {f"{COLUMN}{word}": cells for word, cells in votes_of(table).items()}
    return [
        {name: "" if cells[row] is None else cells[row] for name, cells in columns.items()} for row in range(len(table))
    ]


def balanced_weights(table: datasets.Dataset, rows: Sequence[int], words: Sequence[str]) -> dict[str, float]:
    """By word N / (K n_k): n_k of the N rows are of word k, of votes the sum of its shares, and K words have
    any. A word that has none weighs 1."""
    names, chosen, shares = table.features["label"].names, np.asarray(rows, dtype=np.int64), shares_of(table)
    if shares is None:
        counts = np.bincount(np.array(table["label"][:])[chosen], minlength=len(names)).astype(float)
    else:
        counts = shares[chosen].sum(axis=0)
    known = {word: counts[names.index(word)] for word in words}
    occurring = [count for count in known.values() if count > 0]
    total = sum(occurring) / max(len(occurring), 1)
    return {word: float(total / count) if count > 0 else 1.0 for word, count in known.items()}


def classes_of(table: datasets.Dataset) -> list[int]:
    """(N,) the class that each row counts for where classes are told apart: the number of its label, and where it has
    none, of the word with the largest share, the first of equals."""
    labels, shares = table["label"][:], shares_of(table)
    if shares is None:
        return labels
    return [int(row.argmax()) if label is None else label for label, row in zip(labels, shares)]
