"""Two real processes (gloo) train and predict as one does, and `train.py` starts in every way that a user starts it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import distributed_steps
import pytest
import tiny
import torch
from tiny import in_two_processes
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification, load_corpus
from lascl.data import read_audio
from lascl.train import main
from lascl.training.random_encoders import save_random_audio_encoder


ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
MODELS = {
    "joint": {},
    "without labels' embeddings": {"label_anchors": False, "divergence_weight": 0, "prediction_head": "classifier"},
    "contrastive alone": {"contrastive_weight": 1},
    "cross entropy alone": {"contrastive_weight": 0, "prediction_head": "classifier"},
    "bracket": {"contrastive_reduction": "bracket", "divergence_weight": 1.0},
    "sum": {"contrastive_reduction": "sum", "contrastive_weight": 0.1},
}
TRAINED_PARTS = {
    "joint": {"audio_encoder", "audio_projection", "text_projection", "classifier"},
    "without labels' embeddings": {"audio_encoder", "audio_projection", "classifier"},
    "contrastive alone": {"audio_encoder", "audio_projection", "text_projection"},
    "cross entropy alone": {"audio_encoder", "classifier"},
    "bracket": {"audio_encoder", "audio_projection", "text_projection", "classifier"},
    "sum": {"audio_encoder", "audio_projection", "text_projection", "classifier"},
}


# Runs that must train alike: 20 steps of AdamW over 16 utterances a step, in one process or in two.
TWENTY_STEPS = {
    "global_batch_size": 16,
    "num_train_epochs": 10,
    "learning_rate": 1e-3,
    "encoder_learning_rate": 1e-3,
    "max_grad_norm": 1.0,
}
ALIKE = {
    "16 at once": {},
    "chunks of 4": {"contrastive_chunk_size": 4},
    "checkpointed": {"gradient_checkpointing": True},
    "checkpointed chunks of 4": {"contrastive_chunk_size": 4, "gradient_checkpointing": True},
    "checkpointed chunks of 4, rows apart": {"contrastive_chunk_size": 4, "gradient_checkpointing": True},
}
ALIKE |= {f"{how}, checkpointed chunks of 4": ALIKE["checkpointed chunks of 4"] for how in ("bfloat16", "float16")}
# By how much a run may differ from that of float32: at most, and on average.
CLOSE = {"float32": (1e-5, 2e-6), "bfloat16": (2e-2, 4e-3), "float16": (5e-3, 1e-3)}
APART = {"checkpointed chunks of 4, rows apart", "rows apart"}
# What is trained together, when the first of it is asked for: what differs in what two processes do; what differs in
# the numbers alone; and what takes twenty steps.
KINDS = {
    "few": [
        *("joint", "cross entropy alone", "bracket", "accumulated", "uneven", "uneven, cached", "rows apart"),
        *("two corpora, uneven", "two corpora, uneven, cached", "votes, uneven", "votes, uneven, cached"),
    ],
    "more": [
        *("without labels' embeddings", "contrastive alone", "sum"),
        *("two corpora", "votes", "votes, uneven, smoothed"),
    ],
    "many steps": list(ALIKE),
}


def unless_few(names) -> list:
    return [
        pytest.param(name, marks=() if name == "few" or name in KINDS["few"] else pytest.mark.slow) for name in names
    ]


class MadeWhenAsked(dict):
    """What each setting makes: of a kind all, when one of them is asked for."""

    def __init__(self, make, settings, folder):
        self.make, self.settings, self.folder = make, settings, folder

    def __missing__(self, name):
        (kind,) = (names for names in KINDS.values() if name in names)
        self |= self.make({name: self.settings[name] for name in kind}, self.folder)
        return self[name]


def launch(*command, cwd, timeout_s=300) -> subprocess.CompletedProcess:
    """Runs `python -m ...` away from the repository, on the CPU, as many threads a process as here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = {**inherited, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s)


# -------------------------------------------------------------------------------------------------- training steps


@pytest.fixture(scope="module")
def settings(audio_encoders, text_encoder, emodb_like, tmp_path_factory):
    common = {
        "audio_encoder": audio_encoders["wav2vec2-layer"],
        "text_encoder": text_encoder,
        "data_dir": str(emodb_like),
    }
    settings = {name: {**common, "model": {"projection_dim": 8, **model}} for name, model in MODELS.items()}
    plain = distributed_steps.GRADIENT_DESCENT
    halves, by_length = {**plain, "gradient_accumulation_steps": 2}, {**plain, "bucket_by_length": True}
    settings["accumulated"] = {**settings["cross entropy alone"], "arguments": halves}
    settings["uneven"] = {**settings["joint"], "utterances": 13, "arguments": by_length}  # batches of 7 and 6
    # Three utterances make two chunks in one process, and two and one in the other.
    settings["uneven, cached"] = {**settings["uneven"], "arguments": {**by_length, "contrastive_chunk_size": 2}}
    settings["two corpora"] = {**settings["joint"], "two_corpora": True}
    settings["two corpora, uneven, cached"] = {**settings["uneven, cached"], "two_corpora": True}
    settings["two corpora, uneven"] = {**settings["uneven, cached"], "two_corpora": True, "arguments": by_length}
    settings["votes"] = {**settings["joint"], "voted": True}
    settings["votes, uneven, cached"] = {**settings["uneven, cached"], "voted": True, "two_corpora": True}
    settings["votes, uneven"] = {**settings["two corpora, uneven"], "voted": True}
    smoothed = {**settings["votes, uneven"]["model"], "target_smoothing": 0.2, "contrastive_reduction": "bracket"}
    settings["votes, uneven, smoothed"] = {**settings["votes, uneven"], "model": smoothed}
    few_frames = {**tiny.AUDIO_ENCODERS["wavlm-layer"], "conv_kernel": [20, 10], "conv_stride": [16, 10]}
    wavlm = save_random_audio_encoder(few_frames, tmp_path_factory.mktemp("wavlm"))
    long = {**common, "audio_encoder": str(wavlm), "model": {"projection_dim": 8}, "utterances": 32, "double": False}
    settings |= {name: {**long, "arguments": {**TWENTY_STEPS, **changes}} for name, changes in ALIKE.items()}
    settings["bfloat16, checkpointed chunks of 4"]["arguments"]["bf16"] = True
    settings["float16, checkpointed chunks of 4"]["autocast"] = torch.float16
    settings["rows apart"] = settings["joint"]
    return settings | {name: {**settings[name], "call_price": 0} for name in APART}


def in_one_process(settings, folder) -> dict:
    """What one process, this one, makes of each setting."""
    return {name: distributed_steps.train(setting, folder) for name, setting in settings.items()}


def in_two(settings, folder) -> dict:
    """What two processes make of each setting: a list of two results."""
    in_two_processes(distributed_steps.train_all, settings, folder)
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)] for name in settings
    }


@pytest.fixture(scope="module")
def one_process(settings, tmp_path_factory):
    return MadeWhenAsked(in_one_process, settings, tmp_path_factory.mktemp("one-process"))


@pytest.fixture(scope="module")
def two_processes(settings, tmp_path_factory):
    return MadeWhenAsked(in_two, settings, tmp_path_factory.mktemp("two-processes"))


def assert_trained_alike(run, reference):
    assert len(run["steps"]) == len(reference["steps"]) == 4
    keys = ["loss", "padding_share", *({"contrastive", "divergence", "cross_entropy"} & reference["steps"][0].keys())]
    for step, expected in zip(run["steps"], reference["steps"], strict=True):
        assert step.keys() == expected.keys()
        assert [step[key] for key in keys] == pytest.approx(
            [expected[key] for key in keys], rel=1e-6
        )  # kept in float32
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-9)
        assert expected["grad_norm"] > 0.1
    for name, tensor in reference["before"].items():
        torch.testing.assert_close(run["before"][name], tensor, rtol=0, atol=0)
    torch.testing.assert_close(run["after"], reference["after"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("model", unless_few(MODELS))
def test_two_processes_of_four_train_as_one_process_of_eight(one_process, two_processes, model):
    reference, runs = one_process[model], two_processes[model]
    assert [(run["processes"], run["rows"]) for run in (reference, *runs)] == [(1, 8), (2, 4), (2, 4)]
    for run in runs:
        assert_trained_alike(run, reference)
    before, after = reference["before"], reference["after"]
    moved = {name for name in before if (after[name] - before[name]).abs().max() > 1e-3}
    assert {name.removeprefix("lascl.").split(".")[0] for name in moved} == TRAINED_PARTS[model]


def test_batches_that_two_processes_cannot_halve_train_as_in_one_process(one_process, two_processes):
    """Thirteen utterances: batches of seven, of which one process reads four and the other three, and of six."""
    reference, runs = one_process["uneven"], two_processes["uneven"]
    for run in runs:
        assert_trained_alike(run, reference)
    seen = [[[id for told, id in run["seen"] if told == epoch] for epoch in (0, 1)] for run in runs]
    assert [[len(ids) for ids in epochs] for epochs in seen] == [[7, 7], [6, 6]]
    for epoch in (0, 1):
        assert len({*seen[0][epoch], *seen[1][epoch]}) == 13


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", ALIKE)
def test_chunks_processes_and_checkpointing_train_alike_for_twenty_steps(one_process, two_processes, name, processes):
    """By the largest difference, and by their mean, which would show a drift to one side. Mixed precision too, to the
    digits that it has."""
    most, on_average = CLOSE.get(name.split(",")[0], CLOSE["float32"])
    reference = one_process["16 at once"]["steps"]
    runs = two_processes[name] if processes == 2 else [one_process[name]]
    for run in runs:
        assert (run["processes"], run["rows"], len(run["steps"])) == (processes, 16 // processes, 20)
        for key in ("loss", "grad_norm"):
            pairs = [(step[key], expected[key]) for step, expected in zip(run["steps"], reference, strict=True)]
            differences = [found / expected - 1 for found, expected in pairs]
            assert max(map(abs, differences)) < most, key
            assert abs(sum(differences)) / 20 < on_average, key
            assert (max(map(abs, differences)) > 1e-5) == (most > 1e-5), f"{key}: in which precision?"
    assert reference[-1]["loss"] < 0.9 * reference[0]["loss"]  # it did train


def test_rows_encoded_apart_train_as_the_whole_batch(one_process, two_processes):
    for run in (one_process["rows apart"], *two_processes["rows apart"]):
        assert_trained_alike(run, one_process["joint"])


def test_chunks_of_uneven_shares_train_as_the_whole_batch(one_process, two_processes):
    for run in (one_process["uneven, cached"], *two_processes["uneven, cached"]):
        assert_trained_alike(run, one_process["uneven"])


@pytest.mark.parametrize("name", unless_few(["two corpora", "two corpora, uneven", "two corpora, uneven, cached"]))
def test_two_processes_train_on_the_words_of_two_corpora_as_one_does(one_process, two_processes, name):
    """What compares follows from the rows of both processes, in chunks too."""
    reference = one_process[name.removesuffix(", cached")]
    for run in [one_process[name], *two_processes[name]]:
        assert_trained_alike(run, reference)
    plain = one_process["uneven" if "uneven" in name else "joint"]["steps"][0]
    terms = ("contrastive", "divergence", "cross_entropy")
    assert all(abs(reference["steps"][0][term] - plain[term]) > 1e-3 for term in terms)  # the masks say something
    lowest = torch.finfo(torch.float64).min
    for logits in reference["logits"]:
        assert sorted(set((logits == lowest).sum(dim=1).tolist())) == [2, 3]  # of seven words, those of the other


@pytest.mark.parametrize(
    "name", unless_few(["votes", "votes, uneven", "votes, uneven, cached", "votes, uneven, smoothed"])
)
def test_two_processes_train_on_votes_as_one_does(one_process, two_processes, name):
    """What agrees follows from the votes on the rows of both processes, in chunks too."""
    reference = one_process[name.removesuffix(", cached")]
    for run in [one_process[name], *two_processes[name]]:
        assert_trained_alike(run, reference)
    plain = one_process["joint" if name == "votes" else "two corpora, uneven"]["steps"][0]
    terms = ("contrastive", "cross_entropy")
    assert all(abs(reference["steps"][0][term] - plain[term]) > 1e-3 for term in terms)  # the votes say something


def train_without_asking(settings, folder):
    """Trains where nobody asks another process, within a step, for a number."""
    told, look = [], torch.Tensor.tolist

    def tolist(tensor):
        told.append(sys._getframe(1).f_code.co_name)
        return look(tensor)

    with mock.patch.object(torch.Tensor, "tolist", tolist):
        for setting in settings:
            distributed_steps.train(setting, folder)
    (folder / f"{torch.distributed.get_rank()}.txt").write_text("\n".join(told))
    torch.distributed.destroy_process_group()


def test_no_process_asks_another_how_many_rows_it_has(settings, tmp_path):
    """The sampler knows it, of uneven batches, in chunks and accumulated; a GPU would be waited for in every step."""
    in_two_processes(
        train_without_asking, [settings[name] for name in ("uneven", "uneven, cached", "accumulated")], tmp_path
    )
    for rank in (0, 1):
        callers = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert callers and {"compute_loss", "_rows_of_processes"}.isdisjoint(callers), sorted(set(callers))


def test_accumulated_halves_train_as_the_whole_for_a_loss_per_sample_in_one_process_and_in_two(
    one_process, two_processes
):
    reference = one_process["cross entropy alone"]
    runs = [one_process["accumulated"], *two_processes["accumulated"]]
    assert [(run["processes"], run["rows"]) for run in runs] == [(1, 4), (2, 2), (2, 2)]
    for run in runs:
        assert_trained_alike(run, reference)


@pytest.mark.parametrize("kind", unless_few(KINDS))
def test_both_processes_end_with_the_same_weights_bit_by_bit(two_processes, kind):
    for first, second in (two_processes[name] for name in KINDS[kind]):
        assert [name for name, tensor in first["after"].items() if not torch.equal(tensor, second["after"][name])] == []


@pytest.mark.parametrize("name", unless_few([*MODELS, "accumulated"]))
def test_both_processes_are_told_the_epoch_and_share_its_utterances(one_process, two_processes, name):
    first, second = two_processes[name]
    assert [epoch for epoch, _ in first["seen"]] == [epoch for epoch, _ in second["seen"]] == [0] * 8 + [1] * 8
    assert len({*first["seen"], *second["seen"]}) == 32
    assert {*first["seen"], *second["seen"]} == set(one_process[name]["seen"])


@pytest.mark.parametrize("kind", unless_few(KINDS))
def test_two_processes_evaluate_as_one_does(one_process, two_processes, kind):
    """Ten utterances in batches of two: accelerate evens the last round out with repeats, which must not count, and
    the loss of a batch is its own, not that of all processes' rows."""
    for name in KINDS[kind]:
        is_half = name.split(",")[0] in ("bfloat16", "float16")
        tolerance = (
            0.1 if is_half else 1e-5 if kind == "many steps" else 1e-9
        )  # the many in float32, the few in float64
        reference = one_process[name]
        assert [len(logits) for logits in reference["logits"]] == [10, 10]
        for run in two_processes[name]:
            torch.testing.assert_close(run["logits"], reference["logits"], rtol=tolerance, atol=tolerance)
            for score in ("loss", "wa", "ua", "macro_f1", "classifier_wa", "classifier_ua", "classifier_macro_f1"):
                assert run["metrics"][f"test_{score}"] == pytest.approx(
                    reference["metrics"][f"test_{score}"], rel=max(tolerance, 1e-6)
                )


# ------------------------------------------------------------------------------------------------------- train.py


@pytest.fixture(scope="module")
def recipe(audio_encoders, text_encoder, emodb_like):
    """A fold of the miniature corpus in two steps: the test speakers are 03 and 08."""
    fields = {
        "corpus": "emodb",
        "data_dir": emodb_like,
        "allow_partial": "true",
        "folds": "1",
        "max_steps": "2",
        "global_batch_size": "8",
        "augmentation": "noise",
        "max_duration_s": "0.4",
        "audio_encoder": audio_encoders["wav2vec2-layer"],
        "text_encoder": text_encoder,
        "projection_dim": "8",
    }
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def run_by_torchrun(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    command = (*TORCHRUN, ROOT / "train.py", *recipe, "--output_dir", "run", "--use_cpu", "true")
    return launch(*command, cwd=folder), folder / "run"


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected_ids(folder):
    return sorted(path.stem for path in folder.glob("*.wav") if path.name.startswith(("03", "08")))


@pytest.mark.slow
def test_train_py_in_two_processes_finishes_and_writes_the_run_once(run_by_torchrun, emodb_like):
    done, run = run_by_torchrun
    assert done.returncode == 0, done.stderr
    rows = read_rows(run / "fold-1" / "predictions.csv")
    assert len(rows) == 14 and [row["id"] for row in rows] == expected_ids(emodb_like)
    assert {row["speaker"] for row in rows} == {"03", "08"}
    results = json.loads((run / "results.json").read_text())
    right = sum(row["prediction"] == row["reference"] for row in rows)
    assert [fold["fold"] for fold in results["folds"]] == [1]
    assert results["pooled"]["wa"] == pytest.approx(right / 14)
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    steps = [entry for entry in json.loads((run / "fold-1" / "log_history.json").read_text()) if "loss" in entry]
    assert steps[-1]["step"] == 2
    assert sorted(path.name for path in (run / "fold-1").iterdir()) == [
        "checkpoint",
        "embeddings.npz",
        "log_history.json",
        "metrics.json",
        "predictions.csv",
    ]


@pytest.mark.slow
def test_train_py_in_two_processes_prints_nothing_twice(run_by_torchrun):
    done, _ = run_by_torchrun
    printed = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert sum(line.startswith("Fold 1 of 5: 56 utterances to train on, 14 to test") for line in printed) == 1
    assert sum(line.startswith("Corpus: emodb.") for line in printed) == 1
    assert [line for line in printed if printed.count(line) > 1] == []
    # Progress bars rewrite their line; what is left on stderr are messages and warnings.
    lines = [line.replace("\x1b[A", "").strip() for line in done.stderr.splitlines()]
    # transformers 5.0 imports torchao, where it is installed, which tells each process of GPU libraries it misses.
    messages = [line for line in lines if line and "it/s" not in line and "torchao" not in line]
    assert [line for line in messages if messages.count(line) > 1] == []


@pytest.mark.slow
def test_predictions_of_two_processes_are_those_of_each_utterance_alone(run_by_torchrun, emodb_like):
    _, run = run_by_torchrun
    checkpoint = run / "fold-1" / "checkpoint"
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    labels = load_corpus("emodb", emodb_like, allow_partial=True).features["label"].names
    for row in read_rows(run / "fold-1" / "predictions.csv"):
        audio = read_audio(emodb_like / f"{row['id']}.wav", max_duration_s=0.4)
        with torch.no_grad():
            outputs = model(**extractor(audio, sampling_rate=16_000, return_tensors="pt"))
        by_label = torch.nn.functional.cosine_similarity(outputs.audio_embeds, model.get_label_embeddings()) / 0.07
        for prefix, logits in (("probability_", by_label), ("probability_classifier_", outputs.class_logits[0])):
            probabilities = [float(row[prefix + label]) for label in labels]
            assert probabilities == pytest.approx(logits.softmax(dim=-1).tolist(), abs=1e-6)
        assert row["prediction"] == labels[by_label.argmax()]
        assert row["prediction_classifier"] == labels[outputs.class_logits.argmax()]


def start_twice(command):
    for options in ((), ("--ddp_backend", "gloo")):
        try:
            main([*command, *options])
        except SystemExit as exit:
            os.write(2, f"\nstopped with {exit.code}\n".encode())  # at once: two processes write side by side


def test_torchrun_on_a_cpu_without_use_cpu_stops_at_once_and_says_what_to_add(recipe, tmp_path, capfd):
    """Also with a backend of its own, which lets the processes meet but not share gradients."""
    in_two_processes(start_twice, [*recipe, "--output_dir", str(tmp_path / "run")])
    said = capfd.readouterr().err
    assert said.count("stopped with 2") == 4  # two processes, two starts
    assert said.count("add --use_cpu true") >= 2 and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.proof  # test_accelerate.py launches two processes
def test_accelerate_launch_finishes_a_fold(recipe, emodb_like, tmp_path):
    command = ("accelerate.commands.launch", "--cpu", "--num_processes", "1", ROOT / "train.py", *recipe)
    done = launch(*command, "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "run" / "fold-1" / "predictions.csv")
    assert [row["id"] for row in rows] == expected_ids(emodb_like)
    assert (tmp_path / "run" / "results.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]  # nothing is written beside the run
