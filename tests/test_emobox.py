"""EmoBox's manifests and `datasets` data sets as corpora."""

import json

import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict
from tiny import RATE, recording

from lascl import load_corpus, make_folds
from lascl.data import read_audio
from lascl.training.protocol import describe
from lascl.training.recipe import parse_recipe


def emobox(folder, name, folds, labels, words, wav="{key}.wav"):
    """EmoBox's folder of a corpus: `folds` maps a number to {side: keys}."""
    root = folder / "EmoBox" / "data" / name
    for number, sides in folds.items():
        (root / f"fold_{number}").mkdir(parents=True)
        for side, keys in sides.items():
            lines = [
                {
                    "key": f"{name}-{key}",
                    "dataset": name,
                    "wav": f"downloads/{name}/{wav.format(key=key)}",
                    "type": "raw",
                    "sample_rate": RATE,
                    "length": 0.1,
                    "emo": labels[key],
                    "channel": 1,
                }
                for key in keys
            ]
            path = root / f"fold_{number}" / f"{name}_{side}_fold_{number}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "label_map.json").write_text(json.dumps(words))
    for key in labels:
        target = folder / "audio" / wav.format(key=key)
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, recording(0, 0.1), RATE)
    return root


EMODB = {"03a01Wa": "anger", "03a02La": "boredem", "08a01Wa": "anger", "08a02La": "boredem", "09a01Wa": "anger"}
WORDS = {"anger": "Angry", "boredem": "Bored"}


@pytest.fixture
def emodb(tmp_path):
    folds = {
        1: {"train": ["03a02La", "08a01Wa", "08a02La", "09a01Wa"], "test": ["03a01Wa"]},
        2: {"train": ["03a01Wa", "03a02La", "08a01Wa", "09a01Wa"], "test": ["08a02La"]},
    }
    return emobox(tmp_path, "emodb", folds, EMODB, WORDS)


def test_official_folds_are_taken_as_they_are_and_said_to_share_speakers(emodb, tmp_path):
    corpus = load_corpus("emobox", emodb, audio_dir=tmp_path / "audio")
    names = corpus.features["label"].names
    rows = {row["id"]: (names[row["label"]], row["speaker"], row["fold"]) for row in corpus}
    assert rows == {
        "emodb-03a01Wa": ("angry", "03", "1"),
        "emodb-03a02La": ("bored", "03", "train"),
        "emodb-08a01Wa": ("angry", "08", "train"),
        "emodb-08a02La": ("bored", "08", "2"),
        "emodb-09a01Wa": ("angry", "09", "train"),
    }
    folds = make_folds(corpus)
    assert [[corpus["id"][row] for row in fold.test] for fold in folds] == [["emodb-03a01Wa"], ["emodb-08a02La"]]
    assert [len(fold.train) for fold in folds] == [4, 4]
    recipe, _ = parse_recipe(["csv"])
    assert "have speakers in training AND in test" in describe(recipe, corpus, folds, num_skipped=0)["notes"][0]
    with pytest.raises(ValueError, match="speaker '03' is in training and in test"):
        make_folds(corpus, protocol="manifest")


def test_iemocap_s_names_tell_who_talks(tmp_path):
    wav = "Session1/sentences/wav/{key}.wav"
    keys = {"Ses01F_impro01_F000": "neu", "Ses01F_impro01_M000": "ang"}
    sides = {"train": ["Ses01F_impro01_F000"], "test": ["Ses01F_impro01_M000"]}
    root = emobox(tmp_path, "iemocap", {1: sides}, keys, {"neu": "Neutral", "ang": "Angry"}, wav)
    corpus = load_corpus("emobox", root, audio_dir=tmp_path / "audio")
    assert corpus["speaker"][:] == ["Ses01F", "Ses01M"] and corpus["session"][:] == ["1", "1"]
    (fold,) = make_folds(corpus)
    assert (fold.train, fold.test) == ([0], [1])


def test_a_clone_of_emobox_is_enough_and_tells_speakers(tmp_path):
    keys = {"dia0_utt1": "joy", "dia0_utt2": "joy", "dia1_utt1": "joy"}
    sides = {"train": ["dia0_utt1", "dia0_utt2"], "test": ["dia1_utt1"]}
    root = emobox(tmp_path, "meld", {1: sides}, keys, {"joy": "Happy"}, wav="clips/{key}.wav")
    for path in root.glob("fold_1/*.jsonl"):
        path.write_text(path.read_text().replace(".wav", ".mp4"))
    (tmp_path / "EmoBox" / "downloads").mkdir()
    (tmp_path / "audio").rename(tmp_path / "EmoBox" / "downloads" / "meld")
    assert load_corpus("emobox", root)["speaker"][:] == ["unknown"] * 3
    lines = [
        f"meld-{key} 1 {who} 0 1.5 <id=meld-{key},lang=en> joy" for key, who in zip(keys, ("Ross", "Joey", "Ross"))
    ]
    (root / "data.seg.wrd.stm").write_text("\n".join([";; comment", *lines]) + "\n")
    corpus = load_corpus("emobox", root)
    assert corpus["speaker"][:] == ["Ross", "Joey", "Ross"] and corpus["fold"][:] == ["train", "train", "test"]


def test_what_is_wrong_with_manifests_is_said(emodb, tmp_path):
    with pytest.raises(ValueError, match="5 of 5 files are not below .*such as downloads/emodb/"):
        load_corpus("emobox", emodb)
    with pytest.raises(ValueError, match="holds no fold_K"):
        load_corpus("emobox", tmp_path / "audio")
    (tmp_path / "audio" / "09a01Wa.wav").unlink()
    corpus = load_corpus("emobox", emodb, audio_dir=tmp_path / "audio", allow_partial=True)
    assert len(corpus) == 4
    path = emodb / "fold_2" / "emodb_test_fold_2.jsonl"
    path.write_text((emodb / "fold_1" / "emodb_test_fold_1.jsonl").read_text())
    with pytest.raises(ValueError, match="emodb-03a01Wa is tested in the folds 1 and 2"):
        load_corpus("emobox", emodb, audio_dir=tmp_path / "audio")
    path.write_text("half a li")
    with pytest.raises(ValueError, match=r"emodb_test_fold_2\.jsonl cannot be read"):
        load_corpus("emobox", emodb, audio_dir=tmp_path / "audio")


# ---------------------------------------------------------------------------------------------- datasets data sets


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    cells = []
    for number in range(4):
        path = tmp_path / f"clip-{number}.wav"
        soundfile.write(path, recording(number, 0.1 + 0.01 * number), RATE, subtype="FLOAT")
        cells.append({"path": path.name, "bytes": path.read_bytes()})
        path.unlink()
    columns = {"audio": cells, "emotion": [0, 1, 0, 1], "speaker_id": [7, 7, 8, 8]}
    table = Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))
    return table.cast_column("emotion", ClassLabel(names=["calm", "tense"]))


COLUMNS = {"label_column": "emotion", "speaker_column": "speaker_id"}


@pytest.mark.parametrize("how", ["parquet", "save_to_disk"])
def test_a_data_set_with_its_audio_inside_becomes_a_corpus(table, tmp_path, how):
    folder = tmp_path / "set"
    if how == "parquet":
        folder.mkdir()
        table.to_parquet(folder / "train.parquet")
    else:
        DatasetDict({"train": table}).save_to_disk(folder)
    for _ in range(2):  # the second time from what was written
        corpus = load_corpus("hf", folder, **COLUMNS)
        assert corpus["id"][:] == [f"train-{number:06d}" for number in range(4)]
        assert corpus.features["label"].names == ["calm", "tense"] and corpus["label"][:] == [0, 1, 0, 1]
        assert corpus["speaker"][:] == ["7", "7", "8", "8"]
        assert corpus["duration_s"][:] == pytest.approx([0.1, 0.11, 0.12, 0.13], abs=1e-4)
        for number, path in enumerate(corpus["audio"]):
            np.testing.assert_array_equal(read_audio(path), recording(number, 0.1 + 0.01 * number))
    assert len(make_folds(corpus)) == 2


def test_what_is_wrong_with_a_data_set_is_said(table, tmp_path):
    table.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="has no column 'label'; found audio, emotion, speaker_id"):
        load_corpus("hf", tmp_path / "set")
    with pytest.raises(ValueError, match="there is no split 'test'; found all"):
        load_corpus("hf", tmp_path / "set", split="test", **COLUMNS)
    with pytest.raises(ValueError, match="either data_dir .* or the option dataset_name"):
        load_corpus("hf")
    with pytest.raises(ValueError, match="the data set cannot be loaded .*nowhere does not exist.*use the corpus csv"):
        load_corpus("hf", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="hf has no option 'dataset'"):
        load_corpus("hf", tmp_path / "set", dataset="x")
