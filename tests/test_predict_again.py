"""`lascl-predict` run again, beside another, and over whatever people have: no row of another model, no row twice, and
nothing that one file does reaches another."""

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_predict import alone, run, save_checkpoint
from tiny import AUDIO_ENCODERS, LABELS, RATE, read_csv, recording
from transformers import AutoFeatureExtractor

import lascl
import lascl.training.run_directory
from lascl import LaSCLForAudioClassification
from lascl.inference import Recogniser, files


NAMES = ["a.wav", "b.wav", "c.wav"]


@pytest.fixture(scope="module")
def checkpoint(audio_encoders, text_encoder, tmp_path_factory) -> str:
    return save_checkpoint("wav2vec2-layer", audio_encoders, text_encoder, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def retrained(checkpoint, tmp_path_factory) -> str:
    """The same checkpoint with other weights."""
    folder = tmp_path_factory.mktemp("retrained")
    model = LaSCLForAudioClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        model.lascl.audio_projection.output.weight.neg_()
    model.save_pretrained(folder)
    AutoFeatureExtractor.from_pretrained(checkpoint).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with three recordings."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        soundfile.write(name, recording(number, 0.2), RATE)
    return tmp_path


# ----------------------------------------------------------------------------------------------- who answered the rows


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
def test_rows_of_another_model_are_not_continued(checkpoint, retrained, folder, capsys, output):
    assert run(checkpoint, *NAMES[:2], "--output", output) == 0
    before = Path(output).read_bytes()
    for names in (NAMES[:2], NAMES):
        assert run(retrained, *names, "--output", output) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "different are: weights ('" in told and "--overwrite" in told
    assert Path(output).read_bytes() == before
    assert run(checkpoint, *NAMES, "--output", output) == 0 and Path(output).read_bytes().startswith(before)
    assert run(retrained, *NAMES, "--output", output, "--overwrite") == 0
    assert run(retrained, *NAMES, "--output", "fresh" + output) == 0
    assert Path(output).read_bytes() == Path("fresh" + output).read_bytes() != before


def test_other_weights_in_the_same_folder_are_another_model(checkpoint, retrained, folder, capsys):
    shutil.copytree(checkpoint, folder / "model")
    assert run("model", *NAMES[:2], "--output", "out.csv") == 0
    os.rename("model", "moved")
    assert run("moved", *NAMES[:2], "--output", "out.csv") == 0  # where it lies is no part of it
    (folder / "moved" / "model.safetensors").write_bytes((Path(retrained) / "model.safetensors").read_bytes())
    assert run("moved", *NAMES, "--output", "out.csv") == 2
    assert "different are: weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "begun, options, field",
    [
        ([], ["--abstain", 0.9], "abstain (0.0 there, 0.9 here)"),
        ([], ["--labels", "sad,angry"], "labels (['angry', 'happy', 'neutral', 'sad'] there, ['sad', 'angry'] here)"),
        (
            ["--labels", "sad,angry"],
            ["--labels", "sad,angry", "--template", "a {label} voice"],
            "template ('{label}' there, 'a {label} voice' here)",
        ),
        (["--window", 0.1], ["--window", 0.15], "window (0.1 there, 0.15 here), hop (0.1 there, 0.15 here)"),
        (["--window", 0.1, "--hop", 0.05], ["--window", 0.1], "hop (0.05 there, 0.1 here)"),
        ([], ["--dtype", "bfloat16"], "dtype ('float32' there, 'bfloat16' here)"),
        ([], ["--embeddings", "e.npz"], "embeddings (None there, 'e.npz' here)"),
    ],
    ids=["abstain", "labels", "template", "window", "hop", "dtype", "embeddings"],
)
def test_whatever_decides_a_row_is_named_where_it_differs(checkpoint, folder, capsys, begun, options, field):
    assert run(checkpoint, "a.wav", "--output", "out.csv", *begun) == 0
    before = (folder / "out.csv").read_bytes()
    capsys.readouterr()
    assert run(checkpoint, *NAMES, "--output", "out.csv", *options) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"out.csv was answered otherwise; different are: {field}." in told
    assert (folder / "out.csv").read_bytes() == before and not os.path.exists("e.npz")


def test_rows_without_a_record_are_refused_with_the_way_out(checkpoint, folder, capsys):
    assert run(checkpoint, "a.wav", "--output", "out.csv") == 0
    for damage in (lambda record: record.write_text("{"), os.remove):
        if os.path.exists("out.csv.lascl.json"):
            damage(folder / "out.csv.lascl.json")
        assert run(checkpoint, *NAMES, "--output", "out.csv") == 2
        told = capsys.readouterr().err
        assert "out.csv.lascl.json" in told and "--overwrite" in told
    assert run(checkpoint, *NAMES, "--output", "out.csv", "--overwrite") == 0
    assert [row["path"] for row in read_csv(folder / "out.csv")] == NAMES


def test_a_file_that_changed_since_is_told(checkpoint, folder, capsys):
    assert run(checkpoint, *NAMES, "--output", "out.csv") == 0
    later = os.stat("out.csv").st_mtime + 10
    os.utime("b.wav", (later, later))
    capsys.readouterr()
    assert run(checkpoint, *NAMES, "--output", "out.csv") == 0
    assert "1 of them have changed since, b.wav for one" in capsys.readouterr().err


def test_embeddings_of_another_run_are_not_replaced(checkpoint, retrained, folder, capsys):
    assert run(checkpoint, *NAMES[:2], "--output", "out.csv", "--embeddings", "e.npz") == 0
    before = (folder / "e.npz").read_bytes()
    for output in ([], ["--output", "other.csv"]):
        assert run(retrained, *NAMES, *output, "--embeddings", "e.npz") == 2
        assert "e.npz exists, and is of another run. Choose another --embeddings" in capsys.readouterr().err
    assert run(retrained, *NAMES, "--output", "out.csv", "--embeddings", "e.npz") == 2
    assert (folder / "e.npz").read_bytes() == before
    assert run(checkpoint, *NAMES, "--output", "out.csv", "--embeddings", "e.npz") == 0  # its own are continued
    assert np.load("e.npz")["path"].tolist() == NAMES
    assert run(retrained, *NAMES, "--embeddings", "e.npz", "--overwrite") == 0
    assert np.load("e.npz")["audio_embeds"] == pytest.approx(
        np.stack([answer.audio_embeds for answer in files.predict_files(Recogniser.load(retrained), NAMES)]), abs=1e-6
    )
    np.savez("foreign.npz", x=np.ones(1))
    assert run(checkpoint, "a.wav", "--embeddings", "foreign.npz") == 2 and "x" in np.load("foreign.npz")


def test_the_same_files_under_another_model_lend_no_embeddings(checkpoint, retrained, folder, capsys, monkeypatch):
    """Killed with two rows; meanwhile another run made the `.npz` of the same two files."""
    command = [checkpoint, *NAMES, "--output", "out.csv", "--embeddings", "e.npz"]
    assert run(checkpoint, *NAMES[:2], "--output", "out.csv", "--embeddings", "e.npz") == 0
    os.remove("e.npz")
    assert run(retrained, *NAMES[:2], "--output", "other.csv", "--embeddings", "e.npz") == 0
    assert run(*command) == 2
    assert "e.npz is of another run; different are: weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--output", "o.json"], "the ending .json is of no format that there is, csv (.csv) or jsonl (.jsonl)"),
        (["--output", "rows"], "the ending (none) is of no format"),
        (["--output", "o.csv", "--format", "jsonl"], "is named as csv, but --format is jsonl"),
    ],
)
def test_a_name_that_says_another_format_is_refused(checkpoint, folder, capsys, options, sentence):
    assert run(checkpoint, "a.wav", *options) == 2
    assert sentence in capsys.readouterr().err and sorted(os.listdir(folder)) == NAMES
    assert run(checkpoint, "a.wav", "--output", "o.json", "--format", "jsonl") == 0
    assert json.loads((folder / "o.json").read_text())["path"] == "a.wav"


def test_annotations_of_another_run_or_hand_are_not_replaced(checkpoint, folder, capsys):
    command = [checkpoint, "a.wav", "--window", 0.1, "--textgrid", "praat"]
    assert run(*command) == 0
    (folder / "praat" / "a.TextGrid").write_text("corrected by hand")
    assert run(*command) == 2
    assert "praat/a.TextGrid exists, and is of another run, or corrected by hand" in capsys.readouterr().err
    assert (folder / "praat" / "a.TextGrid").read_text() == "corrected by hand"
    assert run(*command, "--overwrite") == 0
    assert "ooTextFile" in (folder / "praat" / "a.TextGrid").read_text()


# ------------------------------------------------------------------------------------------------------ two at a time

WRITING = """
import sys
from lascl.inference import Recogniser
from lascl.predict import main

def wait(self, audio, answer=Recogniser._answer):
    print("asked", flush=True)
    sys.stdin.readline()
    return answer(self, audio)

Recogniser._answer = wait
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_second_of_two_is_told_and_a_kill_leaves_no_lock(checkpoint, folder, capsys):
    command = [checkpoint, *NAMES, "--output", "out.csv"]
    first = subprocess.Popen(
        [sys.executable, "-c", WRITING, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "asked\n"
    try:
        for name in ("out.csv", "./x/../out.csv"):
            os.makedirs("x", exist_ok=True)
            code = run(checkpoint, *NAMES, "--output", name)
            assert (code, "another lascl-predict is writing" in capsys.readouterr().err) == (2, True)
    finally:
        first.kill()
        first.wait()
    assert run(*command) == 0
    assert [row["path"] for row in read_csv(folder / "out.csv")] == NAMES
    assert sorted(os.listdir(folder)) == sorted([*NAMES, "out.csv", "out.csv.lascl.json", "x"])


# ----------------------------------------------------------------------------------------- what one file does to others


class Odd(Exception):
    """Of no kind that anybody expects."""


ANYTHING = [
    *(ValueError("x"), TypeError("samplerate must be specified"), OSError(36, "File name too long"), MemoryError()),
    *(
        KeyError("x"),
        RuntimeError("x"),
        RecursionError("x"),
        EOFError(),
        StopIteration(),
        AssertionError(),
        Odd("x\ny"),
    ),
    *(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), ZeroDivisionError("x"), BrokenPipeError(32, "Broken pipe")),
]


@given(
    st.lists(st.sampled_from([None, *ANYTHING]), min_size=4, max_size=4),
    st.sampled_from(["read", "answer", "row", "annotate"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_raised_because_of_a_file_is_its_own_sentence(checkpoint, capsys, raised, where):
    names = [f"{letter}.wav" for letter in "abcd"]
    faults = {name: error for name, error in zip(names, raised) if error is not None}
    options = ["--window", 0.1, "--textgrid", "praat"] if where == "annotate" else []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, name in enumerate(names):
            soundfile.write(name, np.full(1600 + number, 0.1 * number), RATE, subtype="FLOAT")
        assert run(checkpoint, *names, "--output", "all.csv", *options) == 0
        for path in Path(folder).glob("praat/*"):
            path.unlink()
        break_at(patch, where, faults)
        capsys.readouterr()
        assert run(checkpoint, *names, "--output", "out.csv", *options) == (1 if faults else 0)
        found, whole = (read_csv(Path(name)) for name in ("out.csv", "all.csv"))
        expected = [row for row in whole if row["path"] not in faults]
        for row, wanted in zip(found, expected, strict=True):
            assert {name: row[name] for name in row if "prob" not in name} == {
                name: wanted[name] for name in wanted if "prob" not in name
            }
            shares = [[float(r[f"probability_{label}"]) for label in LABELS] for r in (row, wanted)]
            assert shares[0] == pytest.approx(shares[1], abs=1e-5)  # in other batches
        told = [line.strip() for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
        assert sorted(line.partition(":")[0] for line in told) == sorted(faults)
        if options:
            assert {path.stem for path in Path("praat").glob("*")} == {n[0] for n in names if n not in faults}


def break_at(patch, where: str, faults: dict[str, Exception]):
    """Lets something raise what there is for a file's name."""

    def raising(function, name_of):
        def broken(*args, **kwargs):
            if (error := faults.get(name_of(args))) is not None:
                raise error
            return function(*args, **kwargs)

        return broken

    if where == "read":
        patch.setattr(files, "read_blocks", raising(files.read_blocks, lambda args: str(args[0])))
    elif where == "row":
        row_format = lascl.inference.outputs.RowFormat
        patch.setattr(row_format, "row", raising(row_format.row, lambda args: args[1]))
    elif where == "answer":
        broken = {1600 + "abcd".index(name[0]): name for name in faults}
        named = lambda args: next((broken[len(a)] for a in args[1] if len(a) in broken), None)  # noqa: E731
        patch.setattr(Recogniser, "_answer", raising(Recogniser._answer, named))
    else:
        replace = raising(os.replace, lambda args: f"{Path(args[1]).stem}.wav" if "praat" in str(args[1]) else None)
        patch.setattr(os, "replace", replace)


def test_a_raw_file_and_a_name_too_long_to_annotate_harm_no_other(checkpoint, folder, capsys):
    (folder / "a.raw").write_bytes(bytes(1000))
    long = f"{'x' * 248}.wav"  # 252: with .TextGrid it is longer than names may be
    soundfile.write(long, recording(0, 0.2), RATE)
    inputs = [checkpoint, "a.raw", long, *NAMES]
    assert failing_code(*inputs, "--output", "files.csv") == 1
    told = capsys.readouterr().err
    assert "a.raw: is taken for headerless audio" in told and told.count("\n  ") == 1
    assert [row["path"] for row in read_csv(folder / "files.csv")] == [long, *NAMES]
    assert failing_code(*inputs, "--output", "times.csv", "--window", 0.1, "--textgrid", "praat") == 1
    told = capsys.readouterr().err
    assert "a.raw: " in told and f"{long}: its annotations" in told and "(File name too long)" in told
    assert {row["path"] for row in read_csv(folder / "times.csv")} == set(NAMES)
    assert len(os.listdir("praat")) == 3


def failing_code(*arguments) -> int | str:
    """The exit code, or what was raised instead."""
    try:
        return run(*arguments)
    except Exception as error:
        return repr(error)


def test_an_output_that_cannot_be_written_is_a_sentence(checkpoint, folder, monkeypatch, capsys):
    def write(self, path, rows):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(lascl.inference.outputs.RowFile, "write", write)
    assert failing_code(checkpoint, *NAMES, "--output", "out.csv") == 2
    assert "out.csv cannot be written (Input/output error)" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- names

ODD_NAMES = [
    *("a\rb.wav", "\r.wav", "a\r\nb.wav", "=1+1.wav", "+1.wav", "-1.wav", "@x.wav", "\t=x.wav", "\uff1dx.wav"),
    *("a\x0bb.wav", "a\x1fb.wav", "a\x85b.wav", "a\u2028b.wav", "a;=b.wav", "'=x.wav", "./=y.wav"),
]


def test_names_come_back_through_csv_and_none_is_a_formula(checkpoint, folder):
    pandas = pytest.importorskip("pandas")
    for name in ODD_NAMES:
        soundfile.write(name.encode(), recording(0, 0.2), RATE)
    Path("list").write_bytes(b"\0".join(name.encode() for name in ODD_NAMES))
    with open("list", "rb") as listed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", types.SimpleNamespace(buffer=listed))
        assert run(checkpoint, "-", "--output", "out.csv") == 0
    found = [row["path"] for row in read_csv(folder / "out.csv")]
    assert found == pandas.read_csv("out.csv")["path"].tolist()
    assert [os.path.abspath(path) for path in found] == [os.path.abspath(name) for name in ODD_NAMES]
    assert not [path for path in found if path.startswith(tuple("=+-@\t\r\n\uff1d"))] and "./=1+1.wav" in found
    before = (folder / "out.csv").read_bytes()
    with open("list", "rb") as listed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", types.SimpleNamespace(buffer=listed))
        assert run(checkpoint, "-", "--output", "out.csv") == 0
    assert (folder / "out.csv").read_bytes() == before  # all are known again


def test_ids_with_carriage_returns_come_back_from_every_csv(tmp_path):
    rows = [{"id": name, "share": 0.5} for name in ODD_NAMES]
    lascl.training.run_directory.write_csv(tmp_path / "rows.csv", rows)
    assert [row["id"] for row in read_csv(tmp_path / "rows.csv")] == ODD_NAMES
    assert b"\r\n" not in (tmp_path / "rows.csv").read_bytes().replace(b"a\r\nb", b"")


def test_labels_of_a_stranger_are_no_formulas(checkpoint, folder, capsys):
    labels = ['=HYPERLINK("x")', "+a", "@b", "-c", "\rd", "'e", "half \ud800", "plain"]
    model = LaSCLForAudioClassification.from_pretrained(checkpoint)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    features = torch.randn(len(labels), model.lascl.label_features.shape[1])
    for output in ("out.csv", "out.jsonl", None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recogniser, "load", classmethod(lambda cls, *args, **kwargs: stranger(cls)))

            def stranger(cls):
                model.lascl.label_features = features
                return cls(model.eval(), AutoFeatureExtractor.from_pretrained(checkpoint))

            where = ["--format", "table"] if output is None else ["--output", output]
            assert failing_code(checkpoint, *NAMES, *where) == 0
    with open("out.csv", encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert len(rows) == 3 and {len(row) for row in rows} == {len(header)}
    expected = [json.loads(line)["label"] for line in (folder / "out.jsonl").read_text().splitlines()]
    for row, label in zip(rows, expected):
        assert not row[1].startswith(tuple("=+-@\t\r\n"))
        cell = row[1].removeprefix("'")  # the stated form
        assert cell == label.encode(errors="backslashreplace").decode()
    assert capsys.readouterr().out.count("\n") == 4  # of the table
    form = getattr(lascl.inference.outputs, "label_cell", str)
    assert [form(label)[:1] for label in labels] == ["'"] * 6 + ["h", "p"]
    assert len({form(label) for label in [*labels, "e", "''e", "=x", "'=x"]}) == len(labels) + 4


# -------------------------------------------------------------------------------------------------------- from Python


def test_predict_files_yields_as_they_come(checkpoint, folder, monkeypatch):
    assert "predict_files" in lascl.__all__, "there is no lascl.predict_files"
    monkeypatch.setattr(files, "GROUP_FILES", 1)
    given = []

    def paths():
        for name in [*NAMES, "missing.wav"] * 10:
            given.append(name)
            yield Path(name)

    answers = lascl.predict_files(checkpoint, paths())
    first = next(answers)
    assert first.path == "a.wav" and len(given) < 40  # 40 are not waited for
    rest = list(answers)
    assert [answer.path for answer in (first, *rest)] == [*NAMES, "missing.wav"] * 10
    assert "missing.wav: no such audio file" in rest[2].failure and rest[2].label is None
    for answer in rest[:2]:
        expected = alone(checkpoint, soundfile.read(answer.path, dtype="float32")[0])
        assert answer.probabilities == pytest.approx(expected, abs=1e-5)
        assert answer.label == LABELS[expected.argmax()] and answer.failure is None
    (single,) = lascl.predict_files(Recogniser.load(checkpoint), "a.wav")
    assert single.probabilities == pytest.approx(first.probabilities, abs=1e-6)
    (other,) = lascl.predict_files(checkpoint, ["a.wav"], labels=["sad", "angry"])
    assert other.label in ("sad", "angry") and len(other.probabilities) == 2
    with pytest.raises(ValueError, match="A recogniser has its labels"):
        next(lascl.predict_files(Recogniser.load(checkpoint), ["a.wav"], labels=["sad"]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_shorter_type_answers_alike_with_scores_in_float32(checkpoint, folder, dtype, capsys):
    assert run(checkpoint, *NAMES, "--output", "float32.csv", "--embeddings", "float32.npz") == 0
    command = [checkpoint, *NAMES, "--dtype", dtype, "--output", "short.csv", "--embeddings", "short.npz"]
    assert run(*command) == 0, capsys.readouterr().err
    for row, other in zip(read_csv(folder / "float32.csv"), read_csv(folder / "short.csv"), strict=True):
        shares = [[float(found[f"probability_{label}"]) for label in LABELS] for found in (row, other)]
        assert shares[0] == pytest.approx(shares[1], abs=0.1) and shares[0] != shares[1]
        assert sum(shares[1]) == pytest.approx(1, abs=1e-6)  # bfloat16 would round each to 3 digits
    short = np.load("short.npz")["audio_embeds"]
    assert short == pytest.approx(np.load("float32.npz")["audio_embeds"], abs=0.1)
    assert np.linalg.norm(short, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert run(checkpoint, "a.wav", "--dtype", "int4") == 2


@pytest.mark.parametrize("family", AUDIO_ENCODERS)
def test_every_family_has_shorter_types(family, audio_encoders, text_encoder, tmp_path):
    """Whatever an encoder gives is float32 again before it is pooled."""
    saved = save_checkpoint(family, audio_encoders, text_encoder, tmp_path, audio_layers="weighted")
    audio = [recording(seed, 0.2 + 0.1 * seed) for seed in range(3)]
    expected, embeds = Recogniser.load(saved, device="cpu")(audio)
    try:
        models = [Recogniser.load(saved, device="cpu", dtype=dtype) for dtype in ("bfloat16", torch.float16)]
    except TypeError as error:
        pytest.fail(f"there is no dtype: {error}")
    for model in models:
        found, found_embeds = model(audio)
        assert found.dtype == found_embeds.dtype == np.float32
        assert found == pytest.approx(expected, abs=0.15) and found_embeds == pytest.approx(embeds, abs=0.15)


# ------------------------------------------------------------------------------------------------------ which are meant


def test_trained_or_not_is_a_matter_of_each_word(checkpoint, folder, capsys):
    assert run(checkpoint, *NAMES, "--labels", "angry, sad", "--output", "some.csv") == 0
    assert "not trained" not in capsys.readouterr().err
    assert list(read_csv(folder / "some.csv")[0]) == ["path", "label", "probability_angry", "probability_sad"]
    assert run(checkpoint, *NAMES, "--labels", "angry, sad, weary", "--output", "mixed.csv") == 0
    assert "these labels were not trained: weary. Trained were angry, happy, " in capsys.readouterr().err
    for row in read_csv(folder / "mixed.csv"):
        assert row["labels_trained"] == ("false" if row["label"] == "weary" else "true")
    assert run(checkpoint, *NAMES, "--labels", "angry, weary", "--format", "jsonl", "--abstain", 1) == 0
    assert {json.loads(line)["labels_trained"] for line in capsys.readouterr().out.splitlines()} == {None}


def test_a_run_names_its_checkpoints_or_answers_by_its_final_model(checkpoint, folder, capsys):
    for fold in (1, 2):
        (folder / "run" / f"fold-{fold}").mkdir(parents=True)
        os.symlink(checkpoint, folder / "run" / f"fold-{fold}" / "checkpoint")
    assert run("run", "a.wav") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "give one of run/fold-1/checkpoint, run/fold-2/checkpoint." in told
    assert run("run/fold-2", "a.wav") == 2
    assert "give run/fold-2/checkpoint." in capsys.readouterr().err
    (folder / "runs").mkdir()
    (folder / "runs" / "many").symlink_to(folder / "run")
    (folder / "run" / "recipe.yaml").write_text("")
    assert run("runs/man", "a.wav") == 2  # no name on the Hub, where it would be sought for half a minute
    assert capsys.readouterr().err == "lascl-predict: There is no folder runs/man; did you mean runs/many?\n"
    (folder / "run" / "full-data").mkdir()
    os.symlink(checkpoint, folder / "run" / "full-data" / "checkpoint")
    assert run("run", *NAMES, "--output", "run.csv") == 0
    assert run(checkpoint, *NAMES, "--output", "run.csv") == 0  # the same model
    assert Recogniser.load("run").labels == LABELS


# ------------------------------------------------------------------------------------------------------------ start-up

IMPORTED = """
import sys
{}
heavy = ("torch", "transformers", "pandas", "datasets", "pyarrow", "sklearn", "scipy", "accelerate")
print(*[name for name in heavy if name in sys.modules])
"""
QUIET = (
    "import contextlib, io\nwith contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main({})"
)


@pytest.mark.parametrize(
    "code",
    [
        "import lascl.predict",
        "from lascl.predict import main\n" + QUIET.format(["--help"]),
        "from lascl.predict import main\n" + QUIET.format(["model", "a.wav", "--abstain", "60"]),
        "from lascl.predict import main\n" + QUIET.format(["model", "no such folder*"]),
        "import lascl.data.audio",
    ],
    ids=["import", "help", "wrong argument", "no input", "reading audio"],
)
def test_arguments_are_read_before_anything_heavy_is_imported(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", IMPORTED.format(code)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


@pytest.mark.slow
def test_answering_imports_no_corpora():
    code = IMPORTED.format("from lascl.predict import Recogniser, segments, stream\nassert callable(stream)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers"} <= set(done.stdout.split()) <= {"torch", "transformers", "scipy", "accelerate"}


SECONDS = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "lascl.predict", *sys.argv[1:]], capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["model", "a.wav", "--abstain", "60"]])
def test_help_and_a_wrong_argument_cost_less_than_a_second_of_cpu(arguments):
    """0.7 s is the promise; of a busy machine, the best of three."""
    command = [sys.executable, "-c", SECONDS, *arguments]
    seconds = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3)]
    assert min(seconds) < 0.7


# -------------------------------------------------------------------------------------------------------- closed pipes

COMMANDS = [
    "train",
    "predict",
    "report",
    "study",
    "evaluation.compare",
    "hub.publish",
    "hub.verify",
    "inference.export",
]


def write_run(run: Path, num_rows: int):
    """Enough for `lascl-compare`, right every other time."""
    (run / "fold-1").mkdir(parents=True)
    rows = [["id", "speaker", "reference", "prediction", "prediction_classifier", "probability_classifier_a"]]
    rows[0].append("probability_classifier_b")
    for number in range(num_rows):
        prediction = "ab"[(number + (run.name == "one")) // 3 % 2]
        rows.append([number, number % 3, "ab"[number % 2], prediction, prediction, 0.5, 0.5])
    with open(run / "fold-1" / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.slow
def test_a_reader_of_a_comparison_that_has_seen_enough_is_no_error(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, 30)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lascl.evaluation.compare", "one", "two"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0 and "| UA |" in told.stdout, told.stderr
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_so(name):
    main = importlib.import_module(f"lascl.{name}").main
    assert main.__code__.co_filename.endswith("console.py"), "its main would show a traceback"


def test_a_pipe_that_breaks_elsewhere_is_an_error_as_before():
    pytest.importorskip("lascl.console")
    from lascl.console import unless_pipe_closes

    @unless_pipe_closes
    def broken():
        raise BrokenPipeError(32, "to a worker")

    with pytest.raises(BrokenPipeError, match="to a worker"):
        broken()
