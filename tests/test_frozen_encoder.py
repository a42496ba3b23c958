"""A frozen audio encoder hears every view once, and the heads learn what they would have learned from the waveforms."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import soundfile
import tiny
import torch
from huggingface_hub import constants
from tiny import RATE, in_two_processes, read_csv
from transformers import AutoFeatureExtractor, set_seed

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments, load_corpus, study, train
from lascl.data import SpeechCollator, SpeechDataset
from lascl.studies.forecast import Cost, measure
from lascl.studies.plan import Study, plan_runs, read_corpora
from lascl.train import main
from lascl.training.pooled import PooledDataset, Statistics, collate_pooled, embed_views
from lascl.training.random_encoders import save_random_audio_encoder, save_random_text_encoder


@pytest.fixture(scope="module")
def corpus(emodb_like):
    return load_corpus("emodb", emodb_like, allow_partial=True)


@pytest.fixture(scope="module")
def build(audio_encoders, text_encoder, corpus):
    def build(family):
        set_seed(7)
        folder, options = audio_encoders[family], {"projection_dim": 8, "freeze_audio_encoder": True}
        labels = corpus.features["label"].names
        model = LaSCLForAudioClassification.from_encoders(folder, text_encoder, labels, window_s=1, **options)
        seconds = {"chunk_length": 1} if family == "whisper" else {}
        return model, SpeechCollator(AutoFeatureExtractor.from_pretrained(folder, **seconds))

    return build


ROWS = [3, 9, 27, 44, 61, 5]  # of different lengths, in no order


def speech(corpus, rows, **options):
    options = {"augmentation": "noise", "num_views": 3, "augmentation_period": 2, "seed": 5, **options}
    return SpeechDataset(corpus, rows, sampling_rate=RATE, max_duration_s=0.5, **options)


def arguments(folder, **changes):
    values = {"global_batch_size": 4, "num_train_epochs": 4, "logging_strategy": "steps", "logging_steps": 1}
    values |= {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "num_views": 3}
    return LaSCLTrainingArguments(str(folder), **{**values, **changes})


def test_views_repeat_after_their_period(corpus):
    dataset, audio = speech(corpus, [0, 1]), []
    for epoch in range(5):
        dataset.set_epoch(epoch)
        audio.append(torch.tensor(dataset[1]["views"][2]))
    assert torch.equal(audio[0], audio[2]) and torch.equal(audio[2], audio[4]) and torch.equal(audio[1], audio[3])
    assert not torch.allclose(audio[0], audio[1])
    forever = speech(corpus, [0, 1], augmentation_period=None)
    forever.set_epoch(2)
    assert not torch.allclose(torch.tensor(forever[1]["views"][2]), audio[0])
    forever.set_epoch(0)
    assert torch.equal(torch.tensor(forever[1]["views"][2]), audio[0])
    with pytest.raises(ValueError, match="augmentation_period must be at least 1; found 0"):
        speech(corpus, [0], augmentation_period=0)


@pytest.mark.parametrize("family", ["wavlm-group", "whisper"])
def test_pooled_audio_is_what_the_model_makes_of_the_waveforms_of_that_epoch(corpus, build, tmp_path, family):
    model, collator = build(family)
    dataset, heard = speech(corpus, ROWS), []
    model.lascl.register_forward_hook(lambda module, args, output: heard.append(len(output.pooled_audio)))
    encoded = {}
    blocks = embed_views(model, dataset, collator, encoded, arguments(tmp_path))
    # A clean view of each, and two views in two epochs; nothing a second time.
    assert sum(heard) == 6 + 6 * 2 * 2
    embed_views(model, dataset, collator, encoded, arguments(tmp_path))
    embed_views(model, speech(corpus, ROWS, num_views=1, seed=6), collator, encoded, arguments(tmp_path))
    assert sum(heard) == 30
    embed_views(model, speech(corpus, ROWS, seed=6), collator, encoded, arguments(tmp_path))
    assert sum(heard) == 30 + 6 * 2 * 2

    model.eval()
    rows = [4, 0, 2, 5]
    tenth = Statistics(torch.zeros(1, 1), torch.full((1, 1), 0.1), [0] * 6)
    pooled = PooledDataset(dataset, rows, blocks, num_views=3, statistics=tenth)
    for found, expected in ((pooled.ids, dataset.ids), (pooled.labels, dataset.labels)):
        assert found == [expected[row] for row in rows]
    assert pooled.durations_s == [dataset.durations_s[row] for row in rows]
    for epoch in range(4):
        pooled.set_epoch(epoch)
        batch = collate_pooled([pooled[index] for index in (2, 0, 1)])
        audio = collator([dataset[row] for row in (2, 4, 0)])
        assert torch.equal(batch["labels"], audio.pop("labels"))
        expected = model.lascl(**audio).pooled_audio
        torch.testing.assert_close(batch["pooled_audio"], 10 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["wavlm-layer", "whisper"])
def test_heads_learn_the_same_from_pooled_audio_as_from_waveforms(corpus, build, tmp_path, family):
    runs = {}
    for name in ("waveforms", "pooled"):
        model, collator = build(family)
        everything = speech(corpus, range(20))
        train, test = speech(corpus, range(13)), speech(corpus, range(13, 20), augmentation="none", num_views=1)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        args = arguments(tmp_path, eval_strategy="epoch", contrastive_chunk_size=2 if name == "pooled" else None)
        if name == "pooled":
            blocks = embed_views(model, everything, collator, {}, args)
            train = PooledDataset(everything, range(13), blocks, num_views=3)
            test, collator = PooledDataset(everything, range(13, 20), blocks, num_views=1), collate_pooled
        trainer = LaSCLTrainer(model, args, train_dataset=train, eval_dataset={"test": test}, data_collator=collator)
        trainer.train()
        runs[name] = trainer.state.log_history, model.state_dict()
    (found_log, found), (expected_log, expected) = runs["pooled"], runs["waveforms"]
    for key in ("loss", "grad_norm", "contrastive", "cross_entropy", "eval_test_loss", "eval_test_ua"):
        values = [[entry[key] for entry in log if key in entry] for log in (found_log, expected_log)]
        assert len(values[1]) == (4 if key.startswith("eval") else 16)
        assert values[0] == pytest.approx(values[1], rel=1e-4), key
    moved = {name for name, tensor in expected.items() if not torch.equal(tensor, before[name])}
    assert {name.removeprefix("lascl.").split(".")[0] for name in moved} == {
        *("audio_projection", "text_projection", "classifier")
    }
    for name in moved:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_pooled_audio_stands_in_for_audio_and_for_nothing_beside_it(corpus, build):
    model, collator = build("wavlm-layer")
    batch = collator([speech(corpus, [0, 1])[0]])
    labels = batch.pop("labels")
    model.eval()
    with torch.no_grad():
        expected = model(**batch, labels=labels)
        found = model(pooled_audio=expected.pooled_audio, labels=labels)
    for name in ("loss", "logits", "class_logits", "audio_embeds"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="exactly one of input_values, input_features and pooled_audio"):
        model(**batch, pooled_audio=expected.pooled_audio)


# ----------------------------------------------------------------------------------------------------------- train.py


@pytest.fixture(scope="module")
def recipe(audio_encoders, text_encoder, emodb_like):
    fields = {"corpus": "emodb", "data_dir": emodb_like, "allow_partial": "true", "folds": "1,2"}
    fields |= {"audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder}
    fields |= {"projection_dim": "8", "standardise_audio": "true", "num_train_epochs": "3", "global_batch_size": "16"}
    fields |= {"augmentation": "gain", "augmentation_period": "2", "freeze_audio_encoder": "true"}
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("frozen") / "run"
    main([*recipe, "--output_dir", str(run_dir), "--disable_tqdm", "true"])
    return run_dir


def test_folds_share_what_the_encoder_made_of_the_audio(recipe, one_process, tmp_path, monkeypatch):
    """All recordings are in both folds: the second encodes none, and ends as it does alone."""
    counts, real = [], embed_views

    def counted(model, speech, collator, encoded, *rest):
        before = len(encoded)
        blocks = real(model, speech, collator, encoded, *rest)
        counts.append(len(encoded) - before)
        return blocks

    monkeypatch.setattr("lascl.training.fold.embed_views", counted)
    main([*recipe, "--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true"])
    assert counts == [3, 0]  # the clean view, and another in each of two epochs
    main([*recipe, "--folds", "2", "--output_dir", str(tmp_path / "alone"), "--disable_tqdm", "true"])
    for run in (tmp_path / "run", tmp_path / "alone"):
        expected = (one_process / "fold-2" / "predictions.csv").read_bytes()
        assert (run / "fold-2" / "predictions.csv").read_bytes() == expected


def test_the_scores_while_training_are_those_of_the_saved_checkpoint(one_process):
    for number in (1, 2):
        log = json.loads((one_process / f"fold-{number}" / "log_history.json").read_text())
        metrics = json.loads((one_process / f"fold-{number}" / "metrics.json").read_text())
        watched = [entry["test_ua"] for entry in log if "test_ua" in entry]
        assert len(watched) == 3 and watched[-1] == pytest.approx(metrics["ua"])


def test_two_processes_train_a_frozen_encoder_s_heads_as_one_does(recipe, one_process, tmp_path):
    in_two_processes(main, [*recipe, "--use_cpu", "true", "--output_dir", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    for number in (1, 2):
        found, expected = (
            read_csv(run / f"fold-{number}" / "predictions.csv") for run in (tmp_path / "run", one_process)
        )
        assert [row["id"] for row in found] == [row["id"] for row in expected]
        for column in (name for name in found[0] if name.startswith("probability")):
            values = [[float(row[column]) for row in rows] for rows in (found, expected)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)


def in_cache(home: Path, repository: str, folder: Path):
    """Puts a folder where huggingface_hub keeps what it has downloaded."""
    root = home / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / "0123")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123")


@pytest.mark.slow
def test_the_small_corpus_recipe_trains_on_a_csv_corpus_and_asks_for_nothing_else(tmp_path, monkeypatch):
    whisper = {**tiny.AUDIO_ENCODERS["whisper"], "encoder_layers": 4}
    in_cache(tmp_path / "hf", "openai/whisper-tiny.en", save_random_audio_encoder(whisper, tmp_path / "audio"))
    text = save_random_text_encoder(tiny.TEXT_ENCODER, tmp_path / "text")
    in_cache(tmp_path / "hf", "sentence-transformers/all-MiniLM-L6-v2", text)
    (tmp_path / "own").mkdir()
    with open(tmp_path / "own" / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "speaker"])
        for number in range(20):
            name = f"{number}.wav"
            soundfile.write(tmp_path / "own" / name, tiny.recording(number, 0.2 + 0.01 * number), RATE)
            writer.writerow([name, ("joy", "rage")[number % 2], f"speaker-{number // 4}"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    main(["small-corpus", "--corpus", "csv", "--data_dir", "own"])
    (run_dir,) = (tmp_path / "runs").iterdir()
    predicted = [row for number in range(1, 6) for row in read_csv(run_dir / f"fold-{number}" / "predictions.csv")]
    assert len({row["id"] for row in predicted}) == 20 and {row["reference"] for row in predicted} == {"joy", "rage"}
    model = LaSCLForAudioClassification.from_pretrained(run_dir / "fold-1" / "checkpoint")
    assert (model.config.audio_layers, model.classifier.in_features) == ("1,2,3", 3 * 16)
    assert model.config.freeze_audio_encoder and model.lascl.pooled_std.std() > 0


def test_learned_layer_weights_are_no_constant_so_every_view_is_encoded_in_every_epoch(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lascl.training.fold.embed_views", lambda *args: pytest.fail("pooled once, but the weights learn")
    )
    options = ["--audio_layers", "weighted", "--folds", "1", "--num_train_epochs", "1"]
    main([*recipe, *options, "--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true"])
    model = LaSCLForAudioClassification.from_pretrained(tmp_path / "run" / "fold-1" / "checkpoint")
    assert model.lascl.layer_weights.abs().max() > 0


def test_a_dry_run_counts_every_view_once_whatever_the_number_of_folds_and_variants(
    recipe, tmp_path, monkeypatch, capsys
):
    """A second a view, and nothing else: a clean view and two augmented ones of 70 utterances."""
    monkeypatch.setattr("lascl.studies.forecast.measure", lambda run, **_: Cost(0.0, 1.0))
    options = ["--views_gb", "0", "--vary", "objective=ce,lascl", "--dry_run", "--output_dir", str(tmp_path / "study")]
    study.main(["quickstart", *recipe, *options])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("* ")]
    assert [line.partition(", about ")[2] for line in lines] == ["4 min left here", "0 s left here"]


def test_a_dry_run_measures_encoding_and_training_apart(recipe, tmp_path, monkeypatch):
    runs = plan_runs(Study("s", "quickstart", {}, {"LaSCL": {}}, [1], "LaSCL"), recipe, tmp_path)
    read_corpora(runs)
    heard, real = [], train.train_fold

    def train_fold(recipe, corpus, fold, *rest):
        heard.append((len(corpus), len(fold.train), len(fold.test)))
        return real(recipe, corpus, fold, *rest)[0], {"encoding_s": 0.016}

    monkeypatch.setattr(train, "train_fold", train_fold)
    cost = measure(runs[0])
    fold = runs[0].folds[0]
    assert heard == 3 * [(8, len(fold.train), len(fold.test))]  # as long as a fold, eight are encoded
    assert cost.view_s == pytest.approx(0.001) and cost.checkpoint_bytes > 0
    assert cost.utterance_s > 0 or cost.fold_s > 0
