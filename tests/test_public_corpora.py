"""Public corpora: every file of a real release is read with the right label, speaker and count."""

import csv
import os
from functools import partial

import pytest
import soundfile
from tiny import RATE, recording

from lascl import load_corpus, make_folds
from lascl.data.public_corpora import PUBLIC_CORPORA, read_public


# A few names of each release, written out: path, label, speaker.
MINIATURES = {
    "ravdess": [
        ("Audio_Speech_Actors_01-24/Actor_01/03-01-01-01-01-01-01.wav", "neutral", "01"),
        ("Audio_Speech_Actors_01-24/Actor_01/03-01-02-02-02-01-01.wav", "calm", "01"),
        ("Audio_Speech_Actors_01-24/Actor_12/03-01-06-01-02-01-12.wav", "fear", "12"),
        ("Audio_Speech_Actors_01-24/Actor_24/03-01-08-02-01-02-24.wav", "surprise", "24"),
    ],
    "cremad": [
        ("AudioWAV/1001_DFA_ANG_XX.wav", "anger", "1001"),
        ("AudioWAV/1001_IEO_HAP_HI.wav", "happiness", "1001"),
        ("AudioWAV/1091_WSI_SAD_XX.wav", "sadness", "1091"),
    ],
    "tess": [
        ("OAF_back_angry.wav", "anger", "OAF"),
        ("OAF_Pleasant_surprise/OAF_back_ps.wav", "surprise", "OAF"),
        ("YAF_neutral/YAF_youth_neutral.wav", "neutral", "YAF"),
    ],
    "savee": [("DC_a01.wav", "anger", "DC"), ("JE/sa15.wav", "sadness", "JE"), ("KL_su07.wav", "surprise", "KL")],
    "emovo": [
        ("f1/dis-f1-b1.wav", "disgust", "f1"),
        ("m2/sor-m2-n5.wav", "surprise", "m2"),
        ("m3/gio-m3-b2.wav", "happiness", "m3"),
    ],
    "shemo": [
        ("female/F01A01.wav", "anger", "F01"),
        ("male/M47N08.wav", "neutral", "M47"),
        ("female/F23H05.wav", "happiness", "F23"),
    ],
    "aesdd": [
        ("anger/a01 (1).wav", "anger", "1"),
        ("fear/f13 (6).wav", "fear", "6"),
        ("sadness/s05 (3)b.wav", "sadness", "3"),
    ],
    "subesco": [
        ("F_01_OISHI_S_10_ANGRY_1.wav", "anger", "F_01"),
        ("F_04_SWARNALI_S_6_SURPRISE_1.wav", "surprise", "F_04"),
        ("M_01_BASHIR_S_5_NEUTRAL_2.wav", "neutral", "M_01"),
    ],
    "cafe": [
        ("CaFE_48k/Col\u0160re/Faible/01-C-1-1.wav", "anger", "01"),  # the folder's name as unzip leaves it
        ("CaFE_48k/Neutre/12-N-1-6.wav", "neutral", "12"),
        ("CaFE_48k/Peur/Fort/10-P-2-2.wav", "fear", "10"),
    ],
    "jlcorpus": [
        ("Raw JL corpus (unchecked and unannotated)/JL(wav+txt)/female1_angry_10a_1.wav", "anger", "female1"),
        ("Raw JL corpus (unchecked and unannotated)/JL(wav+txt)/male2_encouraging_3b_2.wav", "encouraging", "male2"),
    ],
    "emodb": [("wav/03a01Fa.wav", "happiness", "03"), ("wav/16b10Lb.wav", "boredom", "16")],
}


def silent_tree(folder, paths):
    """These files, all one and the same short recording."""
    one = folder / "one.wav"
    soundfile.write(one, recording(0, 0.05), RATE)
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(one, folder / path)
    one.unlink()
    return folder


@pytest.mark.parametrize("name", PUBLIC_CORPORA)
def test_a_miniature_is_read_row_for_row(name, tmp_path):
    expected = MINIATURES[name]
    silent_tree(tmp_path, [path for path, *_ in expected])
    litter = tmp_path / expected[0][0]
    (litter.parent / f"._{litter.name}").write_bytes(b"resource fork")
    (tmp_path / "readme.txt").write_text("not audio")
    labels = sorted({label for _, label, _ in expected})
    corpus = load_corpus(name, tmp_path, labels=labels, allow_partial=True)
    found = {os.path.relpath(row["audio"], tmp_path): (labels[row["label"]], row["speaker"]) for row in corpus}
    assert found == {path: (label, speaker) for path, label, speaker in expected}
    assert len(make_folds(corpus, protocol="leave_one_speaker_out")) == len({speaker for *_, speaker in expected})
    with pytest.raises(ValueError, match=rf"{name}: a whole copy has \d+ utterances; .* has {len(expected)} \("):
        load_corpus(name, tmp_path)


# EmoBox's spelling of each label, and who speaks by the file's name, written down apart from the table.
STEM = lambda path: path.rpartition("/")[2].rpartition(".")[0]  # noqa: E731
LISTINGS = {
    "ravdess": (
        {"Surprised": "surprise", "Sad": "sadness", "Happy": "happiness", "Fearful": "fear", "Angry": "anger"}
        | {"Disgust": "disgust", "Calm": "calm", "Neutral": "neutral"},
        lambda path: STEM(path)[-2:],
    ),
    "cremad": (
        {"SAD": "sadness", "HAP": "happiness", "FEA": "fear", "DIS": "disgust", "ANG": "anger", "NEU": "neutral"},
        lambda path: STEM(path)[:4],
    ),
    "tess": (
        {"sad": "sadness", "ps": "surprise", "happy": "happiness", "angry": "anger"}
        | {"neutral": "neutral", "fear": "fear", "disgust": "disgust"},
        lambda path: {"O": "OAF", "Y": "YAF"}[STEM(path)[0]],
    ),
    "savee": (
        {
            "n": "neutral",
            "su": "surprise",
            "sa": "sadness",
            "h": "happiness",
            "f": "fear",
            "d": "disgust",
            "a": "anger",
        },
        lambda path: STEM(path)[:2],
    ),
    "emovo": (
        {"tri": "sadness", "sor": "surprise", "rab": "anger", "pau": "fear", "neu": "neutral", "gio": "happiness"}
        | {"dis": "disgust"},
        lambda path: path[:2],
    ),
    "shemo": (
        {"angry": "anger", "neutral": "neutral", "sad": "sadness", "surprised": "surprise", "happy": "happiness"}
        | {"fearful": "fear"},
        lambda path: STEM(path)[:3],
    ),
    "aesdd": (
        {"s": "sadness", "d": "disgust", "a": "anger", "f": "fear", "h": "happiness"},
        lambda path: path[path.index("(") + 1 : path.index(")")].lstrip("0"),
    ),
    "subesco": (
        {"surprise": "surprise", "sad": "sadness", "neutral": "neutral", "happy": "happiness", "fear": "fear"}
        | {"disgust": "disgust", "angry": "anger"},
        lambda path: STEM(path)[:4],
    ),
    "cafe": (
        {"t": "sadness", "s": "surprise", "p": "fear", "j": "happiness", "d": "disgust", "c": "anger", "n": "neutral"},
        lambda path: STEM(path)[:2],
    ),
    "jlcorpus": (
        {"sad": "sadness", "neutral": "neutral", "happy": "happiness", "excited": "excitement", "angry": "anger"}
        | {word: word for word in ("encouraging", "concerned", "assertive", "apologetic", "anxious")},
        lambda path: STEM(path).partition("_")[0],
    ),
    "emodb": (
        {"anger": "anger", "boredem": "boredom", "neutral": "neutral", "happy": "happiness", "fear": "fear"}
        | {"sad": "sadness", "disgust": "disgust"},
        lambda path: STEM(path)[:2],
    ),
}
# EmoBox leaves 162 of ShEMO's 3000 out.
INCOMPLETE = {"shemo": 2838}


@pytest.mark.parametrize("name", PUBLIC_CORPORA)
def test_every_file_of_the_real_release_is_read_right(name, shared, tmp_path):
    with open(shared / "corpus-listings" / f"{name}.csv", encoding="utf-8", newline="") as file:
        listing = list(csv.DictReader(file))
    words, who = LISTINGS[name]
    silent_tree(tmp_path, [row["path"] for row in listing])
    read = partial(read_public, PUBLIC_CORPORA[name], tmp_path)
    if name in INCOMPLETE:
        with pytest.raises(ValueError, match=rf"utterances; .* has {INCOMPLETE[name]} \("):
            read(allow_partial=False)
    rows, labels = read(allow_partial=name in INCOMPLETE)
    assert len(rows) == len(listing) and len({row["id"] for row in rows}) == len(rows)
    assert set(labels) == set(words.values())
    found = {os.path.relpath(row["audio"], tmp_path): (row["label"], row["speaker"]) for row in rows}
    assert found == {row["path"]: (words[row["label"]], who(row["path"])) for row in listing}
    assert len({row["speaker"] for row in rows}) == PUBLIC_CORPORA[name].num_speakers


def test_a_missing_file_is_named_where_it_can_be_known(tmp_path):
    paths = [
        f"{speaker}_{code}{number:02d}.wav"
        for speaker in ("DC", "JE", "JK", "KL")
        for code, count in (("a", 15), ("d", 15), ("f", 15), ("h", 15), ("n", 30), ("sa", 15), ("su", 15))
        for number in range(1, count + 1)
    ]
    silent_tree(tmp_path, paths)
    assert len(load_corpus("savee", tmp_path)) == 480
    (tmp_path / "JK_sa07.wav").unlink()
    with pytest.raises(ValueError, match=r"has 479 \(sadness 59 instead of 60\)\. Missing: JK_sa07\. Complete it"):
        load_corpus("savee", tmp_path)
