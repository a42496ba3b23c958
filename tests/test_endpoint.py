"""`handler.py` of a published fold, as an Inference Endpoint calls it; and the example that serves it over HTTP."""

import base64
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_remote_code import STRANGER
from tiny import LABELS, RATE, flac_that_states, recording
from transformers import AutoModel, AutoTokenizer, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from lascl import LaSCLForAudioClassification
from lascl.configuration_lascl import OLDEST_TRANSFORMERS
from lascl.data.audio import FFMPEG_FORMATS
from lascl.hub.publish import HANDLER, HANDLER_REQUIREMENTS
from lascl.inference import Recogniser


ROOT = Path(__file__).resolve().parents[1]
WORDS = ["joyful", "furious", "weary"]

# Loads `handler.py` and calls it as huggingface's inference toolkit does; argv are the folder of the repositories, the
# file of requests, and the one for answers.
ENDPOINT = (
    STRANGER[: STRANGER.index("from pathlib")]
    + """
import importlib.util
import json
import pickle

answers = {}
for family in ("whisper", "wavlm-layer"):
    spec = importlib.util.spec_from_file_location("handler", f"{sys.argv[1]}/{family}/handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler, answers[family] = module.EndpointHandler(f"{sys.argv[1]}/{family}"), []
    for request in pickle.load(open(sys.argv[2], "rb")):
        try:
            answers[family].append(handler(request))
        except ValueError as error:
            answers[family].append(str(error))
json.dump(answers, open(sys.argv[3], "w"))
assert not [module for module in sys.modules if module.split(".")[0] == "lascl"]
"""
)


@pytest.fixture(scope="module")
def repositories(audio_encoders, text_encoder, tmp_path_factory):
    """Published folds, as folders: one of Whisper that hears 2 s at once, one of WavLM."""
    root = tmp_path_factory.mktemp("repositories")
    for family in ("whisper", "wavlm-layer"):
        torch.manual_seed(7)
        options = {"window_s": 2} if family == "whisper" else {}
        model = LaSCLForAudioClassification.from_encoders(audio_encoders[family], text_encoder, LABELS, **options)
        model.save_pretrained(root / family)
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        if family == "whisper":
            extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2, return_attention_mask=True)
        extractor.save_pretrained(root / family)
        for kind in (AutoModel, AutoTokenizer):
            kind.from_pretrained(text_encoder).save_pretrained(root / family / "text_encoder")
        shutil.copy(HANDLER, root / family)
    return root


def load(folder: Path):
    spec = importlib.util.spec_from_file_location("handler_of_a_test", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def handler(repositories):
    return load(repositories / "whisper")


def file_of(samples: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind)
    return content.getvalue()


def scores(answer: list[dict]) -> list[float]:
    assert [set(one) for one in answer] == [{"label", "score"}] * len(answer)
    assert [one["score"] for one in answer] == sorted((one["score"] for one in answer), reverse=True)
    by_label = {one["label"]: one["score"] for one in answer}
    return [by_label[label] for label in LABELS]


SAMPLES, LONG = recording(3, 1.0), recording(6, 5.0)
STEREO = np.stack([recording(4, 1.0), recording(5, 1.0)], axis=1)
CONTENT = file_of(SAMPLES)
HEARD, _ = soundfile.read(io.BytesIO(CONTENT), dtype="float32")  # of 16 bits
AS_TEXT = base64.b64encode(CONTENT).decode()
AS_ARRAY = {"raw": LONG.tolist(), "sampling_rate": RATE}
REQUESTS = {
    "bytes": {"inputs": CONTENT},
    "bytearray": {"inputs": bytearray(CONTENT), "parameters": {}},
    "base64": {"inputs": AS_TEXT},
    "data": {"inputs": f"data:audio/wav;base64,{AS_TEXT}", "parameters": None},
    "array": {"inputs": {"array": HEARD.tolist(), "sampling_rate": RATE}},
    "list": {"inputs": HEARD.tolist(), "parameters": {"sampling_rate": RATE}},
    "numpy": {"inputs": HEARD, "sampling_rate": RATE},
    "top": {"inputs": CONTENT, "parameters": {"top_k": 2}},
    "words": {"inputs": CONTENT, "parameters": {"labels": WORDS}},
    "words as text": {"inputs": CONTENT, "parameters": {"labels": " joyful,furious , weary"}},
    "after words": {"inputs": CONTENT},  # other words change nothing of the next request
    "stereo": {"inputs": file_of(STEREO, kind="FLAC")},
    "windows": {"inputs": AS_ARRAY, "parameters": {"window_s": 1.5, "top_k": 1}},
    "long": {"inputs": AS_ARRAY},
    "text": {"inputs": b"no audio"},
}


@pytest.fixture(scope="module")
def answers(repositories, tmp_path_factory):
    """Of both repositories to REQUESTS, where LaSCL is not installed and no network is."""
    folder = tmp_path_factory.mktemp("endpoint")
    (folder / "requests").write_bytes(pickle.dumps(list(REQUESTS.values())))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    clean.pop("PYTHONPATH", None)
    own = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ENDPOINT, str(repositories), "requests", "answers.json"]
    done = subprocess.run(command, cwd=folder, env=clean | own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads((folder / "answers.json").read_text())
    return {family: dict(zip(REQUESTS, rows, strict=True)) for family, rows in told.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["whisper", "wavlm-layer"])
def test_an_endpoint_answers_as_the_model_where_lascl_is_not_installed(family, repositories, answers):
    told = answers[family]
    asked = Recogniser.load(repositories / family, device="cpu")
    expected = asked([HEARD])[0][0]
    for name in ("bytes", "bytearray", "base64", "data", "array", "list", "numpy", "after words"):
        assert scores(told[name]) == pytest.approx(expected, abs=1e-5), name
    assert told["top"] == told["bytes"][:2]
    words = Recogniser.load(repositories / family, labels=WORDS, device="cpu")([HEARD])[0][0]
    for name in ("words", "words as text"):
        found = {one["label"]: one["score"] for one in told[name]}
        assert found == pytest.approx(dict(zip(WORDS, words)), abs=1e-5)
    assert scores(told["stereo"]) == pytest.approx(asked([STEREO.mean(axis=1)])[0][0], abs=1e-3)
    assert told["text"].startswith("The audio cannot be read")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["whisper", "wavlm-layer"])
def test_an_endpoint_hears_what_is_long_in_windows(family, repositories, answers):
    told, asked = answers[family], Recogniser.load(repositories / family, device="cpu")
    starts = [0, 1.5, 3.0, 3.5]  # the last one ends with the recording
    assert [(one["start_s"], one["end_s"]) for one in told["windows"]] == [(start, start + 1.5) for start in starts]
    for start, one in zip(starts, told["windows"]):
        row = asked([LONG[round(start * RATE) :][: round(1.5 * RATE)]])[0][0]
        best = int(row.argmax())
        assert one["scores"] == [{"label": LABELS[best], "score": pytest.approx(row[best], abs=1e-5)}]
    # Of Whisper, which hears 2 s here, the mean.
    pieces = [LONG] if family != "whisper" else [LONG[:32000], LONG[32000:64000], LONG[48000:]]
    mean = np.mean([asked([piece])[0][0] for piece in pieces], axis=0)
    assert scores(told["long"]) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    "data, message",
    [
        ({}, 'A request needs "inputs"'),
        ([1], 'A request needs "inputs"'),
        ({"inputs": "not base64!"}, "must be an audio file in base64"),
        ({"inputs": b""}, "empty, of 0 bytes"),
        ({"inputs": ""}, "empty, of 0 bytes"),
        ({"inputs": {"sampling_rate": RATE}}, 'needs "array" and "sampling_rate"'),
        ({"inputs": [0.0] * RATE}, "needs its sampling_rate, a whole number in Hz; found None"),
        ({"inputs": {"array": [0.0] * RATE, "sampling_rate": "16000"}}, "found '16000'"),
        ({"inputs": {"array": [["a"]], "sampling_rate": RATE}}, "must hold numbers"),
        ({"inputs": {"array": [[0.0, 0.0]], "sampling_rate": RATE}}, r"must be mono, \(samples,\); found \(1, 2\)"),
        ({"inputs": {"array": [0.0] * 10, "sampling_rate": RATE}}, "too short: 0.000625 s; give 0.1 s"),
        ({"inputs": {"array": [float("nan")] * RATE, "sampling_rate": RATE}}, "NaN or infinite"),
        ({"inputs": {"array": [3e38, -3e38] * 8000, "sampling_rate": RATE}}, "finite"),
        ({"inputs": b"x", "parameters": {"topk": 1}}, "Unknown parameter 'topk': there are top_k, labels, window_s"),
        ({"inputs": b"x", "parameters": {"top_k": 0}}, "top_k must be a whole number of at least 1; found 0"),
        ({"inputs": b"x", "parameters": {"top_k": True}}, "found True"),
        ({"inputs": b"x", "parameters": {"window_s": 3}}, "window_s must be 0.1 to 2 seconds; found 3"),
        ({"inputs": b"x", "parameters": {"window_s": "1"}}, "found '1'"),
        ({"inputs": b"x", "parameters": {"labels": ["joyful"]}}, "2 to 100 different words; found 1"),
        ({"inputs": b"x", "parameters": {"labels": [1, 2]}}, "must be a list of words"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(handler, data, message):
    with pytest.raises(ValueError, match=message), np.errstate(all="ignore"):
        handler(data)


def test_a_small_file_of_hours_or_many_channels_is_not_decoded(handler, monkeypatch, tmp_path):
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **how: pytest.fail("it was decoded"))
    for rate, channels, seconds in ((8000, 1, 7200), (655_350, 8, 60)):
        path = flac_that_states(tmp_path / "a.flac", rate, channels, seconds)
        with pytest.raises(ValueError, match="too long: at most 10 minutes"):
            handler({"inputs": path.read_bytes()})


def test_another_rate_is_resampled(handler):
    t = np.arange(48_000) / 48_000
    high = (0.4 * np.sin(2 * np.pi * 300 * t)).astype(np.float32)
    low = high[::3]
    answers = [handler({"inputs": {"array": x, "sampling_rate": r}}) for x, r in ((high, 48_000), (low, RATE))]
    assert scores(answers[0]) == pytest.approx(scores(answers[1]), abs=2e-3)


def test_ffmpeg_of_an_endpoint_opens_nothing_else_either(handler, tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/argv\nhead -c 400000 /dev/zero\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert len(handler({"inputs": b"a video" * 100})) == 4
    told = (tmp_path / "argv").read_text().split("\n")
    before = told[: told.index("-i")]
    assert before[before.index("-protocol_whitelist") + 1] == "file"
    assert before[before.index("-format_whitelist") + 1] == FFMPEG_FORMATS  # those of lascl-predict


def test_a_classifier_keeps_its_labels(repositories, tmp_path):
    folder = shutil.copytree(repositories / "whisper", tmp_path / "repository")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "prediction_head": "classifier"}))
    asked, content = load(folder), file_of(recording(1, 1.0))
    assert len(asked({"inputs": content})) == 4
    with pytest.raises(ValueError, match="predicts with its classifier, whose labels cannot change"):
        asked({"inputs": content, "parameters": {"labels": WORDS}})


def test_requirements_are_those_of_the_package_and_of_the_code_that_travels():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    of_package = setup["options"]["install_requires"].split()
    assert HANDLER_REQUIREMENTS[0] == f"transformers>={OLDEST_TRANSFORMERS},<6"
    assert set(HANDLER_REQUIREMENTS[1:]) <= set(of_package)
    serving = (ROOT / "examples" / "serve" / "requirements.txt").read_text().split()
    assert set(HANDLER_REQUIREMENTS) <= set(serving)
    assert serving[0] in (ROOT / "constraints.txt").read_text().split()


def test_the_example_serves_a_published_fold(repositories, monkeypatch):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    monkeypatch.setenv("LASCL_MODEL", str(repositories / "whisper"))
    spec = importlib.util.spec_from_file_location("serve_of_a_test", ROOT / "examples" / "serve" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client, content = TestClient(module.app), file_of(recording(3, 1.0))
    answer = client.post("/", content=content)
    assert answer.status_code == 200 and answer.json() == load(repositories / "whisper")({"inputs": content})
    found = client.post("/", content=content, params={"top_k": 1, "labels": "joyful, weary", "window_s": 0.5}).json()
    assert len(found) == 2 and {window["scores"][0]["label"] for window in found} <= {"joyful", "weary"}
    refused = client.post("/", content=b"no audio")
    assert refused.status_code == 422 and refused.json()["detail"].startswith("The audio cannot be read")
    assert client.post("/", content=content, params={"top_k": "x"}).status_code == 422
    monkeypatch.setattr(module, "MAX_MB", 0.01)
    assert client.post("/", content=content).status_code == 413
