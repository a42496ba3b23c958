"""Protocols: folds that no speaker crosses, and validation that knows nobody of the test.

Folds may be many: leaving one speaker out, as many as speakers. So nothing here goes through all rows of every side of
every fold: a training side is known by the rows that it lacks.

Letters: N rows of a corpus, S values of a column.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import datasets
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from lascl.data.votes import classes_of


PROTOCOLS = ("leave_one_session_out", "leave_one_speaker_out", "speaker_folds", "manifest", "emobox")
OF_CORPORA = ("leave_one_corpus_out", "within_each")  # protocols that need a column `corpus`
VALIDATIONS = ("none", "session", "speaker", "manifest", "corpus")
# Names of the parts of one official split, as a `fold` column may hold them; validation under any of three.
TRAIN, VALIDATION, TEST = "train", ("validation", "valid", "dev"), "test"
# Of the speakers who train, for `validation="speaker"`.
VALIDATION_SHARE = 0.1


class Rows(Sequence):
    """Some rows of a corpus in ascending order, as a sequence of integers that is made when it is asked for: written
    out, the training sides of many folds would be as many copies of the corpus.

    Args:
        parts: arrays of rows, which share none.
        all_but: N; then these are the rows of a corpus of N but those of `parts`.
    """

    def __init__(self, parts: Sequence[np.ndarray], *, all_but: int | None = None):
        self.parts, self.all_but = parts, all_but

    def listed(self) -> np.ndarray:
        """The rows of `parts`, in any order."""
        return np.concatenate(self.parts) if self.parts else np.zeros(0, dtype=np.int64)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if self.all_but is None:
            rows = np.sort(self.listed())
        else:
            is_in = np.ones(self.all_but, dtype=bool)
            is_in[self.listed()] = False
            rows = np.flatnonzero(is_in)
        return rows if dtype is None else rows.astype(dtype)

    def __len__(self) -> int:
        listed = sum(map(len, self.parts))
        return listed if self.all_but is None else self.all_but - listed

    def __getitem__(self, index):
        rows = np.asarray(self)[index]
        return rows.tolist()  # of an array a list, of a number Python's own

    def __iter__(self) -> Iterator[int]:
        return iter(np.asarray(self).tolist())

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __add__(self, other: Sequence[int]) -> list[int]:
        return [*self, *other]

    def __radd__(self, other: Sequence[int]) -> list[int]:
        return [*other, *self]

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"


class Column:
    """A column of a corpus as numbers, to tell which of its values occur on a side of a fold without going through all
    rows of a large one.

    Args:
        values: (N,), hashable.
    """

    def __init__(self, values: Iterable[Hashable]):
        numbers: dict[Hashable, int] = {}
        self.codes = np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)  # (N,)
        self.values = list(numbers)  # (S,)
        self.totals = np.bincount(self.codes, minlength=len(self.values))  # (S,)

    def occurs(self, rows: Sequence[int]) -> np.ndarray:
        """(S,) booleans: whether each of `values` occurs in these rows."""
        listed = rows.listed() if isinstance(rows, Rows) else np.asarray(rows, dtype=np.int64)
        counts = np.bincount(self.codes[listed], minlength=len(self.values))
        return (counts < self.totals) if getattr(rows, "all_but", None) is not None else counts > 0

    def occurring(self, rows: Sequence[int]) -> set:
        """Those of `values` that occur in these rows."""
        return {self.values[number] for number in np.flatnonzero(self.occurs(rows))}

    def groups(self) -> dict[Hashable, np.ndarray]:
        """By value, its rows, ascending."""
        order, ends = np.argsort(self.codes, kind="stable"), np.cumsum(self.totals)
        return dict(zip(self.values, np.split(order, ends[:-1])))


@dataclass(frozen=True)
class Fold:
    """One split of a corpus, as row indices into it (sequences; lists or `Rows`). `number` counts from 1; `validation`
    may be empty. `name` is that of the corpus that is tested, where one is left out."""

    number: int
    train: Sequence[int]
    test: Sequence[int]
    validation: Sequence[int] = field(default_factory=list)
    name: str | None = None

    def shared_speakers(self, corpus: datasets.Dataset) -> set[str]:
        """Who is heard in training or validation and in the test."""
        return shared_speakers([self], Column(corpus["speaker"][:]))

    def check_speakers(self, corpus: datasets.Dataset):
        """Raises ValueError if a speaker is on two sides, or training or test is empty: such a score means nothing."""
        _check_speakers(self, Column(corpus["speaker"][:]))


def shared_speakers(folds: Iterable[Fold], speakers: Column) -> set[str]:
    """Who is heard in training or validation and in the test of any of these folds."""
    shared = np.zeros(len(speakers.values), dtype=bool)
    for fold in folds:
        shared |= (speakers.occurs(fold.train) | speakers.occurs(fold.validation)) & speakers.occurs(fold.test)
    return {speakers.values[number] for number in np.flatnonzero(shared)}


def _check_speakers(fold: Fold, speakers: Column):
    sides = {"training": fold.train, "validation": fold.validation, "test": fold.test}
    heard = {side: speakers.occurs(rows) for side, rows in sides.items()}
    for first, second in (("training", "test"), ("validation", "test"), ("training", "validation")):
        shared = np.flatnonzero(heard[first] & heard[second])
        if len(shared):
            name = min(speakers.values[number] for number in shared)
            raise ValueError(
                f"Fold {fold.number}: speaker {name!r} is in {first} and in {second}. Each side must hold whole "
                "speakers."
            )
    if not fold.train or not fold.test:
        raise ValueError(
            f"Fold {fold.number}: {len(fold.train)} utterances in training and {len(fold.test)} in test. Use fewer "
            "folds or more speakers."
        )


def train_hashes(ids: Sequence[str], folds: Sequence[Fold]) -> list[str]:
    """For each fold the hash of its training ids: BLAKE2b, 128 bits, of the sorted ids, one a line. Whoever has the
    corpus can tell what a model was trained on. Ids are sorted once; the rest costs rows times folds."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    lines, place = [b"\n" + ids[row].encode() for row in order], np.empty(len(ids), dtype=np.int64)
    place[order] = np.arange(len(ids))
    hashes = []
    for fold in folds:
        trains = np.zeros(len(ids), dtype=bool)
        trains[place[np.asarray(fold.train, dtype=np.int64)]] = True
        text = b"".join(compress(lines, trains.tolist()))
        hashes.append(hashlib.blake2b(text[1:], digest_size=16).hexdigest())
    return hashes


def make_folds(
    corpus: datasets.Dataset,
    num_folds: int | None = None,
    *,
    protocol: str | None = None,
    validation: str = "none",
    seed: int = 0,
) -> list[Fold]:
    """Speaker-independent folds; they do not depend on the order of the rows.

    Args:
        corpus: from `load_corpus` or `load_corpora`.
        num_folds: of `speaker_folds`, and of each corpus under `within_each`: at least 2, at most the number of
            speakers; by default five, or as many as there are speakers.
        protocol: what is tested together.

            * `leave_one_session_out`: the utterances of a session (IEMOCAP: two speakers);
            * `leave_one_speaker_out`: those of a speaker;
            * `speaker_folds`: those of a group of speakers. EmoDB and the synthetic corpus are cut into runs of
              neighbouring speakers (EmoDB's usual pairs 03 + 08, 09 + 10, ...); elsewhere groups are alike in size and
              labels (scikit-learn's `StratifiedGroupKFold`, seeded);
            * `manifest`: those of a name in the column `fold`; the name `train` is never tested. If the names are
              `train` and `test` (and `validation`, `valid` or `dev`), they are one official split: one fold;
            * `emobox`: likewise, for the corpus `emobox`, whose official folds may put a speaker on two sides. They are
              taken as they are, to compare with its table, and the report says so;
            * `leave_one_corpus_out` (several corpora): all of a corpus, by a model of the others;
            * `within_each` (several corpora): in fold k what fold k of each corpus alone would test, of those that have
              so many; the rest of all trains.

            By default `leave_one_corpus_out` of several corpora; of one its own, which is the first of `emobox`,
            `manifest`, `leave_one_session_out` and `speaker_folds` that it has what is needed for; with `num_folds`,
            `speaker_folds`.
        validation: what is taken from the training side to choose an epoch by.

            * `none`: nothing, all other speakers train;
            * `session`: the session after the test's (a session of the test is never taken);
            * `speaker`: a tenth of the speakers, at least one, drawn; nobody who shares a session with a speaker of the
              test, as a partner in dialogue is half a leak;
            * `manifest`: the validation part of an official split (which otherwise trains);
            * `corpus` (under `leave_one_corpus_out`): the corpus after the test's, by name.
        seed: of the grouping, and of the speakers drawn for validation.

    Returns:
        The folds, numbered from 1 in the order of their names. But for an official split, each utterance is tested in
        exactly one.

    Raises:
        ValueError: an unknown protocol or validation, one that the corpus has no column for, fewer speakers than
            folds, fewer than two folds, nobody left to validate or train on, or a speaker on two sides.
    """
    has_corpora = "corpus" in corpus.column_names
    if has_corpora and protocol is None:
        protocol = "leave_one_corpus_out"
    _check_protocol(protocol, validation, has_corpora)
    if protocol == "within_each":
        return _within_each(corpus, num_folds, validation, seed)
    has_folds, has_sessions = "fold" in corpus.column_names, None not in corpus["session"][:]
    if protocol is None and num_folds is None:
        own = "emobox" if corpus.info.dataset_name == "emobox" else "manifest"
        protocol = own if has_folds else "leave_one_session_out" if has_sessions else "speaker_folds"
    protocol = protocol or "speaker_folds"
    if num_folds is not None and protocol != "speaker_folds":
        others = " and within_each" if has_corpora else ""
        raise ValueError(f"num_folds belongs to the protocol speaker_folds{others}; found {num_folds} with {protocol}.")
    if protocol in ("manifest", "emobox") and not has_folds:
        raise ValueError(f"The protocol {protocol} needs a column `fold`, which this corpus does not have.")
    if (protocol == "leave_one_session_out" or validation == "session") and not has_sessions:
        raise ValueError("This corpus does not tell the session of every utterance. Choose another protocol.")

    if protocol in ("manifest", "emobox"):
        names = corpus["fold"][:]
        if TEST in names and set(names) <= {TRAIN, *VALIDATION, TEST}:
            return [_official_split(corpus, names, validation, checked=protocol == "manifest")]
    elif protocol == "leave_one_session_out":
        names = corpus["session"][:]
    elif protocol == "leave_one_speaker_out":
        names = corpus["speaker"][:]
    elif protocol == "leave_one_corpus_out":
        names = corpus["corpus"][:]
    else:
        names = _group_speakers(corpus, num_folds, seed)
    if validation == "manifest":
        raise ValueError("validation manifest needs a column `fold` with train, validation and test.")
    if len(set(names)) < 2:
        raise ValueError(f"Cross-validation needs two folds at least; all utterances are in fold {names[0]!r}.")
    groups, speakers = Column(names).groups(), Column(corpus["speaker"][:])
    take = _Validation(corpus, speakers, validation, seed)
    folds = []
    for number, name in enumerate(_in_order(set(names), protocol), start=1):
        tested = name if protocol == "leave_one_corpus_out" else None
        fold = take.of(Fold(number, Rows([groups[name]], all_but=len(names)), groups[name].tolist(), name=tested))
        if protocol != "emobox":
            _check_speakers(fold, speakers)
        folds.append(fold)
    return folds


def _check_protocol(protocol: str | None, validation: str, has_corpora: bool):
    """Raises ValueError for a protocol or a validation that there is not, or not for so many corpora."""
    if protocol not in (None, *PROTOCOLS, *OF_CORPORA):
        raise ValueError(f"protocol must be one of {', '.join((*PROTOCOLS, *OF_CORPORA))}; found {protocol!r}.")
    if validation not in VALIDATIONS:
        raise ValueError(f"validation must be one of {', '.join(VALIDATIONS)}; found {validation!r}.")
    if protocol in OF_CORPORA and not has_corpora:
        raise ValueError(f"The protocol {protocol} needs several corpora, and this is one. Choose another protocol.")
    if validation == "corpus" and protocol != "leave_one_corpus_out":
        raise ValueError("validation corpus belongs to the protocol leave_one_corpus_out of several corpora.")


def _in_order(names: set, protocol: str) -> list:
    """Names of folds: 10 after 9, not after 1."""
    if protocol == "leave_one_corpus_out":
        return sorted(names)
    return sorted(
        names - ({TRAIN} if protocol in ("manifest", "emobox") else set()),
        key=lambda name: (not str(name).isdecimal(), int(name) if str(name).isdecimal() else name),
    )


def _within_each(table, num_folds: int | None, validation: str, seed: int) -> list[Fold]:
    """Fold k of each corpus that has one, as it would be alone; what it neither tests nor holds back trains."""
    kinds = dict(entry.split("=") for entry in (table.info.config_name or "").split(",") if entry)
    tested, held_back = {}, {}  # by number of the fold, rows of each corpus
    for name, rows in sorted(Column(table["corpus"][:]).groups().items()):
        alone = _as_alone(table.select(rows), name)
        alone.info.dataset_name = kinds.get(name, name)
        try:
            folds = make_folds(alone, num_folds, validation=validation, seed=seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        for fold in folds:
            tested.setdefault(fold.number, []).append(rows[np.asarray(fold.test, dtype=np.int64)])
            held_back.setdefault(fold.number, []).append(rows[np.asarray(fold.validation, dtype=np.int64)])
    return [
        Fold(
            number,
            Rows([*tested[number], *held_back[number]], all_but=len(table)),
            np.sort(np.concatenate(tested[number])).tolist(),
            Rows(held_back[number]),
        )
        for number in sorted(tested)
    ]


def _as_alone(part: datasets.Dataset, name: str) -> datasets.Dataset:
    """One corpus's rows of a table of several, with the columns that decide folds as its own table has them."""
    columns = {"label": classes_of(part)}
    for column in ("id", "speaker", "session"):
        columns[column] = [value and value.removeprefix(f"{name}/") for value in part[column][:]]
    if "fold" in part.column_names and None not in part["fold"][:]:
        columns["fold"] = part["fold"][:]
    return datasets.Dataset.from_dict(columns)


def _official_split(corpus, names: Sequence[str], validation: str, *, checked: bool) -> Fold:
    if validation not in ("none", "manifest"):
        raise ValueError(f"An official split has its own validation: manifest or none; found {validation!r}.")
    sides = {side: [row for row, name in enumerate(names) if name in side] for side in ((TRAIN,), VALIDATION, (TEST,))}
    train, held_back, test = sides.values()
    if validation == "manifest" and not held_back:
        raise ValueError("validation manifest needs rows whose `fold` is validation, valid or dev; found none.")
    fold = Fold(1, train, test, held_back) if validation == "manifest" else Fold(1, sorted(train + held_back), test)
    if checked:
        fold.check_speakers(corpus)
    return fold


class _Validation:
    """What is taken from the training side of each fold for validation; columns are read once for all folds."""

    def __init__(self, corpus, speakers: Column, validation: str, seed: int):
        self.validation, self.seed, self.num_rows, self.speakers = validation, seed, len(corpus), speakers
        if validation == "none":
            return
        if validation == "corpus":
            self.of_corpus = Column(corpus["corpus"][:]).groups()
            return
        self.sessions = Column(corpus["session"][:])
        self.of_session, self.of_speaker = self.sessions.groups(), speakers.groups()
        self.sorted_sessions = sorted(set(self.sessions.values) - {None})
        self.speaker_order = np.array(sorted(range(len(speakers.values)), key=speakers.values.__getitem__))
        self.speaker_names = np.array([speakers.values[number] for number in self.speaker_order])

    def of(self, fold: Fold) -> Fold:
        """The fold with some of its training rows moved to validation."""
        if self.validation == "none":
            return fold
        if self.validation == "corpus":
            return self._corpus_after(fold)
        tested = {self.sessions.values[code] for code in np.unique(self.sessions.codes[fold.test])} - {None}
        moved = self._session_after(fold, tested) if self.validation == "session" else self._some(fold, tested)
        if (self.speakers.occurs(fold.test) & self.speakers.occurs(fold.train)).any():  # as official folds may have it
            moved = [np.setdiff1d(rows, fold.test, assume_unique=True) for rows in moved]
        return self._moved(fold, moved)

    def _moved(self, fold: Fold, rows: list[np.ndarray]) -> Fold:
        train = Rows([*fold.train.parts, *rows], all_but=self.num_rows)
        return replace(fold, train=train, validation=Rows(rows))

    def _corpus_after(self, fold: Fold) -> Fold:
        order = sorted(self.of_corpus)
        if len(order) < 3:
            raise ValueError("validation corpus needs three corpora: to train on, to validate and to test; found two.")
        return self._moved(fold, [self.of_corpus[order[(order.index(fold.name) + 1) % len(order)]]])

    def _session_after(self, fold: Fold, tested: set) -> list[np.ndarray]:
        order = self.sorted_sessions
        others = len(order) - len(tested)
        if others < 2:
            raise ValueError(f"Fold {fold.number}: {others} other sessions, but validation and training need two.")
        place = order.index(max(tested)) + 1
        while order[place % len(order)] in tested:
            place += 1
        return [self.of_session[order[place % len(order)]]]

    def _some(self, fold: Fold, tested: set) -> list[np.ndarray]:
        training = self.speakers.occurs(fold.train)  # (S,)
        partners = np.zeros_like(training)
        for session in tested:
            rows = np.setdiff1d(self.of_session[session], fold.test, assume_unique=True)
            partners |= self.speakers.occurs(rows)
        candidates = self.speaker_names[(training & ~partners)[self.speaker_order]]
        if not len(candidates) or training.sum() < 2:
            raise ValueError(f"Fold {fold.number}: all who could validate share a session with the test. Use none.")
        rng = np.random.default_rng([self.seed, fold.number])
        count = max(1, round(VALIDATION_SHARE * int(training.sum())))
        return [self.of_speaker[name] for name in rng.permutation(candidates)[:count].tolist()]


def _group_speakers(corpus, num_folds: int | None, seed: int) -> list[int]:
    """The fold of each row, 0 to `num_folds` - 1."""
    speakers, labels = np.array(corpus["speaker"][:]), np.array(classes_of(corpus))
    num_speakers = len(set(speakers.tolist()))
    num_folds = min(5, num_speakers) if num_folds is None else num_folds
    if not 2 <= num_folds <= num_speakers:
        raise ValueError(f"num_folds must lie between 2 and the number of speakers, {num_speakers}; found {num_folds}.")
    if corpus.info.dataset_name in ("emodb", "synthetic"):
        runs = np.array_split(sorted(set(speakers.tolist())), num_folds)
        number_of = {speaker: number for number, run in enumerate(runs) for speaker in run.tolist()}
        return [number_of[speaker] for speaker in speakers.tolist()]
    # Sorted, because the splitter numbers speakers as they appear.
    rows = np.lexsort((np.array(corpus["id"][:]), speakers))
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    names = np.zeros(len(rows), dtype=int)
    with warnings.catch_warnings():
        # A label of fewer utterances than folds cannot be everywhere; the report says where it is absent.
        warnings.filterwarnings("ignore", "The least populated class")
        try:
            for number, (_, test) in enumerate(splitter.split(rows, labels[rows], groups=speakers[rows])):
                names[rows[test]] = number
        except ValueError as error:  # every label has fewer utterances than there are folds
            raise ValueError(f"{len(rows)} utterances cannot fill {num_folds} folds ({error}).") from None
    if len(set(names.tolist())) < num_folds:
        raise ValueError(f"{num_speakers} speakers cannot fill {num_folds} folds alike. Use fewer folds.")
    return names.tolist()
