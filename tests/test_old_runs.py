"""Runs and checkpoints of older code go on: what their files lack has the value by which that code acted.

`old_run/` holds files as commit e9d9ffa wrote them, of a run over `own_corpus` with another seed than the usual one.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import cut_off, read_csv

from lascl.configuration_lascl import LaSCLConfig
from lascl.train import main
from lascl.training import recipe as recipe_module
from lascl.training.recipe import FIXED_BY_WEIGHTS, Recipe, parse_recipe


OLD_COMMIT = "e9d9ffa3e0363c0883001caea2fe8b2939cce495"
FILES = Path(__file__).parent / "old_run"
OLD_RECIPE = yaml.safe_load((FILES / "recipe.yaml").read_text())


@pytest.fixture(scope="module")
def command(own_corpus, audio_encoders, text_encoder):
    """Of the old run, as it was typed then."""
    return [
        *("csv", "--data_dir", str(own_corpus), "--num_folds", "3", "--validation", "speaker", "--seed", "43"),
        *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--folds", "1"),
        *("--num_train_epochs", "2", "--global_batch_size", "16", "--augmentation", "gain", "--disable_tqdm", "true"),
    ]


@pytest.fixture
def old_run(command, tmp_path):
    """The old run's directory, its first fold begun."""
    run_dir = tmp_path / "old"
    (run_dir / "fold-1").mkdir(parents=True)
    shutil.copy(FILES / "environment.json", run_dir)
    shutil.copy(FILES / "protocol.json", run_dir)
    here = {name: command[command.index(f"--{name}") + 1] for name in ("data_dir", "audio_encoder", "text_encoder")}
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump({**OLD_RECIPE, **here}))
    return run_dir


def test_every_field_that_an_old_recipe_lacks_has_its_meaning():
    table = getattr(recipe_module, "WHEN_ABSENT", {})
    missing = set(Recipe().to_dict()) - set(OLD_RECIPE)
    assert missing and missing - set(table) == set()
    assert missing == set(table) & set(Recipe().to_dict())  # a line of what old recipes have is never read


def test_what_an_old_configuration_lacks_is_its_default_today():
    old = json.loads((FILES / "config.json").read_text())
    loaded, today = LaSCLConfig(**old), LaSCLConfig()
    meant = recipe_module.with_absent(old)
    lacking = [name for name in recipe_module.WHEN_ABSENT if name not in old and hasattr(today, name)]
    assert [(name, getattr(loaded, name)) for name in lacking] == [(name, meant[name]) for name in lacking]
    assert all(name in meant for name in FIXED_BY_WEIGHTS)


@pytest.fixture(autouse=True)
def without_reports(monkeypatch):
    """The report of a run is drawn elsewhere, and takes seconds."""
    monkeypatch.setattr("lascl.train.write_report", lambda *_: None)


def test_an_old_run_goes_on_with_its_own_folds(command, old_run, capsys):
    told = json.loads((FILES / "protocol.json").read_text())["folds"]
    main([*command, "--output_dir", str(old_run)])
    protocol = json.loads((old_run / "protocol.json").read_text())
    assert protocol["folds"] == told and protocol.get("split_seed") == 43
    assert "| pooled | 28 |" in capsys.readouterr().out
    # And trained again elsewhere, from its own file.
    recipe, _ = parse_recipe([str(old_run / "recipe.yaml"), "--output_dir", str(old_run.parent / "again")])
    assert recipe.split_seed == 43
    with pytest.raises(SystemExit):
        main([*command, "--output_dir", str(old_run), "--split_seed", "42"])
    assert "different are: split_seed (43 there, 42 here)" in capsys.readouterr().err


def test_an_old_run_that_started_from_a_checkpoint_keeps_the_template_that_it_was_given(command, old_run):
    """Old code took `{label}` where today that of the checkpoint is inherited."""
    recorded = yaml.safe_load((old_run / "recipe.yaml").read_text())
    (old_run / "recipe.yaml").write_text(yaml.safe_dump({**recorded, "init_from": "org/lascl"}))
    typed = [*command, "--init_from", "org/lascl", "--output_dir"]
    assert parse_recipe([*typed, str(old_run)])[0].label_template == "{label}"
    assert parse_recipe([*typed, str(old_run.parent / "new")])[0].label_template is None


@pytest.mark.slow
def test_a_half_trained_fold_of_an_old_recipe_ends_as_if_it_had_not_been_cut_off(command, tmp_path, monkeypatch):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    command = [*command, "--augmentation", "mixed"]  # whose views are others today
    old_draws = ["--split_seed", "43", "--augmentation_edition", "1"]
    main([*command, *old_draws, "--output_dir", str(straight)])
    run = [*command, "--save_strategy", "steps", "--save_steps", "2", "--output_dir", str(cut)]
    cut_off(monkeypatch, [*run, *old_draws], after_steps=5)
    recorded = yaml.safe_load((cut / "recipe.yaml").read_text())
    old = {name: value for name, value in recorded.items() if name in OLD_RECIPE}
    assert old.keys() == OLD_RECIPE.keys() and len(old) < len(recorded)
    (cut / "recipe.yaml").write_text(yaml.safe_dump(old))
    main(run)
    assert_same_fold(cut / "fold-1", straight / "fold-1")


def assert_same_fold(found, expected):
    for name in ("checkpoint/model.safetensors", "predictions.csv", "log_history.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.proof
def test_a_run_that_old_code_left_half_done_is_finished(command, tmp_path, monkeypatch):
    """The old commit itself begins, in a process of its own, and is killed in its second epoch."""
    root, source = Path(__file__).resolve().parents[1], tmp_path / "source"
    command = [*command, "--augmentation", "mixed"]
    (source / "lascl").mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(root), "archive", OLD_COMMIT], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source / "lascl")], input=archive, check=True)
    steps = ("--save_strategy", "steps", "--save_steps", "2")
    old = {name: tmp_path / name for name in ("straight", "cut")}
    for name, run_dir in old.items():
        script, kill = ("train.py", ()) if name == "straight" else ("tests/killed_run.py", ("1", "5", "0"))
        begun = subprocess.run(
            [sys.executable, str(source / "lascl" / script), *kill, *command, *steps, "--output_dir", str(run_dir)],
            env={"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PATH": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert begun.returncode == (0 if name == "straight" else -9), begun.stderr
    assert "split_seed" not in (old["cut"] / "recipe.yaml").read_text()
    main([*command, *steps, "--output_dir", str(old["cut"])])
    found, expected = (old[name] / "fold-1" for name in ("cut", "straight"))
    weights = "checkpoint/model.safetensors"
    assert (found / weights).read_bytes() == (expected / weights).read_bytes()
    # Today's code sums in another order where it predicts.
    for row, told in zip(*(read_csv(fold / "predictions.csv") for fold in (found, expected)), strict=True):
        assert row.keys() == told.keys() and row["prediction"] == told["prediction"]
        numbers = [name for name in told if name.startswith("probability_")]
        assert [float(row[n]) for n in numbers] == pytest.approx([float(told[n]) for n in numbers], abs=1e-6)
