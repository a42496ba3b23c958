"""Every program of `examples/` runs, as its first lines say, on generated recordings."""

import csv
import json
import re
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from tiny import LABELS
from transformers import AutoFeatureExtractor, pipeline

from lascl import LaSCLForAudioClassification


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RATE = 16_000
ELSEWHERE = {"onnx_predict.py": "test_export.py", "serve/app.py": "test_endpoint.py"}  # what runs the others


def run(name: str, *arguments, monkeypatch, capsys) -> str:
    """What `python examples/NAME ARGUMENTS` prints."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture
def ran(monkeypatch, capsys):
    return lambda name, *arguments: run(name, *arguments, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture(scope="module")
def checkpoint(audio_encoders, text_encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wav2vec2-layer"], text_encoder, LABELS)
    model.save_pretrained(folder)
    AutoFeatureExtractor.from_pretrained(audio_encoders["wav2vec2-layer"]).save_pretrained(folder)
    return folder


def noise(path: Path, seconds: float, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    soundfile.write(path, samples, RATE)
    return path


def test_each_example_is_run_and_says_how():
    programs = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    run_here = set(re.findall(r'ran\("(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    assert len(programs) >= 6 and programs - run_here == ELSEWHERE.keys()
    for name in run_here:
        assert f"python examples/{name} " in (EXAMPLES / name).read_text(encoding="utf-8").split('"""')[1], name
    for name, test in ELSEWHERE.items():
        assert Path(name).name in (ROOT / "tests" / test).read_text(encoding="utf-8")


def test_the_notebook_is_kept_as_it_ran_with_its_pictures():
    """`make notebook` runs it, and `.ci/run`."""
    text = (EXAMPLES / "tour.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4 and len(text) < 400_000


def test_fine_tuning_on_a_manifest(ran, audio_encoders, text_encoder, tmp_path):
    rows = [(f"{speaker}{label}.wav", label, speaker) for speaker in "abcde" for label in ("anger", "neutral")]
    for seed, (path, _, _) in enumerate(rows):
        noise(tmp_path / path, 0.1, seed)
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker"), *rows])
    encoders = ("--audio_encoder", audio_encoders["wavlm-layer"], "--text_encoder", text_encoder)
    said = ran("fine_tune_csv.py", tmp_path / "manifest.csv", tmp_path / "out", *encoders, "--epochs", 1)
    assert "eval_ua" in said
    classifier = pipeline("audio-classification", model=str(tmp_path / "out"), trust_remote_code=True)
    answers = classifier({"raw": np.zeros(800, np.float32) + 0.1, "sampling_rate": RATE})
    assert {answer["label"] for answer in answers} == {"anger", "neutral"}


def test_many_corpora_and_one_that_was_never_heard(ran, audio_encoders, text_encoder, tmp_path):
    words = {"one": ["anger", "calm"], "two": ["anger", "boredom"], "mine": ["anger", "annoyed"]}
    for number, (name, labels) in enumerate(words.items()):
        rows = [(f"{speaker}{label}.wav", label, speaker) for speaker in "ab" for label in labels]
        for seed, (path, _, _) in enumerate(rows):
            noise(tmp_path / name / path, 0.1, 10 * number + seed)
        with open(tmp_path / name / "manifest.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "speaker"), *rows])
    encoders = ("--audio_encoder", audio_encoders["wavlm-layer"], "--text_encoder", text_encoder, "--epochs", 1)
    corpora = ("--corpora", "one=csv,two=csv,mine=csv", "--left_out", "mine")
    lines = ran("many_corpora.py", tmp_path, tmp_path / "out", *corpora, *encoders).splitlines()
    anger, annoyed = lines[-2:]
    assert lines[-3].startswith("mine, never heard: UA ")
    assert anger.split()[0] == "anger" and annoyed.split()[0] == "annoyed"
    assert annoyed.endswith("nobody trained") and not anger.endswith("nobody trained")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(config["id2label"].values()) == {"anger", "boredom", "calm"}


def test_a_timeline_of_a_call(ran, checkpoint, tmp_path):
    said = ran("call_timeline.py", checkpoint, noise(tmp_path / "call.wav", 3.2), tmp_path / "timeline.png")
    lines = [line.split() for line in said.splitlines()]
    assert (lines[0][0], lines[-1][2]) == ("0.0", "3.2") and all(line[4] in LABELS for line in lines)
    assert (tmp_path / "timeline.png").read_bytes()[1:4] == b"PNG"


def test_a_line_a_speaker_of_a_call(ran, checkpoint, tmp_path):
    call = noise(tmp_path / "call.wav", 3.2)
    turns = [(0.5, 1.25, "bob"), (0.0, 0.75, "ann"), (2.0, 1.0, "ann")]
    lines = [f"SPEAKER call 1 {start} {length} <NA> <NA> {who} <NA> <NA>\n" for start, length, who in turns]
    (tmp_path / "call.rttm").write_text("".join(lines))
    said = ran("call_timeline.py", checkpoint, call, tmp_path / "timeline.png", tmp_path / "call.rttm")
    rows = [line.split() for line in said.splitlines()]
    assert [(row[0], row[2], row[5]) for row in rows] == [
        ("0.0", "0.8", "ann"),
        ("0.5", "1.8", "bob"),
        ("2.0", "3.0", "ann"),
    ]
    assert all(row[4] in LABELS for row in rows)
    assert (tmp_path / "timeline.png").read_bytes()[1:4] == b"PNG"


def test_a_microphone(ran, checkpoint, monkeypatch, capsys):
    """A stand-in for sounddevice: three seconds of noise, and then Control-C."""
    left = list(0.1 * np.random.default_rng(0).standard_normal((12, 4000, 1)).astype(np.float32))

    class InputStream:
        def __init__(self, samplerate, *, channels, dtype):
            assert (samplerate, channels, dtype) == (RATE, 1, "float32")

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def read(self, frames):
            if not left:
                raise KeyboardInterrupt
            return left.pop(0), False

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(InputStream=InputStream))
    lines = ran("microphone.py", checkpoint, "calm, tense").splitlines()
    assert [line.split()[0] for line in lines] == ["2.0", "2.5", "3.0"]
    assert {line.split()[2] for line in lines} <= {"calm", "tense"} and all(line.endswith("#") for line in lines)


def test_words_over_a_folder(ran, checkpoint, tmp_path):
    noise(tmp_path / "calls" / "a.wav", 0.3)
    noise(tmp_path / "calls" / "older" / "b.wav", 0.5, 1)
    (tmp_path / "calls" / "notes.txt").write_text("no audio")
    said = ran("words_over_a_folder.py", checkpoint, tmp_path / "calls", "calm, tense", tmp_path / "words.csv")
    table = pd.read_csv(tmp_path / "words.csv")
    assert list(table.columns) == ["path", "word", "failure", "calm", "tense"] and len(table) == 3
    answered = table[table["failure"].isna()]
    assert len(answered) == 2 and answered["calm"].add(answered["tense"]).sub(1).abs().max() < 1e-3
    assert "notes.txt" in table["failure"].dropna().item()
    assert sum(int(line.split()[-1]) for line in said.splitlines()[1:]) == 2


def test_comparing_with_another_system(ran, tmp_path):
    """Four speakers; the other system is right where the run is wrong, but for one utterance."""
    rows = []
    for speaker, number in ((f"s{k}", n) for k in range(4) for n in range(6)):
        reference, wrong = (("anger", "sadness"), ("sadness", "anger"))[number % 2]
        answer = wrong if number == 0 else reference
        rows.append((f"{speaker}-{number}", speaker, reference, answer, answer))
    run_dir = tmp_path / "run" / "fold-1"
    run_dir.mkdir(parents=True)
    with open(run_dir / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "speaker", "reference", "prediction", "prediction_classifier"), *rows])
    with open(tmp_path / "yours.csv", "w", newline="") as file:
        yours = [(id, "anger" if id == "s0-1" else reference) for id, _, reference, *_ in rows]
        csv.writer(file).writerows([("id", "prediction"), *yours])
    said = ran("compare_with_yours.py", tmp_path / "run", tmp_path / "yours.csv")
    assert "WA: " in said and "24 utterances" in said
    table = [line.split() for line in said.splitlines()[-2:]]
    assert table == [["False", "0", "4"], ["True", "1", "19"]]
