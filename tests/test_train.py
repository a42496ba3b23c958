"""`train.py` as a user runs it, in this process: a run directory that is whole, continued, or refused."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from datasets import ClassLabel, Dataset
from tiny import LABELS, Interrupted, as_own_corpus, cut_off, read_csv

from lascl import LaSCLForAudioClassification, LaSCLTrainer, load_corpus, make_folds
from lascl.train import main
from lascl.training.checkpoints import last_whole_checkpoint
from lascl.training.protocol import describe
from lascl.training.recipe import RECIPES, parse_recipe


@pytest.fixture(scope="module")
def command(emodb_like, audio_encoders, text_encoder):
    return [
        "emodb",
        *("--data_dir", str(emodb_like), "--allow_partial", "true"),
        *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder),
        *("--num_train_epochs", "2", "--global_batch_size", "16", "--augmentation", "gain", "--disable_tqdm", "true"),
    ]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    main([*command, "--folds", "1,3", "--output_dir", str(run_dir)])
    return run_dir


def test_a_run_leaves_what_the_design_names(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("recipe.yaml", "environment.json", "protocol.json", "results.json", "report.md", "report.html", "figures"),
        *("fold-1", "fold-3"),
        "encoders",  # the text encoder, which came from a folder
    }
    for fold in ("fold-1", "fold-3"):
        assert {path.name for path in (finished / fold).iterdir()} == {
            # and no optimiser state
            *("checkpoint", "predictions.csv", "embeddings.npz", "metrics.json", "log_history.json")
        }
        assert {path.name for path in (finished / fold / "checkpoint").iterdir()} == {
            *("config.json", "model.safetensors", "preprocessor_config.json", "README.md"),
            *("configuration_lascl.py", "encoders_lascl.py", "modeling_lascl.py", "text_encoder"),
        }
    history = json.loads((finished / "fold-1" / "log_history.json").read_text())
    assert {"contrastive", "divergence", "cross_entropy", "loss"} <= set(history[0])


def test_predictions_hold_each_test_utterance_once_with_both_heads(finished):
    emotions = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    for fold, speakers in (("fold-1", ("03", "08")), ("fold-3", ("11", "12"))):
        rows = read_csv(finished / fold / "predictions.csv")
        assert [row["id"] for row in rows] == [f"{s}a01{e}a" for s in speakers for e in "AEFLNTW"]
        assert list(rows[0]) == [
            *("id", "speaker", "reference", "prediction", "prediction_classifier"),
            *(f"probability_{emotion}" for emotion in emotions),
            *(f"probability_classifier_{emotion}" for emotion in emotions),
        ]
        for row in rows:
            for prefix, chosen in (("", row["prediction"]), ("classifier_", row["prediction_classifier"])):
                probabilities = {emotion: float(row[f"probability_{prefix}{emotion}"]) for emotion in emotions}
                assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
                assert max(probabilities, key=probabilities.get) == chosen


def test_results_are_counted_from_the_predictions(finished):
    results = json.loads((finished / "results.json").read_text())
    rows = {n: read_csv(finished / f"fold-{n}" / "predictions.csv") for n in (1, 3)}
    for fold in results["folds"]:
        hits = [row["reference"] == row["prediction"] for row in rows[fold["fold"]]]
        assert fold["n"] == len(hits) == 14 and fold["wa"] == pytest.approx(sum(hits) / 14)
        assert fold["ua"] == pytest.approx(fold["wa"])  # two utterances of every emotion
    everything = rows[1] + rows[3]
    hits = [row["reference"] == row["prediction_classifier"] for row in everything]
    assert results["pooled"]["classifier"]["wa"] == pytest.approx(sum(hits) / 28)
    assert results["mean"]["ua"] == pytest.approx(sum(fold["ua"] for fold in results["folds"]) / 2)
    assert "No speaker is on two sides" in (finished / "report.md").read_text()


def test_the_checkpoint_answers_as_its_predictions_say(finished, emodb_like):
    from transformers import AutoFeatureExtractor

    checkpoint = finished / "fold-1" / "checkpoint"
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    # Clips of 0.3 to 0.6 s: a window of one second, in the extractor and in the configuration.
    assert extractor.chunk_length == 1 and model.config.audio_config.max_source_positions == 50
    row = read_csv(finished / "fold-1" / "predictions.csv")[5]
    samples, rate = soundfile.read(emodb_like / f"{row['id']}.wav", dtype="float32")
    inputs = extractor(samples, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0]
    for index, label in model.config.id2label.items():
        assert float(probabilities[index]) == pytest.approx(float(row[f"probability_{label}"]), abs=1e-5)


def test_the_same_command_again_keeps_what_is_complete_and_adds_folds(finished, command, capsys):
    before = (finished / "fold-1" / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    main([*command, "--folds", "1", "--output_dir", str(finished)])
    assert (finished / "fold-1" / "checkpoint" / "model.safetensors").stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert "Fold 1: complete, kept." in printed and "| pooled | 28 |" in printed


def test_the_same_files_as_one_s_own_corpus_give_the_same_fold(finished, command, emodb_like, tmp_path):
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    folder = as_own_corpus(corpus, make_folds(corpus), tmp_path)
    own = ["csv", "--data_dir", str(folder), *command[5:]]
    assert own[3] == "--audio_encoder"
    main([*own, "--folds", "3", "--output_dir", str(tmp_path / "run")])
    assert_same_fold(tmp_path / "run" / "fold-3", finished / "fold-3")


def test_the_same_seed_gives_the_same_predictions(finished, command, tmp_path):
    main([*command, "--folds", "3", "--output_dir", str(tmp_path / "again")])
    expected = (finished / "fold-3" / "predictions.csv").read_text()
    assert (tmp_path / "again" / "fold-3" / "predictions.csv").read_text() == expected


@pytest.mark.parametrize(
    "change, message",
    [
        (["--seed", "5"], "seed (42 there, 5 here)"),
        (["--folds", "9"], "There is no fold 9"),
        (["--data_dir", "nowhere"], "nowhere does not exist"),
        (["--learning_rat", "1"], "did you mean 'learning_rate'?"),
        (["--global_batch_size", "15", "--gradient_accumulation_steps", "2"], "1 x 2; found 15"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_before_training(finished, command, capsys, change, message):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--output_dir", str(finished), *change])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1 and "Traceback" not in error


DAMAGES = ["weights cut off", "optimiser missing", "no marker"]


@pytest.mark.parametrize("damage", ["none", *(pytest.param(how, marks=pytest.mark.slow) for how in DAMAGES)])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(finished, command, tmp_path, monkeypatch, damage):
    """Also when its newest checkpoint is damaged: then from the one before. `make proofs` will kill real processes."""
    run = [*command, "--folds", "1", "--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "2"]
    cut_off(monkeypatch, run, after_steps=7)  # of 8: after the checkpoints of steps 4 and, every second step, 6
    newest = tmp_path / "fold-1" / "trainer" / "checkpoint-6"
    if damage == "weights cut off":
        content = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "optimiser missing":
        (newest / "optimizer.pt").unlink()
    elif damage == "no marker":
        (newest / "whole.json").unlink()
    assert Path(last_whole_checkpoint(newest.parent)).name == ("checkpoint-6" if damage == "none" else "checkpoint-4")
    main(run)
    assert_same_fold(tmp_path / "fold-1", finished / "fold-1")


def assert_same_fold(found: Path, expected: Path):
    """Weights, predictions and log, byte for byte."""
    for name in ("checkpoint/model.safetensors", "predictions.csv", "log_history.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize(
    "options",
    [
        ("--gradient_accumulation_steps", "2"),
        pytest.param(("--dataloader_num_workers", "2"), marks=pytest.mark.slow),
        pytest.param(
            ("--bucket_by_length", "true", "--utterances_per_class", "4", "--logging_strategy", "steps"),
            marks=pytest.mark.slow,
        ),
        ("--freeze_audio_encoder", "true", "--standardise_audio", "true", "--augmentation_period", "1"),
    ],
    ids=["accumulation", "workers", "classes and lengths", "frozen encoder"],
)
def test_a_cut_off_run_goes_on_the_same_with(command, options, tmp_path, monkeypatch):
    """From step 5 of an epoch's steps 5 to 8: the log's means are over steps before and after the interruption."""
    whole_training_step = LaSCLTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 6 and self.state.epoch > 1.4:
            raise Interrupted
        return whole_training_step(self, *args, **kwargs)

    run = [*command, *options, "--folds", "1", "--save_strategy", "steps", "--save_steps", "5", "--logging_steps", "3"]
    main([*run, "--output_dir", str(tmp_path / "straight")])
    monkeypatch.setattr(LaSCLTrainer, "training_step", training_step)
    with pytest.raises(Interrupted):
        main([*run, "--output_dir", str(tmp_path / "cut")])
    monkeypatch.undo()
    main([*run, "--output_dir", str(tmp_path / "cut")])
    assert_same_fold(tmp_path / "cut" / "fold-1", tmp_path / "straight" / "fold-1")
    history = json.loads((tmp_path / "straight" / "fold-1" / "log_history.json").read_text())
    assert history[-1]["step"] == 8 and history[-1]["train_loss"] > 0
    if "--freeze_audio_encoder" not in options:  # whose batches have no frames
        assert all(0 < entry["padding_share"] < 1 for entry in history if "loss" in entry)
    assert [entry["epoch"] for entry in history if "test_ua" in entry] == [1, 2]


def test_validation_selects_the_epoch_and_the_test_never_does(command, tmp_path, monkeypatch):
    """Scripted scores: validation is best in epoch 2 and equal in 3, the test in epoch 4."""
    scores = {"validation": [0.2, 0.9, 0.9, 0.1], "test": [0.1, 0.2, 0.3, 0.95]}
    order = [scores[name][epoch] for epoch in range(4) for name in ("validation", "test")]
    epochs = []

    class Recording(LaSCLTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, compute_metrics=lambda _: {"ua": order.pop(0), "wa": 0.5})

        def _save_checkpoint(self, model, trial):
            super()._save_checkpoint(model, trial)
            epochs.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    monkeypatch.setattr("lascl.training.fold.LaSCLTrainer", Recording)
    options = ["--folds", "1", "--num_train_epochs", "4", "--validation", "speaker", "--output_dir", str(tmp_path)]
    main([*command, *options, "--selection", "best_validation"])
    saved = LaSCLForAudioClassification.from_pretrained(tmp_path / "fold-1" / "checkpoint").state_dict()
    assert len(epochs) == 4
    equal = [all(torch.equal(saved[name], weights[name]) for name in saved) for weights in epochs]
    assert equal == [False, True, False, False]
    history = json.loads((tmp_path / "fold-1" / "log_history.json").read_text())
    assert [entry["validation_ua"] for entry in history] == scores["validation"]
    assert [entry["test_ua"] for entry in history] == scores["test"]
    (fold,) = [fold for fold in json.loads((tmp_path / "protocol.json").read_text())["folds"] if fold["fold"] == 1]
    assert fold["test_speakers"] == ["03", "08"] and len(fold["validation_speakers"]) == 1
    assert (fold["train"], fold["validation"], fold["test"]) == (49, 7, 14)


def test_a_run_cut_off_after_its_best_epoch_still_selects_it(command, tmp_path, monkeypatch):
    options = ["--folds", "1", "--num_train_epochs", "3", "--validation", "speaker", "--selection", "best_validation"]
    main([*command, *options, "--output_dir", str(tmp_path / "straight")])
    whole_training_step = LaSCLTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.epoch > 2.2:
            raise Interrupted
        return whole_training_step(self, *args, **kwargs)

    monkeypatch.setattr(LaSCLTrainer, "training_step", training_step)
    with pytest.raises(Interrupted):
        main([*command, *options, "--output_dir", str(tmp_path / "cut")])
    monkeypatch.undo()
    # With its best checkpoint damaged, the newest one is of no use: training starts from where it knows everything.
    state = json.loads(next((tmp_path / "cut").glob("fold-1/trainer/checkpoint-8/trainer_state.json")).read_text())
    best = Path(state["best_model_checkpoint"])
    assert last_whole_checkpoint(best.parent) == str(best.parent / "checkpoint-8")
    (best / "model.safetensors").write_bytes(b"cut off")
    assert last_whole_checkpoint(best.parent) != str(best.parent / "checkpoint-8")
    main([*command, *options, "--output_dir", str(tmp_path / "cut")])
    assert_same_fold(tmp_path / "cut" / "fold-1", tmp_path / "straight" / "fold-1")


def test_baselines_train_on_the_same_batches(command, tmp_path, monkeypatch):
    """Down to the samples, and each logs the terms of its own loss."""
    heard = []
    whole_compute_loss = LaSCLTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            heard.append((inputs["labels"], inputs["input_features"]))
        return whole_compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LaSCLTrainer, "compute_loss", compute_loss)
    terms = {"lascl": {"contrastive", "divergence", "cross_entropy"}, "ce": {"cross_entropy"}}
    terms["supcon"] = {"contrastive", "cross_entropy"}
    batches = {}
    for objective in terms:
        run = tmp_path / objective
        main([*command, "--folds", "1", "--num_train_epochs", "1", "--output_dir", str(run), "--objective", objective])
        history = json.loads((run / "fold-1" / "log_history.json").read_text())
        assert {"contrastive", "divergence", "cross_entropy"} & set(history[0]) == terms[objective]
        config = json.loads((run / "fold-1" / "checkpoint" / "config.json").read_text())
        assert config["prediction_head"] == ("label" if objective == "lascl" else "classifier")
        batches[objective], heard = heard, []
    for baseline in ("ce", "supcon"):
        assert len(batches[baseline]) == len(batches["lascl"]) == 4
        for found, expected in zip(batches[baseline], batches["lascl"]):
            assert all(map(torch.equal, found, expected))
    features = [features for _, features in batches["lascl"]]
    assert not any(torch.equal(features[0], other) for other in features[1:])  # one batch is not another


def test_the_protocol_tells_which_utterances_are_improvised_and_which_texts_were_heard():
    corpus = Dataset.from_dict(
        {
            "id": [f"u{number}" for number in range(6)],
            "speaker": list("aabbcc"),
            "session": list("112233"),
            "label": [0, 1, 0, 1, 0, 0],
            "improvised": [True, False, False, True, False, False],
            "text_id": [None, "hello", "hello", None, "bye", "bye"],
        }
    ).cast_column("label", ClassLabel(names=["calm", "tense"]))
    recipe, _ = parse_recipe(["csv", "--protocol", "leave_one_session_out"])
    protocol = describe(recipe, corpus, make_folds(corpus), num_skipped=2)
    assert protocol["improvised_ids"] == ["u0", "u3"]
    # "hello" of u1 and of u2 was heard in training, "bye" of u4 and u5 was not: they are one session.
    assert protocol["share_of_test_texts_in_training"] == 0.5
    for sentence in (
        "The text of 50% of the scripted test utterances is also spoken in training.",
        "2 utterances whose audio cannot be used are left out, see skipped.csv.",
        "Fold 3 has no tense to test.",
    ):
        assert sentence in protocol["notes"]
    assert [fold["test_speakers"] for fold in protocol["folds"]] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("kind", ["audio", "text"])
def test_an_encoder_that_is_no_model_is_said_before_training(command, tmp_path, capsys, kind):
    (tmp_path / "void").mkdir()  # some versions of transformers take a name with "mpt" in it for that model
    with pytest.raises(SystemExit) as exit:
        main([*command, f"--{kind}_encoder", str(tmp_path / "void"), "--output_dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    assert f"{kind}_encoder '{tmp_path}/void' cannot be loaded" in error


def test_an_encoder_type_that_padding_disturbs_is_said_before_training(command, tmp_path, capsys, text_encoder):
    with pytest.raises(SystemExit):
        main([*command, "--audio_encoder", text_encoder, "--output_dir", str(tmp_path / "run")])
    assert "With the encoder type 'bert', padding would change the answer" in capsys.readouterr().err


def test_random_encoders_travel_with_the_checkpoint(command, tmp_path, audio_encoders):
    pytest.importorskip("espeakng_loader")
    recipe = {
        "corpus_options": {"num_speakers": 2, "utterances_per_speaker": 4},
        "num_folds": 2,
        "folds": 2,
        "max_steps": 1,
        "num_views": 1,
    }
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(
            {**yaml.safe_load((RECIPES / "quickstart.yaml").read_text()), **recipe, "audio_layers": "weighted"}
        )
    )
    main([str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "run"), "--data_dir", str(tmp_path / "speech")])
    model = LaSCLForAudioClassification.from_pretrained(tmp_path / "run" / "fold-2" / "checkpoint")
    assert model.config.labels == LABELS
    model.set_labels(["furious", "calm"])  # from the checkpoint's own text_encoder/
    assert model.get_label_embeddings().shape == (2, model.config.projection_dim)
