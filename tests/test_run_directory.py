"""A run directory is one run's, from its first second, and each of its folds is trained by one command at a time."""

import pytest
from tiny import Interrupted

from lascl import LaSCLTrainer, train


@pytest.fixture(scope="module")
def command(emodb_like, audio_encoders, text_encoder):
    return [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--disable_tqdm", "true"),
        *("--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder),
        *("--num_train_epochs", "1", "--global_batch_size", "35", "--augmentation", "none"),
    ]


def outcome(command, capsys):
    """How the command ends: `trained`, where training would begin, or its exit code; and what it says on stderr."""
    try:
        train.main([str(part) for part in command])
    except SystemExit as exit:
        return exit.code, capsys.readouterr().err
    except Interrupted:
        return "trained", ""


@pytest.fixture
def never_trained(monkeypatch):
    """The command ends where a Trainer would be made: as if it were killed there."""

    def killed(*args, **kwargs):
        raise Interrupted

    monkeypatch.setattr(LaSCLTrainer, "__init__", killed)


def test_another_recipe_is_refused_from_the_first_second(command, tmp_path, capsys, never_trained):
    run = [*command, "--output_dir", tmp_path / "run"]
    assert outcome(run, capsys) == ("trained", "")
    begun = (tmp_path / "run" / "recipe.yaml").read_bytes()
    code, said = outcome([*run, "--learning_rate", "0.5"], capsys)
    assert code == 2 and "learning_rate (0.001 there, 0.5 here)" in said and said.count("\n") == 1
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == begun
    assert outcome(run, capsys) == ("trained", "")


def test_a_run_that_could_not_begin_is_none(command, tmp_path, capsys, never_trained):
    """Nothing is computed of it, so the mended command is no other recipe."""
    run = [*command, "--output_dir", tmp_path / "run"]
    code, said = outcome([*run, "--audio_encoder", tmp_path / "nowhere"], capsys)
    assert code == 2 and "cannot be loaded" in said
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert outcome(run, capsys) == ("trained", "")


def test_a_fold_is_trained_by_one_command_at_a_time(command, tmp_path, capsys, monkeypatch):
    run = [*command, "--output_dir", tmp_path / "run"]
    meanwhile = {}

    def training(*args, **kwargs):
        if not meanwhile:
            meanwhile["identical"] = "trained"
            meanwhile["identical"] = outcome(run, capsys)
            meanwhile["other folds"] = outcome([*run, "--folds", "2"], capsys)
        raise Interrupted

    monkeypatch.setattr(LaSCLTrainer, "__init__", training)
    assert outcome([*run, "--folds", "1"], capsys) == ("trained", "")
    code, said = meanwhile["identical"]
    assert code == 2 and "Another command is training fold-1 in" in said and said.count("\n") == 1
    assert meanwhile["other folds"] == ("trained", "")
    assert outcome(run, capsys) == ("trained", "")  # a kill leaves nothing that would have to be removed
    assert not list((tmp_path / "run").glob(".*"))
