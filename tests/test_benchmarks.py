"""Every benchmark runs, in miniature, and leaves a table without holes. What it measures is no test's business."""

import importlib
import itertools
import json
import math
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny
import torch
from transformers import AutoFeatureExtractor, WavLMConfig

from lascl import LaSCLForAudioClassification, load_corpus
from lascl.data import SpeechDataset


pytestmark = pytest.mark.slow  # all of them together; what they measure comes from what other tests test

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
WAVLM, WAV2VEC2 = tiny.AUDIO_ENCODERS["wavlm-layer"], tiny.AUDIO_ENCODERS["wav2vec2-layer"]
# The front end of a real encoder, 20 ms a frame, at a width that costs nothing.
REAL_STRIDES = {
    **{name: value for name, value in WAVLM.items() if not name.startswith(("conv_", "num_feat"))},
    "conv_dim": [8] * 7,
    "num_feat_extract_layers": 7,
}
SCRIPTS = {path.stem for path in FOLDER.glob("*.py")} - {"measuring"}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """A benchmark as a module, its constants replaced, its results in `tmp_path`."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(importlib.import_module("measuring"), "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def load(name, **constants):
        module = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        return module

    return load


def checked_table(folder: Path, name: str, num_rows: int, may_be_empty: tuple[str, ...] = ()) -> dict:
    """The file of a benchmark, its table as a list of rows by column; every cell filled but those that may be empty."""
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["title"] and {"commit", "device", "versions", "threads", "notes"} <= found.keys()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found["table"].splitlines()]
    columns, rule, *rows = lines
    assert set(rule) == {"---"} and len(rows) == num_rows
    assert {len(row) for row in rows} == {len(columns)}
    found["rows"] = [dict(zip(columns, row)) for row in rows]
    holes = {column for row in found["rows"] for column, cell in row.items() if not cell}
    assert holes <= set(may_be_empty), holes
    return found


def in_this_process(monkeypatch):
    """What replaces `run_apart`: the script runs here, which saves the seconds of importing torch."""

    def run_apart(file, *arguments):
        found = []
        monkeypatch.setattr(sys, "argv", [file, *arguments])
        monkeypatch.setattr(sys.modules["measuring"], "report_found", found.append)
        runpy.run_path(file, run_name="__main__")
        return json.loads(json.dumps(found[0]))

    return run_apart


def test_every_benchmark_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'\bload\(\s*"(\w+)"', text)) >= SCRIPTS


def test_attention(load, tmp_path):
    small = {"intermediate_size": 8, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    load(
        "attention",
        ON_CPU=[(1, 9, 0.1)],
        ROUNDS=1,
        WavLMConfig=lambda **fields: WavLMConfig(**{**fields, **small}),
    ).main()
    checked_table(tmp_path, "attention", 3, ("MiB kept a layer", "peak MiB, 3 layers"))


def test_training_step(load, tmp_path):
    module = load("training_step", ROUNDS=1)
    module.ON_CPU = [
        {"encoder": WAVLM, "num_utterances": 4, "duration_s": 0.1},
        {"encoder": REAL_STRIDES, "num_utterances": 2, "duration_s": None},
    ]
    module.main()
    found = checked_table(tmp_path, "training_step", 10, ("peak MiB of the step",))
    names = [name for measured in found["measured"] for name in measured["candidates"]]
    assert [row["model and loss"] for row in found["rows"]] == names
    for measured in found["measured"]:
        for values in measured["candidates"].values():
            assert values["seconds"] > 0 and values["saved_mib"] > 0 and values["peak_mib"] is None
    groups, whole = (found["measured"][1]["candidates"][f"LaSCL (eq. 9){how}"] for how in ("", ", batch whole"))
    assert groups["saved_mib"] < whole["saved_mib"]  # rows of 8.5 s and 2.5 s


def test_a_candidate_that_does_not_fit_is_a_row_that_says_so(load, tmp_path, monkeypatch):
    module = load("training_step", ON_CPU=[{"encoder": WAVLM, "num_utterances": 2, "duration_s": 0.1}], ROUNDS=1)

    def too_large(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module.WavLMForSequenceClassification, "forward", too_large)
    module.main()
    columns = ("peak MiB of the step", "s", "least to most")
    rows = checked_table(tmp_path, "training_step", 5, columns)["rows"]
    assert ["out of memory" in row.values() for row in rows] == [False, False, False, False, True]


def test_gpu(load, tmp_path, monkeypatch):
    module, compiled = load("gpu"), []
    small = {"intermediate_size": 8, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    monkeypatch.setattr(module.attention, "WavLMConfig", lambda **fields: WavLMConfig(**{**fields, **small}))
    monkeypatch.setattr(module.attention, "ROUNDS", 1)
    # What a compiler makes of a layer is its own tests' business, and takes half a minute.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **how: compiled.append(how))
    for place in (module, module.measuring):
        monkeypatch.setattr(place, "SAMPLING_RATE", 1600)
    module.main(
        ["--commit", "a" * 40],
        module.Size(
            encoder=REAL_STRIDES | {"hidden_dropout": 0.1, "attention_dropout": 0.1},
            num_utterances=(4, 2),
            precisions=("float32",),
            rounds=1,
            prices_s=(0, 1000),
            checked_utterances=4,
            most_utterances=8,
            chunk_utterances=4,
            attention=((1, 9, 0.1),),
            num_files=4,
        ),
    )
    found = checked_table(tmp_path, "gpu", 3, ("peak GiB of the step", "paper's run, h"))
    assert found["commit"] == "a" * 40
    assert all(found[part] or part == "synchronisations" for part in module.PARTS)
    assert not any("failed" in found[part] or "not_run" in found[part] for part in module.PARTS)
    assert [price["num_groups"] for price in found["prices"]] == [4, 1]
    for same in found["same_gradients"].values():
        assert same["loss"] < 1e-5 and same["gradient"] < 1e-4
    assert [row["num_utterances"] for row in found["largest_batches"]] == [8] * 4
    assert len(compiled) == REAL_STRIDES["num_hidden_layers"]


def test_a_part_that_fails_on_a_gpu_leaves_the_others(load, tmp_path, monkeypatch):
    module = load("gpu")
    monkeypatch.setattr(module, "PARTS", {"bad": lambda *_: 1 / 0, "good": lambda *_: [1], "late": lambda *_: [2]})
    monkeypatch.setattr(module, "Candidates", lambda *_: None)
    module.main([], module.LARGE)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["bad"] == {"failed": "ZeroDivisionError: division by zero"} and found["good"] == [1]
    module.main(["--minutes", "-1"], module.LARGE)
    assert json.loads((tmp_path / "gpu.json").read_text())["late"] == {"not_run": "no time was left"}


def test_gradient_cache(load, tmp_path, monkeypatch):
    module = load("gradient_cache", ON_CPU={"encoder": WAV2VEC2, "duration_s": 0.1}, CACHED=(16, 32), PLAIN=(16,))
    monkeypatch.setattr(module, "run_apart", in_this_process(monkeypatch))
    module.main()
    found = checked_table(tmp_path, "gradient_cache", 3)
    assert [(row["utterances"], row["chunk"]) for row in found["rows"]] == [("16", "none"), ("16", "16"), ("32", "16")]
    # Two inputs of 4 bytes a sample, and a label of 8 bytes a row.
    assert [run["inputs_mib"] * 2**20 for run in found["measured"]] == [16 * 12808, 16 * 12808, 32 * 12808]
    assert found["in_turns"].keys() == {"plain", "cached"}


@pytest.mark.parametrize("encoder", ["random", "whisper"])
def test_inference(load, tmp_path, audio_encoders, encoder):
    longest_s = 1 if encoder == "whisper" else 0.1  # a window has whole seconds
    module = load("batching", ON_CPU=WAVLM, NUM_CLIPS=10, DURATIONS_S=(0.05, longest_s), ROUNDS=1)
    module.main([] if encoder == "random" else ["--audio_encoder", audio_encoders[encoder]])
    found = checked_table(tmp_path, "batching", 12)
    assert "/" not in found["audio_encoder"]
    for row in found["rows"]:
        assert row["same labels"].endswith(" of 10") and float(row["utterances/s"]) > 0


def test_labels_that_depend_on_the_batch_are_refused(load, monkeypatch):
    module = load("batching", ON_CPU=WAVLM, NUM_CLIPS=10, DURATIONS_S=(0.05, 0.1), ROUNDS=1)
    classify = module.classify

    def wrong(*args, by_length, **kwargs):
        labels = classify(*args, by_length=by_length, **kwargs)
        return ["another", *labels[1:]] if by_length else labels

    monkeypatch.setattr(module, "classify", wrong)
    with pytest.raises(SystemExit, match="batches of 8, sorted by length, float32 answers 9 of 10 clips"):
        module.main([])


@pytest.fixture
def predict_benchmark(load, tmp_path, audio_encoders, monkeypatch):
    """The module, and its command line over a folder of ten clips."""
    (tmp_path / "clips").mkdir()
    for number in range(10):
        samples = tiny.recording(number, 0.15 + 0.02 * number)
        soundfile.write(tmp_path / "clips" / f"{number}.wav", samples, tiny.RATE)
    few = {"NUM_CLIPS": 10, "ROUNDS": 2, "START_UP_RUNS": 1, "STARTED": {"nothing": ["-c", ""]}}
    module = load("real_clips", WAVLM_BASE=WAVLM, PIPELINE_BATCH_SIZES=(1, 4), **few)
    monkeypatch.setattr("lascl.inference.export.CHECKED_DURATION_S", 0.5)  # tiny encoders make many frames of a second
    return module, ["--audio_encoder", audio_encoders["whisper"], "--corpora", str(tmp_path / "clips")]


def test_predict(predict_benchmark, tmp_path):
    module, command = predict_benchmark
    module.main(command)
    found = checked_table(tmp_path, "real_clips", 10)
    assert found["num_clips"] == 10 and "nothing" in found["start_up_cpu_s"]
    assert len({row["model"] for row in found["rows"]}) == 2 and not any("/" in row["model"] for row in found["rows"])
    for numbers in (ways for model in found["models"].values() for ways in model.values()):
        assert len(numbers["ratio"]) == len(numbers["real_time_factor"]) == 2
        assert all(value > 0 for value in numbers["ratio"] + numbers["real_time_factor"])
        assert all(0 < share < 1 for share in numbers["in_encoder"])
    for ways in found["models"].values():
        assert len(ways["lascl-predict"]["in_encoder"]) == len(ways["ONNX, int8"]["in_encoder"]) == 2
        assert 1e-6 < ways["ONNX, int8"]["largest_change"] < 0.2


def test_probabilities_other_than_the_pipeline_s_are_refused(predict_benchmark, monkeypatch):
    module, command = predict_benchmark

    def wrong(model, paths, predict_files=module.predict_files):
        for answer in predict_files(model, paths):
            answer.probabilities = answer.probabilities + np.float32(2e-4)
            yield answer

    monkeypatch.setattr(module, "predict_files", wrong)
    monkeypatch.setattr(module, "by_onnx", lambda *args: lambda paths: np.full((len(paths), 4), 0.25))
    monkeypatch.setattr(module, "export", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit, match="lascl-predict gives 10 of 10 labels .* and probabilities to 0.0002"):
        module.main(command)


def test_scaling(load, tmp_path, monkeypatch):
    setting = {"encoder": WAV2VEC2, "duration_s": 0.1}
    module = load("scaling", ON_CPU=setting, PROCESSES_ON_CPU=(1,), BATCH_SIZES=(32, 64), ROUNDS=1)
    here = in_this_process(monkeypatch)

    def run_apart(*command, OMP_NUM_THREADS):
        launcher, arguments = command[: command.index(module.__file__)], command[command.index(module.__file__) :]
        assert launcher == ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
        return here(*arguments)

    monkeypatch.setattr(module, "run_apart", run_apart)
    module.main()
    rows = checked_table(tmp_path, "scaling", 2)["rows"]
    assert [(row["utterances"], row["processes"]) for row in rows] == [("32", "1"), ("64", "1")]


def test_speed_of_two_processes_is_a_ratio_to_one(load, tmp_path, monkeypatch):
    module = load("scaling", PROCESSES_ON_CPU=(1, 2), BATCH_SIZES=(8,), ROUNDS=2)
    seconds = iter([4.0, 3.0, 2.0, 1.0])  # of one process, of two, and again
    monkeypatch.setattr(module, "run_apart", lambda *command, **variables: {"8": next(seconds)})
    module.main()
    rows = checked_table(tmp_path, "scaling", 2)["rows"]
    assert [row["ms an utterance"] for row in rows] == ["375.0", "250.0"]
    assert [row["speed, ratio to 1"] for row in rows] == ["1.00", "1.50"]


def test_data_loading(load, tmp_path, emodb_like, audio_encoders, text_encoder):
    module = load("data_loading", AUGMENTATIONS=("none", "gain"), SECONDS_A_MEASUREMENT=0.01, TRAININGS=(("gain", 0),))
    encoders = ["--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder]
    module.main(["--data_dir", str(emodb_like), "--allow_partial", *encoders, "--workers", "0"])
    found = checked_table(tmp_path, "data_loading", 2)
    assert {name: list(speeds) for name, speeds in found["utterances_per_second"].items()} == {
        "none": ["0"],
        "gain": ["0"],
    }
    assert 0 < found["waiting"]["gain, 0 workers"]["share"] < 1


def test_large_manifest(load, tmp_path, emodb_like):
    module = load("large_manifest", ROWS=40, SPEAKERS=10, STARTS=("first",))
    module.main(["--audio", str(emodb_like)])
    found = checked_table(tmp_path, "large_manifest", 1)
    assert found["num_rows"] == 40
    assert 0 < found["starts"]["first"]["s_before_model"] < found["starts"]["first"]["s_until_first_step"]


def test_thousand_utterances(load, tmp_path, audio_encoders, text_encoder, emodb_like, monkeypatch):
    views = {"one": ("--augmentation", "none"), "nine": ("--augmentation", "gain")}
    briefly = {name: (*options, "--num_train_epochs", "1") for name, options in views.items()}
    module = load("thousand_utterances", UTTERANCES=40, VIEWS=briefly)
    here = in_this_process(monkeypatch)
    monkeypatch.setattr(module, "run_apart", lambda file, *arguments, **caches: here(file, *arguments))
    encoders = ["--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--audio_layers", "1,2"]
    module.main(["--audio", str(emodb_like), *encoders])
    found = checked_table(tmp_path, "thousand_utterances", 3)
    assert found["title"].startswith("40 utterances of 0.5 s on average under a frozen ")
    assert [row["views"] for row in found["rows"]] == ["40", "360", "40"]
    one, nine, labelling = found["measured"]
    assert one["bytes"] == 40 * 2 * 16 * 4 + 128 and nine["bytes"] == 9 * one["bytes"]
    assert 0 < one["encoding_s"] < one["s"] and labelling["s"] > 0


def test_a_process_that_fails_says_why(load):
    measuring = load("measuring")
    with pytest.raises(SystemExit, match="(?s)failed:.*no such luck"):
        measuring.run_apart("-c", "raise SystemExit('no such luck')")


def test_frozen_probe(load, tmp_path, emodb_like, audio_encoders):
    """Against runs that predict everything right, and against none."""
    study = tmp_path / "study" / "LaSCL"
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    for seed in (1, 2):
        (study / f"seed-{seed}" / "fold-1").mkdir(parents=True)
        rows = [["id", "speaker", "reference", "prediction", "prediction_classifier"]]
        names = corpus.features["label"].names
        rows += [[row["id"], row["speaker"], *[names[row["label"]]] * 3] for row in corpus]
        lines = "\n".join(",".join(row) for row in rows)
        (study / f"seed-{seed}" / "fold-1" / "predictions.csv").write_text(lines + "\n")
    module = load("frozen_probe", CHOSEN_C=(0.01, 1.0))
    options = ["emodb", "--data_dir", str(emodb_like), "--allow_partial", "--audio_encoder", audio_encoders["whisper"]]
    module.main([*options, "--against", str(study)])
    found = checked_table(tmp_path, "frozen_probe", 4)
    assert [row["frozen features"] for row in found["rows"]] == [
        *("layer 0", "layer 1", "layer 2", "layers 1, 2 side by side")
    ]
    for row in found["rows"]:
        difference = float(row["UA of LaSCL less this, points"].partition(" ")[0])
        assert difference == pytest.approx(100 - float(row["UA"]), abs=0.051)
    module.main(options)
    plain = checked_table(tmp_path, "frozen_probe", 4)
    assert [row["UA"] for row in plain["rows"]] == [row["UA"] for row in found["rows"]]
    with pytest.raises(SystemExit):
        module.main([*options, "--against", str(tmp_path)])


def test_the_probe_s_features_are_means_over_frames_of_signal(load, emodb_like, audio_encoders):
    module = load("frozen_probe")
    corpus = load_corpus("emodb", emodb_like, allow_partial=True).select([0, 6, 3])
    encoder, extractor = module.load_listener(audio_encoders["wavlm-layer"], 0.4)
    heard = {"sampling_rate": 16_000, "max_duration_s": 0.4}
    together = module.layer_means(encoder, extractor, SpeechDataset(corpus, [0, 1, 2], **heard))
    alone = module.layer_means(encoder, extractor, SpeechDataset(corpus, [1], **heard))
    assert together.shape == (3, 3, 16)
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-5)


def test_small_corpus_choices(load, tmp_path, emodb_like, audio_encoders, text_encoder):
    """Two of the choices, trained for an epoch; nothing is learnt from noise, but each utterance is answered by four
    trainings that did not hear it."""
    module = load("small_corpus_choices", PERIOD=2, SEEDS=(1,))
    for name in list(module.CHOICES):
        if name not in ("the recipe", "learned weights over all layers", "learnt temperature", "balanced batches"):
            del module.CHOICES[name]
    module.RECIPE.update(layers=(1, 2), epochs=1)
    heard = []
    answers = module.answers

    def recorded(choice, encoded, ids, labels, train, test, *rest):
        heard.append((set(train), set(test)))
        return answers(choice, encoded, ids, labels, train, test, *rest)

    module.answers = recorded
    options = ["--data_dir", str(emodb_like), "--allow_partial", "--audio_encoder", audio_encoders["whisper"]]
    module.main(["emodb", *options, "--text_encoder", text_encoder])
    found = checked_table(tmp_path, "small_corpus_choices", 4, ("UA less the recipe's, points", "p"))
    assert len(heard) == 4 * 10 and all(not train & test and len(train | test) == 70 for train, test in heard)
    assert sum(int(row["best for, of 5 folds"]) for row in found["rows"]) == 5
    for row in found["rows"]:
        assert 0 <= float(row["UA"]) <= 100


def test_contrastive_reduction(load, tmp_path, monkeypatch, emodb_like, audio_encoders, text_encoder):
    """Every choice is trained and tabulated; the same command again trains nothing."""
    module = load("contrastive_reduction", GRID=(0.1,), SEEDS=(1,), PERIOD=1)
    monkeypatch.setattr(module.choices, "RECIPE", {**module.choices.RECIPE, "layers": (1, 2), "epochs": 1})
    trained, answers = [], module.choices.answers
    monkeypatch.setattr(
        module.choices, "answers", lambda choice, *rest: trained.append(choice) or answers(choice, *rest)
    )
    options = ["--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--allow_partial"]
    command = [f"emodb={emodb_like}", *options, "--parts", str(tmp_path / "parts")]
    module.main(command)
    assert len(trained) == 6 * 5  # six choices, five pairs of neighbouring folds
    wanted = {("mean", 0.0), ("mean", 0.1 / 71), ("mean", 0.1), ("bracket", 0.1), ("sum", 0.0), ("sum", 0.1)}
    assert {(choice["contrastive_reduction"], choice["divergence_weight"]) for choice in trained} == wanted
    found = checked_table(tmp_path, "contrastive_reduction", 6, ("less the reference's, points", "p"))
    (tmp_path / "contrastive_reduction.json").unlink()
    module.main(command)
    assert len(trained) == 6 * 5
    assert checked_table(tmp_path, "contrastive_reduction", 6, ("less the reference's, points", "p")) == found


def test_thinned_class(load, tmp_path, monkeypatch, emodb_like, audio_encoders, text_encoder):
    """Most of one class is left out of training alone, and what is left of it weighs more, or comes more often."""
    module = load("thinned_class", SEEDS=(1,), LAYERS=(1, 2))
    monkeypatch.setattr(module.choices, "RECIPE", {**module.choices.RECIPE, "epochs": 1})
    trained, answers = [], module.choices.answers

    def recorded(choice, encoded, ids, labels, train, test, *rest):
        trained.append((choice, [int(labels[row]) for row in train].count(0), test))
        return answers(choice, encoded, ids, labels, train, test, *rest)

    monkeypatch.setattr(module.choices, "answers", recorded)
    options = ["--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--allow_partial"]
    module.main(["emodb", "--data_dir", str(emodb_like), *options, "--parts", str(tmp_path / "parts")])
    found = checked_table(tmp_path, "thinned_class", 4, ("", "UA less the first row's, points", "p"))
    assert [count for _, count, _ in trained] == [1] * 15 + [8] * 5 and {len(test) for *_, test in trained} == {14}
    weights = [choice["class_weights"] for choice, *_ in trained]
    assert weights[0] is None and weights[5].tolist() == pytest.approx([49 / 7, *[49 / 56] * 6])
    assert [choice["utterances_per_class"] for choice, *_ in trained] == [None] * 10 + [4] * 5 + [None] * 5
    assert all(0 <= row["recall"] <= 1 and 0 <= row["precision"] <= 1 for row in found["scores"].values())


def test_heads_tried(load, tmp_path, monkeypatch, emodb_like, audio_encoders, text_encoder):
    """Of a corpus, and of a fold, that is left out nothing is trained on or answered; what is done is done once."""
    module = load("heads_tried", LAYERS="1,2", WITHIN={"epochs": 1, "texts": "words"})
    few = ["the recipe", "a second view: channel", "gradient reversal on the corpus"]
    few += ["two corpora's utterances of a word mixed"]
    monkeypatch.setattr(module, "CHOICES", {name: module.CHOICES[name] for name in few})
    small = {"layers": (1, 2), "epochs": 1, "batch_size": 16, "width": 8}
    monkeypatch.setattr(module, "RECIPE", {**module.RECIPE, **small})
    trained, answers = [], module.answers

    def recorded(choice, x, table, train, sides):
        trained.append((table, train, sides))
        return answers(choice, x, table, train, sides)

    monkeypatch.setattr(module, "answers", recorded)
    pairs = [f"emodb={emodb_like}"]
    for number, words in enumerate(
        (("anger", "fear"), ("anger", "fear", "calm"), ("anger", "fear", "neutral")), start=1
    ):
        folder, lines = tmp_path / f"own-{number}", ["path,label,speaker"]
        folder.mkdir()
        for row in range(12):
            soundfile.write(folder / f"{row}.wav", tiny.recording(100 * number + row, 0.3), tiny.RATE)
            lines.append(f"{row}.wav,{words[row % len(words)]},{row // 4}")
        (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
        pairs.append(f"own-{number}:csv={folder}")
    command = [*pairs, "--allow_partial", "--parts", str(tmp_path / "parts")]
    command += ["--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder]
    module.main(command)
    optional = [
        *(
            f"unheard, {statistics} statistics: label head ahead of the recipe's"
            for statistics in ("training", "corpus")
        ),
        *(f"within a corpus: {what}" for what in ("label head", "both heads", "label head ahead of the recipe's")),
    ]
    found = checked_table(tmp_path, "heads_tried", 1 + len(few), optional)
    pairs_of_corpora = 6 * 2 * len(few)  # with either statistics
    own = 2 * (10 + 3 * 3)
    assert len(trained) == pairs_of_corpora + own
    for table, train, sides in trained[:12]:
        assert not set(table.of[train]) & set(sides) and len(set(table.of[train])) == len(sides) == 2
    for table, train, sides in trained[12 : 12 + 19]:
        (corpus,) = set(table.of[train])
        tested = np.concatenate(list(sides.values()))
        assert set(table.of[tested]) == {corpus} and not set(train) & set(tested)
        speakers = np.array(table.corpus["speaker"][:])
        assert not set(speakers[train]) & set(speakers[tested])
    trained.clear()
    (tmp_path / "heads_tried.json").unlink()
    module.main(command)
    assert trained == [] and checked_table(tmp_path, "heads_tried", 1 + len(few), optional) == found


def test_what_standardises_is_the_clean_view_of_a_group(load):
    module = load("heads_tried")
    x = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (2, 9, 4))).float()
    z = module.standardise(x, [np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7])])
    for rows, of in ((range(4), range(4)), (range(4, 8), range(4, 8)), ([8], range(4))):
        for view, row, k in itertools.product(range(2), rows, range(4)):
            own = [float(x[0, r, k]) for r in of]
            mean = sum(own) / 4
            deviation = math.sqrt(sum((value - mean) ** 2 for value in own) / 4)
            assert float(z[view, row, k]) == pytest.approx((float(x[view, row, k]) - mean) / deviation, rel=1e-4)


def test_what_is_normed_has_no_mean_and_unit_deviation_in_each_state(load):
    module = load("heads_tried")
    states = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (3, 6, 2, 4))).float()
    choice = {"layers": (2, 3), "views": ("equal",), "with_std": False, "is_normed": True}
    x = module.Table.features(SimpleNamespace(states={"equal": states}), choice)
    assert x.shape == (1, 3, 8)
    for row, layer in itertools.product(range(3), range(2)):
        values = [float(value) for value in states[row, (2, 3)[layer] - 1, 0]]
        mean = sum(values) / 4
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
        for k, value in enumerate(values):
            assert float(x[0, row, 4 * layer + k]) == pytest.approx((value - mean) / deviation, abs=1e-4)


def test_words_that_are_near_to_everything_are_no_longer_answered_alone_where_similarities_are_centred(load):
    """Against sums by hand: similarities of three utterances to two words, each word's standardised over the three."""
    module = load("heads_tried")
    choice = {**module.RECIPE, "temperature": 1.0, "width": 2, "dropout": 0.0, "is_centred": True}
    heads = module.Heads(choice, 2, torch.eye(2), 1)
    heads.audio, heads.text = torch.nn.Identity(), torch.nn.Identity()
    angles = [0.1, 0.2, 0.4]
    x = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
    with torch.no_grad():
        found = heads.probabilities(x, torch.tensor([True, True]), torch.tensor([True, True]))["label"]
    columns = [[math.cos(angle) for angle in angles], [math.sin(angle) for angle in angles]]
    means = [sum(column) / 3 for column in columns]
    spreads = [math.sqrt(sum((v - m) ** 2 for v in column) / 2) for column, m in zip(columns, means)]
    for row in range(3):
        z = [math.exp((columns[k][row] - means[k]) / spreads[k] * sum(spreads) / 2) for k in range(2)]
        assert found[row].tolist() == pytest.approx([value / sum(z) for value in z], rel=1e-4)
    assert found.argmax(dim=1).tolist() == [0, 0, 1]


def test_simulated_listeners(load, tmp_path, monkeypatch, emodb_like, audio_encoders, text_encoder):
    """The same votes are learned in both ways, and the table says that nobody listened."""
    module = load("simulated_listeners", SEEDS=(1,), LAYERS=(1, 2))
    monkeypatch.setattr(module.choices, "RECIPE", {**module.choices.RECIPE, "epochs": 1})
    trained, probabilities = [], module.choices.probabilities

    def recorded(choice, encoded, ids, targets, train, *rest):
        trained.append((targets, train))
        return probabilities(choice, encoded, ids, targets, train, *rest)

    monkeypatch.setattr(module.choices, "probabilities", recorded)
    options = ["--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--allow_partial"]
    module.main([f"emodb={emodb_like}", *options, "--parts", str(tmp_path / "parts")])
    found = checked_table(tmp_path, "simulated_listeners", 6)
    assert "imulated" in found["title"] and found["notes"].startswith("Simulated: ")
    assert len(trained) == 2 * 2 * 5
    for (majority, some), (votes, everyone) in zip((trained[0], trained[10]), (trained[5], trained[15])):
        is_tie = (votes == votes.max(dim=1, keepdim=True).values).sum(dim=1) > 1
        assert torch.equal(majority == -1, is_tie) and torch.equal(votes.argmax(dim=1)[~is_tie], majority[~is_tie])
        assert len(everyone) == 56 and set(some) == {row for row in everyone if not is_tie[row]}
    words = ["anger", "fear", "sadness"]
    said = module.confusions(words)
    assert said.sum(axis=1) == pytest.approx(1) and said.diagonal() == pytest.approx(module.RIGHT)
    assert said[0, 1] > said[0, 2]  # fear is nearer to anger than sadness is
    drawn = module.simulated_votes(np.zeros(4000, dtype=int), words, 3, 0)
    assert drawn.sum(axis=1).tolist() == [3] * 4000 and drawn.sum(axis=0) / 12000 == pytest.approx(said[0], abs=0.02)


def test_synonyms(load, tmp_path, audio_encoders, text_encoder):
    """A label's own word is as good as the label; another label's word lands on that, and tells nothing of this one."""
    module = load("synonyms", SYNONYMS={"angry": ("angry",), "happy": ("sad",), "joy": ("unknown to this model",)})
    labels = tiny.LABELS
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wav2vec2-layer"], text_encoder, labels)
    trained = model.get_label_embeddings().detach().numpy()
    fold = tmp_path / "run" / "fold-1"
    model.save_pretrained(fold / "checkpoint")
    # An utterance lies where its emotion's label does; one angry one lies with the sad ones.
    emotions, places = ["angry", "angry", "happy", "sad"], ["angry", "sad", "happy", "sad"]
    ids = [f"u{number}" for number in range(4)]
    embeds = np.stack([trained[labels.index(place)] for place in places])
    np.savez(fold / "embeddings.npz", ids=ids, audio_embeds=embeds, labels=labels, label_embeds=trained)
    rows = "".join(f"{id},{emotion}\n" for id, emotion in zip(ids, emotions))
    (fold / "predictions.csv").write_text("id,reference\n" + rows)
    module.main([str(tmp_path / "run")])
    found = checked_table(tmp_path, "synonyms", 2)
    assert [list(row.values()) for row in found["rows"]] == [
        ["angry", "angry", "1 of 1", "-", "50", "50"],
        ["happy", "sad", "0 of 1", "sad 1", "100", "0"],
    ]
    with pytest.raises(SystemExit):
        module.main([str(tmp_path)])


def test_quantised(load, tmp_path, audio_encoders, text_encoder, emodb_like):
    checkpoint = tmp_path / "checkpoint"
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wavlm-layer"], text_encoder, ["anger", "fear"])
    model.save_pretrained(checkpoint)
    AutoFeatureExtractor.from_pretrained(audio_encoders["wavlm-layer"]).save_pretrained(checkpoint)
    module = load("quantised", BATCH_SIZE=35)
    module.main([str(checkpoint), str(emodb_like)])
    names = list(module.ways(str(checkpoint)))
    found = checked_table(tmp_path, "quantised", len(names) - 1)
    assert [row["way"] for row in found["rows"]] == names[1:] and "`quantize_dynamic`, int8" in names
    for measured in found["ways"].values():
        assert measured["of"] == 70 and 0 <= measured["same"] <= 70 and 0 <= measured["near"] <= 1
    assert found["ways"]["float32"] == {"same": 70, "of": 70, "largest_difference": 0, "near": 1}


def test_windows(load, tmp_path, audio_encoders):
    few = {"WINDOW_S": 2, "CLIP_S": 0.4, "NUM_CLIPS": 4, "ROWS_A_STEP": 2, "ROUNDS": 2}
    load("windows", **few).main(["--audio_encoder", audio_encoders["whisper"]])
    found = checked_table(tmp_path, "windows", 3)
    assert found["difference"] <= 1e-5
    for measured in found["measured"].values():
        assert len(measured["ratio"]) == 2 and all(ratio > 0 for ratio in measured["ratio"])


def test_answers_that_depend_on_the_batch_are_refused_there(load, audio_encoders, monkeypatch):
    module = load("windows", WINDOW_S=2)
    answer = module.Recogniser.__call__

    def wrong(self, audio):
        probabilities, embeds = answer(self, audio)
        return probabilities + 1e-3 * len(audio), embeds

    monkeypatch.setattr(module.Recogniser, "__call__", wrong)
    with pytest.raises(SystemExit, match="differs by 0.005 alone and in a batch"):
        module.main(["--audio_encoder", audio_encoders["whisper"]])


def test_own_recordings(load, tmp_path, audio_encoders, text_encoder):
    """Recordings of two loudnesses by two speakers: whose statistics are taken changes the answers."""
    folder = audio_encoders["wav2vec2-layer"]
    config = {"projection_dim": 8, "standardise_audio": "training"}
    model = LaSCLForAudioClassification.from_encoders(folder, text_encoder, tiny.LABELS, **config)
    model.save_pretrained(tmp_path / "model")
    AutoFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path / "model")
    lines = ["path,label,speaker"]
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.wav", tiny.recording(number, 0.2 + 0.01 * number), tiny.RATE)
        lines.append(f"{number}.wav,{['happy', 'weary'][number % 2]},{'ab'[number // 6]}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    load("own_recordings").main([str(tmp_path / "model"), str(tmp_path / "list.csv"), "--heading", "Twelve"])
    found = checked_table(tmp_path, "own_recordings", 3)
    assert found["title"] == "Twelve: 12 recordings of 2 speakers, 2 words"
    assert list(found["measured"]) == ["training utterances", "these recordings", "each speaker's"]
    for measured in found["measured"].values():
        assert 0 <= measured["ua"] <= 1 and 0.01 <= measured["temperature"] <= 10
    assert len({row["by one fitted to the other speakers"] for row in found["rows"]}) > 1


def test_data_path(load, tmp_path, monkeypatch, audio_encoders, text_encoder, emodb_like):
    """Both times with today's code: that an old commit can be put on the path, git's worktree sees to."""
    module = load("data_path", STEPS=2, ROUNDS=dict.fromkeys(("views", "epoch", "loop"), 1))
    package_of = module.package_of
    monkeypatch.setattr(module, "package_of", lambda commit, folder: package_of(None, folder))
    told, known = [], {}

    def run_apart(file, *arguments, **variables):
        assert (Path(variables["PYTHONPATH"]) / "lascl" / "train.py").is_file()
        told.append(arguments[0])
        options = module.parsed(list(arguments))
        if options.part not in known:  # once is enough
            known[options.part] = json.dumps(module.PARTS[options.part](options))
        return json.loads(known[options.part])

    monkeypatch.setattr(sys.modules["measuring"], "run_apart", run_apart)
    encoders = ["--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder]
    module.main(["--data_dir", str(emodb_like), *encoders, "--utterances", "8"])
    assert told == [f"--part={part}" for part in ("views", "epoch", "loop") for _ in range(2)]
    found = checked_table(tmp_path, "data_path", 11)
    assert found["commits"] == {"views": "2c92f68", "epoch": "2c92f68", "loop": "e9d9ffa"}
    assert found["measured"]["loop"]["after"][0]["by place"]
    assert 0 <= found["measured"]["epoch"]["after"][0]["data_wait_share"] < 1
