"""ONNX: every family's export answers as PyTorch does, whatever else is in the batch; refused, or whole."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from tiny import AUDIO_ENCODERS, LABELS, RATE, recording
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from lascl import LaSCLForAudioClassification
from lascl.inference import Recogniser
from lascl.inference import export as exporting
from lascl.inference.export import export, main, save_labels
from lascl.training.random_encoders import save_random_audio_encoder


ROOT = Path(__file__).resolve().parents[1]
FILES = {"model.onnx", "labels.npz", "lascl_onnx.json", "preprocessor_config.json", "README.md"}
# One layer each, for the exporter takes seconds a layer; WavLM's later layers differ from its first.
LAYERS = {family: 2 if family.startswith("wavlm") else 1 for family in AUDIO_ENCODERS}
# Each way to pool and to answer, spread over the families.
OPTIONS = {
    "wav2vec2-layer": {"audio_layers": "0,1", "standardise_audio": True, "audio_pooling": "max"},
    "wavlm-group": {"audio_layers": "weighted"},
    "data2vec-audio": {"prediction_head": "classifier"},
    "whisper": {"audio_layers": "0,1", "standardise_audio": True, "audio_level": "equal", "pooled_frames": "active"},
}
WHISPER_WINDOW_S = 2
# One for each path through the adapted encoders; the exporter takes five seconds of a core for every other.
MARKS = {"whisper": (), "wavlm-group": pytest.mark.slow, "data2vec-audio": pytest.mark.slow}
FAMILIES = [pytest.param(family, marks=MARKS.get(family, pytest.mark.proof)) for family in AUDIO_ENCODERS]


@pytest.fixture(scope="module", autouse=True)
def short_checks():
    """The tiny encoders make 1,600 frames of a second, thirty times as many as real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "CHECKED_DURATION_S", 0.5)
        yield


@pytest.fixture(scope="module")
def checkpoint(text_encoder, tmp_path_factory):
    """Makes the folder of a checkpoint with random weights, once a family."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def make(family: str, seed: int = 0) -> Path:
        folder = root / f"{family}-{seed}"
        if folder in made:
            return folder
        depth = "encoder_layers" if family == "whisper" else "num_hidden_layers"
        spec = AUDIO_ENCODERS[family] | {depth: LAYERS[family]}
        encoder = save_random_audio_encoder(spec, root / f"{family}-{seed}-encoder", seed=seed)
        torch.manual_seed(seed)
        model = LaSCLForAudioClassification.from_encoders(
            str(encoder), text_encoder, LABELS, projection_dim=8, **OPTIONS.get(family, {})
        )
        if model.config.standardises:
            model.lascl.set_pooled_statistics(torch.randn(9, model.config.pooled_size))
        model.save_pretrained(folder)
        if family == "whisper":
            extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WHISPER_WINDOW_S)
        else:
            extractor = Wav2Vec2FeatureExtractor(do_normalize=family != "unispeech", return_attention_mask=True)
        extractor.save_pretrained(folder)
        made[folder] = True
        return folder

    return make


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Exports a family's checkpoint, once; returns the folder of the export."""
    root, made = tmp_path_factory.mktemp("exports"), {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = export(checkpoint(family), root / family)
        return root / family

    return make


@pytest.fixture
def graph_of(monkeypatch):
    """Lets an export take the graph of an earlier one, which costs nothing."""

    def take(folder: Path):
        monkeypatch.setattr(exporting, "_save_graph", lambda model, path: shutil.copy(folder / "model.onnx", path))

    return take


def ask(folder: Path, utterances: list[np.ndarray], labels: str = "labels.npz") -> tuple[np.ndarray, np.ndarray]:
    """Logits and embeddings by onnxruntime, with noise instead of silence as padding."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    lengths = np.array([len(samples) for samples in utterances], dtype=np.int64)
    padded = np.random.default_rng(1).standard_normal((len(lengths), lengths.max())).astype(np.float32)
    for row, samples in zip(padded, utterances):
        row[: len(samples)] = samples
    inputs = {"input_values": padded, "lengths": lengths}
    given = np.load(folder / labels)
    if "label_embeds" in given:
        inputs["label_embeds"] = given["label_embeds"]
    logits, audio_embeds = session.run(["logits", "audio_embeds"], inputs)
    return logits, audio_embeds


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64))
    return weights / weights.sum(axis=1, keepdims=True)


def run_without_torch(code: str, *arguments, cwd: Path | None = None) -> subprocess.CompletedProcess:
    blocked = "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'lascl', 'onnx', 'soxr', 'scipy'])\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def run_example(*arguments) -> subprocess.CompletedProcess:
    example = str(ROOT / "examples" / "onnx_predict.py")
    return run_without_torch(f"import runpy; runpy.run_path({example!r}, run_name='__main__')", *arguments)


# ------------------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_as_pytorch_does_whatever_is_in_the_batch(family, checkpoint, exported):
    recogniser = Recogniser.load(checkpoint(family), device="cpu")
    frame = math.ceil(recogniser.min_duration_s * RATE)
    # None of the other lengths is a multiple of a frame.
    utterances = [recording(seed)[:length] for seed, length in enumerate((3_217, 7_999, frame, 561, 4_444))]
    alone = [recogniser([samples]) for samples in utterances]
    expected = [np.concatenate(rows) for rows in zip(*alone)]
    assert np.ptp(expected[0], axis=0).max() > 1e-3  # else agreement would say nothing

    logits, audio_embeds = ask(exported(family), utterances)
    np.testing.assert_allclose(softmax(logits), expected[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(audio_embeds, expected[1], rtol=0, atol=1e-5)
    for row in range(5):
        single = ask(exported(family), utterances[row : row + 1])
        np.testing.assert_allclose(softmax(single[0])[0], expected[0][row], rtol=0, atol=1e-5)
        np.testing.assert_allclose(single[1][0], expected[1][row], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_both_heads_are_one_graph(checkpoint, tmp_path):
    """Of a silent recording, no frame of which is active, too."""
    folder = shutil.copytree(checkpoint("whisper"), tmp_path / "both")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "prediction_head": "both"}))
    out = export(folder, tmp_path / "out") and tmp_path / "out"
    assert json.loads((out / "lascl_onnx.json").read_text())["prediction_head"] == "both"
    utterances = [recording(0), np.zeros(8_000, np.float32), recording(1)[:3_000]]
    expected, _ = Recogniser.load(folder, device="cpu")(utterances)
    label_head, _ = Recogniser.load(checkpoint("whisper"), device="cpu")(utterances)
    np.testing.assert_allclose(softmax(ask(out, utterances)[0]), expected, rtol=0, atol=1e-5)
    assert np.abs(expected - label_head).max() > 1e-3


@pytest.mark.slow
def test_the_folder_says_what_it_holds(checkpoint, exported):
    folder = exported("wavlm-group")
    assert {path.name for path in folder.iterdir()} == FILES
    about = json.loads((folder / "lascl_onnx.json").read_text())
    assert (about["model"], about["sampling_rate"], about["max_duration_s"]) == ("wavlm-group-0", RATE, None)
    assert about["labels"] == about["trained_labels"] == LABELS and about["prediction_head"] == "label"
    assert about["check"]["audio"] == "generated" and about["check"]["utterances"] == 6
    assert 0 < about["check"]["max_probability_difference"] < 1e-5
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for nodes, said in ((session.get_inputs(), about["inputs"]), (session.get_outputs(), about["outputs"])):
        assert {node.name: node.type for node in nodes} == {
            name: {"float32": "tensor(float)", "int64": "tensor(int64)"}[entry["type"]] for name, entry in said.items()
        }
        assert [node.shape for node in nodes] == [entry["shape"] for entry in said.values()]
    labels = np.load(folder / "labels.npz")
    model = LaSCLForAudioClassification.from_pretrained(checkpoint("wavlm-group"))
    assert labels["labels"].tolist() == LABELS
    np.testing.assert_array_equal(labels["label_embeds"], model.get_label_embeddings().detach().numpy())
    assert json.loads((exported("whisper") / "lascl_onnx.json").read_text())["max_duration_s"] == WHISPER_WINDOW_S


def test_nothing_of_this_machine_is_in_the_files(exported):
    for path in exported("whisper").iterdir():
        for trace in (str(ROOT), "site-packages", str(path.parent.parent), "export.py"):
            assert trace.encode() not in path.read_bytes(), (path.name, trace)


def test_longer_than_whispers_window_is_an_error_not_a_cut(exported):
    ask(exported("whisper"), [recording(0, WHISPER_WINDOW_S)])
    with pytest.raises(Exception, match="ConstantOfShape"):
        ask(exported("whisper"), [np.append(recording(0, WHISPER_WINDOW_S), np.float32(0))])


# ------------------------------------------------------------------------------------------------------------- words


def test_permuted_labels_permute_the_answer(exported, tmp_path):
    shutil.copy(exported("whisper") / "model.onnx", tmp_path)
    rng = np.random.default_rng(0)
    label_embeds = rng.standard_normal((7, 8)).astype(np.float32)
    utterances, order = [recording(0), recording(1)[:5000]], rng.permutation(7)
    np.savez(tmp_path / "plain.npz", label_embeds=label_embeds)
    np.savez(tmp_path / "permuted.npz", label_embeds=label_embeds[order])
    plain, permuted = (ask(tmp_path, utterances, labels)[0] for labels in ("plain.npz", "permuted.npz"))
    # The logits are cosines over 0.07, and the runtime may sum rows at another address in another order.
    np.testing.assert_allclose(plain[:, order], permuted, rtol=1e-5, atol=1e-5)
    assert len(np.unique(plain)) == 14


def test_other_words_on_the_same_graph(checkpoint, exported, tmp_path):
    shutil.copy(exported("whisper") / "model.onnx", tmp_path)
    words = ["furious", "joyful", "weary", "bored", "calm", "tense"]
    recogniser = Recogniser.load(checkpoint("whisper"), labels=words, label_template="a {label} voice", device="cpu")
    save_labels(recogniser, tmp_path / "words.npz")
    assert np.load(tmp_path / "words.npz")["labels"].tolist() == words
    utterances = [recording(2), recording(3)[:2000]]
    expected, _ = recogniser(utterances)
    np.testing.assert_allclose(softmax(ask(tmp_path, utterances, "words.npz")[0]), expected, rtol=0, atol=1e-5)


def test_the_command_with_other_words_says_so_and_is_quiet(checkpoint, tmp_path, capfd):
    files = [tmp_path / "a.wav", tmp_path / "b.flac"]
    soundfile.write(files[0], recording(0), RATE)
    soundfile.write(files[1], np.stack([recording(1, 1.0)] * 2, axis=1), 44_100)  # any rate, any channels
    out = tmp_path / "new" / "out"
    main(
        [
            *(str(checkpoint("whisper")), str(out), "--labels", "furious, so so", "--template", "a {label} voice"),
            *("--check", *map(str, files)),
        ]
    )
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "" and len(lines) == 3
    assert lines[0].startswith(f"{out}: model.onnx, ")
    assert re.search(r", \d+\.\d MB; mono audio at 16000 Hz, at most 2 s\.$", lines[0])
    assert lines[1] == "Labels: furious, so so (not what it was trained on)."
    assert re.fullmatch(r"Checked on 2 utterances, .* at most \d\.\de-0\d .* in a probability, .*", lines[2])
    about = json.loads((out / "lascl_onnx.json").read_text())
    assert about["labels"] == np.load(out / "labels.npz")["labels"].tolist() == ["furious", "so so"]
    assert about["trained_labels"] == LABELS and about["label_template"] == "a {label} voice"
    assert about["check"]["audio"] == "files" and about["check"]["utterances"] == 2
    assert ask(out, [recording(0)])[0].shape == (1, 2)


# -------------------------------------------------------------------------------------------------------------- int8


@pytest.mark.parametrize("family", ["whisper", pytest.param("wavlm-group", marks=pytest.mark.slow)])
def test_int8_is_smaller_and_its_distance_is_stated(family, checkpoint, exported, graph_of, tmp_path, capsys):
    graph_of(exported(family))
    out = tmp_path / "out"
    try:
        main([str(checkpoint(family)), str(out), "--int8"])
    except SystemExit:
        pytest.fail(f"there is no --int8: {capsys.readouterr().err}")
    told = capsys.readouterr().out.splitlines()[-1]
    assert {path.name for path in out.iterdir()} == FILES | {"model_int8.onnx"}
    about = json.loads((out / "lascl_onnx.json").read_text())["check"]
    stated = about["int8_max_probability_difference"], about["int8_max_embedding_difference"]
    sizes = f"{stated[0]:.1e} from PyTorch in a probability, {stated[1]:.1e} in an embedding."
    assert re.fullmatch(rf"model_int8.onnx, \d+\.\d MB: at most {sizes}", told)
    assert f"up to\n{stated[0]:.1e} from PyTorch" in (out / "README.md").read_text()
    assert max(about["max_probability_difference"], 1e-6) < stated[0] < 0.2  # other sums, but no other model

    # The same distance by hand, over what the export was checked on.
    recogniser = Recogniser.load(checkpoint(family), device="cpu")
    (out / "model_int8.onnx").replace(out / "model.onnx")
    utterances = exporting._generated_speech(recogniser)
    expected = recogniser(utterances)
    alone = [ask(out, [samples]) for samples in utterances]
    batch = ask(out, utterances)
    found = [softmax(batch[0]), np.concatenate([softmax(logits) for logits, _ in alone])]
    largest = max(np.abs(probabilities - expected[0]).max() for probabilities in found)
    assert largest == pytest.approx(stated[0], rel=0.05)
    weights = sum(parameter.numel() for parameter in recogniser.model.lascl.audio_encoder.parameters())
    assert weights > 0 and any(b"MatMulInteger" in line for line in (out / "model.onnx").read_bytes().split(b"\n"))


# ------------------------------------------------------------------------------------------------- without PyTorch


def test_the_example_needs_no_pytorch(checkpoint, exported, tmp_path):
    mono, stereo = tmp_path / "mono.wav", tmp_path / "stereo.wav"
    left, right = recording(5), recording(6)
    soundfile.write(mono, left, RATE, subtype="FLOAT")
    soundfile.write(stereo, np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    result = run_example(exported("whisper"), mono, stereo)
    assert result.returncode == 0, result.stderr
    recogniser = Recogniser.load(checkpoint("whisper"), device="cpu")
    expected, _ = recogniser([left, (left + right) / 2])
    lines = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(mono), str(stereo)]
    for line, probabilities in zip(lines, expected):
        told = {label: float(number) / 100 for label, number in re.findall(r"(\w+) ([\d.]+) %", line.split(": ")[1])}
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert told == pytest.approx(dict(zip(LABELS, probabilities)), abs=5.1e-4)


def test_the_example_refuses_what_the_model_cannot_hear(exported, tmp_path):
    soundfile.write(tmp_path / "slow.wav", recording(0), 8_000)
    soundfile.write(tmp_path / "long.wav", recording(0, WHISPER_WINDOW_S + 0.1), RATE)
    for name, sentence in (
        ("slow.wav", "8000 Hz; convert it to 16000 Hz"),
        ("long.wav", "lasts 2.1 s; .* at most 2.0 s"),
    ):
        result = run_example(exported("whisper"), tmp_path / name)
        assert result.returncode == 1 and re.search(f"^{re.escape(str(tmp_path / name))}: .*{sentence}", result.stderr)


# The second has a classifier's head.
@pytest.mark.parametrize("family", ["whisper", pytest.param("data2vec-audio", marks=pytest.mark.slow)])
def test_the_code_in_the_exports_readme_runs(family, checkpoint, exported, tmp_path):
    folder = shutil.copytree(exported(family), tmp_path / "out")
    soundfile.write(folder / "speech.wav", recording(8), RATE, subtype="FLOAT")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    result = run_without_torch(code, cwd=folder)
    assert result.returncode == 0, result.stderr
    expected, _ = Recogniser.load(checkpoint(family), device="cpu")([recording(8)])
    assert json.loads(result.stdout.replace("'", '"')) == pytest.approx(dict(zip(LABELS, expected[0])), abs=1e-5)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_a_graph_that_answers_otherwise_leaves_nothing(checkpoint, exported, graph_of, tmp_path, capsys):
    graph_of(exported("whisper"))
    other = checkpoint("whisper", seed=1)
    with pytest.raises(ValueError, match=r"differ by 0\.\d+ in a probability and .* more than 0\.0001; nothing was"):
        export(other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    earlier = shutil.copytree(exported("whisper"), tmp_path / "earlier")
    with pytest.raises(SystemExit) as exit:
        main([str(other), str(earlier)])
    assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [earlier]
    for path in earlier.iterdir():
        assert path.read_bytes() == (exported("whisper") / path.name).read_bytes()


def test_an_answer_that_is_no_number_is_refused(checkpoint, exported, graph_of, tmp_path):
    graph_of(exported("whisper"))
    recogniser = Recogniser.load(checkpoint("whisper"), device="cpu")
    with torch.no_grad():
        recogniser.model.lascl.audio_projection.output.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="differ by nan"):
        export(recogniser, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_anything_else_refused(checkpoint, exported, graph_of, tmp_path):
    graph_of(exported("whisper"))
    model, out = checkpoint("whisper"), tmp_path / "out"
    out.mkdir()
    export(model, out)
    export(model, out, labels=["furious", "weary"])
    assert {path.name for path in out.iterdir()} == FILES and list(tmp_path.iterdir()) == [out]
    assert np.load(out / "labels.npz")["labels"].tolist() == ["furious", "weary"]

    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds 'notes.txt', which no export left there. Give a new or an empty"):
        export(model, out)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file. Give a new or an empty folder"):
        export(model, tmp_path / "file")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.onnx").write_bytes(b"somebody else's")
    with pytest.raises(ValueError, match="holds 'model.onnx', which no export left there"):
        export(model, foreign)


def test_what_cannot_be_exported_is_one_sentence(checkpoint, tmp_path, monkeypatch):
    recogniser = Recogniser.load(checkpoint("whisper"), device="cpu")
    with pytest.raises(ValueError, match="has its labels and revision: give them to Recogniser.load"):
        export(recogniser, tmp_path / "out", labels=["a", "b"])
    recogniser.feature_extractor.dither = 1e-4
    with pytest.raises(ValueError, match=r"adds noise \(dither=0.0001\)"):
        export(recogniser, tmp_path / "out")
    recogniser.feature_extractor = SeamlessM4TFeatureExtractor()
    with pytest.raises(ValueError, match="found SeamlessM4TFeatureExtractor"):
        export(recogniser, tmp_path / "out")
    recogniser.model.bfloat16()
    with pytest.raises(ValueError, match="wants a model in float32 on the CPU; found torch.bfloat16 on cpu"):
        export(recogniser, tmp_path / "out")

    def fail(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("Failed to export.\nA page of advice.") from RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ValueError, match=r"cannot export the encoder type 'wavlm' to ONNX \(no such operator\)\. Noth"):
        export(checkpoint("wavlm-group"), tmp_path / "out")
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r'Exporting needs onnxscript: pip install "lascl\[onnx\]"'):
        export(checkpoint("wavlm-group"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_is_wrong_before_it_computes(checkpoint, tmp_path, capsys):
    (tmp_path / "text.wav").write_text("no audio")
    out, model = tmp_path / "out", str(checkpoint("whisper"))
    for arguments, sentence in (
        ([model, str(out), "--check", str(tmp_path / "text.wav")], "text.wav: cannot be read as audio"),
        ([model, str(out), "--labels", "joyful,,sad"], "--labels has an empty word between commas: 'joyful,,sad'"),
        ([model, str(out), "--template", "a {label} voice"], "A label template needs labels"),
        ([str(tmp_path / "none"), str(out)], "none"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2 and sentence in capsys.readouterr().err
    assert not out.exists()


# -------------------------------------------------------------------------------------------------------- real speech


@pytest.mark.slow
def test_a_real_encoder_on_real_speech(shared, tmp_path):
    encoders = shared / "encoders"
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        str(encoders / "whisper-tiny.en"), str(encoders / "all-MiniLM-L6-v2"), LABELS, window_s=WHISPER_WINDOW_S
    )
    extractor = WhisperFeatureExtractor.from_pretrained(encoders / "whisper-tiny.en", chunk_length=WHISPER_WINDOW_S)
    recogniser = Recogniser(model.eval(), extractor)
    paths = sorted((shared / "corpora" / "emodb").glob("*.flac"))[::26][:20]
    files = []
    for number, path in enumerate(paths):  # all last 2.0 s there: cut to 0.2, 0.29, ... s
        samples, rate = soundfile.read(path, dtype="float32")
        files.append(tmp_path / f"{path.stem}.wav")
        soundfile.write(files[-1], samples[: round((0.2 + 0.09 * number) * rate)], rate, subtype="FLOAT")
    about = export(recogniser, tmp_path / "out", check=files)
    assert about["check"]["utterances"] == len(files) == 20
    utterances = [soundfile.read(file, dtype="float32")[0] for file in files]
    assert len({len(samples) for samples in utterances}) == 20
    expected = [np.concatenate(rows) for rows in zip(*(recogniser([samples]) for samples in utterances))]
    logits, audio_embeds = ask(tmp_path / "out", utterances)
    np.testing.assert_allclose(softmax(logits), expected[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(audio_embeds, expected[1], rtol=0, atol=1e-4)
