"""`lascl-predict`: what it finds, answers, writes, and says of what it cannot answer."""

import csv
import io
import itertools
import json
import os
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import AUDIO_ENCODERS, LABELS, RATE, read_csv, recording
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

from lascl import LaSCLForAudioClassification, predict
from lascl.inference import Recogniser, files, outputs
from lascl.inference.files import length_buckets
from lascl.inference.finding import find_recordings
from lascl.inference.outputs import annotation_names


def save_checkpoint(family, audio_encoders, text_encoder, folder, **config):
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders[family], text_encoder, LABELS, projection_dim=8, **config
    )
    model.save_pretrained(folder)
    if family == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2, return_attention_mask=True)
    else:
        extractor = AutoFeatureExtractor.from_pretrained(audio_encoders[family])
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(audio_encoders, text_encoder, tmp_path_factory) -> str:
    """Hears any length."""
    return save_checkpoint("wav2vec2-layer", audio_encoders, text_encoder, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def whisper(audio_encoders, text_encoder, tmp_path_factory) -> str:
    """Hears 2 s."""
    return save_checkpoint("whisper", audio_encoders, text_encoder, tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with twelve recordings of other lengths in `audio/`, in two folders."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        path = tmp_path / "audio" / "ba"[number % 2] / f"{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, recording(number, 0.1 + 0.07 * (number * 5 % 12)), RATE)
    return tmp_path


PATHS = [f"audio/{letter}/{number:02}.wav" for letter in "ab" for number in range(12) if "ba"[number % 2] == letter]


def run(*arguments) -> int:
    """The exit code."""
    try:
        predict.main([str(argument) for argument in arguments])
    except SystemExit as exit:
        return exit.code
    return 0


def alone(checkpoint: str, samples: np.ndarray) -> np.ndarray:
    """(K,) probabilities, by the stock classes, of one utterance."""
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    with torch.no_grad():
        logits = model(**extractor(samples, sampling_rate=RATE, return_tensors="pt")).logits
    return logits.softmax(-1)[0].numpy()


def probabilities(row: dict, labels=LABELS) -> list[float]:
    return [float(row[f"probability_{label}"]) for label in labels]


# ------------------------------------------------------------------------------------------------------------ rows


def test_one_row_a_file_in_the_order_of_the_inputs(checkpoint, folder, capsys):
    assert run(checkpoint, "audio", "--output", "out.csv") == 0
    rows = read_csv(folder / "out.csv")
    assert list(rows[0]) == ["path", "label", *(f"probability_{label}" for label in LABELS)]
    assert [row["path"] for row in rows] == PATHS
    for row in rows:
        expected = alone(checkpoint, soundfile.read(row["path"], dtype="float32")[0])
        assert probabilities(row) == pytest.approx(expected, abs=1e-5)
        assert row["label"] == LABELS[expected.argmax()]
    captured = capsys.readouterr()
    assert captured.out == "" and "not trained" not in captured.err
    assert sorted(os.listdir(folder)) == ["audio", "out.csv", "out.csv.lascl.json"]


@pytest.mark.parametrize("limits", [{}, {"batch_size": 1}, {"batch_size": 5}, {"num_workers": 1}])
def test_batches_and_groups_change_no_row(checkpoint, folder, monkeypatch, limits):
    monkeypatch.setattr(files, "GROUP_FILES", 5)
    monkeypatch.setitem(files.BATCH_S, "cpu", 1.0)
    options = [part for name, value in limits.items() for part in (f"--{name}", value)]
    assert run(checkpoint, "audio", "--output", "out.csv", *options) == 0
    rows = read_csv(folder / "out.csv")
    assert [row["path"] for row in rows] == PATHS
    for row in rows[::5]:
        expected = alone(checkpoint, soundfile.read(row["path"], dtype="float32")[0])
        assert probabilities(row) == pytest.approx(expected, abs=1e-5)


def test_formats_say_the_same(checkpoint, folder, capsys):
    written = {}
    for name in ("csv", "jsonl", "table"):
        assert run(checkpoint, *PATHS[:3], "--format", name) == 0
        written[name] = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(written["csv"])))
    records = [json.loads(line) for line in written["jsonl"].splitlines()]
    header, *table = (line.split() for line in written["table"].splitlines())
    assert header == ["path", "label", *LABELS]
    for row, record, cells in zip(rows, records, table, strict=True):
        assert record == {
            "path": row["path"],
            "label": row["label"],
            "probabilities": dict(zip(LABELS, probabilities(row))),
        }
        assert cells == [row["path"], row["label"], *(f"{p:.3f}" for p in probabilities(row))]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_any_name_survives(checkpoint, folder, suffix):
    names = ['a,b "c".wav', "zeile\n2.wav", "\n.wav", "grün 悲.wav", os.fsdecode(b"stray \xff.wav"), "'.wav"]
    (folder / "odd").mkdir()
    for name in names:
        soundfile.write(os.fsencode(folder / "odd" / name), recording(1, 0.2), RATE)
    assert run(checkpoint, "odd", "--output", f"out.{suffix}") == 0
    with open(f"out.{suffix}", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file)) if suffix == "csv" else [json.loads(line) for line in file]
    expected = sorted(os.path.join("odd", name) for name in names)
    assert [row["path"] for row in rows] == expected
    before = (folder / f"out.{suffix}").read_bytes()
    assert run(checkpoint, "odd", "--output", f"out.{suffix}") == 0  # all are known again
    assert (folder / f"out.{suffix}").read_bytes() == before


def test_embeddings_lie_beside_the_rows(checkpoint, folder):
    assert run(checkpoint, "audio", "--output", "out.csv", "--embeddings", "deep/out.npz") == 0
    saved = np.load("deep/out.npz")
    assert saved["path"].tolist() == PATHS and saved["audio_embeds"].shape == (12, 8)
    assert np.linalg.norm(saved["audio_embeds"], axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    samples = torch.from_numpy(soundfile.read(PATHS[0], dtype="float32")[0])[None]
    with torch.no_grad():
        normalised = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        assert saved["audio_embeds"][0] == pytest.approx(model.get_audio_embeddings(normalised)[0].numpy(), abs=1e-4)
    assert os.listdir("deep") == ["out.npz"]


def test_abstaining_leaves_the_label_empty(checkpoint, folder, capsys):
    assert run(checkpoint, "audio", "--output", "all.csv") == 0
    highest = sorted(max(probabilities(row)) for row in read_csv(folder / "all.csv"))
    limit = f"{(highest[3] + highest[4]) / 2:.9f}"
    capsys.readouterr()
    assert run(checkpoint, "audio", "--output", "sure.csv", "--abstain", limit) == 0
    assert "4 of 12 rows have no label" in capsys.readouterr().err
    for row, everything in zip(read_csv(folder / "sure.csv"), read_csv(folder / "all.csv"), strict=True):
        assert probabilities(row) == pytest.approx(probabilities(everything), abs=1e-6)
        assert row["label"] == (everything["label"] if max(probabilities(row)) >= float(limit) else "")
    assert run(checkpoint, PATHS[0], "--output", "sure.jsonl", "--abstain", "1") == 0
    assert json.loads((folder / "sure.jsonl").read_text())["label"] is None


# ---------------------------------------------------------------------------------------------------------- inputs


def test_every_kind_of_input(folder, monkeypatch):
    (folder / "audio" / "a" / "._01.wav").write_bytes(b"a Mac's notes")
    (folder / "audio" / "notes.txt").write_text("no audio")
    (folder / "folder.wav").mkdir()
    (folder / "folder.wav" / "in it.MP4").write_bytes(b"")
    (folder / "lists").mkdir()
    (folder / "lists" / "mine.csv").write_text("id,path\n1,../audio/b/02.wav\n2,../audio/a/01.wav\n")
    (folder / "[1].wav").write_bytes(b"")

    def find(*inputs, listed=b""):
        found = find_recordings(inputs, lambda: listed)
        assert found.failures == {}
        return found.paths

    assert find("audio") == PATHS
    assert find("audio/b/02.wav", "audio/a/01.wav", "audio/b/02.wav", "./audio/b/02.wav") == [
        *("audio/b/02.wav", "audio/a/01.wav")
    ]
    assert find("audio/*/0[13].wav") == ["audio/a/01.wav", "audio/a/03.wav"]
    assert find("audio/**/*.wav") == PATHS and find("audio/*") == [*PATHS, "audio/notes.txt"]
    assert find("[1].wav") == ["[1].wav"]  # a name before a pattern
    assert find("folder.wav") == ["folder.wav/in it.MP4"]
    assert find("lists/mine.csv") == ["lists/../audio/b/02.wav", "lists/../audio/a/01.wav"]
    assert find("-", listed=b"a 1.wav\r\n\nb.wav") == ["a 1.wav", "b.wav"]
    assert find("-", listed="ä\n.wav\0b.wav\0".encode()) == ["ä\n.wav", "b.wav"]
    assert find("-", listed=b"audio/a\nx.wav") == [*PATHS[:6], "x.wav"]
    assert find("missing.wav") == ["missing.wav"]  # reading says so


def test_a_list_on_stdin(checkpoint, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(PATHS[3:5]).encode())))
    assert run(checkpoint, "-", "--output", "out.csv") == 0
    assert [row["path"] for row in read_csv(folder / "out.csv")] == PATHS[3:5]


def test_inputs_without_any_recording_are_told(folder):
    (folder / "bad.csv").write_text("file;path\n")
    (folder / "hole.csv").write_text("path,id\n,1\n")
    (folder / "void").mkdir()
    found = find_recordings(["bad.csv", "hole.csv", "void", "no*.wav", *PATHS[:1]], bytes)
    assert found.paths == PATHS[:1]
    assert list(found.failures.values()) == [
        "bad.csv: a manifest needs the column 'path'; found file;path.",
        "hole.csv, line 2: no value for 'path'.",
        "void: no audio file in this folder.",
        "no*.wav: no file matches this pattern.",
    ]


# ------------------------------------------------------------------------------------------------------- odd files


@pytest.mark.parametrize("model", ["checkpoint", "whisper"])
def test_odd_files_give_a_line_each_and_harm_no_other(model, request, folder, capsys, monkeypatch):
    checkpoint, odd = request.getfixturevalue(model), folder / "odd"
    good = recording(0, 0.4)
    odd.mkdir()
    (odd / "zero bytes.wav").write_bytes(b"")
    soundfile.write(odd / "one sample.wav", good[:1], RATE)
    soundfile.write(odd / "10 ms.wav", good[:160], RATE)
    soundfile.write(odd / "nan.wav", np.array([*good, np.nan]), RATE, subtype="FLOAT")
    soundfile.write(odd / "huge.wav", np.where(good > 0, 3e38, -3e38), RATE, subtype="FLOAT")
    soundfile.write(odd / "eight channels.wav", np.tile(good[:, None], 8), RATE)
    soundfile.write(odd / "192 kHz.wav", np.repeat(good, 12), 192_000)
    soundfile.write(odd / "truncated.flac", good, RATE)
    content = (odd / "truncated.flac").read_bytes()
    (odd / "truncated.flac").write_bytes(content[: len(content) // 2])
    (odd / "text.wav").write_text("text")
    (odd / "folder.wav").mkdir()
    soundfile.write(odd / "folder.wav" / "inside.wav", good, RATE)
    soundfile.write(odd / "zeile\n2.wav", good, RATE)
    soundfile.write(odd / "grün 悲.wav", good, RATE)
    soundfile.write(odd / "silence.wav", np.zeros(4000), RATE)
    (odd / "locked\n.wav").write_bytes(b"RIFF")

    def locked(path, *args, open=open):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied")
        return open(path, *args)

    monkeypatch.setattr("lascl.data.audio.open", locked, raising=False)
    assert run(checkpoint, "odd", "missing.wav", "void", "audio", "--output", "out.csv") == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    reasons = {line.strip().partition(": ")[0]: line.partition(": ")[2] for line in told}
    expected = {
        "odd/zero bytes.wav": "is an empty file",
        "odd/one sample.wav": "is too short, 0.0625 ms: this model needs",
        "odd/nan.wav": "holds NaN",
        "odd/truncated.flac": "c",  # cut off, or cannot be read
        "odd/text.wav": "cannot be read as audio",
        "odd/huge.wav": "gives no finite probabilities",
        r"odd/locked\n.wav": "cannot be opened (Permission denied)",
        "missing.wav": "no such audio file",
        "void": "no such audio file",
    }
    answered = {"eight channels.wav", "192 kHz.wav", "zeile\n2.wav", "grün 悲.wav", "silence.wav", "10 ms.wav"}
    rows = {row["path"]: row for row in read_csv(folder / "out.csv")}
    assert reasons.keys() == expected.keys() and len(told) == len(expected)
    for name, beginning in expected.items():
        assert reasons[name].startswith(("is cut off", "cannot be") if beginning == "c" else beginning), name
    assert rows.keys() == {
        *(f"odd/{name}" for name in answered),
        "odd/folder.wav/inside.wav",
        *PATHS,
    }
    for path in ("odd/folder.wav/inside.wav", "odd/eight channels.wav", "odd/zeile\n2.wav"):
        assert probabilities(rows[path]) == pytest.approx(alone(checkpoint, good), abs=1e-3), path
    for path in PATHS[:4]:
        expected_row = alone(checkpoint, soundfile.read(path, dtype="float32")[0])
        assert probabilities(rows[path]) == pytest.approx(expected_row, abs=1e-5)


@pytest.mark.parametrize("family", AUDIO_ENCODERS)
def test_the_shortest_audio_is_one_frame_of_the_encoder(family, audio_encoders, text_encoder, tmp_path):
    model = Recogniser.load(save_checkpoint(family, audio_encoders, text_encoder, tmp_path), device="cpu")
    # Whisper's mel frames; 40 + 20 * 2 samples in tiny.py's other encoders.
    shortest = 160 if family == "whisper" else 80
    assert model.min_duration_s * RATE == shortest
    probabilities, _ = model([recording(0)[:shortest], recording(1)])
    assert np.isfinite(probabilities).all()
    with pytest.raises(ValueError, match=r"Audio is too short, .* ms, one frame of its encoder"):
        model([recording(0)[: shortest - 1], recording(1)])


# ------------------------------------------------------------------------------------------------------ long files


@pytest.mark.parametrize("held_s", [60.0, 1.0], ids=["held", "read again"])
@pytest.mark.parametrize("batch", [[], ["--batch_size", 2]])
def test_what_is_longer_than_the_model_hears_is_averaged_over_windows(
    whisper, folder, capsys, monkeypatch, held_s, batch
):
    monkeypatch.setattr(files, "HELD_S", held_s)
    samples = np.concatenate([recording(seed, 1.9) for seed in range(4)])  # 7.6 s
    soundfile.write("long.wav", samples, RATE, subtype="FLOAT")
    soundfile.write("cut.wav", samples, RATE, subtype="FLOAT")
    content = (folder / "cut.wav").read_bytes()
    (folder / "cut.wav").write_bytes(content[:-1000])
    options = ["--output", "out.csv", "--embeddings", "out.npz", *batch]
    assert run(whisper, "long.wav", "cut.wav", PATHS[0], *options) == 1
    captured = capsys.readouterr().err
    assert "1 files are longer than 2 s: heard in 4 windows of 2 s" in captured and "cut.wav: is cut off" in captured
    long, short = read_csv(folder / "out.csv")
    starts_s = (0, 2, 4, 5.6)  # the last window ends with the file
    expected = np.mean([alone(whisper, samples[int(s * RATE) : int((s + 2) * RATE)]) for s in starts_s], axis=0)
    assert probabilities(long) == pytest.approx(expected, abs=1e-5)
    assert probabilities(short) == pytest.approx(alone(whisper, soundfile.read(PATHS[0])[0]), abs=1e-5)
    assert np.linalg.norm(np.load("out.npz")["audio_embeds"], axis=1) == pytest.approx(np.ones(2), abs=1e-5)


def test_others_hear_30_s_at_once_and_then_in_windows_of_10_s(checkpoint, folder, monkeypatch, capsys):
    model = Recogniser.load(checkpoint, device="cpu")
    assert (model.heard_at_once_s, model.window_s) == (30.0, 10.0)
    monkeypatch.setattr(Recogniser, "heard_at_once_s", 0.3)
    monkeypatch.setattr(Recogniser, "window_s", 0.1)
    soundfile.write("at once.wav", recording(0, 0.3), RATE)
    soundfile.write("longer.wav", recording(0, 0.31), RATE)
    assert run(checkpoint, "at once.wav", "longer.wav", "--output", "out.csv") == 0
    assert "1 files are longer than 0.3 s: heard in 4 windows of 0.1 s" in capsys.readouterr().err
    expected = alone(checkpoint, soundfile.read("at once.wav", dtype="float32")[0])
    assert probabilities(read_csv(folder / "out.csv")[0]) == pytest.approx(expected, abs=1e-5)


def test_audio_longer_than_a_model_hears_is_never_cut_in_silence(whisper):
    with pytest.raises(ValueError, match="hears 2 s at once; found 2.5 s"):
        Recogniser.load(whisper, device="cpu")([recording(0, 2.5)])


# --------------------------------------------------------------------------------------------------------- any words


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [1, 0, 3, 2], [2, 3, 1, 0]])
def test_permuting_labels_permutes_probabilities_exactly(checkpoint, folder, capsys, order):
    permuted = [LABELS[index] for index in order]
    assert run(checkpoint, "audio", "--output", "a.csv") == 0
    assert run(checkpoint, "audio", "--output", "b.csv", "--labels", ",".join(permuted)) == 0
    for row, other in zip(read_csv(folder / "a.csv"), read_csv(folder / "b.csv"), strict=True):
        assert list(other) == ["path", "label", *(f"probability_{label}" for label in permuted)]
        assert other == row  # to the last digit
    assert "not trained" not in capsys.readouterr().err
    model = Recogniser.load(checkpoint, device="cpu")
    audio = [recording(seed, 0.1 + 0.05 * seed) for seed in range(7)]
    before, _ = model(audio)
    model.model.set_labels(permuted)
    after, _ = model(audio)
    assert (after == before[:, order]).all() and after.dtype == np.float32


def test_other_words_are_said_to_be_untrained(checkpoint, folder, capsys):
    assert run(checkpoint, *PATHS[:2], "--labels", "joyful, weary", "--output", "out.csv") == 0
    assert "these labels were not trained: joyful, weary. Trained were angry, happy, neutral, sad." in (
        capsys.readouterr().err
    )
    for row in read_csv(folder / "out.csv"):
        assert row["labels_trained"] == "false" and sum(probabilities(row, ["joyful", "weary"])) == pytest.approx(1)
    assert run(checkpoint, PATHS[0], "--labels", "joyful", "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out)["labels_trained"] is False
    assert run(checkpoint, PATHS[0], "--labels", "joyful", "--format", "table") == 0
    told = "These labels were not trained: joyful. Trained were angry, happy, neutral, sad.\n"
    assert capsys.readouterr().out.startswith(told)


def test_a_template_is_read_and_untrained_too(checkpoint, folder, capsys):
    words = ["--labels", ",".join(LABELS)]
    assert run(checkpoint, PATHS[0], *words, "--template", "a {label} voice", "--output", "out.csv") == 0
    assert "not trained" in capsys.readouterr().err
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    model.set_labels(LABELS, "a {label} voice")
    model.save_pretrained(folder / "other")
    AutoFeatureExtractor.from_pretrained(checkpoint).save_pretrained(folder / "other")
    expected = alone(str(folder / "other"), soundfile.read(PATHS[0], dtype="float32")[0])
    assert probabilities(read_csv(folder / "out.csv")[0]) == pytest.approx(expected, abs=1e-5)


def test_a_checkpoint_saved_with_other_words_is_as_untrained(checkpoint, folder):
    model = LaSCLForAudioClassification.from_pretrained(checkpoint)
    model.set_labels(["joyful", "weary"])
    model.save_pretrained(folder / "other")
    AutoFeatureExtractor.from_pretrained(checkpoint).save_pretrained(folder / "other")
    assert Recogniser.load(folder / "other", device="cpu").trained_labels == LABELS
    assert Recogniser.load(checkpoint, device="cpu").trained_labels is None


# ------------------------------------------------------------------------------------------------------ continuing


class Killed(BaseException):
    """As sudden as a kill, for this process."""


@pytest.fixture
def killed_after(monkeypatch):
    """Lets the next run write so many times, then leaves half of a row."""

    def killed_after(num_writes):
        written = []

        def write(self, path, rows, whole=outputs.RowFile.write):
            if len(written) == num_writes:
                self._file.write(rows[: len(rows) // 2])
                self._file.flush()
                raise Killed
            written.append(rows)
            whole(self, path, rows)

        monkeypatch.setattr(outputs.RowFile, "write", write)

    yield killed_after
    monkeypatch.undo()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("num_writes", [0, 1, 7, 11])
def test_a_torn_output_is_continued(checkpoint, folder, killed_after, monkeypatch, capsys, suffix, num_writes):
    options = [checkpoint, "audio", "--output", f"out.{suffix}", "--embeddings", "out.npz"]
    killed_after(num_writes)
    with pytest.raises(Killed):
        run(*options)
    torn = (folder / f"out.{suffix}").read_bytes()
    assert not torn.endswith(b"\n") and not (folder / "out.npz").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run(*options) == 0
    found = (folder / f"out.{suffix}").read_bytes()
    assert found.startswith(torn[: torn.rfind(b"\n") + 1])
    paths = np.load("out.npz")["path"].tolist()
    assert paths == PATHS and found.count(b"\n") == 12 + (suffix == "csv")
    if num_writes:
        assert f"{num_writes} of 12 files are in out.{suffix} already" in capsys.readouterr().err
    embeds = np.load("out.npz")["audio_embeds"]
    assert run(checkpoint, "audio", "--output", "again.csv", "--embeddings", "again.npz") == 0
    assert embeds == pytest.approx(np.load("again.npz")["audio_embeds"], abs=1e-5)
    rows = [name for kind in ("again.csv", f"out.{suffix}") for name in (kind, f"{kind}.lascl.json")]
    assert sorted(os.listdir(folder)) == sorted(["again.npz", "audio", "out.npz", *rows])


@pytest.mark.parametrize("left", [0, 3])
def test_a_torn_header_is_written_again(checkpoint, folder, left):
    assert run(checkpoint, PATHS[0], "--output", "out.csv") == 0
    whole = (folder / "out.csv").read_bytes()
    (folder / "out.csv").write_bytes(whole[:left])
    assert run(checkpoint, PATHS[0], "--output", "out.csv") == 0
    assert (folder / "out.csv").read_bytes() == whole


def test_more_files_are_appended_and_mended_ones_too(checkpoint, folder, capsys):
    (folder / "late.wav").write_bytes(b"")
    first = [checkpoint, *PATHS[:2], "late.wav", "--output", "out.csv", "--embeddings", "out.npz"]
    assert run(*first) == 1
    soundfile.write("late.wav", recording(3), RATE)
    assert run(checkpoint, *PATHS[:4], "late.wav", "--output", "out.csv", "--embeddings", "out.npz") == 0
    expected = [*PATHS[:4], "late.wav"]
    assert [row["path"] for row in read_csv(folder / "out.csv")] == expected
    assert np.load("out.npz")["path"].tolist() == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_output_of_another_kind_is_refused_and_left_alone(checkpoint, folder, capsys, suffix):
    output = folder / f"out.{suffix}"
    assert run(checkpoint, PATHS[0], "--output", output) == 0
    before = output.read_bytes()
    for options, field in ((["--labels", "joyful,weary"], "labels"), (["--window", 0.2], "window")):
        assert run(checkpoint, *PATHS, "--output", output, *options) == 2
        assert f"was answered otherwise; different are: {field} (" in capsys.readouterr().err
    record = f"{output.name}.lascl.json"
    assert output.read_bytes() == before and sorted(os.listdir(folder)) == ["audio", output.name, record]
    os.remove(record)
    for options in (["--labels", "joyful,weary"], ["--window", 0.2]):
        assert run(checkpoint, *PATHS, "--output", output, *options) == 2
        assert "was made with other labels or another --window" in capsys.readouterr().err
    output.write_text("somebody's notes\n")
    assert run(checkpoint, *PATHS, "--output", output) == 2
    assert output.read_text() == "somebody's notes\n"
    assert run(checkpoint, *PATHS, "--output", folder / "audio") == 2


def test_an_unfinished_output_is_continued_as_it_was_begun(checkpoint, folder, killed_after, monkeypatch, capsys):
    killed_after(2)
    with pytest.raises(Killed):
        run(checkpoint, "audio", "--output", "out.csv")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run(checkpoint, "audio", "--output", "out.csv", "--abstain", "0.9") == 2
    assert "different are: abstain (0.0 there, 0.9 here)" in capsys.readouterr().err


def test_rows_without_embeddings_are_not_mixed_with_such(checkpoint, folder, capsys):
    assert run(checkpoint, *PATHS[:2], "--output", "out.csv") == 0
    assert run(checkpoint, *PATHS, "--output", "out.csv", "--embeddings", "out.npz") == 2
    assert "different are: embeddings (None there, 'out.npz' here)" in capsys.readouterr().err
    assert run(checkpoint, *PATHS[:2], "--output", "both.csv", "--embeddings", "both.npz") == 0
    os.remove("both.npz")
    assert run(checkpoint, *PATHS, "--output", "both.csv", "--embeddings", "both.npz") == 2
    assert "both.npz lacks the embeddings of 2 rows" in capsys.readouterr().err


def test_an_interrupt_keeps_the_rows_and_says_how_to_go_on(checkpoint, folder, monkeypatch, capsys):
    monkeypatch.setattr(files, "GROUP_FILES", 4)
    asked = []

    def interrupt(self, audio, answer=Recogniser._answer):
        asked.extend(audio)
        if len(asked) > 8:
            raise KeyboardInterrupt
        return answer(self, audio)

    monkeypatch.setattr(Recogniser, "_answer", interrupt)
    assert run(checkpoint, "audio", "--output", "out.csv") == 130
    assert "interrupted: 8 files are in out.csv. The same command goes on from there." in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run(checkpoint, "audio", "--output", "out.csv") == 0
    assert [row["path"] for row in read_csv(folder / "out.csv")] == PATHS


def test_a_full_disk_is_said_in_a_sentence(checkpoint, folder, monkeypatch, capsys):
    def write(self, path, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.RowFile, "write", write)
    assert run(checkpoint, "audio", "--output", "out.csv") == 2
    assert "the disk is full. Free some space, then the same again." in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- segments


def test_segments_of_each_recording(checkpoint, folder, capsys):
    samples = np.concatenate([recording(seed, 0.8) for seed in range(3)])
    soundfile.write("call.wav", samples, RATE, subtype="FLOAT")
    options = ["--window", 0.5, "--hop", 0.25]
    annotations = ["--textgrid", "praat", "--srt", "subtitles", "--audacity", "tracks"]
    assert run(checkpoint, "call.wav", "audio/a", "--output", "out.csv", *options, *annotations) == 0
    rows = [row for row in read_csv(folder / "out.csv") if row["path"] == "call.wav"]
    assert list(rows[0])[:4] == ["path", "start_s", "end_s", "label"]
    bounds = [(float(row["start_s"]), float(row["end_s"])) for row in rows]
    assert bounds[0][0] == 0 and bounds[-1][1] == 2.4
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    assert all(before["label"] != after["label"] for before, after in itertools.pairwise(rows))
    # The first quarter of a second is heard by the first window alone.
    first = alone(checkpoint, samples[:8000])
    assert rows[0]["label"] == LABELS[first.argmax()]

    tracks = [line.split("\t") for line in (folder / "tracks" / "call.txt").read_text().splitlines()]
    assert [(float(a), float(b), label) for a, b, label in tracks] == [
        (*bound, row["label"]) for bound, row in zip(bounds, rows)
    ]
    cues = (folder / "subtitles" / "call.srt").read_text().split("\n\n")
    assert len(cues) == len(rows)
    assert cues[0].splitlines()[0] == "1" and cues[0].splitlines()[1].startswith("00:00:00,000 --> 00:00:0")
    assert cues[-1].splitlines()[1].endswith("--> 00:00:02,400")
    assert sorted(os.listdir("praat")) == ["audio", "call.TextGrid"] and len(os.listdir("praat/audio/a")) == 6

    # The same again finds all done; a recording without its file of annotations is not taken for done.
    before = (folder / "out.csv").read_bytes()
    assert run(checkpoint, "call.wav", "audio/a", "--output", "out.csv", *options, *annotations) == 0
    assert (folder / "out.csv").read_bytes() == before
    os.remove("praat/call.TextGrid")
    capsys.readouterr()
    assert run(checkpoint, "call.wav", "audio/a", "--output", "out.csv", *options, *annotations) == 2
    assert "has call.wav already, but praat/call.TextGrid is missing" in capsys.readouterr().err


def test_a_textgrid_covers_the_recording_and_escapes_quotes():
    window = outputs.Window
    found = outputs.annotation(
        "textgrid",
        [
            window(0.5, 1.0, 'so "fine"', np.ones(1)),
            window(1.0, 2.0, "", np.ones(1)),
            window(2.5, 3.0, "sad", np.ones(1)),
        ],
        4.0,
    )
    lines = [line.strip() for line in found.splitlines()]
    assert lines[:7] == [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        "xmax = 4.000000",
        "tiers? <exists>",
        "size = 1",
    ]
    assert "intervals: size = 5" in lines
    told = [line.partition(" = ")[2] for line in lines[lines.index("intervals: size = 5") + 1 :] if " = " in line]
    assert told == [
        *("0.000000", "0.500000", '""', "0.500000", "1.000000", '"so ""fine"""', "1.000000", "2.500000", '""'),
        *("2.500000", "3.000000", '"sad"', "3.000000", "4.000000", '""'),
    ]


def test_a_subtitle_s_clock():
    cue = outputs.annotation("srt", [outputs.Window(3599.9996, 7265.25, "sad", np.ones(1))], 8000.0)
    assert cue == "1\n01:00:00,000 --> 02:01:05,250\nsad\n"


@pytest.mark.parametrize(
    "paths, names",
    [
        (["a/x.wav", "b/x.wav"], ["a/x", "b/x"]),
        (["a/x.wav", "a/y.wav"], ["x", "y"]),
        (["a/x.wav", "a/x.flac", "a/y.wav"], ["x.wav", "x.flac", "y"]),
        (["a/x.wav", "a/X.wav"], ["x.wav", "X.wav-2"]),
        (["x.wav", "x.mp3", "x.wav.mp3"], ["x.wav-2", "x.mp3", "x.wav"]),
    ],
)
def test_no_two_recordings_share_a_name(paths, names):
    assert annotation_names(paths) == dict(zip(paths, names))


def test_silence_leaves_no_segment(checkpoint, folder, capsys, monkeypatch):
    pytest.importorskip("webrtcvad")
    soundfile.write("silence.wav", np.zeros(RATE), RATE)
    options = ["--window", 0.3, "--hop", 0.3, "--vad", "--textgrid", "praat"]
    assert run(checkpoint, "silence.wav", "--output", "out.csv", *options) == 0
    assert read_csv(folder / "out.csv") == []
    assert "1 files have no rows: no window of theirs holds speech." in capsys.readouterr().err
    assert "intervals: size = 1" in (folder / "praat" / "silence.TextGrid").read_text()
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    assert run(checkpoint, "silence.wav", *options) == 2
    assert 'pip install "lascl[vad]"' in capsys.readouterr().err


def test_a_recording_damaged_at_its_end_leaves_no_segment(checkpoint, folder, capsys):
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(name, np.tile(recording(1, 1.0), 25), RATE)
    content = (folder / "b.wav").read_bytes()
    (folder / "b.wav").write_bytes(content[:-1000])
    soundfile.write("d.wav", recording(1, 1.0)[:5], RATE)
    command = [checkpoint, "a.wav", "b.wav", "c.wav", "d.wav", "--output", "out.csv", "--window", 2, "--textgrid", "t"]
    assert run(*command) == 1
    assert {row["path"] for row in read_csv(folder / "out.csv")} == {"a.wav", "c.wav"}
    assert sorted(os.listdir("t")) == ["a.TextGrid", "c.TextGrid"]
    told = capsys.readouterr().err
    assert "b.wav: is cut off" in told and "d.wav: Audio is too short" in told


def test_the_last_recording_of_a_killed_run_is_segmented_anew(checkpoint, folder, killed_after, monkeypatch):
    command = [checkpoint, "audio", "--output", "out.csv", "--window", 0.2, "--hop", 0.1]
    assert run(*command) == 0
    expected = read_csv(folder / "out.csv")
    os.remove("out.csv")
    killed_after(6)
    with pytest.raises(Killed):
        run(*command)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    with open("out.csv", "rb") as file:  # and at a row's end, which looks whole
        rows = file.read().splitlines(keepends=True)
    (folder / "out.csv").write_bytes(b"".join(rows[:-2]))
    assert run(*command) == 0
    found = read_csv(folder / "out.csv")
    assert [(row["path"], row["start_s"], row["label"]) for row in found] == [
        (row["path"], row["start_s"], row["label"]) for row in expected
    ]


# ----------------------------------------------------------------------------------------------------------- speed


@given(st.lists(st.floats(0.1, 40), max_size=60), st.integers(1, 9), st.floats(1, 60))
def test_batches_are_of_like_length_and_within_limits(lengths_s, most_rows, most_s):
    buckets = length_buckets(lengths_s, most_rows=most_rows, most_s=most_s)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths_s)))
    in_order = [lengths_s[index] for bucket in buckets for index in bucket]
    assert in_order == sorted(in_order)
    for bucket in buckets:
        longest = max(lengths_s[index] for index in bucket)
        assert len(bucket) == 1 or (len(bucket) <= most_rows and len(bucket) * longest <= most_s)
    for before, after in itertools.pairwise(buckets):  # no batch could have taken the next one's first
        assert len(before) == most_rows or (len(before) + 1) * lengths_s[after[0]] > most_s


def test_a_batch_too_large_for_the_memory_is_halved(checkpoint, monkeypatch):
    model, sizes = Recogniser.load(checkpoint, device="cpu"), []
    audio = [recording(seed, 0.2) for seed in range(7)]
    expected = model(audio)

    def small_memory(self, audio, answer=Recogniser._answer):
        sizes.append(len(audio))
        if len(audio) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return answer(self, audio)

    monkeypatch.setattr(Recogniser, "_answer", small_memory)
    for found, wanted in zip(model(audio), expected):
        assert found == pytest.approx(wanted, abs=1e-6)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--template", "a {label} voice"], "--template needs --labels"),
        (["--hop", "1"], "--hop needs --window"),
        (["--vad"], "--vad needs --window"),
        (["--textgrid", "x"], "--textgrid needs --window"),
        (["--window", "1", "--embeddings", "x.npz"], "leave out --window"),
        (["--window", "0"], "must be above 0; found 0"),
        (["--abstain", "60"], "must lie in [0, 1]; found 60"),
        (["--batch_size", "0"], "must be at least 1; found 0"),
        (["--format", "table", "--output", "x"], "for --output take csv or jsonl"),
        (["--batch", "2"], "there is no --batch; did you mean --batch_size?"),
        (["--window", "0.0001"], "at least one frame of the encoder, 0.005 s"),
        (["--window", "1", "--hop", "2"], "The hop must be above 0 s and at most the window"),
        (["--labels", "a,a"], "differ from each other"),
        (["--labels", "a", "--template", "x"], "template must contain {label}"),
        (["--device", "abacus"], "The device 'abacus' cannot be used"),
    ],
)
def test_what_cannot_be_done_ends_in_a_sentence(checkpoint, folder, capsys, options, sentence):
    assert run(checkpoint, PATHS[0], *options) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err.splitlines()[-1] and captured.out == ""
    assert sorted(os.listdir(folder)) == ["audio"]


def test_what_is_no_checkpoint_ends_in_a_sentence(checkpoint, audio_encoders, folder, capsys):
    assert run(audio_encoders["whisper"], PATHS[0]) == 2
    assert "is of the type 'whisper', not a LaSCL checkpoint" in capsys.readouterr().err
    (folder / "void").mkdir()
    for model in ("void", "./absent"):
        assert run(model, PATHS[0]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert run(checkpoint, "void") == 2
    assert capsys.readouterr().err == "lascl-predict: void: no audio file in this folder.\n"


def test_stream_is_where_the_readme_says():
    from lascl.inference import stream

    assert predict.stream is stream
