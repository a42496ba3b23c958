"""`--init_from`: a LaSCL checkpoint, in a folder or on the Hub, is where another training starts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from loopback_hub import LoopbackHub, Repository
from soundfile import read
from test_publish import connected
from tiny import read_csv
from transformers import pipeline

from lascl import LaSCLForAudioClassification
from lascl.train import main


@pytest.fixture(scope="module")
def command(emodb_like):
    return [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--disable_tqdm", "true"),
        *("--num_train_epochs", "1", "--global_batch_size", "16", "--augmentation", "gain", "--folds", "1"),
    ]


@pytest.fixture(scope="module")
def checkpoint(command, audio_encoders, text_encoder, tmp_path_factory):
    """Of a run on all seven emotions, with Whisper's window of one second and the text encoder beside it."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    encoders = ("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder)
    main([*command, *encoders, "--projection_dim", "8", "--output_dir", str(run_dir)])
    return run_dir / "fold-1" / "checkpoint"


def start(command, init_from, run_dir, *options):
    """Trains without learning anything, and returns what is saved."""
    still = ("--learning_rate", "0", "--encoder_learning_rate", "0", "--projection_dim", "8")
    main([*command, *still, "--init_from", str(init_from), "--output_dir", str(run_dir), *options])
    return LaSCLForAudioClassification.from_pretrained(run_dir / "fold-1" / "checkpoint")


def test_training_starts_from_its_weights_and_keeps_its_classifier_for_the_same_labels(command, checkpoint, tmp_path):
    before, after = LaSCLForAudioClassification.from_pretrained(checkpoint), start(command, checkpoint, tmp_path)
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name
    assert (tmp_path / "fold-1" / "checkpoint" / "text_encoder" / "config.json").is_file()
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert any("started from another LaSCL checkpoint" in note for note in protocol["notes"])
    card = (tmp_path / "fold-1" / "checkpoint" / "README.md").read_text()
    assert "that of the LaSCL checkpoint checkpoint (a local copy)" in card and str(checkpoint.parent) not in card


def test_other_labels_are_embedded_anew_and_get_a_classifier_of_their_own(command, checkpoint, tmp_path):
    before = LaSCLForAudioClassification.from_pretrained(checkpoint)
    options = (
        "--labels",
        '{"sadness": "sadness", "anger": "anger", "neutral": "calm"}',
        "--contrastive_weight",
        "0.25",
    )
    after = start(command, checkpoint, tmp_path, *options)
    assert after.config.labels == ["anger", "calm", "sadness"] and after.config.classifier_labels is None
    assert after.config.contrastive_weight == 0.25 and after.classifier.weight.shape == (3, 16)
    kept = {name: tensor for name, tensor in before.state_dict().items() if "label_features" not in name}
    for name, tensor in kept.items():
        assert name.startswith("classifier") or torch.equal(after.state_dict()[name], tensor), name
    features = dict(zip(before.config.labels, before.lascl.label_features))
    torch.testing.assert_close(after.lascl.label_features[0], features["anger"], rtol=0, atol=1e-6)
    torch.testing.assert_close(after.lascl.label_features[2], features["sadness"], rtol=0, atol=1e-6)
    assert not any(torch.allclose(after.lascl.label_features[1], old, atol=1e-3) for old in features.values())
    header = (tmp_path / "fold-1" / "predictions.csv").read_text().splitlines()[0]
    assert header.endswith("probability_classifier_anger,probability_classifier_calm,probability_classifier_sadness")


def test_the_template_is_the_checkpoint_s_unless_another_is_given(command, checkpoint, tmp_path):
    """The words of another labels' set are read as those were that it was trained on."""
    templated = LaSCLForAudioClassification.from_pretrained(checkpoint)
    templated.set_labels(templated.config.labels, "a {label} voice")
    templated.config.classifier_labels = None
    shutil.copytree(checkpoint, tmp_path / "templated")
    templated.save_pretrained(tmp_path / "templated")
    expected = templated.lascl.label_features
    kept = start(command, tmp_path / "templated", tmp_path / "kept", "--labels", "sadness,anger")
    assert kept.config.label_template == "a {label} voice"
    features = dict(zip(templated.config.labels, expected))
    torch.testing.assert_close(kept.lascl.label_features[0], features["anger"], rtol=0, atol=1e-6)
    card = (tmp_path / "kept" / "fold-1" / "checkpoint" / "README.md").read_text()
    assert "a {label} voice" in card
    assert yaml.safe_load((tmp_path / "kept" / "recipe.yaml").read_text())["label_template"] is None
    given = start(command, tmp_path / "templated", tmp_path / "given", "--label_template", "{label}")
    assert given.config.label_template == "{label}"
    before = LaSCLForAudioClassification.from_pretrained(checkpoint)
    torch.testing.assert_close(given.lascl.label_features, before.lascl.label_features, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def two_folds(command, audio_encoders, text_encoder, tmp_path_factory):
    """A run of two folds with a frozen encoder and standardised audio."""
    run_dir = tmp_path_factory.mktemp("runs") / "heads"
    options = ("--folds", "1,2", "--freeze_audio_encoder", "true", "--standardise_audio", "true")
    encoders = ("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder)
    main([*command, *options, *encoders, "--projection_dim", "8", "--output_dir", str(run_dir)])
    return run_dir


def test_each_fold_starts_from_the_same_fold_of_a_run(command, two_folds, tmp_path):
    options = ("--folds", "1,2", "--standardise_audio", "true", "--freeze_audio_encoder", "false")
    start(command, two_folds, tmp_path, *options)
    before, after = (
        [LaSCLForAudioClassification.from_pretrained(run / f"fold-{n}" / "checkpoint").state_dict() for n in (1, 2)]
        for run in (two_folds, tmp_path)
    )
    for number in (0, 1):
        for name, tensor in before[number].items():
            assert torch.equal(after[number][name], tensor), name
    assert not torch.equal(before[0]["lascl.pooled_mean"], before[1]["lascl.pooled_mean"])
    notes = json.loads((tmp_path / "protocol.json").read_text())["notes"]
    assert any("Each fold starts from the checkpoint of the same fold" in note for note in notes)
    assert not any("too good" in note for note in notes)


def test_what_a_fold_starts_from_learns_on_with_the_encoder(command, two_folds, tmp_path):
    options = ("--init_from", str(two_folds), "--standardise_audio", "true", "--projection_dim", "8")
    main([*command, *options, "--output_dir", str(tmp_path)])
    before, after = (
        LaSCLForAudioClassification.from_pretrained(run / "fold-1" / "checkpoint").state_dict()
        for run in (two_folds, tmp_path)
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".layers.1." in name for name in moved) and "classifier.weight" in moved
    assert not any("pooled_" in name or "conv" in name for name in moved)


def test_what_learns_by_its_own_statistics_keeps_these(command, audio_encoders, text_encoder, tmp_path):
    """Heads of other recordings go on by the statistics of what they are trained on here: the checkpoint holds these,
    as one that starts anew does, and answers what was scored."""
    frozen = ("--freeze_audio_encoder", "true", "--augmentation", "none", "--standardise_audio", "corpus")
    encoders = ("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder)
    runs = {name: tmp_path / name for name in ("first", "anew", "on")}
    begun = ("--init_from", str(runs["first"] / "fold-1" / "checkpoint"))
    for name, how in {"first": encoders, "anew": (*encoders, "--folds", "2"), "on": (*begun, "--folds", "2")}.items():
        main([*command, *frozen, "--projection_dim", "8", *how, "--output_dir", str(runs[name])])
    folders = {name: run / f"fold-{1 if name == 'first' else 2}" / "checkpoint" for name, run in runs.items()}
    models = {name: LaSCLForAudioClassification.from_pretrained(folder) for name, folder in folders.items()}
    told = {name: [model.lascl.pooled_mean, model.lascl.pooled_std] for name, model in models.items()}
    assert not torch.equal(told["first"][0], told["anew"][0])
    for own, expected in zip(told["on"], told["anew"]):
        assert torch.equal(own, expected)
    row = read_csv(runs["on"] / "fold-2" / "predictions.csv")[0]
    path = next(Path(command[2]).rglob(f"{row['id']}.*"))
    answered = pipeline("audio-classification", model=str(folders["on"]), trust_remote_code=True)(read(path)[0])
    scored = {label["label"]: label["score"] for label in answered}
    assert scored == pytest.approx({label: float(row[f"probability_{label}"]) for label in scored}, abs=1e-4)


def test_a_run_with_another_seed_is_started_from_unless_its_folds_differ(
    command, own_corpus, audio_encoders, text_encoder, tmp_path, capsys
):
    """The seed draws weights and batches; the folds of a corpus without any are drawn by `split_seed`."""
    own = ["csv", "--data_dir", str(own_corpus), "--num_folds", "3", *command[3:], "--projection_dim", "8"]
    encoders = ("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder)
    main([*own, *encoders, "--seed", "1", "--output_dir", str(tmp_path / "first")])
    try:
        main([*own, "--init_from", str(tmp_path / "first"), "--seed", "2", "--output_dir", str(tmp_path / "second")])
    except SystemExit:
        assert "" == capsys.readouterr().err
    protocols = [json.loads((tmp_path / run / "protocol.json").read_text()) for run in ("first", "second")]
    assert protocols[0]["folds"] == protocols[1]["folds"] and protocols[1]["split_seed"] == 42
    with pytest.raises(SystemExit):
        main([*own, "--init_from", str(tmp_path / "first"), "--split_seed", "2", "--output_dir", str(tmp_path / "no")])
    assert "validation and split_seed (42)." in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--folds", "1,3"), "has no fold-3/checkpoint. Finish that run."),
        (("--folds", "1", "--num_folds", "2"), "trained fold 1 on other utterances than this recipe would"),
        (("--folds", "1", "--validation", "speaker"), "trained fold 1 on other utterances than this recipe would"),
        (("--folds", "1", "--hub_main", "full_data"), "has no full-data/checkpoint. Finish that run."),
    ],
)
def test_a_run_with_other_folds_is_refused(command, two_folds, tmp_path, capsys, options, message):
    init_from = ("--init_from", str(two_folds), "--standardise_audio", "true", "--projection_dim", "8")
    with pytest.raises(SystemExit) as exit:
        main([*command, *init_from, *options, "--output_dir", str(tmp_path / "run")])
    assert exit.value.code == 2 and message in capsys.readouterr().err


def plain_encoder(checkpoint, audio_encoders):
    return audio_encoders["whisper"]


def lascl(checkpoint, audio_encoders):
    return checkpoint


@pytest.mark.parametrize(
    "what, options, message",
    [
        (lascl, ("--projection_dim", "16"), "init_from has projection_dim 8, the recipe 16. Set projection_dim to 8."),
        (lascl, ("--audio_layers", "weighted"), "init_from has audio_layers 'last', the recipe 'weighted'."),
        (plain_encoder, (), "is of the type 'whisper', not a LaSCL checkpoint"),
        (lambda *_: "no/such/place", (), "there is no folder no/such/place, and a name on the Hub is org/name."),
        (lambda *_: "/nowhere", (), "there is no folder /nowhere, and a name on the Hub is org/name."),
    ],
)
def test_what_cannot_be_started_from_is_said_before_training(
    command, checkpoint, audio_encoders, tmp_path, capsys, what, options, message
):
    init_from = ("--init_from", str(what(checkpoint, audio_encoders)), "--projection_dim", "8", *options)
    with pytest.raises(SystemExit) as exit:
        main([*command, *init_from, "--output_dir", str(tmp_path / "run")])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert exit.value.code == 2 and message in line


def test_clips_longer_than_its_whisper_window_are_refused(command, checkpoint, tmp_path, capsys):
    import soundfile
    from tiny import RATE, recording

    for speaker in ("03", "08"):
        for emotion in "AEFLNTW":
            soundfile.write(tmp_path / f"{speaker}a01{emotion}a.wav", recording(1, duration_s=1.2), RATE)
    options = ("--data_dir", str(tmp_path), "--num_folds", "2", "--projection_dim", "8", "--init_from", str(checkpoint))
    with pytest.raises(SystemExit):
        main([*command, *options, "--output_dir", str(tmp_path / "run")])
    assert "init_from hears 1 s at most, and this corpus has 1.2 s" in capsys.readouterr().err
    main([*command, *options, "--max_duration_s", "1", "--output_dir", str(tmp_path / "run")])


def test_a_branch_of_the_hub_is_started_from(command, checkpoint, tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        stored = {str(path.relative_to(checkpoint)): hub.store(path.read_bytes()) for path in files}
        repository = hub.repositories["org/lascl"] = Repository()
        repository.add("main", {"README.md": hub.store(b"nothing here")}, "first")
        repository.add("fold-1", stored, "a fold")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        options = ("--init_from", "org/lascl", "--init_from_revision", "fold-1", "--projection_dim", "8")
        still = ("--learning_rate", "0", "--encoder_learning_rate", "0", "--output_dir", str(tmp_path / "run"))
        with connected(hub):
            main([*command, *options, *still])
        assert any("fold-1" in path for _, path, _ in hub.requests)
    before = LaSCLForAudioClassification.from_pretrained(checkpoint).state_dict()
    after = LaSCLForAudioClassification.from_pretrained(tmp_path / "run" / "fold-1" / "checkpoint").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    card = (tmp_path / "run" / "fold-1" / "checkpoint" / "README.md").read_text()
    assert "base_model: org/lascl" in card and "base_model_relation: finetune" in card
