"""Protocols: who is tested, who validates, and that nobody is heard on two sides."""

import contextlib
import copy
import hashlib
import json
import signal
import tracemalloc

import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lascl.data import Fold, make_folds
from lascl.data import folds as folds_module
from lascl.data.folds import PROTOCOLS, VALIDATIONS
from lascl.train import main
from lascl.training import protocol as protocol_module
from lascl.training.protocol import describe
from lascl.training.recipe import Recipe


def table(rows, **columns):
    """A corpus of (session, speaker) pairs, one row each; ids in this order."""
    fixed = {
        "id": [f"{number:03d}" for number in range(len(rows))],
        "session": [session for session, _ in rows],
        "speaker": [speaker for _, speaker in rows],
        "label": [number % 2 for number in range(len(rows))],
    }
    return Dataset.from_dict({**fixed, **columns})


# Five dialogues of two speakers each, four turns a speaker, as in IEMOCAP.
DIALOGUES = [(str(session), f"{session}{who}") for session in range(1, 6) for who in "FM" for _ in range(4)]


def speakers_of(corpus, rows):
    return {corpus["speaker"][row] for row in rows}


def test_leave_one_session_out_tests_both_talkers_and_validates_on_the_next_session():
    corpus = table(DIALOGUES)
    for validation, held_back in (("none", {}), ("session", {1: "2", 2: "3", 3: "4", 4: "5", 5: "1"})):
        folds = make_folds(corpus, protocol="leave_one_session_out", validation=validation)
        assert make_folds(corpus, validation=validation) == folds  # sessions are this corpus's own folds
        assert [fold.number for fold in folds] == [1, 2, 3, 4, 5]
        for fold in folds:
            assert speakers_of(corpus, fold.test) == {f"{fold.number}F", f"{fold.number}M"}
            session = held_back.get(fold.number)
            assert speakers_of(corpus, fold.validation) == ({f"{session}F", f"{session}M"} if session else set())
            assert len(fold.train) == 40 - 8 - (8 if session else 0)


def test_leave_one_speaker_out_never_validates_on_the_partner_in_dialogue():
    corpus = table(DIALOGUES)
    for seed in range(5):
        folds = make_folds(corpus, protocol="leave_one_speaker_out", validation="speaker", seed=seed)
        assert len(folds) == 10
        for fold in folds:
            (tested,) = speakers_of(corpus, fold.test)
            (validating,) = speakers_of(corpus, fold.validation)  # a tenth of nine, at least one
            assert validating[0] != tested[0]
            assert len(fold.train) == 32


def test_an_official_split_is_one_fold_and_its_validation_trains_unless_asked_for():
    rows = [(None, speaker) for speaker in "aabbccdd"]
    corpus = table(rows, fold=["train"] * 4 + ["dev"] * 2 + ["test"] * 2)
    (fold,) = make_folds(corpus)
    assert (fold.number, fold.train, fold.validation, fold.test) == (1, [0, 1, 2, 3, 4, 5], [], [6, 7])
    (fold,) = make_folds(corpus, protocol="emobox", validation="manifest")
    assert (fold.train, fold.validation, fold.test) == ([0, 1, 2, 3], [4, 5], [6, 7])
    with pytest.raises(ValueError, match="An official split has its own validation"):
        make_folds(corpus, validation="speaker")
    shared = table([(None, speaker) for speaker in "aabbccda"], fold=["train"] * 4 + ["dev"] * 2 + ["test"] * 2)
    with pytest.raises(ValueError, match="speaker 'a' is in training and in test"):
        make_folds(shared)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=4, max_size=30),
    st.sampled_from([None, *PROTOCOLS]),
    st.sampled_from(VALIDATIONS),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_nobody_is_on_two_sides_and_each_utterance_is_tested_once(turns, protocol, validation, seed, random):
    rows = [(str(session), f"{session}-{who}") for session, who in turns]
    corpus = table(rows)
    try:
        folds = make_folds(corpus, protocol=protocol, validation=validation, seed=seed)
    except ValueError as error:  # said in words: too few speakers or sessions, or no column for it
        assert any(word in str(error) for word in ("fold", "Fold", "session", "column", "corpora")), error
        return
    assert sorted(row for fold in folds for row in fold.test) == list(range(len(rows)))
    for fold in folds:
        assert sorted(fold.train + fold.validation + fold.test) == list(range(len(rows)))
        sides = [speakers_of(corpus, side) for side in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, sides)) == len(set().union(*sides))
        assert bool(fold.validation) == (validation != "none")
        tested_sessions = {rows[row][0] for row in fold.test}
        assert not tested_sessions & {rows[row][0] for row in fold.validation}
    order = list(range(len(rows)))
    random.shuffle(order)
    again = make_folds(corpus.select(order), protocol=protocol, validation=validation, seed=seed)
    for one, other in zip(folds, again, strict=True):
        for side in ("train", "validation", "test"):
            assert {order[row] for row in getattr(other, side)} == set(getattr(one, side))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"protocol": "loso"}, "protocol must be one of leave_one_session_out.*found 'loso'"),
        ({"validation": "test"}, "validation must be one of none, session, speaker, manifest, corpus; found 'test'"),
        ({"protocol": "manifest"}, "needs a column `fold`"),
        ({"validation": "manifest"}, "validation manifest needs a column `fold` with train, validation and test"),
        ({"protocol": "leave_one_session_out", "num_folds": 3}, "num_folds belongs to the protocol speaker_folds"),
    ],
)
def test_what_does_not_fit_the_corpus_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        make_folds(table(DIALOGUES), **options)


def test_a_corpus_without_sessions_cannot_be_split_by_them():
    corpus = table([(None, speaker) for speaker in "aabbcc"])
    for options in ({"protocol": "leave_one_session_out"}, {"validation": "session"}):
        with pytest.raises(ValueError, match="does not tell the session of every utterance"):
            make_folds(corpus, **options)
    two = table([("1", "a"), ("1", "b"), ("2", "c")])
    with pytest.raises(ValueError, match="1 other sessions, but validation and training need two"):
        make_folds(two, validation="session")
    one = table([("1", "a"), ("1", "b"), ("1", "c")])
    with pytest.raises(ValueError, match="all who could validate share a session with the test"):
        make_folds(one, protocol="leave_one_speaker_out", validation="speaker")


# ------------------------------------------------------------------------------------------ many speakers, many folds


class OutOfTimeError(Exception):
    """A budget of the processor's seconds is spent."""


@contextlib.contextmanager
def processor_seconds(seconds):
    """Raises OutOfTimeError once this process has computed for so long; other processes do not count."""

    def stop(*_):
        raise OutOfTimeError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def many_voices(num_rows, num_speakers):
    """A corpus whose speakers take turns, so that no side is a run of rows, nor of sorted ids."""
    columns = {
        "id": [f"audio/{row:06d}" for row in range(num_rows)],
        "session": [None] * num_rows,
        "speaker": [f"speaker-{row * 31 % num_speakers}" for row in range(num_rows)],
        "label": [row * 7919 % 4 for row in range(num_rows)],
        "text_id": [f"text {row * 13 % 97}" for row in range(num_rows)],
    }
    corpus = Dataset.from_dict(columns)
    return corpus.cast_column("label", ClassLabel(names=["anger", "happiness", "neutral", "sadness"]))


def planned(corpus, seconds, **options):
    """Folds and `protocol.json`, and the highest memory meanwhile in MiB; fails once the time is spent."""
    recipe = Recipe(corpus="csv", protocol="leave_one_speaker_out", **options)
    folds = protocol = None
    tracemalloc.start()
    try:
        with contextlib.suppress(OutOfTimeError), processor_seconds(seconds):
            folds = make_folds(corpus, protocol="leave_one_speaker_out", **options)
            protocol = describe(recipe, corpus, folds, num_skipped=0)
        peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert protocol, f"Folds and protocol took more than {seconds} s of the processor, and {peak_mib:.0f} MiB."
    assert len(folds) == len(protocol["folds"]) == len(set(corpus["speaker"][:]))
    return folds, protocol, peak_mib


@pytest.mark.parametrize("validation", ["none", "speaker"])
def test_leaving_one_of_many_speakers_out_costs_neither_time_nor_memory_of_rows_times_speakers(validation):
    """10,000 rows x 500 speakers: 5 million numbers in the training sides alone, 40 MB of lists."""
    folds, protocol, peak_mib = planned(many_voices(10_000, 500), seconds=5, validation=validation)
    assert peak_mib < 30
    assert [len(fold.test) for fold in folds] == [20] * 500
    assert {told["train"] + told["validation"] + told["test"] for told in protocol["folds"]} == {10_000}


@pytest.mark.proof
@pytest.mark.parametrize("measured", ["seconds", "memory"])  # apart: watching memory takes most of the time
def test_leaving_one_of_two_thousand_speakers_out_of_a_hundred_thousand_rows_trains_within_ten_seconds_and_500_mib(
    measured, monkeypatch, audio_encoders, text_encoder, emodb_like, tmp_path
):
    """From the corpus to the first training step, in this process's own seconds."""
    corpus = many_voices(100_000, 2_000)
    corpus = corpus.add_column("audio", [str(next(emodb_like.glob("*.wav")))] * len(corpus))
    corpus = corpus.add_column("duration_s", [0.3] * len(corpus))
    begun = []

    def training_step(self, *args, **kwargs):
        begun.append(tracemalloc.get_traced_memory()[1] / 2**20)  # 0 where it is not watched
        raise OutOfTimeError

    monkeypatch.setattr("lascl.training.prepare.load_corpora", lambda *args, **kwargs: corpus)
    monkeypatch.setattr("lascl.LaSCLTrainer.training_step", training_step)
    command = ["csv", "--data_dir", str(tmp_path), "--protocol", "leave_one_speaker_out", "--augmentation", "gain"]
    command += ["--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder]
    if measured == "memory":
        tracemalloc.start()
    try:
        with processor_seconds(10 if measured == "seconds" else 60), pytest.raises(OutOfTimeError):
            main([*command, "--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true"])
    finally:
        tracemalloc.stop()
    assert begun, "no training step was begun in time"
    assert begun[0] < 500
    told = json.loads((tmp_path / "run" / "protocol.json").read_text())["folds"]
    assert [fold["fold"] for fold in told if "train_ids_hash" in fold] == [1]  # the fold that was begun
    assert {fold["train"] for fold in told} == {99_950}


def test_hashes_of_many_folds_come_as_they_are_begun_and_stay(monkeypatch, tmp_path):
    corpus = many_voices(40, 4)
    folds, at_once, _ = planned(corpus, seconds=10)
    expected = [fold["train_ids_hash"] for fold in at_once["folds"]]
    monkeypatch.setattr(protocol_module, "HASHED_AT_ONCE", 10)
    _, protocol, _ = planned(corpus, seconds=10)

    def hashes(begun=None):
        protocol_module.write_protocol(tmp_path, copy.deepcopy(protocol))
        if begun:
            protocol_module.note_begun(tmp_path, corpus, folds[begun - 1])
        told = json.loads((tmp_path / "protocol.json").read_text())
        assert {**told, "folds": None} == {**at_once, "folds": None}
        return [fold.get("train_ids_hash") for fold in told["folds"]]

    assert hashes() == [None] * 4
    assert hashes(begun=2) == [None, expected[1], None, None]
    (tmp_path / "fold-2").mkdir()
    assert hashes(begun=4) == [None, expected[1], None, expected[3]]
    assert hashes() == [None, expected[1], None, None]  # fold 4 came to nothing: it left no folder


def sides_by_loops(corpus, fold):
    """What the training side must be, row by row: all that is neither tested nor validates."""
    left_out = {*fold.test, *fold.validation}
    return [row for row in range(len(corpus)) if row not in left_out]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=6, max_size=40),
    st.sampled_from(["none", "session", "speaker"]),
    st.lists(st.text("ab/é\U0001f600", max_size=3), min_size=40, max_size=40),
)
def test_sides_hashes_and_what_is_told_of_folds_are_those_of_loops_over_all_rows(turns, validation, ids):
    assert hasattr(folds_module, "train_hashes"), "hashes of folds are made one by one"
    corpus = table([(str(session), f"{session}-{who}") for session, who in turns])
    corpus = corpus.remove_columns("id").add_column("id", ids[: len(corpus)])
    try:
        folds = make_folds(corpus, protocol="leave_one_speaker_out", validation=validation)
    except ValueError:
        return
    names, voices = corpus["id"][:], corpus["speaker"][:]
    hashes = folds_module.train_hashes(names, [*folds, Fold(99, [2, 0], [1])])
    speakers = folds_module.Column(voices)
    for fold, found in zip(folds, hashes):
        rows = sides_by_loops(corpus, fold)
        assert (fold.train, len(fold.train), fold.train[:3], fold.train[-1]) == (rows, len(rows), rows[:3], rows[-1])
        text = "\n".join(sorted(names[row] for row in rows))
        assert found == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        for side in (fold.train, fold.validation, fold.test):
            assert speakers.occurring(side) == {voices[row] for row in side}
        assert fold.shared_speakers(corpus) == set()
    text = "\n".join(sorted(names[row] for row in (0, 2)))
    assert hashes[-1] == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
