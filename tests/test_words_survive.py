"""New labels after every way of saving, moving and publishing; and no saved file names a folder of its author."""

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from loopback_hub import LoopbackHub
from test_hub_loading import features
from test_publish import connected, environment
from test_remote_code import STRANGER
from tiny import LABELS
from transformers import AutoModel, Trainer, TrainingArguments

from lascl import LaSCLForAudioClassification
from lascl.hub.publish import stage_fold
from lascl.train import main


WORDS = ["calm", "tense"]

# Runs where lascl cannot be imported. argv: names or folders, then the file for the label features of each.
NEW_LABELS = (
    STRANGER[: STRANGER.index("from pathlib")]
    + """
import json
from pathlib import Path

from transformers import AutoModel, AutoModelForAudioClassification

found = {}
for name in sys.argv[1:-1]:
    for auto in (AutoModel, AutoModelForAudioClassification):
        model = auto.from_pretrained(name, trust_remote_code=True)
        try:
            model.set_labels(["calm", "tense"])
            found[f"{name} {auto.__name__}"] = model.base_model.label_features.tolist()
        except Exception as error:
            found[f"{name} {auto.__name__}"] = f"{type(error).__name__}: {error}"
Path(sys.argv[-1]).write_text(json.dumps(found))
"""
)


def new_labels_elsewhere(names, home: Path, env: dict[str, str]) -> dict:
    """What a process without LaSCL and with an empty cache gets: label features, or the error's words."""
    home.mkdir()
    command = [sys.executable, "-c", NEW_LABELS, *map(str, names), str(home / "found.json")]
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "found.json").read_text())


def offline(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return {**kept, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}


def files_that_name(folders, folder: Path) -> list[str]:
    """Files under `folder` that hold the path of one of `folders`."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(str(named).encode() in path.read_bytes() for named in folders)
    ]


@pytest.fixture
def built(audio_encoders, text_encoder, tmp_path):
    """A model of a text encoder in the author's folder, and that folder."""
    author = tmp_path / "author"
    shutil.copytree(text_encoder, author / "text")
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders["wav2vec2-layer"], str(author / "text"), LABELS, projection_dim=8
    )
    return model.eval(), author / "text"


@pytest.mark.slow
def test_a_model_of_a_text_encoder_in_a_folder_takes_new_labels_elsewhere_however_often_it_is_saved(
    built, text_encoder, audio_encoders, tmp_path
):
    (model, author), saved = built, tmp_path / "saved"
    (author / "training_args.bin").write_bytes(b"somebody's own")
    model.save_pretrained(saved / "1")
    author.rename(tmp_path / "gone")
    LaSCLForAudioClassification.from_pretrained(saved / "1").save_pretrained(saved / "2")
    AutoModel.from_pretrained(saved / "2").save_pretrained(saved / "3")  # the base model alone
    (saved / "1").rename(tmp_path / "moved")
    shutil.rmtree(saved / "2")
    again = LaSCLForAudioClassification.from_pretrained(saved / "3")
    again.save_pretrained(saved / "3")  # where it came from
    assert not (saved / "3" / "text_encoder" / "training_args.bin").exists()
    found = new_labels_elsewhere([tmp_path / "moved", saved / "3"], tmp_path / "home", offline(tmp_path))
    assert len(found) == 4
    for name, got in found.items():
        assert isinstance(got, list), (name, got)
        torch.testing.assert_close(torch.tensor(got), features(text_encoder), rtol=0, atol=1e-5)
    assert files_that_name([tmp_path, text_encoder, audio_encoders["wav2vec2-layer"]], saved) == []


def test_what_trainer_keeps_during_training_is_without_the_text_encoder(built, tmp_path):
    model, _ = built
    rows = [{"input_values": torch.randn(400), "labels": torch.tensor(row % 4)} for row in range(4)]
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    kept = tmp_path / "out" / "checkpoint-1"
    assert (kept / "model.safetensors").is_file() and not (kept / "text_encoder").exists()
    assert (tmp_path / "final" / "text_encoder" / "model.safetensors").is_file()


def test_an_old_checkpoint_with_the_path_of_a_folder_works_while_the_folder_is_there_and_is_saved_whole(
    built, text_encoder, tmp_path, caplog
):
    model, author = built
    model.save_pretrained(tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "text_encoder", ignore_errors=True)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config["audio_config"]["_name_or_path"] = config["text_encoder"] = str(author)
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    old = LaSCLForAudioClassification.from_pretrained(tmp_path / "old")
    old.save_pretrained(tmp_path / "new")
    old.set_labels(WORDS)
    torch.testing.assert_close(old.lascl.label_features, features(text_encoder), rtol=0, atol=1e-5)
    assert files_that_name([tmp_path], tmp_path / "new") == []
    author.rename(tmp_path / "gone")
    again = LaSCLForAudioClassification.from_pretrained(tmp_path / "new")
    again.set_labels(WORDS)
    torch.testing.assert_close(again.lascl.label_features, features(text_encoder), rtol=0, atol=1e-5)
    # The folder is lost: the weights are saved nevertheless, and it is said what is missing.
    lost = LaSCLForAudioClassification.from_pretrained(tmp_path / "old")
    logger = logging.getLogger("lascl.modeling_lascl")
    logger.addHandler(caplog.handler)
    lost.save_pretrained(tmp_path / "lost")
    logger.removeHandler(caplog.handler)
    assert f"The text encoder {author} could not be saved" in caplog.text
    assert (tmp_path / "lost" / "model.safetensors").is_file() and files_that_name([tmp_path], tmp_path / "lost") == []


@pytest.fixture(scope="module")
def command(emodb_like, audio_encoders):
    return [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--disable_tqdm", "true"),
        *("--num_train_epochs", "1", "--global_batch_size", "16", "--augmentation", "none", "--projection_dim", "8"),
    ]


@pytest.fixture(scope="module")
def run(command, audio_encoders, text_encoder, tmp_path_factory):
    """A run of two folds, its text encoder in a folder of the author."""
    root = tmp_path_factory.mktemp("author")
    shutil.copytree(text_encoder, root / "text")
    encoders = ("--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", str(root / "text"))
    with contextlib.redirect_stdout(io.StringIO()):
        main([*command, *encoders, "--folds", "1,2", "--output_dir", str(root / "run")])
    return root / "run"


def test_each_fold_holds_the_text_encoder_once_for_all_folds_and_no_path(run, emodb_like, audio_encoders, tmp_path):
    kept = [run / f"fold-{number}" / "checkpoint" / "text_encoder" / "model.safetensors" for number in (1, 2)]
    assert all(path.is_file() for path in kept)
    assert kept[0].samefile(kept[1])  # a hard link
    named = [run.parent, emodb_like, audio_encoders["wav2vec2-layer"], Path.home()]
    for number in (1, 2):
        assert files_that_name(named, run / f"fold-{number}" / "checkpoint") == []
        assert files_that_name(named, stage_fold(run, number, "org/lascl")) == []


def test_without_hard_links_the_text_encoder_is_copied(monkeypatch, tmp_path):
    from lascl.training import run_directory

    assert hasattr(run_directory, "link_or_copy")

    def refuse(*_):
        raise OSError("no links here")

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("content")
    monkeypatch.setattr(os, "link", refuse)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=run_directory.link_or_copy)
    assert (tmp_path / "b" / "file").read_text() == "content"


@pytest.mark.slow
def test_fine_tuned_saved_and_pushed_it_takes_new_labels_in_a_clean_process(
    run, command, text_encoder, tmp_path, monkeypatch
):
    # transformers keeps one client for the Hub that it met first.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    init_from = (
        "--init_from",
        str(run / "fold-1" / "checkpoint"),
        "--folds",
        "1",
        "--output_dir",
        str(tmp_path / "run"),
    )
    with LoopbackHub(tmp_path / "hub", token="hf_MarkerThatMustBeFoundNowhere") as hub:
        with connected(hub), contextlib.redirect_stdout(io.StringIO()):
            main([*command, *init_from, "--push_to_hub", "true", "--hub_model_id", "org/published"])
            tuned = LaSCLForAudioClassification.from_pretrained(tmp_path / "run" / "fold-1" / "checkpoint")
            tuned.save_pretrained(tmp_path / "saved")
            LaSCLForAudioClassification.from_pretrained(tmp_path / "saved").push_to_hub("org/pushed")
            tuned.save_pretrained(tmp_path / "sent", push_to_hub=True, repo_id="org/sent")
        names = ["org/published", "org/pushed", "org/sent"]
        for name in names:
            content = [hub.read(name, "main", path) for path in hub.content(name, "main")]
            assert not any(str(tmp_path).encode() in file or str(run.parent).encode() in file for file in content)
        found = new_labels_elsewhere(
            names, tmp_path / "home", environment(hub, tmp_path, HF_TOKEN="hf_MarkerThatMustBeFoundNowhere")
        )
    assert len(found) == 6
    for name, got in found.items():
        assert isinstance(got, list), (name, got)
        torch.testing.assert_close(torch.tensor(got), features(text_encoder), rtol=0, atol=1e-5)
