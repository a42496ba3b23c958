"""IEMOCAP: a made-up release of the real one's size and oddities is read to exactly what its writer planned."""

import os
import random
from collections import Counter, defaultdict
from contextlib import contextmanager
from fractions import Fraction

import datasets
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from lascl.data import load_corpus, make_folds
from lascl.data.iemocap import IEMOCAP_DIALOGS, read_iemocap


# Utterances of the release by session 1 to 5; `rest` is everything that is in none of the four classes.
PLAN = {
    "ang": [229, 137, 240, 327, 170],
    "hap": [135, 117, 135, 65, 143],
    "exc": [143, 210, 151, 238, 299],
    "sad": [194, 197, 305, 143, 245],
    "neu": [384, 362, 320, 258, 384],
    "rest": [734, 788, 985, 1072, 929],
}
REST = {"fru": 1849, "sur": 107, "fea": 40, "dis": 2, "oth": 3, "xxx": 2507}
WORDS = {"ang": "angry", "hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral"}
IMPROVISED = 2943  # of the four classes
CATEGORIES = {"ang": "Anger", "hap": "Happiness", "exc": "Excited", "sad": "Sadness", "neu": "Neutral state"} | {
    "fru": "Frustration",
    "sur": "Surprise",
    "fea": "Fear",
    "dis": "Disgust",
    "oth": "Other",
}
# (as transcribed, its text id if it is from a script)
SPEECH = [
    ("Excuse me.", "excuse me"),
    ("Oh, I DON'T know. [LAUGHTER]", "oh i don't know"),
    ("[BREATHING] Well... forty-two, then: no!", "well forty two then no"),
    ("[LAUGHTER]", None),
]


def scenes(session: int, marked: str) -> list[str]:
    """The scenes of one actor's markers, written out as in the release."""
    improvised = ["impro01", "impro02", "impro03", "impro04", "impro05", "impro06", "impro07", "impro08"]
    if session == 1:
        improvised.remove("impro08")
    if (session, marked) == (3, "M"):
        improvised[4:5], improvised[-1:] = ["impro05a", "impro05b"], ["impro08a", "impro08b"]
    scripted = ["script01_1", "script01_2", "script01_3", "script02_1", "script02_2", "script03_1", "script03_2"]
    return improvised + scripted + (["script01_1b"] if (session, marked) == (5, "M") else [])


def evaluators(raw_label: str, number: int) -> tuple[str, float | None]:
    """The lines of a turn's evaluators, and the share that agrees with its label."""
    if raw_label == "xxx":
        lines, agreement = "C-E1:\tAnger;\t()\nC-E2:\tSadness;\t()\nC-E4:\tNeutral; Fear;\t()\n", None
    else:
        majority, other = CATEGORIES[raw_label], "Fear" if raw_label != "fea" else "Surprise"
        lines, agreement = [
            (f"C-E1:\t{majority};\t()\nC-E3:\t{majority};\t(calm)\nC-E4:\t{majority};\t()\n", 1.0),
            (f"C-E2:\t{majority};\t()\nC-E3:\t{other};\t()\nC-E4:\t{other}; {majority};\t()\n", 2 / 3),
            (f"C-E1:\t{majority};\t()\nC-E2:\t{majority};\t()\nC-E5:\t{majority};\t()\nC-E6:\t{other};\t()\n", 0.75),
            ("", None),
        ][number % 4]
    others = "C-F1:\tDisgust; Other;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\nA-F1:\tval 1; act 1; dom  1;\t()\n"
    return lines + others, agreement


def votes_of(raw_label: str, number: int) -> dict[str, float]:
    """What those evaluators named, by the release's labels: each category that one names is a vote."""
    if raw_label == "xxx":
        return {"ang": 1.0, "sad": 1.0, "neu": 1.0, "fea": 1.0}
    other = "fea" if raw_label != "fea" else "sur"
    return [{raw_label: 3.0}, {raw_label: 2.0, other: 2.0}, {raw_label: 3.0, other: 1.0}, {}][number % 4]


def planned_turns() -> dict[str, list[str]]:
    """The labels of each recording's turns: PLAN by session and label, IMPROVISED of the four classes not scripted."""
    rng = random.Random(0)
    rest = [label for label, count in REST.items() for _ in range(count)]
    rng.shuffle(rest)
    turns = []
    for label, counts in PLAN.items():
        for session, count in enumerate(counts, start=1):
            turns += [(session, rest.pop() if label == "rest" else label) for _ in range(count)]
    assert not rest and len(turns) == 10_039
    rng.shuffle(turns)
    of_four_classes = [turn for turn in turns if turn[1] in WORDS]
    others = [turn for turn in turns if turn[1] not in WORDS]
    recordings = defaultdict(list)
    for part, kind in [
        (of_four_classes[:IMPROVISED], "impro"),
        (of_four_classes[IMPROVISED:], "script"),
        (others[:1841], "impro"),
        (others[1841:], "script"),
    ]:
        for number, (session, label) in enumerate(part):
            names = [f"Ses0{session}{m}_{scene}" for m in "FM" for scene in scenes(session, m) if kind in scene]
            recordings[names[number % len(names)]].append(label)
    return recordings


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """(folder, rows): a release of 10,039 utterances and litter, and what a reader has to find, by id."""
    root = tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release"
    silence = root.parent / "silence.wav"
    soundfile.write(silence, np.zeros(160, np.int16), 16_000)
    rows, number = {}, 0
    for dialog, labels in planned_turns().items():
        session = root / f"Session{dialog[4]}"
        wavs = session / "sentences" / "wav" / dialog
        evaluations, transcriptions = session / "dialog" / "EmoEvaluation", session / "dialog" / "transcriptions"
        for folder in (wavs, evaluations / "Categorical", transcriptions):
            folder.mkdir(parents=True, exist_ok=True)
        evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
        transcription = ["M: [LAUGHTER]\n", f"{dialog}_MXX0 [000.1000-000.2000]: Hmm.\n"]
        for turn, label in enumerate(labels):
            number += 1
            talker = "FM"[turn % 2]
            id, start_s, end_s = f"{dialog}_{talker}{turn // 2:03d}", 2.5 * turn + 0.25, 2.5 * turn + 2.0
            ratings = [1 + number % 9 / 2, 1 + number % 7 / 2, 1 + number % 5]
            lines, agreement = evaluators(label, number)
            evaluation.append(
                f"[{start_s:.4f} - {end_s:.4f}]\t{id}\t{label}\t[{', '.join(f'{r:.4f}' for r in ratings)}]\n{lines}\n"
            )
            text, text_id = SPEECH[number % 4] if number % 10 else (None, None)
            if text:
                transcription.append(f"{id} [{start_s:08.4f}-{end_s:08.4f}]: {text}\n")
            os.link(silence, wavs / f"{id}.wav")
            rows[id] = {
                "id": id,
                "audio": str(wavs / f"{id}.wav"),
                "session": dialog[4],
                "speaker": f"Ses0{dialog[4]}{talker}",
                "dialog": dialog,
                "raw_label": label,
                "improvised": "impro" in dialog,
                "start_s": start_s,
                "end_s": end_s,
                "valence": ratings[0],
                "activation": ratings[1],
                "dominance": ratings[2],
                "arousal": ratings[1],
                "votes": votes_of(label, number),
                "agreement": agreement,
                "transcript": text,
                "text_id": None if "impro" in dialog else text_id or dialog[7:17],
            }
        (evaluations / f"{dialog}.txt").write_text("".join(evaluation))
        (transcriptions / f"{dialog}.txt").write_text("".join(transcription))
        # What lies about: resource forks, one evaluator's own file, a turn nobody evaluated.
        (evaluations / f"._{dialog}.txt").write_bytes(b"\0\5\x16\7[\xff")
        (evaluations / "Categorical" / f"{dialog}_e1_cat.txt").write_text("[ not a turn\n")
        (wavs / f"._{dialog}_F000.wav").write_bytes(b"\0\5\x16\7")
        os.link(silence, wavs / f"{dialog}_MXX0.wav")
    os.link(silence, root / "Session5" / "sentences" / "wav" / "Ses05F_impro01" / "Ses05F_impro01_F900.wav")
    return root, rows


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


@contextmanager
def without(path):
    path.rename(path.with_name("away"))
    try:
        yield
    finally:
        path.with_name("away").rename(path)


def test_the_plan_has_the_published_counts():
    classes = {word: sum(sum(PLAN[raw]) for raw in PLAN if WORDS.get(raw) == word) for word in WORDS.values()}
    assert classes == {"happy": 1636, "sad": 1084, "angry": 1103, "neutral": 1708}
    assert [sum(PLAN[raw][session] for raw in WORDS) for session in range(5)] == [1085, 1023, 1151, 1031, 1241]


def test_the_four_classes_are_read_row_for_row(release):
    root, planned = release
    corpus = load_corpus("iemocap", root)
    assert len(corpus) == 5531
    names = corpus.features["label"].names
    assert names == ["angry", "happy", "neutral", "sad"]
    assert Counter(names[label] for label in corpus["label"][:]) == {
        "happy": 1636,
        "sad": 1084,
        "angry": 1103,
        "neutral": 1708,
    }
    assert Counter(corpus["session"][:]) == {"1": 1085, "2": 1023, "3": 1151, "4": 1031, "5": 1241}
    assert len(set(corpus["speaker"][:])) == 10
    expected = {id: dict(row) for id, row in planned.items() if row["raw_label"] in WORDS}
    for row in corpus:
        label, duration_s = names[row.pop("label")], row.pop("duration_s")
        assert (label, duration_s) == (WORDS[row["raw_label"]], 0.01)
        planned_row = expected.pop(row["id"])
        voted, told = planned_row.pop("votes"), {word: row.pop(f"votes_{word}") for word in names}
        assert row == planned_row
        by_word = {word: sum(voted.get(raw, 0.0) for raw in WORDS if WORDS[raw] == word) for word in names}
        assert told == (by_word if voted else dict.fromkeys(names))
    assert not expected
    assert [len(fold.test) for fold in make_folds(corpus)] == [1085, 1023, 1151, 1031, 1241]


def test_an_utterance_is_a_whole_file_and_its_times_are_those_of_the_dialog(release, monkeypatch):
    """A row of segments has the same columns, of its own file."""
    from lascl.data.segments import recordings_of
    from lascl.training.run_directory import corpus_fingerprint

    monkeypatch.setattr("lascl.data.corpora.check_audio", lambda sources: dict.fromkeys(sources, 0.01))
    corpus = load_corpus("iemocap", release[0])
    assert recordings_of(corpus) == corpus["audio"][:] and min(corpus["end_s"]) > 1
    assert corpus_fingerprint(corpus) == corpus_fingerprint(corpus.remove_columns(["start_s", "end_s"]))


def test_who_talks_is_not_who_wears_the_markers(release):
    rows, _ = read_iemocap(release[0].parent, allow_partial=False)  # the folder that holds the release will do
    assert {(row["dialog"], row["speaker"]) for row in rows if row["dialog"] == "Ses03M_script03_2"} == {
        ("Ses03M_script03_2", "Ses03F"),
        ("Ses03M_script03_2", "Ses03M"),
    }


@pytest.mark.slow
def test_options_choose_and_merge(release):
    root, planned = release
    rows, labels = read_iemocap(root, allow_partial=False, improvised_only=True)
    assert len(rows) == IMPROVISED and labels == {"angry", "happy", "neutral", "sad"}
    assert {row["id"] for row in rows} == {
        id for id, row in planned.items() if row["improvised"] and row["raw_label"] in WORDS
    }
    rows, labels = read_iemocap(root, allow_partial=False, merge={})
    assert labels == {"angry", "happy", "excited", "neutral", "sad"}
    assert Counter(row["label"] for row in rows)["excited"] == 1041
    rows, labels = read_iemocap(root, allow_partial=False, classes=["fru", "xxx", "dis"], merge={"dis": "oth"})
    assert labels == {"frustrated", "undecided", "other"}
    assert Counter(row["label"] for row in rows) == {"frustrated": 1849, "undecided": 2507, "other": 2}
    rows, _ = read_iemocap(root, allow_partial=False, classes=[*WORDS, *REST], merge={})
    assert Counter(row["label"] for row in rows) == {
        **{"angry": 1103, "happy": 595, "excited": 1041, "sad": 1084, "neutral": 1708, "frustrated": 1849},
        **{"surprised": 107, "fearful": 40, "disgusted": 2, "other": 3, "undecided": 2507},
    }
    for row in rows:
        assert set(row.pop("votes").values()) == set(planned[row["id"]]["votes"].values())
    without = {id: {k: v for k, v in row.items() if k != "votes"} for id, row in planned.items()}
    assert {row["id"]: {k: v for k, v in row.items() if k != "label"} for row in rows} == without


@pytest.mark.slow
def test_missing_files_are_named(release):
    root, planned = release
    id, row = next((id, row) for id, row in planned.items() if row["raw_label"] == "sad" and row["session"] == "3")
    wav = root / "Session3" / "sentences" / "wav" / row["dialog"] / f"{id}.wav"
    with without(wav):
        with pytest.raises(
            ValueError, match=rf"no WAV file of {id}; counts: session 3 sad 304 instead of 305\. Correct"
        ):
            load_corpus("iemocap", root)
        with pytest.raises(ValueError, match=rf"no WAV file of {id};"):
            read_iemocap(root, allow_partial=False, improvised_only=True, classes=["sad"])
        assert len(read_iemocap(root, allow_partial=False, classes=["ang", "fru"])[0]) == 1103 + 1849
        assert len(read_iemocap(root, allow_partial=True)[0]) == 5530
    with without(root / "Session2" / "dialog" / "EmoEvaluation" / "Ses02M_impro04.txt"):
        with pytest.raises(ValueError, match=r"no evaluation file of the recordings Ses02M_impro04; .*session 2 "):
            read_iemocap(root, allow_partial=False)
        rows, _ = read_iemocap(root, allow_partial=True)
        assert {row["dialog"] for row in rows} == {row["dialog"] for row in planned.values()} - {"Ses02M_impro04"}
    with (
        without(root / "Session4"),
        pytest.raises(ValueError, match=r"Ses04F_impro01, .* and 10 more; counts"),
    ):
        read_iemocap(root, allow_partial=False)


def test_a_lost_evaluation_names_its_wav(release):
    root, planned = release
    id, row = next((id, row) for id, row in planned.items() if row["raw_label"] == "neu")
    path = root / f"Session{row['session']}" / "dialog" / "EmoEvaluation" / f"{row['dialog']}.txt"
    text = path.read_text()
    path.write_text("\n".join(line for line in text.splitlines() if id not in line))
    try:
        with pytest.raises(ValueError, match=rf"no evaluation of the WAV files .*\b{id}\b.*counts: session ."):
            read_iemocap(root, allow_partial=False)
    finally:
        path.write_text(text)


@pytest.mark.slow
def test_what_is_there_twice_is_named(release):
    root, planned = release
    id, row = next((id, row) for id, row in planned.items() if row["raw_label"] == "ang")
    session = root / f"Session{row['session']}"
    copy = session / "sentences" / "wav" / "Ses09_copies" / f"{id}.wav"
    copy.parent.mkdir()
    os.link(row["audio"], copy)
    try:
        with pytest.raises(ValueError, match=rf"release: WAV files in two places {id}\. Correct"):
            read_iemocap(root, allow_partial=False)
    finally:
        copy.unlink()
        copy.parent.rmdir()
    original = session / "dialog" / "EmoEvaluation" / f"{row['dialog']}.txt"
    second = original.with_name(f"{row['dialog']} (1).txt")
    second.write_text("".join(line for line in original.open() if id in line))
    try:
        with pytest.raises(ValueError, match=rf"does not have {row['dialog']} \(1\); evaluated twice {id}\. Correct"):
            read_iemocap(root, allow_partial=False)
        assert len(read_iemocap(root, allow_partial=True)[0]) == 5531
    finally:
        second.unlink()


def test_what_is_no_release_is_said(release, tmp_path):
    with pytest.raises(ValueError, match="iemocap needs data_dir"):
        load_corpus("iemocap")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_corpus("iemocap", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nor IEMOCAP_full_release in it holds the folders Session1 to Session5"):
        load_corpus("iemocap", tmp_path)
    with pytest.raises(ValueError, match=r"no label 'hapy'; it has ang, .*xxx\. Did you mean 'hap'\?"):
        load_corpus("iemocap", release[0], classes=["hapy"])
    with pytest.raises(ValueError, match="no label 'happy'"):
        load_corpus("iemocap", release[0], merge={"exc": "happy"})
    (tmp_path / "Session1").mkdir()
    with pytest.raises(ValueError, match="no WAV file of an utterance labelled ang"):
        load_corpus("iemocap", tmp_path, classes=["ang"], allow_partial=True)
    evaluations = tmp_path / "Session1" / "dialog" / "EmoEvaluation"
    evaluations.mkdir(parents=True)
    for turn in ("Ses01F_impro01_X000\tneu\t[1, 1, 1]", "Ses01F_impro01_F000\tnew\t[1, 1, 1]"):
        (evaluations / "Ses01F_impro01.txt").write_text(f"% header\n\n[1.0 - 2.0]\t{turn}\n")
        with pytest.raises(ValueError, match=r"Ses01F_impro01\.txt, line 3: '\[1\.0.* is not an evaluation such as"):
            load_corpus("iemocap", tmp_path, allow_partial=True)


@settings(max_examples=30, deadline=None)
@given(
    label=st.sampled_from(sorted(CATEGORIES)),
    choices=st.lists(st.lists(st.sampled_from(sorted(CATEGORIES)), min_size=1, max_size=3), max_size=6),
    selves=st.lists(st.sampled_from(sorted(CATEGORIES)), max_size=2),
)
def test_agreement_is_the_share_of_other_people(tmp_path_factory, label, choices, selves):
    root = tmp_path_factory.mktemp("one")
    evaluations, wavs = root / "Session1/dialog/EmoEvaluation", root / "Session1/sentences/wav/Ses01F_impro01"
    evaluations.mkdir(parents=True)
    wavs.mkdir(parents=True)
    (wavs / "Ses01F_impro01_M007.wav").touch()  # read by load_corpus alone
    lines = [f"[1.0000 - 2.5000]\tSes01F_impro01_M007\t{label}\t[1.0000, 5.0000, 2.3333]"]
    lines += [f"C-E{e}:\t{'; '.join(CATEGORIES[c] for c in cs)};\t(Neutral;)" for e, cs in enumerate(choices)]
    lines += [f"C-M1:\t{CATEGORIES[c]};\t()" for c in selves]
    (evaluations / "Ses01F_impro01.txt").write_text("\n".join(lines))
    [row], _ = read_iemocap(root, allow_partial=True, classes=[label])
    named = [label in chosen for chosen in choices]
    expected = float(Fraction(named.count(True), len(named))) if named else None
    assert row["agreement"] == expected
    assert (row["speaker"], row["transcript"], row["text_id"]) == ("Ses01M", None, None)
    assert (row["start_s"], row["end_s"], row["valence"], row["dominance"]) == (1.0, 2.5, 1.0, 2.3333)


def test_the_recordings_are_those_of_the_release():
    written_out = {f"Ses0{session}{m}_{scene}" for session in range(1, 6) for m in "FM" for scene in scenes(session, m)}
    assert len(written_out) == 151 and written_out == IEMOCAP_DIALOGS
