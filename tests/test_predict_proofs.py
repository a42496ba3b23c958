"""Long proofs of `lascl-predict`, run by `make proofs` alone: kills, hours of audio, and moods that turn."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_predict import save_checkpoint
from tiny import AUDIO_ENCODERS, RATE, read_csv, recording

from lascl import train
from lascl.data import read_audio
from lascl.predict import Recogniser, main, segments, stream
from lascl.training.random_encoders import save_random_audio_encoder


pytestmark = pytest.mark.proof

KILLED = str(Path(__file__).with_name("killed_predict.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NUM_FILES, NUM_KILLS = 60, 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text_encoder) -> str:
    """Tiny, but with the frame rate of the real ones: 50 a second."""
    folder = tmp_path_factory.mktemp("real-rate")
    strides = {"conv_dim": [8] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
    spec = {**AUDIO_ENCODERS["wavlm-layer"], **strides, "num_feat_extract_layers": 7}
    encoders = {"real-rate": str(save_random_audio_encoder(spec, folder / "audio"))}
    return save_checkpoint("real-rate", encoders, text_encoder, folder / "checkpoint")


def finish(process: list[str], cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(process, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [[], ["--window", "0.4", "--hop", "0.2"]], ids=["files", "segments"])
def test_killed_at_ten_random_rows_no_row_is_missing_and_none_is_there_twice(checkpoint, tmp_path, options):
    rng = random.Random(str(options))
    (tmp_path / "audio").mkdir()
    for number in range(NUM_FILES):
        name = tmp_path / "audio" / f"{number:02}{rng.choice(['', chr(10), ',', chr(34)])}.wav"
        soundfile.write(name, recording(number, rng.uniform(0.2, 2.0)), RATE)
    common = [checkpoint, "audio", *options]
    if not options:
        common += ["--embeddings", "out.npz"]
    undisturbed = finish([sys.executable, "-m", "lascl.predict", *common, "--output", "whole.csv"], tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected, embeds = read_csv(tmp_path / "whole.csv"), None
    if not options:
        embeds = np.load(tmp_path / "out.npz")["audio_embeds"]
        os.remove(tmp_path / "out.npz")
    command = [*common, "--output", "out.csv"]
    for _ in range(NUM_KILLS):
        killed = finish([sys.executable, KILLED, str(rng.randint(1, NUM_FILES // NUM_KILLS)), *command], tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "out.npz").exists()
    last = finish([sys.executable, "-m", "lascl.predict", *command], tmp_path)
    assert last.returncode == 0, last.stderr
    found = read_csv(tmp_path / "out.csv")
    decisive = ("path", "start_s", "end_s", "label")
    assert [[row.get(name) for name in decisive] for row in found] == [
        [row.get(name) for name in decisive] for row in expected
    ]
    for row, wanted in zip(found, expected):
        for name in row.keys() - set(decisive):
            assert float(row[name]) == pytest.approx(float(wanted[name]), abs=1e-5)
    if not options:
        saved = np.load(tmp_path / "out.npz")
        assert saved["path"].tolist() == [row["path"] for row in expected]
        assert saved["audio_embeds"] == pytest.approx(embeds, abs=1e-5)


def test_a_reader_that_has_seen_enough_is_no_error(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", recording(0), RATE)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lascl.predict", checkpoint, "a.wav"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, b"pipe" in done.stderr, b"Traceback" in done.stderr) == (1, False, False), done.stderr


PEAK = """
import resource, sys
from lascl.predict import main
main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_hours(path: Path, duration_s: int):
    """Bursts of noise and silence, at 8 kHz and 8 bits: 230 MB for eight hours."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", samplerate=8000, channels=1, subtype="PCM_U8") as file:
        for start_s in range(0, duration_s, 60):
            loud = np.repeat(rng.uniform(0, 0.5, size=20), 3 * 8000)[: 8000 * min(60, duration_s - start_s)]
            file.write(loud * rng.standard_normal(len(loud)).clip(-2, 2))


@pytest.mark.parametrize(
    "options",
    [[], ["--window", "3", "--hop", "1", "--textgrid", "praat", "--srt", "srt", "--vad"]],
    ids=["one row", "segments"],
)
def test_eight_hours_need_little_more_memory_than_a_minute(checkpoint, tmp_path, options):
    peak_mib = {}
    for name, duration_s in (("minute", 60), ("hours", 8 * 3600)):
        write_hours(tmp_path / f"{name}.wav", duration_s)
        command = [sys.executable, "-c", PEAK, checkpoint, f"{name}.wav", "--output", f"{name}.csv", *options]
        done = finish(command, tmp_path)
        assert done.returncode == 0, done.stderr
        peak_mib[name] = float(done.stdout.rpartition("PEAK ")[2])
        rows = read_csv(tmp_path / f"{name}.csv")
        if options:
            assert rows and float(rows[-1]["end_s"]) <= duration_s and len(os.listdir(tmp_path / "praat")) >= 1
        else:
            assert len(rows) == 1
    print(f"peak MiB: {peak_mib}")
    assert peak_mib["hours"] - peak_mib["minute"] <= 100


def test_three_moods_joined_are_three_segments(shared, tmp_path):
    """Of a frozen head trained here within a minute; the surest right answers about speakers that it never heard."""
    encoders, emodb = shared / "encoders", shared / "corpora" / "emodb"
    options = ["--corpus", "emodb", "--data_dir", emodb, "--audio_encoder", encoders / "whisper-tiny.en"]
    options += ["--text_encoder", encoders / "all-MiniLM-L6-v2", "--folds", "1", "--output_dir", tmp_path / "run"]
    options += ["--augmentation", "none", "--num_views", "1", "--num_train_epochs", "20", "--disable_tqdm", "true"]
    train.main(["small-corpus", *map(str, options), "--use_cpu", "true"])
    surest = {}
    for row in read_csv(tmp_path / "run" / "fold-1" / "predictions.csv"):
        if row["reference"] == row["prediction"]:
            certainty = float(row[f"probability_{row['prediction']}"])
            surest[row["reference"]] = max(surest.get(row["reference"], (0.0, "")), (certainty, row["id"]))
    moods = sorted(sorted(surest, key=surest.get, reverse=True)[:3])
    clips = [read_audio(emodb / f"{surest[mood][1]}.flac") for mood in moods]
    turns_s = np.cumsum([len(clip) / RATE for clip in clips])
    soundfile.write(tmp_path / "joined.wav", np.concatenate(clips), RATE, subtype="FLOAT")

    checkpoint = str(tmp_path / "run" / "fold-1" / "checkpoint")
    window, hop = ["--window", "2.0"], ["--hop", "0.5"]
    main([checkpoint, str(tmp_path / "joined.wav"), *window, *hop, "--output", str(tmp_path / "out.csv")])
    rows = read_csv(tmp_path / "out.csv")
    assert [row["label"] for row in rows] == moods
    bounds_s = [float(row["end_s"]) for row in rows]
    assert bounds_s == pytest.approx(turns_s, abs=0.5)
    model = Recogniser.load(checkpoint)
    from_python = segments(stream(model, tmp_path / "joined.wav", window_s=2.0, hop_s=0.5), model.labels)
    assert [(s.label, round(s.end_s, 3)) for s in from_python] == list(zip(moods, bounds_s))
