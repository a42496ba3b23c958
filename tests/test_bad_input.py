"""One's own recordings as they come: odd ones train, broken ones are named in one sentence, before any training."""

import contextlib
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import RATE, read_csv, recording
from transformers import TrainingArguments

from lascl import load_corpus
from lascl.data import SpeechDataset
from lascl.train import main


HEADER = "path,label,speaker"
# Of a field that not every version of transformers has.
NOT_USED = (
    "is not used here: set bucket_by_length or"
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
    else "The installed transformers has no field 'train_sampling_strategy'; other versions do."
)


@pytest.fixture
def recordings(tmp_path):
    """Twelve good clips of three speakers and two labels, and the manifest's lines."""
    folder = tmp_path / "speech"
    folder.mkdir()
    lines = []
    for number in range(12):
        soundfile.write(folder / f"good-{number:02d}.wav", recording(number, 0.2 + 0.01 * number), RATE)
        lines.append(f"good-{number:02d}.wav,{('calm', 'tense')[number % 2]},{'abc'[number // 4]}")
    return folder, lines


@pytest.fixture
def train(audio_encoders, text_encoder, recordings, tmp_path, capsys):
    """Runs `train.py` over a manifest of these lines; returns its exit code (0 if it ended) and what it printed."""

    def train(lines, *options, header=HEADER):
        folder, _ = recordings
        (folder / "manifest.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        command = ["csv", "--data_dir", str(folder), "--audio_encoder", audio_encoders["wav2vec2-group"]]
        command += ["--text_encoder", text_encoder, "--num_train_epochs", "1", "--global_batch_size", "4"]
        command += ["--augmentation", "none", "--folds", "1", "--disable_tqdm", "true"]
        code = 0
        try:
            main([*command, "--output_dir", str(tmp_path / "run"), *options])
        except SystemExit as exit:
            code = exit.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return train


def broken(folder: Path, kind: str):
    path = folder / f"{kind}.wav"
    if kind == "empty":
        soundfile.write(path, np.zeros(0, np.float32), RATE)
    elif kind == "zero-bytes":
        path.touch()
    elif kind == "cut":
        soundfile.write(path, recording(0, 1.0), RATE)
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "text":
        path.write_text("this is not audio at all")
    elif kind in ("nan", "inf"):
        soundfile.write(path, np.array([0.1, float(kind)] * 800, np.float32), RATE, subtype="FLOAT")
    elif kind == "folder":
        path.mkdir()
    return path


BROKEN = {
    "missing": "missing.wav: no such audio file",
    "empty": "empty.wav: holds no audio samples. Remove it",
    "zero-bytes": "zero-bytes.wav: is an empty file, of 0 bytes",
    "cut": "cut.wav: is cut off: it holds less audio than its header says. Copy it again",
    "text": "text.wav: cannot be read as audio",
    "nan": "nan.wav: holds NaN or infinite samples. Repair it",
    "inf": "inf.wav: holds NaN or infinite samples. Repair it",
    "folder": "folder.wav: is a folder, not an audio file",
}


def assert_one_sentence(code, error, message):
    assert code == 2 and message in error, error
    assert error.startswith("train.py: ") and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize("kind", BROKEN)
def test_audio_that_cannot_be_used_is_named_before_training(train, recordings, kind, tmp_path):
    folder, lines = recordings
    broken(folder, kind)
    code, _, error = train([*lines, f"{kind}.wav,calm,a"])
    assert_one_sentence(code, error, BROKEN[kind])
    assert "--on_bad_audio skip" in error and not (tmp_path / "run").exists()


def test_bad_audio_is_skipped_listed_and_counted_on_demand(train, recordings, tmp_path):
    folder, lines = recordings
    for kind in BROKEN:
        broken(folder, kind)
    code, printed, error = train([*lines, *(f"{kind}.wav,calm,a" for kind in BROKEN)], "--on_bad_audio", "skip")
    assert code == 0, error
    assert "csv: 12 utterances, 3 speakers; calm 6, tense 6." in printed
    listed = {row["id"]: row["reason"] for row in read_csv(tmp_path / "run" / "skipped.csv")}
    assert listed.keys() == BROKEN.keys()
    assert all(BROKEN[kind] in listed[kind] for kind in BROKEN)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "8 utterances whose audio cannot be used are left out, see skipped.csv." in report
    code, _, error = train([f"{kind}.wav,calm,a" for kind in BROKEN], "--on_bad_audio", "skip")
    assert_one_sentence(code, error, "None of the 8 utterances can be used. The first: ")


def test_emodb_is_checked_too(emodb_like, tmp_path):
    for path in emodb_like.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    os.truncate(tmp_path / "08a01Fa.wav", 2000)
    with pytest.raises(ValueError, match=r"08a01Fa\.wav: is cut off"):
        load_corpus("emodb", tmp_path, allow_partial=True)
    skipped = []
    assert len(load_corpus("emodb", tmp_path, allow_partial=True, skipped=skipped)) == 69
    assert [id for id, _ in skipped] == ["08a01Fa"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--labels", "calm,tens"], "csv has no label 'tens'; it has calm, tense. Did you mean 'tense'?"),
        (["--labels", '{"calm": "neutral", "anger": "anger"}'], "csv has no label 'anger'; it has calm, tense."),
        (["--on_bad_audio", "ignore"], "on_bad_audio must be error or skip; found 'ignore'"),
        (["--global_batchsize", "4"], "There is no field 'global_batchsize'; did you mean 'global_batch_size'?"),
        (["--audio_encoder", "{folder}"], "cannot be loaded"),
        (["--folds", "7"], "There is no fold 7: this corpus has the folds 1 to 3."),
        (["--num_folds", "9"], "num_folds must lie between 2 and the number of speakers, 3; found 9"),
        (["--output_dir", "{folder}/good-00.wav/run"], "cannot be written (Not a directory). Choose another."),
        (["--train_sampling_strategy", "group_by_length"], NOT_USED),
        (["--utterances_per_class", "3"], "global_batch_size must be utterances_per_class (3) times 1 to 2"),
        (["--global_batch_size", "10", "--gradient_accumulation_steps", "10"], "cannot be shared by 1 processes x 10"),
    ],
)
def test_a_wrong_recipe_is_said_before_training(train, recordings, options, message):
    folder, lines = recordings
    code, _, error = train(lines, *(option.format(folder=folder) if "{f" in option else option for option in options))
    assert_one_sentence(code, error, message)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: ["good-00.wav,calm", *lines], "manifest.csv, line 2: no value for 'speaker'"),
        (lambda lines: [*lines, lines[3]], "line 14: the id 'good-03' stands for several files; line 5 has it too"),
        (lambda lines: [*lines[:4], '"good-04.wav,tense,b', *lines[5:]], "manifest.csv cannot be read (unexpected end"),
    ],
)
def test_a_wrong_row_is_said_with_its_line(train, recordings, change, message):
    code, _, error = train(change(recordings[1]))
    assert_one_sentence(code, error, message)


def test_a_manifest_in_another_encoding_is_said(train, recordings, tmp_path):
    _, lines = recordings
    code, _, error = train(lines, "--data_dir", str(tmp_path / "latin.csv"))
    assert_one_sentence(code, error, "there is no manifest")
    (tmp_path / "latin.csv").write_bytes("\n".join([HEADER, "good-00.wav,gelöst,a"]).encode("latin-1"))
    code, _, error = train(lines, "--data_dir", str(tmp_path / "latin.csv"))
    assert_one_sentence(code, error, "latin.csv cannot be read ('utf-8' codec can't decode")


def test_a_missing_column_is_said(train, recordings):
    code, _, error = train([line.rpartition(",")[0] for line in recordings[1]], header="path,label")
    assert_one_sentence(code, error, "the column 'speaker' is missing; found path, label")


def test_a_speaker_on_both_sides_is_said(train, recordings):
    lines = [f"{line},{number % 2}" for number, line in enumerate(recordings[1])]
    code, _, error = train(lines, header=f"{HEADER},fold")
    assert_one_sentence(code, error, "Fold 1: speaker 'a' is in training and in test")


def test_a_class_without_utterance_is_said(train, recordings):
    folder, lines = recordings
    broken(folder, "text")
    code, _, error = train([*lines, "text.wav,sad,a"], "--on_bad_audio", "skip")
    assert_one_sentence(code, error, "csv: no utterance is labelled 'sad'. Complete the corpus, or name the labels")


def test_labels_are_chosen_renamed_and_joined(train, recordings, tmp_path):
    _, lines = recordings
    lines = [line.replace("calm", ("neu", "bored")[number // 2 % 2]) for number, line in enumerate(lines)]
    code, _, error = train(lines, "--labels", '{"neu": "neutral", "bored": "neutral", "tense": "tension"}')
    assert code == 0, error
    config = json.loads((tmp_path / "run" / "fold-1" / "checkpoint" / "config.json").read_text())
    assert config["id2label"] == {"0": "neutral", "1": "tension"}
    code, printed, error = train(lines, "--labels", "neu, tense", "--output_dir", str(tmp_path / "two"))
    assert code == 0 and "9 utterances, 3 speakers; neu 3, tense 6." in printed


def test_a_label_that_a_fold_lacks_is_reported(train, recordings, tmp_path):
    _, lines = recordings
    lines = [*(f"{line},{line[-1]}" for line in lines), f"{'good-00.wav'},sad,a,a,again"]
    lines = [f"{line},u{number}" if line.count(",") == 3 else line for number, line in enumerate(lines)]
    code, printed, error = train(lines, "--folds", "1,2", header=f"{HEADER},fold,id")
    assert code == 0, error
    report = (tmp_path / "run" / "report.md").read_text()
    for sentence in ("Fold 1 has no sad to train on.", "Fold 2 has no sad to test."):
        assert sentence in report and sentence in printed


# ------------------------------------------------------------------------------------------------------- odd audio


def tone(duration_s, rate=RATE):
    t = np.arange(int(duration_s * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 220 * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


ODD = {
    "8-bit.wav": (tone(0.5), RATE, "PCM_U8"),
    "24-bit.wav": (tone(0.5), RATE, "PCM_24"),
    "32-bit.wav": (tone(0.5), RATE, "PCM_32"),
    "float.wav": (tone(0.5), RATE, "FLOAT"),
    "double.wav": (tone(0.5), RATE, "DOUBLE"),
    "mu-law.wav": (tone(0.5), RATE, "ULAW"),
    "a-law.au": (tone(0.5), RATE, "ALAW"),
    "adpcm.wav": (tone(0.5), RATE, "IMA_ADPCM"),
    "stereo.wav": (np.stack([tone(0.5), 0.2 * tone(0.5)], 1), RATE, "PCM_16"),
    "8-channels.wav": (np.repeat(tone(0.5)[:, None], 8, 1), RATE, "PCM_16"),
    "8-kHz.wav": (tone(0.5, 8_000), 8_000, "PCM_16"),
    "11-kHz.wav": (tone(0.5, 11_025), 11_025, "PCM_16"),
    "44.1-kHz.wav": (tone(0.5, 44_100), 44_100, "PCM_16"),
    "192-kHz.wav": (tone(0.5, 192_000), 192_000, "PCM_24"),
    "pcm.flac": (tone(0.5), RATE, "PCM_16"),
    "vorbis.ogg": (tone(0.5), RATE, "VORBIS"),
    "opus.opus": (tone(0.5, 48_000), 48_000, "OPUS"),
    "mpeg.mp3": (tone(0.5, 44_100), 44_100, "MPEG_LAYER_III"),
    "pcm-16.aiff": (tone(0.5), RATE, "PCM_16"),
    "10-ms.wav": (tone(0.01), RATE, "PCM_16"),
    "one-sample.wav": (np.array([0.1], np.float32), RATE, "PCM_16"),
    "one-sample-at-192-kHz.wav": (np.array([0.1], np.float32), 192_000, "PCM_16"),
    "silence.wav": (np.zeros(8000, np.float32), RATE, "PCM_16"),
    "faint.wav": (1e-7 * tone(0.5), RATE, "FLOAT"),
    "clipped.wav": (np.clip(20 * tone(0.5), -1, 1), RATE, "PCM_16"),
    "beyond-full-scale.wav": (50 * tone(0.5), RATE, "FLOAT"),
    "dc-offset.wav": (tone(0.5) + 0.6, RATE, "PCM_16"),
    "constant.wav": (np.full(8000, 0.5, np.float32), RATE, "PCM_16"),
    "long.wav": (tone(12.0), RATE, "PCM_16"),
}


@pytest.fixture
def odd(recordings):
    folder, _ = recordings
    containers = {"opus": "OGG", "au": "AU", "aiff": "AIFF"}
    for name, (samples, rate, subtype) in ODD.items():
        container = containers.get(Path(name).suffix[1:], Path(name).suffix[1:].upper())
        soundfile.write(folder / name, samples, rate, subtype=subtype, format=container)
    return folder


def test_odd_audio_is_read_as_the_mono_sound_that_it_is(odd):
    (odd / "manifest.csv").write_text("\n".join([HEADER, *(f"{name},calm,a" for name in ODD)]))
    skipped = []
    corpus = load_corpus("csv", odd, skipped=skipped)
    # Less than one sample at 16 kHz: nothing to hear, so it is named.
    assert [id for id, _ in skipped] == ["one-sample-at-192-kHz"] and "holds no audio samples" in skipped[0][1]
    dataset = SpeechDataset(corpus, range(len(corpus)), sampling_rate=RATE, max_duration_s=10)
    expected = tone(0.5)
    same_sound = 0
    for item, path in zip(dataset, corpus["audio"], strict=True):
        samples = item["views"][0]
        assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
        assert 1 <= len(samples) <= 10 * RATE
        if ODD[Path(path).name][0].shape[0] >= 4000 and len(samples) < 10_000 and samples.std() > 0:
            # Loudness and offset apart; codecs may add a few milliseconds of silence in front.
            lagged = max(
                np.corrcoef(samples[lag : lag + 7000], expected[:7000])[0, 1]
                for lag in range(0, len(samples) - 7000, 1 if path.endswith(("mp3", "opus")) else 1000)
            )
            assert lagged > 0.9, path  # clipped, it is nearly a square wave
            same_sound += 1
    assert same_sound >= 22


@pytest.mark.parametrize("family", ["wav2vec2-group", "wavlm-layer", "whisper"])
def test_odd_audio_trains_with_every_augmentation(train, odd, recordings, audio_encoders, tmp_path, family):
    lines = [f"{name},{('calm', 'tense')[number % 2]},{'abc'[number % 3]}" for number, name in enumerate(ODD)]
    encoder = json.loads((Path(audio_encoders[family]) / "config.json").read_text())
    encoder |= {"apply_spec_augment": True, "mask_time_prob": 0.3, "mask_time_length": 10}
    (tmp_path / "encoder").mkdir()
    for path in Path(audio_encoders[family]).iterdir():
        (tmp_path / "encoder" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(encoder))
    options = ["--augmentation", "mixed", "--global_batch_size", "2", "--bucket_by_length", "true"]
    options += ["--on_bad_audio", "skip", "--audio_encoder", str(tmp_path / "encoder"), "--max_duration_s", "1"]
    code, _, error = train([*lines, *recordings[1]], *options)
    assert code == 0, error
    history = json.loads((tmp_path / "run" / "fold-1" / "log_history.json").read_text())
    assert all(np.isfinite(entry["loss"]) and np.isfinite(entry["grad_norm"]) for entry in history if "loss" in entry)
    rows = read_csv(tmp_path / "run" / "fold-1" / "predictions.csv")
    assert len(rows) > 8 and all(np.isfinite(float(row["probability_calm"])) for row in rows)


# ------------------------------------------------------------------------------------------------------- full disk


@contextlib.contextmanager
def files_of_at_most(num_bytes: int):
    """Writing beyond fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0.5, 1.5], ids=["weights", "optimiser"])
def test_a_full_disk_costs_a_sentence_and_nothing_that_is_finished(train, recordings, tmp_path, room):
    _, lines = recordings
    code, _, error = train(lines)
    assert code == 0, error
    finished = {path: path.read_bytes() for path in (tmp_path / "run" / "fold-1").rglob("*") if path.is_file()}
    weights = (tmp_path / "run" / "fold-1" / "checkpoint" / "model.safetensors").stat().st_size
    largest_file_bytes = int(room * weights)  # the optimiser's file is twice as large
    with files_of_at_most(largest_file_bytes):
        code, _, error = train(lines, "--folds", "1,2")
    assert code == 2, error
    assert "could not be written: the disk is full" in error and "Traceback" not in error
    assert "give the same command again: what is finished is kept." in error
    assert {path: path.read_bytes() for path in finished} == finished
    assert not (tmp_path / "run" / "fold-2" / "checkpoint").exists()
    code, _, error = train(lines, "--folds", "1,2")
    assert code == 0, error
    assert {path: path.read_bytes() for path in finished} == finished
    assert len(read_csv(tmp_path / "run" / "fold-2" / "predictions.csv")) == 4
