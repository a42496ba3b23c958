"""`lascl-predict --standardise recordings`: by the statistics of one's own recordings, or of each speaker's."""

import inspect
import json
import math

import numpy as np
import pytest
import soundfile
import torch
from test_modeling import two_layers
from test_predict import save_checkpoint
from tiny import LABELS, RATE, read_csv, recording
from transformers import AutoFeatureExtractor

import lascl
from lascl import LaSCLForAudioClassification
from lascl.inference import Recogniser
from lascl.predict import main


SPEAKERS = ["ann"] * 6 + ["bob"] * 5 + ["cy"]


def run(*argv) -> int:
    """Its exit code."""
    try:
        main([str(arg) for arg in argv])
    except SystemExit as error:
        return error.code
    return 0


def takes_standardise() -> bool:
    files = getattr(lascl, "predict_files", None)
    return files is not None and "standardise" in inspect.signature(files).parameters


@pytest.fixture(scope="module")
def checkpoint(audio_encoders, text_encoder, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint("wav2vec2-layer", audio_encoders, text_encoder, folder, standardise_audio="training")
    model = LaSCLForAudioClassification.from_pretrained(folder)
    model.lascl.set_pooled_statistics(torch.randn(9, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    for layer in (model.lascl.audio_projection.hidden, model.lascl.audio_projection.output):
        layer.bias.data.normal_(generator=torch.Generator().manual_seed(1))  # else all zeros have no direction
    model.save_pretrained(folder, save_text_encoder=False)
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with twelve recordings of three speakers and their list."""
    monkeypatch.chdir(tmp_path)
    lines = ["path,speaker"]
    for number, speaker in enumerate(SPEAKERS):
        soundfile.write(f"{number:02}.wav", recording(number, 0.1 + 0.03 * (number * 5 % 12)), RATE)
        lines.append(f"{number:02}.wav,{speaker}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def pooled_of(checkpoint, pieces):
    """Of each piece alone, (d_a,) float64, before it is standardised."""
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    model.config.standardise_audio = "none"
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    rows = []
    for samples in pieces:
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            rows.append(model.lascl(**inputs).pooled_audio[0].double())
    return rows


def expected_rows(checkpoint, pooled, groups):
    """Probabilities by slow loops: each standardised by the rows of its group."""
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    labels, answers = model.get_label_embeddings().detach().double(), []
    for row, group in zip(pooled, groups):
        members = [other for other, name in zip(pooled, groups) if name == group]
        mean = sum(members) / len(members)
        std = (sum((other - mean) ** 2 for other in members) / len(members)).sqrt()
        with torch.no_grad():
            z = two_layers(model.lascl.audio_projection.double(), (row - mean) / std)
        odds = [math.exp(float(z @ label) / 0.07) for label in labels]
        answers.append([share / sum(odds) for share in odds])
    return answers


def files_of(folder):
    return [soundfile.read(folder / f"{number:02}.wav", dtype="float32")[0] for number in range(12)]


def check(file, expected, tolerance=2e-4):
    rows = read_csv(file)
    assert len(rows) == len(expected)
    for row, shares in zip(rows, expected):
        assert [float(row[f"probability_{label}"]) for label in LABELS] == pytest.approx(shares, abs=tolerance)
        assert row["label"] == LABELS[int(np.argmax(shares))]


def test_recordings_are_standardised_by_their_own_statistics(checkpoint, folder, capsys):
    assert run(checkpoint, "list.csv", "--standardise", "recordings", "--output", "own.csv") == 0
    assert "of 12 recordings: with fewer than 30 they are rough" in capsys.readouterr().err
    pooled = pooled_of(checkpoint, files_of(folder))
    check("own.csv", expected_rows(checkpoint, pooled, [""] * 12))
    record = json.loads((folder / "own.csv.lascl.json").read_text())
    (of_all,) = record["statistics"]
    assert of_all["group"] == "" and of_all["num_recordings"] == 12
    assert of_all["mean"] == pytest.approx((sum(pooled) / 12).tolist(), abs=1e-5)
    assert run(checkpoint, "list.csv", "--output", "trained.csv") == 0
    assert read_csv("own.csv") != read_csv("trained.csv")
    assert "statistics" not in json.loads((folder / "trained.csv.lascl.json").read_text())


def test_that_recordings_have_statistics_of_their_own_is_said_where_none_are_taken(checkpoint, folder, capsys):
    hint = "answered better by their own: --standardise recordings"
    assert run(checkpoint, ".", "--output", "a.csv") == 0
    assert capsys.readouterr().err.count(hint) == 1
    assert run(checkpoint, ".", "--output", "b.csv", "--standardise", "recordings") == 0
    assert run(checkpoint, "00.wav", "01.wav", "--output", "c.csv") == 0  # too few
    assert hint not in capsys.readouterr().err


def test_words_are_checked_by_the_recordings_own_statistics(checkpoint, folder, capsys):
    from lascl.inference.words import main as words

    model = LaSCLForAudioClassification.from_pretrained(checkpoint)
    labels = model.config.labels
    rows = [f"{number:02}.wav,{labels[number % len(labels)]}" for number in range(12)]
    (folder / "labelled.csv").write_text("\n".join(["path,label", *rows]))
    told = {}
    for how in ("training", "recordings"):
        try:
            words([checkpoint, ",".join(labels), "--check", "labelled.csv", "--standardise", how])
        except SystemExit as exit:
            pytest.fail(f"exit {exit.code}: {capsys.readouterr().err}")
        told[how] = capsys.readouterr()
    assert ("--standardise recordings" in told["training"].err, "--standardise" in told["recordings"].err) == (
        True,
        False,
    )
    paths = [f"{number:02}.wav" for number in range(12)]
    for how, printed in told.items():
        answers = list(lascl.predict_files(checkpoint, paths, standardise=how))
        for word in labels:
            mine = [
                answer.label == word for number, answer in enumerate(answers) if labels[number % len(labels)] == word
            ]
            cells = [word, str(len(mine)), f"{100 * sum(mine) / len(mine):.0f}", "%"]
            assert any(line.split() == cells for line in printed.out.splitlines()), (how, cells)
    assert told["training"].out != told["recordings"].out


def test_a_column_says_whose_statistics_and_who_has_few_takes_those_of_all(checkpoint, folder, capsys):
    assert run(checkpoint, "list.csv", "--standardise_by", "speaker", "--output", "own.csv") == 0
    said = capsys.readouterr().err
    assert "cy have fewer than 5 recordings: the statistics of all 12 are used" in said
    assert "ann, bob have fewer than 30 recordings" in said
    pooled = pooled_of(checkpoint, files_of(folder))
    expected = expected_rows(checkpoint, pooled, SPEAKERS)[:11] + expected_rows(checkpoint, pooled, [""] * 12)[11:]
    check("own.csv", expected)
    names = [by["group"] for by in json.loads((folder / "own.csv.lascl.json").read_text())["statistics"]]
    assert sorted(names) == ["", "ann", "bob"]


def test_from_python_too(checkpoint, folder):
    assert takes_standardise()
    paths = [f"{number:02}.wav" for number in range(12)]
    pooled = pooled_of(checkpoint, files_of(folder))
    model = Recogniser.load(checkpoint, device="cpu")
    for how, groups in (({"standardise": "recordings"}, [""] * 12), ({"standardise_by": SPEAKERS}, SPEAKERS)):
        answers = list(lascl.predict_files(model, paths, **how))
        expected = expected_rows(checkpoint, pooled, groups)
        assert [answer.path for answer in answers] == paths
        for answer, shares in list(zip(answers, expected))[:11]:
            assert answer.probabilities.tolist() == pytest.approx(shares, abs=2e-4)
            assert np.linalg.norm(answer.audio_embeds) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="Own statistics need 5 recordings or more; found 4"):
        list(lascl.predict_files(model, paths[:4], standardise="recordings"))
    with pytest.raises(ValueError, match="a value for each path; found 3 for 12"):
        list(lascl.predict_files(model, paths, standardise_by=["a", "b", "c"]))
    with pytest.raises(ValueError, match="standardise must be training or recordings; found 'speaker'"):
        list(lascl.predict_files(model, paths, standardise="speaker"))


def test_a_run_that_was_cut_off_goes_on_by_the_same_statistics_and_other_inputs_are_refused(
    checkpoint, folder, capsys, monkeypatch
):
    argv = (checkpoint, "list.csv", "--standardise", "recordings", "--output", "own.csv")
    assert run(*argv) == 0
    whole, record = (folder / "own.csv").read_bytes(), folder / "own.csv.lascl.json"
    before = [[float(row[f"probability_{label}"]) for label in LABELS] for row in read_csv("own.csv")]
    statistics = json.loads(record.read_text())["statistics"]
    (folder / "own.csv").write_bytes(b"".join(whole.splitlines(keepends=True)[:8]) + b"torn")
    heard, pool = [], Recogniser.pool
    monkeypatch.setattr(Recogniser, "pool", lambda self, audio: heard.extend(audio) or pool(self, audio))
    capsys.readouterr()
    assert run(*argv) == 0
    assert "7 of 12 files are in own.csv already" in capsys.readouterr().err and len(heard) == 5
    check("own.csv", before, 1e-5)
    assert json.loads(record.read_text())["statistics"] == statistics
    soundfile.write("12.wav", recording(12), RATE)
    with open("list.csv", "a") as file:
        file.write("12.wav,cy\n")
    assert run(*argv) == 2
    assert "own.csv was answered otherwise; different are: inputs ('12 files, " in capsys.readouterr().err
    assert run(checkpoint, "list.csv", "--output", "own.csv") == 2
    assert "standardise ('recordings' there, None here)" in capsys.readouterr().err
    assert run(*argv, "--overwrite") == 0 and len(read_csv("own.csv")) == 13
    assert json.loads(record.read_text())["statistics"] != statistics


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["00.wav", "01.wav", "02.wav", "03.wav", "--standardise", "recordings"],
            "need 5 recordings or more; found 4.",
        ),
        (["list.csv", "--standardise", "recordings", "--window", "1"], "leave out --window"),
        (["list.csv", "--standardise_by", "speaker", "--window", "1"], "leave out --window"),
        (["list.csv", "--standardise_by", "voice"], "list.csv has no column 'voice'; found path, speaker."),
        (
            ["twice.csv", "--standardise_by", "speaker"],
            "00.wav has two values of 'speaker', ann and bob: list it once.",
        ),
        (["00.wav", "--standardise_by", "speaker"], "can be read of CSV lists alone; found the input 00.wav."),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(argv, message, checkpoint, folder, capsys):
    (folder / "twice.csv").write_text("path,speaker\n00.wav,ann\n01.wav,bob\n00.wav,ann\n00.wav,bob\n")
    assert run(checkpoint, *argv, "--output", "own.csv") == 2
    assert message in capsys.readouterr().err and not (folder / "own.csv").exists()


def test_a_model_that_does_not_standardise_has_no_use_for_statistics(audio_encoders, text_encoder, folder, capsys):
    plain = save_checkpoint("wav2vec2-layer", audio_encoders, text_encoder, folder / "plain")
    assert run(plain, "list.csv", "--standardise", "recordings", "--output", "own.csv") == 2
    assert "does not standardise what it hears" in capsys.readouterr().err and not (folder / "own.csv").exists()


def test_a_damaged_recording_is_listed_and_counts_for_nothing(checkpoint, folder, capsys):
    (folder / "05.wav").write_bytes(b"no sound")
    assert run(checkpoint, "list.csv", "--standardise", "recordings", "--output", "own.csv") == 1
    assert "05.wav" in capsys.readouterr().err
    kept = [number for number in range(12) if number != 5]
    pieces = [soundfile.read(f"{number:02}.wav", dtype="float32")[0] for number in kept]
    check("own.csv", expected_rows(checkpoint, pooled_of(checkpoint, pieces), [""] * 11))
    some = ["00.wav", "01.wav", "02.wav", "03.wav", "05.wav"]
    assert run(checkpoint, *some, "--standardise", "recordings", "--output", "few.csv") == 2
    assert "need 5 recordings or more; found 4." in capsys.readouterr().err and not (folder / "few.csv").exists()


def test_the_same_recording_again_and_again_is_centred_alone(checkpoint, folder):
    assert takes_standardise()
    for number in range(6):
        soundfile.write(f"same-{number}.wav", recording(3, 0.3), RATE)
    answers = list(lascl.predict_files(checkpoint, [f"same-{n}.wav" for n in range(6)], standardise="recordings"))
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = model(pooled_audio=torch.zeros(1, 16)).logits.softmax(-1)[0].tolist()
    for answer in answers:
        assert answer.probabilities.tolist() == pytest.approx(expected, abs=1e-3)


def test_what_is_heard_in_windows_counts_window_by_window(audio_encoders, text_encoder, folder):
    """Whisper's window of 2 s; a recording of 3 s is heard twice, and the probabilities are averaged."""
    assert takes_standardise()
    made = save_checkpoint("whisper", audio_encoders, text_encoder, folder / "w", standardise_audio="training")
    long = recording(40, 3.0)
    soundfile.write("long.wav", long, RATE)
    long = soundfile.read("long.wav", dtype="float32")[0]
    pieces = [*files_of(folder)[:5], long[: 2 * RATE], long[RATE:]]
    shares = expected_rows(made, pooled_of(made, pieces), [""] * 7)
    expected = [*shares[:5], [(a + b) / 2 for a, b in zip(*shares[5:])]]
    answers = list(lascl.predict_files(made, [*(f"0{n}.wav" for n in range(5)), "long.wav"], standardise="recordings"))
    assert [answer.num_windows for answer in answers] == [1] * 5 + [2]
    for answer, row in zip(answers, expected):
        assert answer.probabilities.tolist() == pytest.approx(row, abs=5e-4)
