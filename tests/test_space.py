"""The demo Space: its answers, what it refuses, what it keeps and tells of visitors, and the page in a browser."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import soundfile
import torch
from tiny import LABELS, RATE, flac_that_states, recording
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from lascl import LaSCLForAudioClassification
from lascl.inference import Recogniser, Window


pytest.importorskip("gradio", reason='needs Gradio (pip install "lascl[space]")')
from lascl.space import app, timeline


ROOT = Path(__file__).resolve().parents[1]
WORDS = ["joyful", "furious", "weary"]
CARD = """---
library_name: transformers
---

# LaSCL speech emotion recognition

Recognises emotion in a tiny voice. Trained with [LaSCL](#citation).

## Use

Code that no visitor of the page needs.

## Intended use and limits

* **Nobody's feelings.** It knows none.

## Training data

Secret recordings.
"""
WINDOW_S = 2  # of the tiny Whisper


@pytest.fixture(scope="module")
def checkpoints(audio_encoders, text_encoder, tmp_path_factory):
    """Checkpoints with random weights, by the family of their encoders."""
    root = tmp_path_factory.mktemp("checkpoints")
    for family in ("whisper", "wavlm-layer", "hubert-batch"):
        torch.manual_seed(7)
        options = {"window_s": WINDOW_S} if family == "whisper" else {}
        model = LaSCLForAudioClassification.from_encoders(audio_encoders[family], text_encoder, LABELS, **options)
        model.save_pretrained(root / family)
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        if family == "whisper":
            extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_S, return_attention_mask=True)
        extractor.save_pretrained(root / family)
        (root / family / "README.md").write_text(CARD)
    return root


@pytest.fixture(scope="module")
def recogniser(checkpoints):
    return Recogniser.load(checkpoints / "whisper", device="cpu")


@pytest.fixture(scope="module")
def text(recogniser):
    return app.load_words(recogniser)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> SimpleNamespace:
    """Files: one second; nine seconds; longer and larger than is taken."""
    root = tmp_path_factory.mktemp("clips")
    soundfile.write(root / "short.wav", recording(1, 1.0), RATE)
    soundfile.write(root / "long.wav", np.concatenate([recording(seed, 1.5) for seed in range(6)]), RATE)
    soundfile.write(root / "too-long.flac", np.zeros(601 * 8000), 8000)
    soundfile.write(root / "too-large.wav", recording(1, 1.0), RATE)
    os.truncate(root / "too-large.wav", 51_000_000)
    return SimpleNamespace(**{path.stem.replace("-", "_"): path for path in root.iterdir()})


def direct(checkpoint: Path, samples: np.ndarray, labels=None, template=None) -> list[float]:
    """Probabilities of a checkpoint by the model's own interface."""
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    if labels is not None:
        model.set_labels(labels, template)
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    with torch.no_grad():
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        return model(**inputs).logits.softmax(-1)[0].tolist()


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("family", ["whisper", "wavlm-layer", "hubert-batch"])
def test_answers_are_the_models_own_and_own_words_are_those_of_set_labels(family, checkpoints, clips):
    samples, _ = soundfile.read(clips.short, dtype="float32")
    asked = Recogniser.load(checkpoints / family, device="cpu")
    encoder = app.load_words(asked)
    before = {name: tensor.clone() for name, tensor in asked.model.state_dict().items()}
    expected = direct(checkpoints / family, samples)

    own = app.answer(asked, clips.short)
    assert own.labels == LABELS and own.untrained == [] and (own.num_windows, own.duration_s) == (1, 1.0)
    assert own.probabilities == pytest.approx(expected, abs=1e-6)
    words = app.answer(asked, clips.short, " joyful,furious , ,weary,joyful", text_encoder=encoder)
    assert words.labels == WORDS == words.untrained
    assert words.probabilities == pytest.approx(direct(checkpoints / family, samples, WORDS), abs=1e-6)
    phrased = app.answer(asked, clips.short, "", "a {label} voice", text_encoder=encoder)
    assert phrased.labels == LABELS == phrased.untrained
    in_direct = direct(checkpoints / family, samples, LABELS, "a {label} voice")
    assert phrased.probabilities == pytest.approx(in_direct, abs=1e-6)
    some = app.answer(asked, clips.short, "sad, furious", text_encoder=encoder)
    assert some.labels == ["sad", "furious"] and some.untrained == ["furious"]

    assert app.answer(asked, clips.short).probabilities.tolist() == own.probabilities.tolist()
    assert asked.model.config.labels == LABELS and asked.trained_labels is None
    assert all(torch.equal(before[name], tensor) for name, tensor in asked.model.state_dict().items())


def test_a_checkpoint_saved_with_other_words_says_that_they_were_not_trained(checkpoints, clips, tmp_path):
    model = LaSCLForAudioClassification.from_pretrained(checkpoints / "whisper")
    model.set_labels(["sad", "furious"])
    model.save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(checkpoints / "whisper").save_pretrained(tmp_path)
    asked = Recogniser.load(tmp_path, device="cpu")
    assert app.answer(asked, clips.short).untrained == ["furious"]
    words = app.answer(asked, clips.short, "angry, furious, weary", text_encoder=app.load_words(asked))
    assert words.untrained == ["furious", "weary"]


def test_other_words_copy_no_weights(recogniser, text):
    other, _ = app.with_words(recogniser, "joyful, weary", "", text)
    shared = {parameter.data_ptr() for parameter in recogniser.model.parameters()}
    assert all(parameter.data_ptr() in shared for parameter in other.model.parameters())


def test_the_words_of_one_visitor_never_reach_another(recogniser, text, checkpoints, clips):
    samples, _ = soundfile.read(clips.short, dtype="float32")
    asked = {"": None, "joyful, weary": ["joyful", "weary"], "calm, furious, shy": ["calm", "furious", "shy"]}
    expected = {words: direct(checkpoints / "whisper", samples, labels) for words, labels in asked.items()}
    begin = threading.Barrier(6)

    def visit(words):
        begin.wait()
        return [app.answer(recogniser, clips.short, words, text_encoder=text) for _ in range(5)]

    visitors = [*asked, *asked]
    with ThreadPoolExecutor(max_workers=len(visitors)) as pool:
        for words, answers in zip(visitors, pool.map(visit, visitors)):
            for found in answers:
                assert found.labels == (asked[words] or LABELS)
                assert found.probabilities == pytest.approx(expected[words], abs=1e-6)


class ByLoudness(Recogniser):
    """Instead of a model: certain, and right about what is quiet and what is loud."""

    labels, sampling_rate, min_duration_s, max_duration_s = ["quiet", "loud"], RATE, 0.025, 2.0

    def __init__(self):
        self.model = SimpleNamespace(config=SimpleNamespace(labels=self.labels, label_template="{label}"))

    def __call__(self, audio):
        is_loud = np.array([np.abs(samples).mean() > 0.5 for samples in audio])
        return np.stack([~is_loud, is_loud], axis=1).astype(np.float32), None


def test_a_long_recording_has_its_turn_where_it_is(tmp_path):
    samples = np.concatenate([np.full(8 * RATE, 0.1), np.full(4 * RATE, 0.9)]).astype(np.float32)
    soundfile.write(tmp_path / "turn.wav", samples, RATE)
    told = []
    found = app.answer(ByLoudness(), tmp_path / "turn.wav", progress=told.append)
    # Windows of 2 s every 0.5 s: 21 of them.
    assert (found.window_s, found.num_windows, found.duration_s) == (2.0, 21, 12.0)
    (quiet, loud) = found.segments
    assert (quiet.label, quiet.start_s, loud.label, loud.end_s) == ("quiet", 0.0, "loud", 12.0)
    assert quiet.end_s == loud.start_s == pytest.approx(8.0, abs=0.5)
    assert found.probabilities.sum() == pytest.approx(1) and found.probabilities[1] == pytest.approx(1 / 3, abs=0.05)
    assert told == sorted(told) and told[-1] == 1.0


@pytest.mark.parametrize(
    "duration_s, hears_s, expected",
    [
        (1.5, 2.0, (1.5, 1.5)),
        (2.5, 2.0, (2.0, 0.5)),
        (9.9, float("inf"), (9.9, 9.9)),
        (11.0, float("inf"), (3.0, 0.75)),
        (9.9, 30.0, (9.9, 9.9)),
        (602.0, 2.0, (2.0, 1.5)),  # no more windows than 401
        (600.0, 1.0, (1.0, 1.0)),  # nothing is left out for that
    ],
)
def test_what_is_heard_at_once(duration_s, hears_s, expected):
    assert app.windowing(duration_s, hears_s) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ refused


def odd_file(kind: str, folder: Path) -> Path:
    path = folder / "visitor's own.wav"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no audio at all\n" * 100)
    elif kind == "nan":
        soundfile.write(path, np.full(RATE, np.nan), RATE, subtype="FLOAT")
    elif kind == "huge":
        soundfile.write(path, 1e38 * recording(1, 1.0), RATE, subtype="FLOAT")
    elif kind == "cut off":
        soundfile.write(path.with_suffix(".flac"), recording(1, 3.0), RATE)
        content = path.with_suffix(".flac").read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "too short":
        soundfile.write(path, recording(1, 0.05), RATE)
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), RATE)
    elif kind == "video":
        path = path.with_suffix(".mp4")
        path.write_bytes(b"no video" * 100)
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("empty", "Your recording is an empty file, of 0 bytes."),
        ("text", "Your recording cannot be read as audio"),
        ("nan", "Your recording holds NaN or infinite samples"),
        ("cut off", "Your recording "),
        ("huge", "Your recording cannot be heard. Audio gives no finite probabilities"),
        ("too short", "Your recording is too short; it must last at least 0.1 seconds."),
        ("no samples", "Your recording holds no audio samples."),
        ("video", "Your recording: "),
        ("missing", "Your recording is no longer here: choose the file once more."),
    ],
)
def test_a_recording_that_cannot_be_heard_costs_a_sentence_without_its_path(recogniser, tmp_path, kind, message):
    with pytest.raises(app.Refusal) as refusal:
        app.answer(recogniser, odd_file(kind, tmp_path))
    said = str(refusal.value)
    assert said.startswith(message) and said.count("\n") == 0, said
    assert "/" not in said and "visitor" not in said, said


def test_limits_of_length_and_size(recogniser, clips, monkeypatch):
    with pytest.raises(app.Refusal, match="too long; at most 10 minutes are taken: give a part of it"):
        app.answer(recogniser, clips.too_long)
    with pytest.raises(app.Refusal, match="has 51.0 MB; at most 50 MB are taken: give a part of it"):
        app.answer(recogniser, clips.too_large)
    with pytest.raises(app.Refusal, match="Record something or choose a file first"):
        app.answer(recogniser, None)
    # However long the rest is, it is not read.
    read = []
    blocks = (read.append(None) or np.zeros(100 * RATE, np.float32) for _ in range(1000))
    monkeypatch.setattr(app, "read_blocks", lambda *_, **__: blocks)
    with pytest.raises(app.Refusal, match="too long"):
        app.answer(recogniser, clips.short)
    assert len(read) == 7


@pytest.mark.parametrize(
    "rate, channels, seconds, message",
    [
        (655_350, 8, 601, "Your recording is too long; at most 10 minutes are taken: give a part of it."),
        (8000, 1, 36_000, "Your recording is too long; at most 10 minutes are taken: give a part of it."),
        (655_350, 8, 60, "Your recording holds more than 115 million samples in all its channels. Convert it to mono"),
    ],
)
def test_a_header_is_asked_before_anything_is_decoded(
    recogniser, tmp_path, monkeypatch, rate, channels, seconds, message
):
    path = flac_that_states(tmp_path / "a.flac", rate, channels, seconds)
    decoded, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **how: decoded.append(1) or read(*args, **how))
    said = refusal_of(recogniser, path)
    assert decoded == [] and said.startswith(message) and str(tmp_path) not in said


def refusal_of(recogniser, path: Path) -> str:
    """What a visitor is told; it must be a visitor's fault."""
    try:
        app.answer(recogniser, path)
    except Exception as error:
        assert isinstance(error, app.Refusal), f"{type(error).__name__} is no fault of the visitor's"
        return str(error)
    return "no refusal"


def test_a_raw_file_is_a_visitors_fault(recogniser, tmp_path):
    (tmp_path / "visitor's own.raw").write_bytes(bytes(32_000))
    said = refusal_of(recogniser, tmp_path / "visitor's own.raw")
    assert said.startswith("Your recording is taken for headerless audio by its ending, .raw"), said
    assert "Convert it to WAV or FLAC" in said and "/" not in said and "visitor" not in said


def test_pages_and_programs_share_one_limit(recogniser):
    page = app.build(recogniser)
    listening = [fn for fn in page.fns.values() if fn.fn is not None and fn.fn.__name__.startswith("for_p")]
    assert len(listening) >= 2
    assert {fn.concurrency_id for fn in listening} == {"listening"}
    assert {fn.concurrency_limit for fn in listening} == {app.CONCURRENT}


@pytest.mark.parametrize(
    "words, template, message",
    [
        ("joyful", "", "at least two words"),
        ("joyful, joyful,, ", "", "at least two words"),
        (", ".join(f"word {number}" for number in range(21)), "", "at most 20 words"),
        (f"joyful, {'x' * 61}", "", "at most 60 letters"),
        ("joyful, weary", "a voice", "must hold {label}"),
        ("joyful, weary", "{label}" + "x" * 120, "at most 120 letters"),
    ],
)
def test_words_that_cannot_be_used(recogniser, text, clips, words, template, message):
    with pytest.raises(app.Refusal, match=re.escape(message)):
        app.answer(recogniser, clips.short, words, template, text_encoder=text)


def test_a_model_that_cannot_answer_other_words_has_no_box_for_them(checkpoints, clips, tmp_path, capsys):
    no_encoder, no_label_head = (shutil.copytree(checkpoints / "whisper", tmp_path / name) for name in ("a", "b"))
    shutil.rmtree(no_encoder / "text_encoder")
    config = json.loads((no_label_head / "config.json").read_text())
    (no_label_head / "config.json").write_text(json.dumps({**config, "prediction_head": "classifier"}))
    for folder in (no_encoder, no_label_head):
        asked = Recogniser.load(folder, device="cpu")
        assert app.load_words(asked) is None
        boxes = [block for block in app.build(asked).blocks.values() if type(block).__name__ == "Group"]
        assert [box.visible for box in boxes] == [False]
        with pytest.raises(app.Refusal, match="answers its own labels only"):
            app.answer(asked, clips.short, "joyful, weary")
    assert "The page has no box for own words" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- timeline


class Strict(HTMLParser):
    """Every element is closed where it should be."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.words, self.elements = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def window(start_s, end_s, label, probability):
    return Window(start_s, end_s, label, np.array([probability, 1 - probability]))


def test_the_timeline_and_its_table_say_the_same():
    labels = ["anger", "<b>joy</b>"]
    parts = [window(0.0, 2.5, "anger", 0.75), window(2.5, 70.0, "<b>joy</b>", 0.125)]
    shown = Strict(timeline.figure(parts, labels, np.ones(140), 70.0))
    assert "b" not in [tag for tag, _ in shown.elements]
    bars = [attributes for tag, attributes in shown.elements if tag == "path"]
    assert [bar["fill"] for bar in bars] == ["#0072B2", "#D55E00"]
    assert [bar["d"].count("M") for bar in bars] == [5, 135]  # columns of half a second
    assert [word for word in shown.words if "%" in word] == ["<b>joy</b> 96%", "anger 4%"]
    assert [word for word in shown.words if ":" in word] == ["0:00", "0:20", "0:40", "1:00"]
    places = [a["style"] for tag, a in shown.elements if tag == "span" and "left:3.571%;width:96.429%" in str(a)]
    assert len(places) == 2  # its name, its colour

    rows = Strict(timeline.table(parts, labels))
    assert rows.words[:5] == ["Segments (2)", "Start", "End", "Label", "Probability"]
    assert rows.words[5:] == ["0:00.0", "0:02.5", "anger", "75%", "0:02.5", "1:10.0", "<b>joy</b>", "88%"]


def test_colours_are_those_of_the_figures():
    style = (ROOT / "evaluation" / "lascl.mplstyle").read_text()
    of_figures = [f"#{colour}" for colour in re.findall(r'"([0-9A-F]{6})"', style.split("axes.prop_cycle")[1])]
    assert ["#000000" if colour == "currentColor" else colour for colour in timeline.COLOURS] == of_figures
    assert timeline.colour("k", [*"abcdefghijk"]) == timeline.COLOURS[2]  # more labels than colours


def test_peaks_of_a_recording_its_silence_and_fewer_samples_than_columns():
    samples = np.concatenate([np.full(100, -0.5), np.full(100, 0.25)]).astype(np.float32)
    assert timeline.peaks(samples, 4).tolist() == [1, 1, 0.5, 0.5]
    assert timeline.peaks(np.zeros(1000, np.float32), 4).tolist() == [0] * 4
    assert timeline.peaks(np.ones(2, np.float32), 4).max() == 1


# --------------------------------------------------------------------------------------------- recordings and the card


def test_what_is_old_is_swept_with_its_folder_and_broken_uploads_too(tmp_path):
    old, new, broken = tmp_path / "a" / "old.wav", tmp_path / "b" / "new.wav", tmp_path / "tmp123"
    for file in (old, new, broken):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"voice")
    for path in (old, old.parent, new.parent, broken):
        os.utime(path, (0, 0))
    app.sweep(tmp_path, older_than_s=60)
    assert not old.exists() and not broken.exists() and new.is_file()
    os.utime(old.parent, (0, 0))  # an empty folder stays for a while: an upload may be about to use it
    app.sweep(tmp_path, older_than_s=60)
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and new.is_file()
    app.delete(new)
    app.delete(new)  # gone already
    assert not new.parent.exists()


def test_about_is_the_cards_own_words(checkpoints, tmp_path):
    about = app.about_model(str(checkpoints / "whisper"))
    assert "Recognises emotion in a tiny voice. Trained with LaSCL." in about
    assert "**Nobody's feelings.** It knows none." in about
    assert "Code that" not in about and "Secret" not in about and str(checkpoints) not in about
    assert "do not use it to decide about a person" in app.about_model(str(tmp_path))


def test_every_published_card_has_the_sections_that_the_page_shows():
    template = (ROOT / "model_card.md").read_text(encoding="utf-8")
    assert re.search(r"^# .*\n", template, re.MULTILINE) and "\n## Intended use and limits\n" in template


def test_the_page_tells_a_hub_name_and_no_folder(checkpoints):
    assert app.visible_name(str(checkpoints)) == "a local checkpoint"
    assert app.visible_name("org/lascl-emodb") == "org/lascl-emodb"
    assert app.visible_name("org/lascl-emodb", "fold-3") == "org/lascl-emodb, revision fold-3"


def test_which_model_a_space_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(app, "__file__", str(tmp_path / "app.py"))
    for variable in ("LASCL_MODEL", "LASCL_REVISION"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit) as exit:
        app.main([])
    assert exit.value.code == 2 and "give --model" in capsys.readouterr().err
    (tmp_path / "space.json").write_text('{"model": "org/of-the-file"}')
    assert app.configured_model() == ("org/of-the-file", None)
    monkeypatch.setenv("LASCL_MODEL", "org/of-the-variable")
    assert app.configured_model() == ("org/of-the-variable", None)
    monkeypatch.setenv("LASCL_REVISION", "fold-1")
    assert app.configured_model() == ("org/of-the-variable", "fold-1")
    with pytest.raises(SystemExit) as exit:
        app.main(["--model", str(tmp_path)])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.startswith("app.py: ") and error.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def server(checkpoints, tmp_path_factory):
    """The app as a user starts it; `temp` holds the folder of its visitors' recordings."""
    temp = tmp_path_factory.mktemp("temp")
    own = {"TMPDIR": str(temp), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GRADIO_HEARTBEAT_INTERVAL": "1"}
    command = [sys.executable, str(ROOT / "space" / "app.py"), "--model", str(checkpoints / "whisper")]
    with open(temp.parent / "stderr.txt", "w+") as errors:
        process = subprocess.Popen(
            command, cwd=temp, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            line = process.stdout.readline()
            assert line.startswith("Listening at http://127.0.0.1:"), Path(errors.name).read_text()[-4000:]
            url = line.split()[-1].rstrip("/")
            yield SimpleNamespace(url=url, temp=temp, process=process, errors=Path(errors.name))
        finally:
            process.kill()
            process.wait()


def recordings_in(server) -> list[Path]:
    return [path for path in server.temp.rglob("*") if path.is_file() and path.parents[1].name.startswith("lascl-")]


def eventually(holds, seconds: float = 10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def secrets_of(server, checkpoints) -> list[str]:
    """Beginnings of paths that no visitor may read."""
    return [str(ROOT), str(checkpoints), str(Path.home()), sys.prefix, "site-packages"]


@pytest.mark.slow
def test_programs_are_answered_and_leave_nothing(server, checkpoints, clips):
    from gradio_client import Client, handle_file

    def visit(words):
        client = Client(server.url, verbose=False)
        return [client.predict(handle_file(str(clips.short)), words, "", api_name="/recognise") for _ in range(3)]

    samples, _ = soundfile.read(clips.short, dtype="float32")
    asked = {"": None, "joyful, weary": ["joyful", "weary"], "calm, furious, shy": ["calm", "furious", "shy"]}
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        for (_, labels), answers in zip(asked.items(), pool.map(visit, asked)):
            expected = dict(zip(labels or LABELS, direct(checkpoints / "whisper", samples, labels)))
            for found in answers:
                assert found["probabilities"] == pytest.approx(expected, abs=1e-5)
                likeliest = max(expected, key=expected.get)
                assert found["untrained"] == (labels or []) and found["segments"] == [
                    {"start_s": 0, "end_s": 1, "label": likeliest, "probability": pytest.approx(expected[likeliest])}
                ]
    eventually(lambda: recordings_in(server) == [])
    assert not list(server.temp.glob("lascl-space-*/*"))


@pytest.mark.slow
def test_no_path_is_told_by_any_page_or_error(server, checkpoints, clips):
    secrets = [*secrets_of(server, checkpoints), str(server.temp)]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for page in ("/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/openapi.json"):
            answer = client.get(page)
            assert answer.status_code == 200, page
            assert [secret for secret in secrets if secret in answer.text] == [], page
        for path in (ROOT / "setup.cfg", checkpoints / "whisper" / "config.json", Path("/etc/passwd")):
            answer = client.get(f"/gradio_api/file={path}")
            assert answer.status_code in (403, 404) and "lascl" not in answer.text.replace(str(path), "")
        # A program that names a file of the server, and one that brings no audio.
        uploaded = client.post("/gradio_api/upload", files={"files": ("not.wav", b"no audio")}).json()[0]
        assert uploaded.startswith(str(server.temp)) and Path(uploaded).is_file()  # Gradio's way to name it
        for path in (str(ROOT / "setup.cfg"), uploaded):
            data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "", ""]
            event = client.post("/gradio_api/call/recognise", json={"data": data}).json()["event_id"]
            said = client.get(f"/gradio_api/call/recognise/{event}").text
            assert "event: error" in said and [secret for secret in secrets if secret in said] == [], said
        assert "Your recording cannot be read as audio" in said
        assert not Path(uploaded).exists() and (ROOT / "setup.cfg").is_file()
        too_large = client.post("/gradio_api/upload", files={"files": ("large.wav", clips.too_large.read_bytes())})
        assert too_large.status_code == 413
    assert recordings_in(server) == []
    assert "not.wav" not in server.errors.read_text()


@pytest.mark.slow
def test_nothing_is_fetched_from_an_address(server):
    fetched = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    elsewhere = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{elsewhere.server_address[1]}/voice.wav"
    named = {"path": address, "meta": {"_type": "gradio.FileData"}}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        # An address in the place of a file, and of words; of the internet, which no filter of private ones holds back.
        public = {**named, "path": "https://192.0.2.1/voice.wav"}
        for data in ([named, "", ""], [public, "", ""], [{**named, "url": address}, "", ""], [None, named, ""]):
            event = client.post("/gradio_api/call/recognise", json={"data": data}).json()["event_id"]
            said = client.get(f"/gradio_api/call/recognise/{event}").text
            assert "event: error" in said and "Send a file: this page fetches nothing from addresses." in said, said
    elsewhere.shutdown()
    assert fetched == []


@pytest.mark.slow
def test_uploads_of_a_visitor_have_a_quota(server):
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 49900000\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    with httpx.Client(base_url=server.url, timeout=30) as client:

        def upload() -> httpx.Response:
            return client.post("/gradio_api/upload", files={"files": ("voice.wav", bytes(600_000))})

        def hears(status: int) -> bool:
            answer = upload()
            for path in answer.json() if answer.status_code == 200 else ():
                Path(path).unlink()
            return answer.status_code == status

        assert hears(200)
        with contextlib.ExitStack() as stack:

            def hears_no_more() -> bool:
                """Begins one more upload. Of four is nearly as much as is taken of one visitor."""
                stack.enter_context(socket.create_connection((host, int(port)))).sendall(head.encode())
                return hears(413)

            eventually(hears_no_more)
            assert "Too many recordings wait to be heard here" in upload().text
        eventually(lambda: hears(200))  # they were broken off
    for path in recordings_in(server):
        path.unlink()


def test_what_waits_counts_until_it_is_deleted(tmp_path, monkeypatch):
    assert hasattr(app, "Quota")
    monkeypatch.setattr(app, "VISITOR_MB", 0.01)
    monkeypatch.setattr(app, "ALL_MB", 0.02)

    stored = []

    async def keep(scope, receive, send):
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = tmp_path / f"{len(stored)}"
        path.write_bytes(body)
        stored.append(path)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps([str(path)]).encode()})

    quota = app.Quota(keep, tmp_path)

    async def visit():
        transport = httpx.ASGITransport(quota)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:

            async def upload(size: int, visitor: str) -> int:
                headers = {"x-forwarded-for": f"made-up, {visitor}"}
                return (await client.post("/gradio_api/upload", content=bytes(size), headers=headers)).status_code

            told = [await upload(6000, "a"), await upload(6000, "a"), await upload(6000, "b"), await upload(3000, "a")]
            stored[0].unlink()  # heard
            told += [await upload(4000, "a"), await upload(9000, "c"), await upload(3000, "c")]
            return told

    # The second and the one of 9000 are too much: of one visitor, of all.
    assert asyncio.run(visit()) == [200, 413, 200, 200, 200, 413, 200]


# ---------------------------------------------------------------------------------------------------------- a browser


@pytest.fixture
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    sync_playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright").sync_playwright
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


GRAVE = ("serious", "critical")
# No colour is halfway to another, and nothing is waited for.
SETTLED = """() =>
  document.getAnimations().every(a => a.playState !== "running" || a.effect.getComputedTiming().iterations === Infinity)
  && [...document.querySelectorAll("[data-testid=status-tracker]")].every(e => e.classList.contains("hide"))"""


def violations(page) -> list[str]:
    """What axe finds grave; nothing is left out."""
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_function(SETTLED)
    found = Axe().run(page).response["violations"]
    grave = [(one["id"], node) for one in found for node in one["nodes"] if one["impact"] in GRAVE]
    return [f"{rule}: {node['html']} {node['failureSummary']}" for rule, node in grave]


@pytest.mark.slow
def test_a_visitor_from_upload_to_leaving(server, browser, checkpoints, clips):
    outside = []
    context = browser.new_context(viewport={"width": 400, "height": 850}, color_scheme="light")
    context.set_default_timeout(20_000)

    def guard(route):
        if re.match(r"http://127\.0\.0\.1[:/]", route.request.url):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    page = context.new_page()
    page.goto(server.url)
    recognise = page.get_by_role("button", name="Recognise")
    recognise.wait_for()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").inner_text() == "How does this voice sound?"
    assert "It knows none." in page.locator("main").inner_text()
    assert violations(page) == []

    # A short recording; its probabilities.
    page.set_input_files("input[type=file]", clips.short)
    page.locator("#duration").wait_for()
    recognise.click()
    bars = page.locator(".confidence-set")
    bars.first.wait_for()
    samples, _ = soundfile.read(clips.short, dtype="float32")
    expected = dict(zip(LABELS, direct(checkpoints / "whisper", samples)))
    found = dict(by_lines(text).split("\n") for text in bars.all_inner_texts())
    assert found == {label: f"{100 * share:.0f}%" for label, share in expected.items()}
    assert page.locator(".segments tbody tr").count() == 1
    assert "1.0 seconds, heard at once." in page.locator(".said").first.inner_text()

    # Own words, on the recording that is there still; the note.
    page.get_by_label("Your own words").fill("<i>joyful</i>, furious, weary")
    page.get_by_label("Your own words").press("Enter")
    page.get_by_text("Not trained:").wait_for()
    assert sorted(by_lines(text).split("\n")[0] for text in bars.all_inner_texts()) == [
        *("<i>joyful</i>", "furious", "weary"),
    ]
    page.get_by_label("Your own words").fill("joyful")
    recognise.click()
    page.get_by_role("alert").filter(has_text="Give at least two words, separated by commas").wait_for()
    assert bars.count() == 0
    assert violations(page) == []
    page.get_by_label("Your own words").fill("")

    # A long recording instead: windows, waveform, table; the short one is gone.
    replace(page, clips.long)
    assert page.locator(".timeline").count() == 0
    recognise.click()
    page.locator(".timeline svg path").first.wait_for()
    assert "9.0 seconds, heard in 15 windows of 2 seconds" in page.locator(".said").first.inner_text()
    rows = [row.split("\t") for row in page.locator(".segments tbody tr").all_inner_texts()]
    assert rows[0][0] == "0:00.0" and rows[-1][1] == "0:09.0" and {row[2] for row in rows} <= set(LABELS)
    assert [row[1] for row in rows[:-1]] == [row[0] for row in rows[1:]]
    assert [path.name for path in recordings_in(server)] == ["long.wav"]
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1] == 400
    assert violations(page) == []
    page.evaluate("document.body.classList.add('dark')")  # what Gradio does where a visitor's computer is dark
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    page.goto(server.url)
    recognise.wait_for()
    assert "dark" in page.locator("body").get_attribute("class") and violations(page) == []
    eventually(lambda: recordings_in(server) == [])  # the page was left

    # Refused: too long by the server, too large before it is sent.
    page.set_input_files("input[type=file]", clips.too_long)
    page.locator("#duration").wait_for()
    recognise.click()
    too_long = "Your recording is too long; at most 10 minutes are taken: give a part of it."
    page.get_by_role("alert").filter(has_text=too_long).wait_for()
    page.get_by_label("Clear").first.click()
    eventually(lambda: recordings_in(server) == [])
    page.set_input_files("input[type=file]", clips.too_large)
    refused = page.get_by_role("alert").filter(has_text="has 51.0 MB; at most 50 MB are taken: give a part of it.")
    refused.wait_for()
    assert violations(page) == [] and page.locator(".toast-body").count() == page.locator("#duration").count() == 0
    page.set_input_files("input[type=file]", clips.short)
    page.locator("#duration").wait_for()
    assert refused.count() == 0
    text = page.locator("body").inner_text()
    secrets = [*secrets_of(server, checkpoints), str(server.temp), "/tmp"]
    assert [secret for secret in secrets if secret in text] == []
    context.close()
    eventually(lambda: recordings_in(server) == [])
    assert outside == []


def by_lines(text: str) -> str:
    return "\n".join(part.strip() for part in text.split("\n") if part.strip())


def replace(page, clip: Path):
    """Removes the recording on the page and chooses another."""
    page.get_by_label("Clear").first.click()
    page.locator("input[type=file]").wait_for(state="attached")
    page.set_input_files("input[type=file]", clip)
    page.locator("#duration").wait_for()


@pytest.mark.slow
def test_stopped_it_leaves_nothing_behind(server):
    """The last test of the server: it ends here."""
    with httpx.Client(base_url=server.url) as client:
        client.post("/gradio_api/upload", files={"files": ("voice.wav", b"voice")})
    assert len(recordings_in(server)) == 1
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(timeout=20)
    assert not list(server.temp.glob("lascl-space-*"))
