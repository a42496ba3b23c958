"""What a user of the commands sees first: options, mistakes in them, and logs."""

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch

from lascl import LaSCLForAudioClassification, train
from lascl.training.recipe import field_types, parse_recipe


ROOT = Path(__file__).resolve().parents[1]
MODULE = """
import contextlib, runpy, sys
sys.argv[1:] = {}
code = 0
try:
    {}
except SystemExit as exit:
    code = exit.code
heavy = ("torch", "transformers", "pandas", "datasets", "pyarrow", "sklearn", "scipy", "accelerate")
print(code, *[name for name in heavy if name in sys.modules])
"""
COMMANDS = ["train", "predict", "report", "compare", "study", "publish", "verify", "export", "words", "views"]
AS_A_MODULE = "runpy.run_module('lascl.{}', run_name='__main__')"
AS_A_COMMAND = "from {0} import {1} as main; main()"


def command_of(name: str) -> str:
    """What `setup.cfg` installs under a name, as code."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    (target,) = [line.split("=")[1].strip() for line in lines if line.startswith(f"{name} =")]
    return AS_A_COMMAND.format(*target.split(":"))


@pytest.mark.parametrize(
    "code, argv, said",
    [
        (AS_A_MODULE.format("train"), ["small-corpus", "--learning_rte", "1"], "did you mean 'learning_rate'?"),
        (command_of("lascl-train"), ["--num-veiws=3"], "did you mean 'num_views'?"),
        (command_of("lascl-predict"), ["M", "a.wav", "--lables", "x"], "did you mean --labels?"),
        (command_of("lascl-report"), ["run", "--latex", "--baseline", "x"], "leave out --latex"),
        (command_of("lascl-compare"), ["a", "b", "--heads", "x"], "did you mean --head?"),
        (command_of("lascl-study"), ["emodb", "--dry_runn"], "did you mean 'dry_run'?"),
        (command_of("lascl-publish"), ["run", "--hub_model_id", "a/b", "--folds", "x"], "--folds must be 'all' or"),
        (command_of("lascl-verify"), ["a/b", "--corpus", "emodb", "--batch_size", "x"], "invalid int value: 'x'"),
        (command_of("lascl-export"), ["M", "out", "--labels", "sad,,calm"], "an empty word between commas: 'sad"),
        (command_of("lascl-words"), ["M", "sad", "--store"], "--store needs --check"),
        (command_of("lascl-views"), ["--views_dir", "nowhere"], "there is no folder nowhere"),
    ],
    ids=["train.py", *(f"lascl-{name}" for name in COMMANDS)],
)
def test_a_wrong_option_is_told_before_anything_heavy_is_imported(code, argv, said, tmp_path):
    code = MODULE.format(argv, code)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["2"], done.stdout + done.stderr
    assert said in done.stderr.splitlines()[-1]


def test_every_command_s_wrong_options_are_tried():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    assert [line.split(" =")[0] for line in lines if line] == [f"lascl-{name}" for name in COMMANDS]


def test_the_options_that_are_known_without_importing_are_those_that_there_are():
    from lascl.study import study_options
    from lascl.training.options import OF_A_STUDY, option_names
    from lascl.training.recipe import field_types
    from lascl.training.stock_fields import known_fields

    assert set(field_types()) <= option_names() <= set(field_types()) | known_fields()
    own = {action.dest for action in study_options()._actions} - {"help"}
    assert own == {*OF_A_STUDY, "output_dir"}


def test_help_fits_a_screen_by_groups(capsys):
    """What most people set; Trainer's own behind `--help-all`."""
    with pytest.raises(SystemExit):
        parse_recipe(["--help"])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 50, f"--help has {len(printed.splitlines())} lines"
    assert max(map(len, printed.splitlines())) <= 110
    assert "--help-all" in printed and "--adam_beta1" not in printed
    shown = re.findall(r"^  --(\w+)", printed, re.MULTILINE)
    assert {"corpus", "data_dir", "corpora", "output_dir", "num_train_epochs"} <= set(shown) <= {*field_types()}
    assert len(re.findall(r"^\w[^\n]*:$", printed, re.MULTILINE)) == 3


def test_help_shows_what_is_lascl_s_own_first_and_nothing_that_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["--help-all"])
    printed = capsys.readouterr().out
    positions = [printed.find(f"--{name} ") for name in ("corpus", "num_views", "encoder_learning_rate", "adam_beta1")]
    assert -1 < positions[0] < min(positions[1:3]) <= max(positions[1:3]) < positions[3]
    assert len(printed.partition("--corpus ")[0].splitlines()) < 16
    assert "--neftune_noise_alpha" not in printed and "--metric_for_best_model" not in printed


def test_features_of_another_window_are_refused_with_the_way_out(audio_encoders, text_encoder):
    """As of whoever builds a Whisper model with `window_s`, and loads its feature extractor without."""
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["whisper"], text_encoder, ["a", "b"], window_s=1)
    with pytest.raises(ValueError, match=r"exactly 100 mel frames \(1 s\); found 3000") as refused:
        model(input_features=torch.zeros(1, 16, 3000))
    assert "chunk_length=1)" in str(refused.value) and "window_s=30 in from_encoders" in str(refused.value)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--corpus", "ravdess,emovo"], "--corpora ravdess,emovo --data_dir ROOT"),
        (["--protocol", "none"], "--final_model true --folds none"),
    ],
)
def test_a_guess_leads_to_what_was_meant(options, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(options)
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_a_log_in_a_file_has_no_bars_and_no_blank_lines(
    emodb_like, audio_encoders, text_encoder, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(train, "write_report", lambda *_: None)
    command = [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--folds", "1", "--augmentation", "none"),
        *("--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder),
        *("--freeze_audio_encoder", "true", "--num_train_epochs", "2", "--global_batch_size", "35"),
    ]
    train.main([*command, "--output_dir", str(tmp_path / "run")])
    for written in capfd.readouterr():
        assert "\r" not in written and "it/s" not in written
        assert [line for line in written.splitlines() if not line.strip()] == []
