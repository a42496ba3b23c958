"""Protocols: folds that no speaker crosses, and validation that knows nobody of the test."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold


PROTOCOLS = ("leave_one_session_out", "leave_one_speaker_out", "speaker_folds", "manifest", "emobox")
VALIDATIONS = ("none", "session", "speaker", "manifest")
# Names of the parts of one official split, as a `fold` column may hold them; validation under any of three.
TRAIN, VALIDATION, TEST = "train", ("validation", "valid", "dev"), "test"
# Of the speakers who train, for `validation="speaker"`.
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Fold:
    """One split of a corpus, as row indices into it. `number` counts from 1; `validation` may be empty."""

    number: int
    train: list[int]
    test: list[int]
    validation: list[int] = field(default_factory=list)

    def shared_speakers(self, corpus: datasets.Dataset) -> set[str]:
        """Who is heard in training or validation and in the test."""
        speakers = corpus["speaker"][:]
        return {speakers[row] for row in self.train + self.validation} & {speakers[row] for row in self.test}

    def check_speakers(self, corpus: datasets.Dataset):
        """Raises ValueError if a speaker is on two sides, or training or test is empty: such a score means nothing."""
        speakers = corpus["speaker"][:]
        sides = {"training": self.train, "validation": self.validation, "test": self.test}
        heard = {side: {speakers[row] for row in rows} for side, rows in sides.items()}
        for first, second in (("training", "test"), ("validation", "test"), ("training", "validation")):
            shared = heard[first] & heard[second]
            if shared:
                raise ValueError(
                    f"Fold {self.number}: speaker {sorted(shared)[0]!r} is in {first} and in {second}. Each side must "
                    "hold whole speakers."
                )
        if not self.train or not self.test:
            raise ValueError(
                f"Fold {self.number}: {len(self.train)} utterances in training and {len(self.test)} in test. Use "
                "fewer folds or more speakers."
            )


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
        corpus: from `load_corpus`.
        num_folds: of `speaker_folds`: at least 2, at most the number of speakers; by default five, or as many as there
            are speakers.
        protocol: what is tested together.

            * `leave_one_session_out`: the utterances of a session (IEMOCAP: two speakers);
            * `leave_one_speaker_out`: those of a speaker;
            * `speaker_folds`: those of a group of speakers. EmoDB and the synthetic corpus are cut into runs of
              neighbouring speakers (EmoDB's usual pairs 03 + 08, 09 + 10, ...); elsewhere groups are alike in size and
              labels (scikit-learn's `StratifiedGroupKFold`, seeded);
            * `manifest`: those of a name in the column `fold`; the name `train` is never tested. If the names are
              `train` and `test` (and `validation`, `valid` or `dev`), they are one official split: one fold;
            * `emobox`: likewise, for the corpus `emobox`, whose official folds may put a speaker on two sides. They are
              taken as they are, to compare with its table, and the report says so.

            By default the corpus's own, which is the first of `emobox`, `manifest`, `leave_one_session_out` and
            `speaker_folds` that it has what is needed for; with `num_folds`, `speaker_folds`.
        validation: what is taken from the training side to choose an epoch by.

            * `none`: nothing, all other speakers train;
            * `session`: the session after the test's (a session of the test is never taken);
            * `speaker`: a tenth of the speakers, at least one, drawn; nobody who shares a session with a speaker of the
              test, as a partner in dialogue is half a leak;
            * `manifest`: the validation part of an official split (which otherwise trains).
        seed: of the grouping, and of the speakers drawn for validation.

    Returns:
        The folds, numbered from 1 in the order of their names. But for an official split, each utterance is tested in
        exactly one.

    Raises:
        ValueError: an unknown protocol or validation, one that the corpus has no column for, fewer speakers than
            folds, fewer than two folds, nobody left to validate or train on, or a speaker on two sides.
    """
    if protocol not in (None, *PROTOCOLS):
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; found {protocol!r}.")
    if validation not in VALIDATIONS:
        raise ValueError(f"validation must be one of {', '.join(VALIDATIONS)}; found {validation!r}.")
    has_folds, has_sessions = "fold" in corpus.column_names, None not in corpus["session"][:]
    if protocol is None and num_folds is None:
        own = "emobox" if corpus.info.dataset_name == "emobox" else "manifest"
        protocol = own if has_folds else "leave_one_session_out" if has_sessions else "speaker_folds"
    protocol = protocol or "speaker_folds"
    if num_folds is not None and protocol != "speaker_folds":
        raise ValueError(f"num_folds belongs to the protocol speaker_folds; found {num_folds} with {protocol}.")
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
    else:
        names = _group_speakers(corpus, num_folds, seed)
    if validation == "manifest":
        raise ValueError("validation manifest needs a column `fold` with train, validation and test.")
    if len(set(names)) < 2:
        raise ValueError(f"Cross-validation needs two folds at least; all utterances are in fold {names[0]!r}.")
    # 10 after 9, not after 1.
    order = sorted(
        set(names) - ({TRAIN} if protocol in ("manifest", "emobox") else set()),
        key=lambda name: (not str(name).isdecimal(), int(name) if str(name).isdecimal() else name),
    )
    folds = []
    for number, name in enumerate(order, start=1):
        train, test = [], []
        for row, own in enumerate(names):
            (test if own == name else train).append(row)
        fold = _take_validation(corpus, Fold(number, train, test), validation, seed)
        if protocol != "emobox":
            fold.check_speakers(corpus)
        folds.append(fold)
    return folds


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


def _take_validation(corpus, fold: Fold, validation: str, seed: int) -> Fold:
    """The fold with some of its training rows moved to validation."""
    if validation == "none":
        return fold
    speakers, sessions = corpus["speaker"][:], corpus["session"][:]
    tested = {sessions[row] for row in fold.test} - {None}
    if validation == "session":
        order = sorted(set(sessions))
        others = [session for session in order if session not in tested]
        if len(others) < 2:
            raise ValueError(f"Fold {fold.number}: {len(others)} other sessions, but validation and training need two.")
        last = order.index(max(tested))
        chosen = next(session for session in order[last + 1 :] + order if session in others)
        moved = [row for row in fold.train if sessions[row] == chosen]
    else:
        training = {speakers[row] for row in fold.train}
        partners = {speakers[row] for row in fold.train if sessions[row] in tested}
        candidates = sorted(training - partners)
        if not candidates or len(training) < 2:
            raise ValueError(f"Fold {fold.number}: all who could validate share a session with the test. Use none.")
        rng = np.random.default_rng([seed, fold.number])
        count = max(1, round(VALIDATION_SHARE * len(training)))
        chosen = set(rng.permutation(candidates)[:count].tolist())
        moved = [row for row in fold.train if speakers[row] in chosen]
    left = set(moved)
    return Fold(fold.number, [row for row in fold.train if row not in left], fold.test, moved)


def _group_speakers(corpus, num_folds: int | None, seed: int) -> list[int]:
    """The fold of each row, 0 to `num_folds` - 1."""
    speakers, labels = np.array(corpus["speaker"][:]), np.array(corpus["label"][:])
    num_speakers = len(set(speakers.tolist()))
    num_folds = min(5, num_speakers) if num_folds is None else num_folds
    if not 2 <= num_folds <= num_speakers:
        raise ValueError(f"num_folds must lie between 2 and the number of speakers, {num_speakers}; found {num_folds}.")
    if corpus.info.dataset_name in ("emodb", "synthetic"):
        runs = np.array_split(sorted(set(speakers.tolist())), num_folds)
        return [next(number for number, run in enumerate(runs) if speaker in run) for speaker in speakers]
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
