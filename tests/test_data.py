"""Corpora, folds, audio and batches: what is read is what is in the files, and no speaker crosses a fold."""

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import RATE, recording
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from lascl.data import (
    Fold,
    SpeechCollator,
    SpeechDataset,
    audio,
    audio_duration_s,
    checked_audio,
    load_corpus,
    make_folds,
    read_audio,
)
from lascl.data.checked_audio import check_audio


# ---------------------------------------------------------------------------------------------------------- audio


@pytest.mark.parametrize(
    "suffix, subtype", [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_24"), ("ogg", "VORBIS")]
)
def test_formats_are_read_to_the_same_samples(tmp_path, suffix, subtype):
    samples = recording(seed=0)
    soundfile.write(tmp_path / f"a.{suffix}", samples, RATE, subtype=subtype)
    read = read_audio(tmp_path / f"a.{suffix}")
    assert read.dtype == np.float32 and read.shape == samples.shape
    assert np.abs(read - samples).max() < (0.05 if subtype == "VORBIS" else 1e-4)


def test_channels_are_averaged(tmp_path):
    left, right = recording(seed=1), recording(seed=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_resampled_without_moving_a_tone(tmp_path, rate):
    t = np.arange(rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * t), rate, subtype="FLOAT")
    read = read_audio(tmp_path / "a.wav")
    assert abs(len(read) - RATE) <= 1
    middle = slice(2000, 14000)  # away from the filter's edges
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert np.abs(read[middle] - expected[middle]).max() < 1e-3


def test_only_the_first_seconds_are_read(tmp_path):
    samples = recording(seed=3, duration_s=1.0)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav", max_duration_s=0.25), samples[:4000])
    assert audio_duration_s(tmp_path / "a.wav") == 1.0


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("max_duration_s", [None, 0.617])
def test_blocks_side_by_side_are_the_file_resampled_at_once_to_the_bit(
    tmp_path, monkeypatch, rate, channels, max_duration_s
):
    """Cut first, then resampled: the other way round the end would be another, by 0.013."""
    assert hasattr(audio, "read_blocks"), "corpora and prediction have two readers"
    monkeypatch.setattr(audio, "BLOCK_S", 0.05)
    samples = np.random.default_rng(0).normal(0, 0.1, (rate + 7, channels))
    soundfile.write(tmp_path / "a.flac", samples, rate)
    frames = -1 if max_duration_s is None else round(max_duration_s * rate)
    read, _ = soundfile.read(tmp_path / "a.flac", frames, dtype="float32", always_2d=True)
    expected = soxr.resample(read.mean(axis=1), rate, RATE)
    found = read_audio(tmp_path / "a.flac", max_duration_s=max_duration_s)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    blocks = list(audio.read_blocks(tmp_path / "a.flac", max_duration_s=max_duration_s or np.inf))
    assert len(blocks) > 10 and np.array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("suffix", ["m4a", "mp4"])
def test_training_reads_what_prediction_reads(tmp_path, monkeypatch, suffix):
    """Through ffmpeg; where there is none, a program in its place that gives a second of a ramp."""
    ramp = np.linspace(-0.5, 0.5, RATE, dtype=np.float32)
    if shutil.which("ffmpeg"):
        soundfile.write(tmp_path / "ramp.wav", ramp, RATE)
        subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "ramp.wav", tmp_path / f"a.{suffix}"], check=True)
        tolerance_s, atol = 0.2, 0.1
    else:
        ramp.tofile(tmp_path / "ramp")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "ffmpeg").write_text(f"#!/bin/sh\nexec cat {tmp_path}/ramp\n")
        (tmp_path / "bin" / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        (tmp_path / f"a.{suffix}").write_bytes(b"a video")
        tolerance_s, atol = 0, 0
    soundfile.write(tmp_path / "b.wav", recording(0), RATE)
    write_manifest(tmp_path, [f"a.{suffix},calm,s,1", "b.wav,calm,t,1"], HEADER)
    skipped = []
    corpus = load_corpus("csv", tmp_path, skipped=skipped)
    assert skipped == []
    assert corpus["duration_s"][:] == [pytest.approx(1.0, abs=tolerance_s), 0.5]
    (clean,) = SpeechDataset(corpus, [0], sampling_rate=RATE, max_duration_s=0.25)[0]["views"]
    assert len(clean) == 4000 and np.abs(clean[2000:] - ramp[2000:4000]).max() <= atol


def test_what_is_wrong_with_a_file_is_not_remembered(tmp_path, monkeypatch):
    """Another day ffmpeg is there: the same file, of the same time, is read."""
    (tmp_path / "a.m4a").write_bytes(b"a video")
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path / "nothing"))
        found = check_audio([tmp_path / "a.m4a"], cache_dir=tmp_path / "cache")
    assert isinstance(found[str(tmp_path / "a.m4a")], str)
    monkeypatch.setattr(checked_audio, "_decode", lambda path: 1.0)
    assert check_audio([tmp_path / "a.m4a"], cache_dir=tmp_path / "cache") == {str(tmp_path / "a.m4a"): 1.0}


@pytest.mark.parametrize(
    "content, message", [(b"", "is an empty file, of 0 bytes"), (b"not audio" * 9, "cannot be read as")]
)
def test_what_is_not_audio_is_named(tmp_path, content, message):
    (tmp_path / "bad.wav").write_bytes(content)
    for read in (read_audio, audio_duration_s):
        with pytest.raises(ValueError, match=rf"bad\.wav: {message}"):
            read(tmp_path / "bad.wav")


def test_missing_empty_and_not_finite_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        read_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    with pytest.raises(ValueError, match=r"empty\.wav: holds no audio samples"):
        read_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav: holds NaN or infinite"):
        read_audio(tmp_path / "nan.wav")


# --------------------------------------------------------------------------------------------------------- corpora


def test_emodb_names_become_columns(emodb_like):
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    assert corpus.column_names == ["id", "audio", "label", "speaker", "session", "duration_s", "text_id"]
    names = corpus.features["label"].names
    assert names == ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    rows = {row["id"]: row for row in corpus}
    assert len(rows) == 70 and list(rows) == sorted(rows)
    expected = {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "N": "neutral"}
    for letter, label in {**expected, "T": "sadness"}.items():
        row = rows[f"13a01{letter}a"]
        assert (names[row["label"]], row["speaker"], row["session"]) == (label, "13", None)
        assert row["audio"] == str(emodb_like / f"13a01{letter}a.wav")
        assert row["duration_s"] == soundfile.info(row["audio"]).duration


def test_an_incomplete_emodb_says_what_is_missing(emodb_like):
    with pytest.raises(ValueError, match=r"535 utterances.*has 70 \(anger 10 instead of 127; boredom 10 instead of 81"):
        load_corpus("emodb", emodb_like)


def test_litter_is_not_audio_and_folders_do_not_matter(tmp_path):
    (tmp_path / "wav").mkdir()
    soundfile.write(tmp_path / "wav" / "03a01Wa.wav", recording(0), RATE)
    (tmp_path / "wav" / "._03a01Wa.wav").write_bytes(b"resource fork")
    (tmp_path / "03a01Wa.txt").write_text("a label file")
    assert load_corpus("emodb", tmp_path, labels=["anger"], allow_partial=True)["id"][:] == ["03a01Wa"]
    soundfile.write(tmp_path / "03a01Wa.flac", recording(0), RATE)
    with pytest.raises(ValueError, match="'03a01Wa' stands for several files"):
        load_corpus("emodb", tmp_path, allow_partial=True)


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(ValueError, match="Unknown corpus 'emodbb'. Known: .*csv, .*emodb, .*synthetic"):
        load_corpus("emodbb")
    with pytest.raises(ValueError, match="emodb needs data_dir"):
        load_corpus("emodb")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_corpus("emodb", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no file named like 03a01Fa"):
        load_corpus("emodb", tmp_path)
    with pytest.raises(ValueError, match="emodb has no option 'voices'"):
        load_corpus("emodb", tmp_path, voices=3)


def write_manifest(folder, lines, header="path,label,speaker"):
    (folder / "manifest.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def test_one_s_own_manifest_becomes_the_same_columns(tmp_path):
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "ä 1.wav", recording(0, 0.25), RATE)
    soundfile.write(tmp_path / "b.ogg", np.stack([recording(1), recording(1)], 1), RATE)
    soundfile.write(tmp_path / "c.flac", recording(2, 0.3), 8_000)
    write_manifest(tmp_path, ["deep/ä 1.wav, calm ,ann,s1", "b.ogg,tense,ben,s2", "c.flac,calm,ben,s2"], HEADER)
    for data_dir in (tmp_path, tmp_path / "manifest.csv"):
        corpus = load_corpus("csv", data_dir)
        assert corpus["id"][:] == ["b", "c", "deep/ä 1"] and corpus["session"][:] == ["s2", "s2", "s1"]
        assert corpus.features["label"].names == ["calm", "tense"] and corpus["label"][:] == [1, 0, 0]
        assert corpus["duration_s"][:] == pytest.approx([0.5, 0.6, 0.25]) and "fold" not in corpus.column_names
        assert [len(fold.test) for fold in make_folds(corpus)] == [1, 2]
    write_manifest(tmp_path, ["b.ogg,tense,ben,s2,u9,7"], f"{HEADER},id,fold")
    corpus = load_corpus("csv", tmp_path)
    assert corpus["id"][:] == ["u9"] and corpus["fold"][:] == ["7"]


HEADER = "path,label,speaker,session"


@pytest.mark.parametrize(
    "header, lines, message",
    [
        ("path,label", ["a.wav,x"], r"manifest\.csv: the column 'speaker' is missing; found path, label"),
        (HEADER, ["a.wav,x,s,1", "a.wav,,s,1"], "line 3: no value for 'label'"),
        (HEADER, ["a.wav,x"], "line 2: no value for 'speaker'"),
        (HEADER, ["a.wav,x,s,1,extra"], "line 2: more than 4 values"),
        (HEADER, ["a.wav,x,s,1", "a.wav,y,s,1"], "the id 'a' stands for several files"),
        (HEADER, ["none.wav,x,s,1", "cut.wav,x,s,1"], r"none\.wav: no such.*1 more, such as: .*cut\.wav: is cut off"),
        (HEADER, ["a.wav,Calm,s,1", "a.mp3,calm,s,1,"], "line 3: more than 4 values"),
        ("path;label;speaker", ["a.wav;x;s"], "found path;label;speaker. Separate columns by commas"),
        (HEADER, ["cut.wav,x,s,1"], r"cut\.wav: is cut off"),
        (HEADER, ["cut.flac,x,s,1"], r"cut\.flac: cannot be read as audio"),
        (HEADER, ["cut.mp3,x,s,1"], r"cut\.mp3: is cut off"),
        (HEADER, ["text.wav,x,s,1"], r"text\.wav: cannot be read as audio"),
        (HEADER, ["nan.wav,x,s,1"], r"nan\.wav: holds NaN"),
        (HEADER, ["folder.wav,x,s,1"], r"folder\.wav: is a folder"),
        (HEADER, [], "lists no utterance"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_named(tmp_path, header, lines, message):
    for suffix in ("wav", "flac", "mp3"):
        soundfile.write(tmp_path / f"a.{suffix}", recording(0, 2.0), RATE)
        content = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan], np.float32), RATE, subtype="FLOAT")
    write_manifest(tmp_path, lines, header)
    with pytest.raises(ValueError, match=message):
        load_corpus("csv", tmp_path)


def test_labels_that_differ_in_case_alone_are_one_misspelt(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", recording(0), RATE)
    write_manifest(tmp_path, ["a.wav,Calm,s,1", "b.wav,calm,t,1"], HEADER)
    with pytest.raises(ValueError, match="labels 'Calm' and 'calm' differ in case alone"):
        load_corpus("csv", tmp_path)


def test_a_wav_written_into_a_pipe_is_not_cut_off(tmp_path):
    soundfile.write(tmp_path / "a.wav", recording(0), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    where = content.index(b"data") + 4
    content[where : where + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav")) == 8000


def test_files_are_decoded_once_and_again_when_they_change(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(checked_audio, "_decode", lambda path: decoded.append(Path(path).name) or 1.0)
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, recording(0), RATE)
    paths, cache = [tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "cache"
    assert check_audio(paths, cache_dir=cache) == dict.fromkeys(map(str, paths), 1.0)
    check_audio(paths, cache_dir=cache)
    assert sorted(decoded) == ["a.wav", "b.wav"]
    soundfile.write(tmp_path / "b.wav", recording(0, 0.1), RATE)
    (tmp_path / "missing.wav").touch()
    check_audio([*paths, tmp_path / "missing.wav"], cache_dir=cache)
    assert sorted(decoded) == ["a.wav", "b.wav", "b.wav", "missing.wav"]
    next(cache.glob("*.json")).write_text("half a fi")
    check_audio(paths, cache_dir=cache)
    assert sorted(decoded[4:]) == ["a.wav", "b.wav"]


def test_a_missing_file_is_looked_for_again(tmp_path):
    path = tmp_path / "late.wav"
    assert "no such audio file" in check_audio([path], cache_dir=tmp_path / "cache")[str(path)]
    soundfile.write(path, recording(0), RATE)
    assert check_audio([path], cache_dir=tmp_path / "cache") == {str(path): 0.5}


def test_synthetic_is_balanced_over_speakers_and_emotions(tmp_path):
    pytest.importorskip("espeakng_loader")
    corpus = load_corpus("synthetic", tmp_path / "speech", num_speakers=3, utterances_per_speaker=8)
    assert corpus.features["label"].names == ["angry", "happy", "neutral", "sad"]
    pairs = list(zip(corpus["speaker"], corpus["label"]))
    assert len(pairs) == 24 and all(pairs.count(pair) == 2 for pair in pairs) and len(set(pairs)) == 12


def test_the_shared_emodb_is_whole(shared):
    corpus = load_corpus("emodb", shared / "corpora" / "emodb")
    assert len(corpus) == 535 and set(corpus["duration_s"]) == {2.0}
    expected = [("03", "08"), ("09", "10"), ("11", "12"), ("13", "14"), ("15", "16")]
    for fold, pair in zip(make_folds(corpus), expected):
        assert {corpus["speaker"][row] for row in fold.test} == set(pair)


# ----------------------------------------------------------------------------------------------------------- folds


def table_of(speakers, labels=None, sessions=None, folds=None):
    size = len(speakers)
    columns = {"id": [f"{i:03d}" for i in range(size)], "speaker": speakers, "label": labels or [0] * size}
    columns["session"] = sessions or [None] * size
    return Dataset.from_dict({**columns, **({"fold": folds} if folds else {})})


def split(corpus, *args, **kwargs):
    """The ids that each fold tests, after checking what every split must hold."""
    folds = make_folds(corpus, *args, **kwargs)
    assert [fold.number for fold in folds] == list(range(1, len(folds) + 1))
    assert sorted(row for fold in folds for row in fold.test) == list(range(len(corpus)))
    for fold in folds:
        assert sorted(fold.train + fold.test) == list(range(len(corpus)))
        assert not {corpus["speaker"][row] for row in fold.train} & {corpus["speaker"][row] for row in fold.test}
    return [{corpus["id"][row] for row in fold.test} for fold in folds]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)), min_size=6, max_size=40),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
)
def test_each_utterance_is_tested_once_by_models_that_never_heard_its_speaker(rows, num_folds, random):
    corpus = table_of([speaker for speaker, _ in rows], [label for _, label in rows])
    try:
        expected = split(corpus, num_folds)
    except ValueError as error:  # too few speakers or utterances: refused in words, never split badly
        assert "fold" in str(error)
        return
    assert len(expected) == num_folds
    order = list(range(len(rows)))
    random.shuffle(order)
    assert split(corpus.select(order), num_folds) == expected


def test_grouped_folds_are_alike_in_size_and_labels():
    speakers = [f"s{i % 12:02d}" for i in range(240)]
    labels = [(i // 12) % 4 for i in range(240)]
    corpus = table_of(speakers, labels)
    for ids in split(corpus, 4):
        counts = Counter(label for id, label in zip(corpus["id"], labels) if id in ids)
        assert set(counts.values()) == {15}
    assert split(corpus, 4, seed=0) != split(corpus, 4, seed=1)


def test_a_corpus_own_folds_come_first_then_its_sessions_then_five_groups():
    speakers = list("aabbccddee")
    sessions = ["1", "1", "1", "1", "9", "9", "10", "10", "10", "10"]
    corpus = table_of(speakers, sessions=sessions, folds=["x", "x", "y", "y", "y", "y", "x", "x", "x", "x"])
    assert split(corpus) == [{"000", "001", "006", "007", "008", "009"}, {"002", "003", "004", "005"}]
    by_session = split(corpus.remove_columns("fold"))
    assert by_session == [{"000", "001", "002", "003"}, {"004", "005"}, {"006", "007", "008", "009"}]  # 9 before 10
    assert len(split(table_of(speakers))) == 5 and len(split(corpus, 3)) == 3
    assert len(split(table_of(list("aabbcc")))) == 3  # fewer speakers than five


def test_folds_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="number of speakers, 2; found 3"):
        make_folds(table_of(list("aabb")), 3)
    with pytest.raises(ValueError, match="between 2 and the number of speakers, 4; found 1"):
        make_folds(table_of(list("abcd")), 1)
    with pytest.raises(ValueError, match="two folds at least; all utterances are in fold 'x'"):
        make_folds(table_of(list("ab"), folds=["x", "x"]))
    with pytest.raises(ValueError, match="speaker 'a' is in training and in test"):
        make_folds(table_of(list("aab"), folds=["x", "y", "y"]))
    with pytest.raises(ValueError, match="3 utterances in training and 0 in test"):
        Fold(1, train=[0, 1, 2], test=[]).check_speakers(table_of(list("aba")))


# --------------------------------------------------------------------------------------------------------- batches


def dataset_of(folder, rows=(0, 8, 16), **options):
    corpus = load_corpus("emodb", folder, allow_partial=True)
    return SpeechDataset(corpus, rows, **{"sampling_rate": RATE, "max_duration_s": 10, **options})


def test_the_first_view_is_the_file_and_the_second_is_not(emodb_like):
    data = dataset_of(emodb_like, augmentation="mixed", num_views=3)
    item = data[1]
    clean = soundfile.read(emodb_like / f"{item['id']}.wav", dtype="float32")[0]
    assert len(item["views"]) == 3 and np.array_equal(item["views"][0], clean)
    assert not np.array_equal(item["views"][1], clean)
    assert not np.array_equal(item["views"][1], item["views"][2])


def test_views_depend_on_epoch_and_seed_and_on_nothing_else(emodb_like):
    data = dataset_of(emodb_like, augmentation="noise", num_views=2, seed=1)
    first = data[0]["views"][1]
    data[1], data[2]  # the order of reading does not matter
    assert np.array_equal(data[0]["views"][1], first)
    alone = dataset_of(emodb_like, rows=(0,), augmentation="noise", num_views=2, seed=1)
    assert np.array_equal(alone[0]["views"][1], first)
    data.set_epoch(1)
    assert not np.array_equal(data[0]["views"][1], first)
    data.set_epoch(0)
    assert np.array_equal(data[0]["views"][1], first)
    assert not np.array_equal(dataset_of(emodb_like, augmentation="noise", num_views=2, seed=2)[0]["views"][1], first)


def test_without_augmentation_there_is_one_view(emodb_like):
    assert len(dataset_of(emodb_like, augmentation="none", num_views=2)[0]["views"]) == 1
    with pytest.raises(ValueError, match="num_views must be at least 1; found 0"):
        dataset_of(emodb_like, num_views=0)


def test_long_utterances_are_cut_to_their_beginning(emodb_like):
    whole, cut = dataset_of(emodb_like)[0]["views"][0], dataset_of(emodb_like, max_duration_s=0.1)[0]["views"][0]
    assert np.array_equal(cut, whole[:1600])


def test_a_batch_holds_view_after_view_with_masks_that_count_samples(emodb_like):
    data = dataset_of(emodb_like, rows=(0, 4), augmentation="polarity_inversion", num_views=2)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    items = [data[0], data[1]]
    batch = SpeechCollator(extractor)(items)
    lengths = [len(item["views"][0]) for item in items]
    assert batch["input_values"].shape == (4, max(lengths))
    assert batch["attention_mask"].sum(-1).tolist() == lengths * 2
    assert batch["labels"].tolist() == [items[0]["label"], items[1]["label"]] * 2
    assert torch.equal(batch["input_values"][2:], -batch["input_values"][:2])  # inverted polarity
    assert np.array_equal(batch["input_values"][0, : lengths[0]].numpy(), items[0]["views"][0])


def test_whisper_batches_fill_the_window_whatever_they_hold(emodb_like):
    data = dataset_of(emodb_like, rows=(0, 4))
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    batch = SpeechCollator(extractor)([data[0], data[1]])
    assert batch["input_features"].shape == (2, 16, 100)
    expected = [-(-len(item["views"][0]) // 160) for item in (data[0], data[1])]  # mel frames that hold signal
    assert batch["attention_mask"].sum(-1).tolist() == expected
