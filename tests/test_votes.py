"""What listeners said, from real sources: into columns, labels and shares, by every choice of targets and ties.

Expected counts are those of the plans below, worked out apart from the code that reads them.
"""

import csv
import inspect
import json
import os
from collections import Counter

import datasets
import numpy as np
import pytest
import soundfile
import torch
from test_iemocap import WORDS, release  # noqa: F401, the full-size tree
from tiny import RATE, recording

from lascl import load_corpus, make_folds
from lascl.data import SpeechDataset


KINDS = [("corpus", "drop"), ("majority", "drop"), ("majority", "share"), ("votes", "drop"), ("votes", "share")]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


@pytest.fixture
def silent(monkeypatch):
    """Nobody listens to thousands of silent files."""
    monkeypatch.setattr("lascl.data.corpora.check_audio", lambda sources: dict.fromkeys(sources, 0.01))


def load(*args, **kwargs):
    """`load_corpus`, of which learning from votes is asked."""
    assert "targets" in inspect.signature(load_corpus).parameters, "nothing is learned from votes"
    return load_corpus(*args, **kwargs)


def by_id(corpus) -> dict[str, dict]:
    """By id: the label's word, the votes, and the shares by word."""
    names, found = corpus.features["label"].names, {}
    columns = {name: corpus[name][:] for name in corpus.column_names}  # one row of a table costs more than a column
    for row in (dict(zip(columns, cells)) for cells in zip(*columns.values())):
        found[row["id"]] = {
            "label": None if row["label"] is None else names[row["label"]],
            "votes": {word: row[f"votes_{word}"] for word in names if f"votes_{word}" in row},
            "shares": dict(zip(names, row["shares"])) if "shares" in row else None,
        }
    return found


# ---------------------------------------------------------------------------------------------- a manifest of one's own


#                label    anger sadness joy    what is told of it
MANIFEST = """path,label,speaker,votes_anger,votes_sadness,votes_joy,valence,activation
a.wav,anger,1,3,1,0,1.5,4
b.wav,anger,1,1,1,1,,
c.wav,joy,2,0,2,2,2,3
d.wav,,2,,0.75,0.25,,
e.wav,sadness,3,,,,5,1
f.wav,,3,0,1,2,,
"""


@pytest.fixture
def manifest(tmp_path):
    for number, name in enumerate("abcdef"):
        soundfile.write(tmp_path / f"{name}.wav", recording(number, 0.05), RATE)
    (tmp_path / "manifest.csv").write_text(MANIFEST, encoding="utf-8")
    return tmp_path


def test_a_manifest_s_votes_become_labels_and_shares(manifest):
    votes = by_id(load("csv", manifest, targets="votes"))
    assert {id: row["label"] for id, row in votes.items()} == {"a": "anger", "d": "sadness", "e": "sadness", "f": "joy"}
    assert votes["a"]["shares"] == {"anger": 0.75, "joy": 0, "sadness": 0.25}
    assert votes["d"]["shares"] == {"anger": 0, "joy": 0.25, "sadness": 0.75}  # shares, as well as counts
    assert votes["e"]["shares"] == {"anger": 0, "joy": 0, "sadness": 1}  # nobody voted: the corpus's label
    assert votes["a"]["votes"] == {"anger": 3, "joy": 0, "sadness": 1}
    assert votes["e"]["votes"] == {"anger": None, "joy": None, "sadness": None}
    shared = by_id(load("csv", manifest, targets="votes", ties="share"))
    assert shared.keys() == set("abcdef") and shared["b"]["label"] is None and shared["c"]["label"] is None
    assert shared["b"]["shares"] == dict.fromkeys(("anger", "joy", "sadness"), pytest.approx(1 / 3))


def test_a_majority_is_a_label_and_a_shared_tie_is_half_of_each(manifest):
    corpus = load("csv", manifest, targets="majority")
    assert "shares" not in corpus.column_names  # labels, which keep their path
    labels = {id: row["label"] for id, row in by_id(corpus).items()}
    assert labels == {"a": "anger", "d": "sadness", "e": "sadness", "f": "joy"}
    shared = by_id(load("csv", manifest, targets="majority", ties="share"))
    assert shared["a"]["shares"] == {"anger": 1, "joy": 0, "sadness": 0}
    assert shared["c"]["shares"] == {"anger": 0, "joy": 0.5, "sadness": 0.5} and shared["c"]["label"] is None


def test_what_became_of_all_rows_is_said(manifest):
    assert load("csv", manifest, targets="votes").info.description == (
        "csv, by votes: 3 with a word that most listeners chose; 2 with a tie, left out (ties: drop); "
        "1 without votes, by the corpus's label."
    )
    said = load("csv", manifest, labels=["sadness", "joy"], targets="votes", ties="share").info.description
    assert said == (
        "csv, by votes: 2 with a word that most listeners chose; 2 with a tie, learned as votes (ties: share); 1 for "
        "which most chose a word that is not kept, learned by the votes for the words kept; 1 without votes, by the "
        "corpus's label."
    )
    left_out = load("csv", manifest, labels=["anger"], targets="votes").info.description
    assert "4 with neither votes nor a label for the words kept, left out" in left_out


def test_votes_for_words_that_are_not_kept_are_dropped_and_the_rest_renormalised(manifest):
    rows = by_id(load("csv", manifest, labels={"sadness": "low", "joy": "high"}, targets="votes", ties="share"))
    assert rows.keys() == set("abcdef")
    assert rows["a"] == {"label": None, "votes": {"low": 1, "high": 0}, "shares": {"high": 0, "low": 1}}
    assert rows["b"]["shares"] == {"high": 0.5, "low": 0.5}
    assert rows["d"] == {"label": "low", "votes": {"low": 0.75, "high": 0.25}, "shares": {"high": 0.25, "low": 0.75}}
    # Most said anger of a, which is no label of these words; of a majority nothing is left.
    assert by_id(load("csv", manifest, labels=["sadness", "joy"], targets="majority")).keys() == set("def")
    # Labels that are joined have the votes of all.
    joined = by_id(load("csv", manifest, labels={"anger": "x", "sadness": "x", "joy": "y"}, targets="majority"))
    assert {id: row["label"] for id, row in joined.items()} == {"a": "x", "b": "x", "d": "x", "e": "x", "f": "y"}


def test_ratings_are_read_into_columns_of_one_name(manifest):
    corpus = load("csv", manifest, targets="votes", ties="share")
    assert {"valence", "arousal"} <= set(corpus.column_names)
    assert dict(zip(corpus["id"], corpus["arousal"])) == {"a": 4, "b": None, "c": 3, "d": None, "e": 1, "f": None}
    assert dict(zip(corpus["id"], corpus["valence"])) == {"a": 1.5, "b": None, "c": 2, "d": None, "e": 5, "f": None}


def said_by(function) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was said"


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "b.wav,anger,1,1,1",
            "b.wav,anger,1,many,1",
            "line 3: votes_anger is no number of votes: 'many'. Give a count",
        ),
        ("b.wav,anger,1,1,1", "b.wav,anger,1,-1,1", "line 3: votes_anger is no number of votes: '-1'"),
        ("1.5,4", "high,4", "line 2: valence is no number: 'high'."),
        ("e.wav,sadness", "e.wav,", "line 6: no value for 'label'. Correct or remove the line."),
    ],
)
def test_a_row_that_cannot_be_read_is_named_with_its_line(manifest, old, new, message):
    (manifest / "manifest.csv").write_text(MANIFEST.replace(old, new), encoding="utf-8")
    found = said_by(lambda: load_corpus("csv", manifest, targets="votes"))
    assert found.startswith("ValueError: ") and message in found, found


def test_a_choice_that_cannot_be_is_said(manifest, emodb_like):
    for options, message in (
        ({"targets": "soft"}, "targets must be one of corpus, majority, votes; found 'soft'."),
        ({"targets": "votes", "ties": "both"}, "ties must be one of drop, share; found 'both'."),
        ({"ties": "share"}, "ties share is for targets majority or votes; the corpus's own label is never a tie."),
        ({}, "line 5: no value for 'label'. Correct or remove the line, or learn from its votes (targets: votes)."),
    ):
        found = said_by(lambda options=options: load_corpus("csv", manifest, **options))
        assert found.startswith("ValueError: ") and message in found, found
    (manifest / "manifest.csv").write_text("path,speaker,votes_joy,votes_fear\na.wav,1,1,1\nb.wav,1,,\nc.wav,1,2,2\n")
    found = said_by(lambda: load_corpus("csv", manifest, targets="votes"))
    assert found == (
        "ValueError: csv: no utterance has votes or a label for its words. csv, by votes: 0 with a word that most "
        "listeners chose; 2 with a tie, left out (ties: drop); 1 with neither votes nor a label for the words kept, "
        "left out."
    )
    found = said_by(lambda: load_corpus("emodb", emodb_like, allow_partial=True, targets="votes"))
    assert "targets votes needs votes, and emodb has none. Give what listeners said" in found, found


def test_labels_of_a_manifest_with_votes_are_what_they_were(manifest):
    """And its votes are columns, so that a model of labels can be scored against them."""
    text = MANIFEST.replace("d.wav,,", "d.wav,joy,").replace("f.wav,,", "f.wav,anger,")
    (manifest / "manifest.csv").write_text(text, encoding="utf-8")
    corpus = load_corpus("csv", manifest)
    names = corpus.features["label"].names
    assert [names[label] for label in corpus["label"]] == ["anger", "anger", "joy", "joy", "sadness", "anger"]
    assert "votes_joy" in corpus.column_names and "shares" not in corpus.column_names
    assert corpus["votes_joy"][:] == [0, 1, 2, 0.25, None, 2]


# --------------------------------------------------------------------------------------------------- IEMOCAP, full-size


@pytest.mark.slow
def test_the_evaluators_of_iemocap_are_read_to_the_right_counts(release, silent):  # noqa: F811
    """10,039 turns, of which every fourth was not evaluated."""
    root, planned = release
    words = {**WORDS, "fru": "frustrated", "sur": "surprised", "fea": "fearful", "dis": "disgusted", "oth": "other"}
    expected = {"decided": {}, "ties": [], "others": [], "unvoted": {}}
    shares = {}
    for id, row in planned.items():
        votes = Counter()
        for label, count in row["votes"].items():
            votes[words[label]] += count
        kept = {word: count for word, count in votes.items() if word in WORDS.values()}
        best = [word for word, count in votes.items() if count == max(votes.values())]
        if not votes:
            if row["raw_label"] in WORDS:
                expected["unvoted"][id] = words[row["raw_label"]]
        elif kept and len(best) > 1:
            expected["ties"].append(id)
        elif kept:
            expected["decided" if best[0] in kept else "others"][id] = best[0]
        if kept:
            shares[id] = {word: count / sum(kept.values()) for word, count in kept.items()}
    corpus = by_id(load("iemocap", root, targets="votes", ties="share"))
    labels = {id: row["label"] for id, row in corpus.items()}
    decided = {**expected["decided"], **expected["unvoted"]}
    assert {id: label for id, label in labels.items() if label} == decided
    assert {id for id, label in labels.items() if not label} == {*expected["ties"], *expected["others"]}
    for id, told in shares.items():
        assert {word: share for word, share in corpus[id]["shares"].items() if share} == pytest.approx(told)
    dropped = load("iemocap", root, targets="votes")
    assert set(dropped["id"]) == set(labels) - set(expected["ties"])
    majority = by_id(load("iemocap", root, targets="majority"))
    assert {id: row["label"] for id, row in majority.items()} == decided
    by_label = Counter(decided.values())
    assert sum(by_label.values()) == len(majority) and min(by_label.values()) > 500
    assert f"{len(expected['ties'])} with a tie, left out" in dropped.info.description
    assert [len(fold.test) > 0 for fold in make_folds(dropped)] == [True] * 5


def test_a_word_of_an_evaluator_s_own_is_other_and_several_are_several_votes(tmp_path):
    from lascl.data.iemocap import read_iemocap

    assert "targets" in inspect.signature(read_iemocap).parameters, "evaluators are not read"
    folder, wavs = tmp_path / "Session1/dialog/EmoEvaluation", tmp_path / "Session1/sentences/wav/Ses01F_impro01"
    folder.mkdir(parents=True)
    wavs.mkdir(parents=True)
    (wavs / "Ses01F_impro01_F000.wav").touch()
    lines = [
        "[1.0 - 2.0]\tSes01F_impro01_F000\txxx\t[2.0, 3.5, 1.0]",
        "C-E1:\tHappiness; Excited;\t()",  # one word after the usual table
        "C-E2:\tNeutral state; Sadness;\t(calm, then low)",
        "C-E4:\tMelancholy;\t()",
        "C-F1:\tAnger;\t()",
    ]
    (folder / "Ses01F_impro01.txt").write_text("\n".join(lines))
    [row], _ = read_iemocap(tmp_path, allow_partial=True, targets="votes")
    assert row["votes"] == {"happy": 1, "neutral": 1, "sad": 1, "other": 1}
    assert (row["valence"], row["activation"], row["arousal"], row["dominance"]) == (2.0, 3.5, 3.5, 1.0)
    [row], _ = read_iemocap(tmp_path, allow_partial=True, targets="votes", merge={})
    assert row["votes"] == {"happy": 1, "excited": 1, "neutral": 1, "sad": 1, "other": 1}


# --------------------------------------------------------------------------------------------------- CREMA-D, full-size


SENTENCES = ["DFA", "IEO", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE", "TSI", "WSI"]
LETTERS = {"ANG": "A", "DIS": "D", "FEA": "F", "HAP": "H", "NEU": "N", "SAD": "S"}
WORD_OF = {"A": "anger", "D": "disgust", "F": "fear", "H": "happiness", "N": "neutral", "S": "sadness"}


def cremad_names() -> list[str]:
    """The 7442 clips of the release: 91 actors, 12 sentences, one of them in three intensities; 20 are missing."""
    names = []
    for actor in range(1001, 1092):
        for sentence in SENTENCES:
            for emotion in LETTERS:
                levels = ["LO", "MD", "HI"] if sentence == "IEO" and emotion != "NEU" else ["XX"]
                names += [f"{actor}_{sentence}_{emotion}_{level}" for level in levels]
    missing = {emotion: 3 if emotion != "NEU" else 5 for emotion in LETTERS}
    kept = []
    for name in names:
        emotion = name.split("_")[2]
        if missing[emotion]:
            missing[emotion] -= 1
        else:
            kept.append(name)
    return kept


def cremad_votes(number: int, letter: str) -> Counter:
    """Ten listeners: most agree with the actor, some with the next word, and of every seventh clip half."""
    after = "ADFHNS"[("ADFHNS".index(letter) + 1) % 6]
    if number % 7 == 0:
        return Counter({letter: 5, after: 5})
    if number % 7 == 1:
        return Counter({letter: 2, after: 7, "N": 1}) if letter != "N" and after != "N" else Counter({after: 10})
    return Counter({letter: 8, after: 2})


@pytest.fixture(scope="module")
def cremad(tmp_path_factory):
    """(folder, votes by clip): the whole release, silent, with `tabulatedVotes.csv` beside its audio."""
    root = tmp_path_factory.mktemp("CREMA-D")
    (root / "AudioWAV").mkdir()
    (root / "processedResults").mkdir()
    one = root / "one.wav"
    soundfile.write(one, np.zeros(160, np.int16), RATE)
    names, planned = cremad_names(), {}
    with open(root / "processedResults" / "tabulatedVotes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", *"ADFHNS", "fileName", "numResponses", "agreement", "emoVote", "meanEmoResp"])
        for modality in (1, 2, 3):
            for number, name in enumerate(names, start=1):
                letter = LETTERS[name.split("_")[2]]
                votes = cremad_votes(number, letter) if modality == 1 else Counter({"N": 9})
                most = ":".join(c for c in "ADFHNS" if votes[c] == max(votes.values()))
                counts = [votes[c] for c in "ADFHNS"]
                writer.writerow([f"{modality}{number:05d}", *counts, name, sum(counts), "0.8", most, "60.1"])
                if modality == 1:
                    planned[name] = (votes, most)
    for name in names:
        os.link(one, root / "AudioWAV" / f"{name}.wav")
    one.unlink()
    return root, planned


@pytest.mark.slow
def test_the_votes_on_crema_d_are_those_of_the_voice_by_label_and_by_ties(cremad, silent):
    root, planned = cremad
    assert len(planned) == 7442
    corpus = load("cremad", root / "AudioWAV", targets="votes", ties="share")
    found = by_id(corpus)
    assert found.keys() == planned.keys()
    for id, (votes, most) in planned.items():
        assert found[id]["label"] == (None if ":" in most else WORD_OF[most])  # ties read A:D
        assert found[id]["votes"] == {word: votes[letter] for letter, word in WORD_OF.items()}
        assert found[id]["shares"]["anger"] == pytest.approx(votes["A"] / sum(votes.values()))
    ties = [id for id, (_, most) in planned.items() if ":" in most]
    assert len(ties) == 1063
    majority = load("cremad", root, targets="majority")
    words = Counter(WORD_OF[most] for _, most in planned.values() if ":" not in most)
    names = majority.features["label"].names
    assert Counter(names[label] for label in majority["label"]) == words and sum(words.values()) == 7442 - 1063
    assert "1063 with a tie, left out (ties: drop)" in majority.info.description
    # Today's label is what the actor was to show.
    meant = load("cremad", root)
    assert Counter(names[label] for label in meant["label"]) == {
        **dict.fromkeys(("anger", "disgust", "fear", "happiness", "sadness"), 1271),
        "neutral": 1087,
    }
    assert sum(meant["votes_neutral"][:]) == sum(votes["N"] for votes, _ in planned.values())


def test_a_table_of_votes_that_cannot_be_read_is_named(cremad, tmp_path):
    os.link(cremad[0] / "AudioWAV" / "1091_WSI_SAD_XX.wav", tmp_path / "1091_WSI_SAD_XX.wav")
    for text, message in (
        ("x,A,D,F,H,N,fileName\n", "has no column 'S'. Take it from the release again."),
        (",A,D,F,H,N,S,fileName\n100001,1,2,x,0,0,0,1091_WSI_SAD_XX\n", "line 2: F is no number of votes: 'x'."),
    ):
        (tmp_path / "tabulatedVotes.csv").write_text(text)
        found = said_by(lambda: load_corpus("cremad", tmp_path, allow_partial=True, labels=["sadness"]))
        assert message in found, found


# ---------------------------------------------------------------------------------------- lists, of EmoBox and datasets


def test_a_list_of_emobox_is_what_each_listener_said(tmp_path):
    lines = []
    for number, emo in enumerate((["Angry", "Angry", "Sad"], ["Sad"], ["Angry", "Sad"])):
        soundfile.write(tmp_path / f"{number}.wav", recording(number, 0.05), RATE)
        about = {"key": f"c-{number}", "dataset": "c", "wav": f"{number}.wav", "emo": emo, "length": 0.05}
        lines.append(json.dumps({**about, "valence": number + 0.5}))
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "c_test_fold_1.jsonl").write_text("\n".join(lines[:2]))
    (tmp_path / "fold_1" / "c_train_fold_1.jsonl").write_text(lines[2])
    (tmp_path / "label_map.json").write_text(json.dumps({"Angry": "Anger", "Sad": "Sadness"}))
    rows = by_id(load("emobox", tmp_path, targets="votes", ties="share"))
    assert rows["c-0"]["shares"] == {"anger": pytest.approx(2 / 3), "sadness": pytest.approx(1 / 3)}
    assert {id: row["label"] for id, row in rows.items()} == {"c-0": "anger", "c-1": "sadness", "c-2": None}
    assert load("emobox", tmp_path, targets="majority")["valence"][:] == [0.5, 1.5]
    found = said_by(lambda: load_corpus("emobox", tmp_path))
    assert "'emo' of 'c-0' is a list, of what each listener said. Choose what is learned of it: targets:" in found, (
        found
    )


@pytest.mark.parametrize("kind", ["words", "numbers", "columns"])
def test_a_list_or_columns_of_a_data_set_are_what_listeners_said(kind, tmp_path):
    paths = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for number, path in enumerate(paths):
        soundfile.write(path, recording(number, 0.05), RATE)
    said = [["joy", "joy", "fear"], ["fear"], ["fear", "joy"]]
    columns = {"audio": paths, "speaker": ["a", "b", "c"], "arousal": [1.0, None, 3.0]}
    if kind == "columns":
        table = datasets.Dataset.from_dict({**columns, "votes_joy": [2, 0, 1], "votes_fear": [1, None, 1]})
        table = table.remove_columns("votes_fear").add_column("votes_fear", [1, 1, 1])
    else:
        inner = datasets.Value("string") if kind == "words" else datasets.ClassLabel(names=["fear", "joy"])
        features = {name: datasets.Value("string") for name in ("audio", "speaker")}
        features |= {"arousal": datasets.Value("float64"), "label": datasets.Sequence(inner)}
        table = datasets.Dataset.from_dict({**columns, "label": said}, features=datasets.Features(features))
    table.save_to_disk(tmp_path / "table")
    rows = by_id(load("hf", tmp_path / "table", targets="votes", ties="share"))
    assert [row["label"] for row in rows.values()] == ["joy", "fear", None]
    assert [row["shares"]["joy"] for row in rows.values()] == [pytest.approx(2 / 3), 0, 0.5]
    assert load("hf", tmp_path / "table", targets="votes")["arousal"][:] == [1, None]
    found = said_by(lambda: load_corpus("hf", tmp_path / "table"))
    assert ("has no column 'label'" if kind == "columns" else "'label' of 'all-000000' is a list") in found, found


# --------------------------------------------------------------------------------------------------------- many corpora


def test_corpora_with_and_without_votes_are_one_table(manifest, three_corpora):
    from lascl import load_corpora

    entries = [{"name": "voted", "corpus": "csv", "data_dir": str(manifest)}, three_corpora[1]]
    assert "targets" in inspect.signature(load_corpora).parameters, "nothing is learned from votes"
    table = load_corpora(entries, targets="votes", ties="share")
    names = table.features["label"].names
    assert names == ["anger", "calm", "joy", "neutral", "sadness"]
    rows = by_id(table)
    assert rows["voted/c"]["shares"] == {"anger": 0, "calm": 0, "joy": 0.5, "neutral": 0, "sadness": 0.5}
    assert rows["voted/c"]["label"] is None and rows["acted/1-calm-0"]["label"] == "calm"
    assert rows["acted/1-calm-0"]["shares"] == {**dict.fromkeys(names, 0), "calm": 1}
    heard = SpeechDataset(table, range(len(table)), sampling_rate=RATE, max_duration_s=1)
    mask = dict(zip(heard.ids, heard.label_masks.tolist()))
    assert mask["voted/c"] == [True, False, True, False, True] and mask["acted/1-calm-0"] == [
        True,
        True,
        False,
        True,
        False,
    ]
    item = heard[heard.ids.index("voted/c")]
    assert torch.equal(item["label"], torch.tensor([0, 0, 0.5, 0, 0.5]))
    assert heard.labels[heard.ids.index("voted/c")] == -1
    found = said_by(lambda: load_corpora(three_corpora, allow_partial=True, targets="votes"))
    assert "targets votes needs votes, and none of acted, calls, emodb has any." in found, found
