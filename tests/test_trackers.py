"""`report_to`: logs that outlive the fold, a tracker's run for each, told from one another."""

import json
import os
import subprocess
import sys

import pytest
from test_distributed import ROOT

from lascl.train import main, train_on_everything
from lascl.training.prepare import read_corpus
from lascl.training.recipe import parse_recipe
from lascl.training.start import Weights


@pytest.fixture(scope="module")
def recipe(audio_encoders, text_encoder, emodb_like):
    fields = {
        "corpus": "emodb",
        "data_dir": emodb_like,
        "allow_partial": "true",
        "folds": "1,2",
        "max_duration_s": "0.2",
    }
    fields |= {"audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder, "projection_dim": "8"}
    fields |= {"num_train_epochs": "2", "global_batch_size": "28", "augmentation": "none", "disable_tqdm": "true"}
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def without_reports(monkeypatch):
    monkeypatch.setattr("lascl.train.write_report", lambda run_dir, _: (run_dir / "report.md").write_text(""))


def losses_of(fold_dir) -> dict[int, float]:
    """The training loss at each logged step, as `log_history.json` tells it."""
    log = json.loads((fold_dir / "log_history.json").read_text())
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def scalars(logs, tag) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert logs.is_dir(), f"{logs} is gone, or was never made"
    events = EventAccumulator(str(logs)).Reload()
    return {event.step: event.value for event in events.Scalars(tag)} if tag in events.Tags()["scalars"] else {}


@pytest.mark.slow
def test_tensorboard_has_the_losses_of_each_fold_and_of_all_data(recipe, tmp_path, without_reports):
    pytest.importorskip("tensorboard", reason="needs tensorboard, of the extra `dev`")

    run = tmp_path / "run"
    main([*recipe, "--output_dir", str(run), "--report_to", "tensorboard"])
    for name in ("fold-1", "fold-2"):
        found = scalars(run / name / "logs", "train/loss")
        assert found == pytest.approx(losses_of(run / name)) and len(found) == 2, f"{name}: {found}"
        assert len(scalars(run / name / "logs", "eval/test_ua")) == 2
        assert not (run / name / "trainer").exists()
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    # As with --hub_main full_data, which needs no Hub until a fold is published.
    parsed, _ = parse_recipe([*recipe, "--output_dir", str(run), "--report_to", "tensorboard"])
    corpus, _ = read_corpus(parsed)
    train_on_everything(parsed, run, corpus, Weights(parsed.audio_encoder, parsed.text_encoder))
    assert len(scalars(run / "full-data" / "logs", "train/loss")) == 2


@pytest.mark.slow
def test_a_fold_that_goes_on_writes_on(recipe, tmp_path, without_reports, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard, of the extra `dev`")
    from transformers import TrainerCallback

    from lascl.training.checkpoints import MarkWholeCheckpoints

    class Interrupt(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.epoch == 1:
                raise KeyboardInterrupt

    command = [*recipe, "--folds", "1", "--output_dir", str(tmp_path / "run"), "--report_to", "tensorboard"]
    with monkeypatch.context() as patch:
        patch.setattr(MarkWholeCheckpoints, "on_epoch_end", Interrupt.on_epoch_end)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    main(command)
    fold = tmp_path / "run" / "fold-1"
    assert scalars(fold / "logs", "train/loss") == pytest.approx(losses_of(fold))
    assert len(losses_of(fold)) == 2


TRACKERS = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
    "trackio": {},
}


@pytest.mark.parametrize("name", TRACKERS)
def test_each_fold_is_a_run_of_its_own_with_the_run_for_its_group(recipe, tmp_path, name):
    module = pytest.importorskip(name, reason=f"needs {name}, which no extra installs")
    environment = {**os.environ, **TRACKERS[name], "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *recipe, "--output_dir", "run", "--report_to", name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [tmp_path / "run" / fold / "logs" for fold in ("fold-1", "fold-2")]
    if name == "wandb":
        ids = [(folder / "wandb-run-id").read_text() for folder in logs]
        assert ids[0] != ids[1] and all(list(folder.glob(f"wandb/offline-run-*-{id}")) for folder, id in zip(logs, ids))
    elif name == "mlflow":
        for folder in logs:
            client = module.MlflowClient(f"sqlite:///{folder}/mlflow.db")
            (experiment,) = client.search_experiments(filter_string="name = 'run'")
            (run,) = client.search_runs([experiment.experiment_id])
            assert (run.info.run_name, run.info.status) == (folder.parent.name, "FINISHED")
            points = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}
            assert points == pytest.approx(losses_of(folder.parent))
    else:
        assert list((tmp_path / "trackio").glob("run*.db"))
    here = {path.name for path in tmp_path.iterdir()}
    assert here <= {"run", "trackio"}, f"written outside of the run: {here}"


@pytest.mark.parametrize("name, said", [("comet_ml", "pip install comet_ml."), ("carrier_pigeon", "all or some of")])
def test_a_tracker_that_is_not_there_is_said_before_anything_is_computed(recipe, tmp_path, capsys, name, said):
    code = None
    try:
        main([*recipe, "--output_dir", str(tmp_path / "run"), "--report_to", name])
    except SystemExit as exit:
        code = exit.code
    except Exception as error:
        code = f"{type(error).__name__}"
    printed = capsys.readouterr()
    assert code == 2, code
    error = printed.err[printed.err.index("train.py: ") :]
    assert "report_to" in error and said in error and error.count("\n") == 1
    assert "utterances" not in printed.out and not (tmp_path / "run").exists()
