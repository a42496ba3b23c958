"""Where `report_to` writes: a folder and a tracker's run for each fold, which outlive the fold's other files."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import PartialState
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lascl.training.arguments import LaSCLTrainingArguments


def check_trackers(report_to: list[str]):
    """Raises ValueError for a tracker that transformers does not know, or whose package is not installed."""
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to must be none, all or some of {known}; found {name!r}.")
        if name not in get_available_reporting_integrations():
            raise ValueError(f"report_to {name} needs a package that is not installed: pip install {name}.")


@contextmanager
def tracked(args: LaSCLTrainingArguments, fold_dir: Path) -> Iterator[None]:
    """While a fold is trained, `args.report_to` writes to `fold_dir/logs`, as a run of its own that ends with it.

    The tracker's run is called after the fold's folder; its group is `run_name`, by default the last three parts of the
    run directory. TensorBoard's files lie in `logs` themselves, wandb's and mlflow's there too, unless a server is told
    (`WANDB_MODE`, `MLFLOW_TRACKING_URI`). mlflow has experiments for groups and trackio projects, which it keeps in its
    own folder of the Hugging Face cache. A fold that goes on writes on in its run. Other trackers are as
    transformers has them. Enter it before the Trainer is made.
    """
    logs, run_dir = fold_dir / "logs", fold_dir.parent
    group = args.run_name if args.run_name not in (None, args.output_dir) else "/".join(run_dir.parts[-3:])
    args.run_name = fold_dir.name
    if args.project == "huggingface":  # stock's default, which all runs of everybody would share
        args.project = group.replace("/", "-")
    with ExitStack() as stack:
        if args.report_to and PartialState().is_main_process:
            logs.mkdir(parents=True, exist_ok=True)
            if "tensorboard" in args.report_to:
                stack.enter_context(_variable("TENSORBOARD_LOGGING_DIR", str(logs)))
            # Stock's callbacks start a run only where none is active.
            if "wandb" in args.report_to:
                stack.enter_context(_wandb_run(logs, fold_dir.name, group))
            if "mlflow" in args.report_to:
                stack.enter_context(_mlflow_run(logs, fold_dir.name, group))
            if "trackio" in args.report_to:
                stack.callback(_finish_trackio)
        yield


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable, for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _kept(path: Path, new: str) -> str:
    """What an earlier start of the fold has kept in a file; else `new`, which is kept."""
    if not path.is_file():
        path.write_text(new, encoding="utf-8")
    return path.read_text(encoding="utf-8")


@contextmanager
def _wandb_run(logs: Path, name: str, group: str) -> Iterator[None]:
    import wandb

    project = os.environ.get("WANDB_PROJECT", "huggingface")
    id = _kept(logs / "wandb-run-id", uuid.uuid4().hex)
    with wandb.init(project=project, name=name, group=group, id=id, resume="allow", dir=logs):
        yield


@contextmanager
def _mlflow_run(logs: Path, name: str, group: str) -> Iterator[None]:
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{logs.resolve()}/mlflow.db")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", group)
    if mlflow.get_experiment_by_name(experiment) is None:
        mlflow.create_experiment(experiment, artifact_location=(logs.resolve() / "mlflow").as_uri())
    mlflow.set_experiment(experiment)
    kept = logs / "mlflow-run-id"
    # A run's id is the server's to give.
    of = (
        {"run_id": kept.read_text(encoding="utf-8")} if kept.is_file() else {"run_name": name, "tags": {"group": group}}
    )
    with mlflow.start_run(**of) as run:
        _kept(kept, run.info.run_id)
        yield


def _finish_trackio():
    import trackio

    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()
