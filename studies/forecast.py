"""What a study would cost: `--dry_run`."""

from __future__ import annotations

import copy
import io
import json
import shutil
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache

from lascl import train
from lascl.console import in_words
from lascl.data import Fold
from lascl.evaluation import read_predictions
from lascl.studies.plan import PlannedRun, Study
from lascl.studies.run import begin_fold
from lascl.training.fold import everything_of, is_encoded_once, training_data, view_store
from lascl.training.pooled import by_corpus, view_keys
from lascl.training.recipe import Recipe
from lascl.training.run_directory import environment, write_arrays, write_csv
from lascl.training.start import checkpoint_of_fold, start_model, window_of


# What changes neither a step's time nor a checkpoint's size: variants that differ in nothing else are measured once.
COSTS_NOTHING = (
    *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
    *("label_anchors", "prediction_head", "label_template", "phrasings", "pooled_dropout"),
    *("target_smoothing", "class_weights"),
    *("objective", "seed", "split_seed", "folds", "validation", "selection", "protocol", "num_folds"),
)
MICRO_BATCH = {"cpu": 2, "cuda": 8}  # utterances of the step that `--dry_run` measures
MEASURED_BATCHES = 64  # of an epoch on views that a frozen encoder has heard; of a larger one at most so many
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
GB = 1e9


def foretell(study: Study, folder: Path, runs: list[PlannedRun], mine: set[tuple[int, int]]):
    """`--dry_run`: what would run, and what it would cost, measured from one step on this machine. Writes nothing but
    temporary files, and asks nothing of the network."""
    measured, forecast = {}, Forecast()
    print(f"{study.name}: {len(study.variants)} variants x {len(study.seeds)} seeds in {folder}\n")
    for index, run in enumerate(runs):
        numbers = [number for number in run.numbers if (index, number) in mine]
        left = [number for number in numbers if not run.is_done(number)]
        line = f"* {run.variant}, seed {run.seed}: {len(numbers) - len(left)} of {len(numbers)} folds done"
        if run.folds is None:
            line = f"* {run.variant}, seed {run.seed}: cannot start: {run.failure}"
        elif left:
            key = json.dumps({k: v for k, v in run.recipe.to_dict().items() if k not in COSTS_NOTHING}, default=str)
            if key not in measured:
                known_s = [cost.report_s for cost in measured.values() if isinstance(cost, Cost) and cost.report_s]
                measured[key] = measure(run, report_s=known_s[0] if known_s else None)
            if isinstance(measured[key], str):
                forecast.num_unknown += len(left)
                line += f"; time not measured: {measured[key]}"
            else:
                line += f", about {in_words(forecast.add(run, left, measured[key]))} left here"
        print(line, flush=True)
    forecast.tell(folder, sum(not runs[index].is_done(number) for index, number in mine), len(mine))
    states = {}
    for run in runs:
        for kind in ("init_from",) if run.recipe.init_from else ("audio_encoder", "text_encoder"):
            spec, revision = getattr(run.recipe, kind), getattr(run.recipe, f"{kind}_revision")
            states.setdefault(_where(spec, revision), set()).add(spec if isinstance(spec, str) else spec["model_type"])
    for state, names in states.items():
        print(f"Encoders, {state}: {', '.join(sorted(names))}.")


class Cost(NamedTuple):
    """What a recipe's folds cost on this machine: seconds of training an utterance (all its views), of encoding a view
    (0 unless that is done once, before training), of what else a fold needs and of a run's report (0 where that is
    nothing beside the training), and bytes of a checkpoint."""

    utterance_s: float
    view_s: float = 0.0
    fold_s: float = 0.0
    report_s: float = 0.0
    checkpoint_bytes: int = 0


@dataclass
class Forecast:
    """What the folds that are left would cost.

    Args:
        total_s: seconds of training and encoding.
        kept_bytes: of checkpoints in the end.
        at_once_bytes: of what is there beside them while a fold trains.
        num_unknown: folds whose time could not be measured.
        num_views, num_kept: views that a frozen encoder has to hear, and those that are on disk already.
        encoded: the names of the views that are counted already.
        names: what `views_heard_once` keeps.
    """

    total_s: float = 0.0
    kept_bytes: int = 0
    at_once_bytes: int = 0
    num_unknown: int = 0
    num_views: int = 0
    num_kept: int = 0
    encoded: set[str] = field(default_factory=set)
    names: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(
        self,
        run: PlannedRun,
        numbers: list[int],
        cost: Cost,
    ) -> float:
        """Adds these folds of a run, at what `measure` found, and returns their seconds. A frozen encoder hears each
        view of a corpus once for all folds and variants, and none that is kept on disk."""
        seconds = sum(_utterances(run, number) for number in numbers) * cost.utterance_s + len(numbers) * cost.fold_s
        seconds += cost.report_s
        views = {}
        for number in numbers:
            views |= views_heard_once(run, number, self.names)
        store = view_store(run.recipe)
        for name in views.keys() - self.encoded:
            if store and store.has(name):
                self.num_kept += views[name]
            else:
                self.num_views += views[name]
                seconds += views[name] * cost.view_s
        self.encoded |= views.keys()
        self.total_s += seconds
        self.kept_bytes += len(numbers) * cost.checkpoint_bytes
        # Weights and AdamW's two moments, so often while one is being saved; one fold at a time.
        limit = run.recipe.training.get("save_total_limit", 2) or 2
        self.at_once_bytes = max(self.at_once_bytes, 3 * cost.checkpoint_bytes * (limit + 1))
        return seconds

    def tell(self, folder: Path, num_left: int, num_folds: int):
        device, size = _device_and_size()
        unknown = f" Time is not measured for {self.num_unknown} of them." if self.num_unknown else ""
        print(f"\n{num_left} of {num_folds} folds to run.{unknown}")
        if self.total_s:
            is_frozen = self.num_views or self.num_kept
            found = (
                "from epochs of training on views that are there, and from encoding a few."
                if is_frozen
                else f"from one step of {size} utterances on {device}: an upper bound, since a step of the whole batch "
                "shares one update."
            )
            print(
                f"Time: about {in_words(self.total_s)} on this machine ({environment()['device']}), {found} On other "
                "machines: not measured."
            )
            if is_frozen:
                print(f"Views to encode: {self.num_views}; found on disk: {self.num_kept}.")
        parent = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
        kept = f"{self.kept_bytes / GB:.1f} GB kept, {self.at_once_bytes / GB:.1f} GB more while a fold trains; "
        print(f"Disk: {kept if self.total_s else ''}{shutil.disk_usage(parent).free / GB:.0f} GB are free.")


def _where(spec: str | dict, revision: str | None) -> str:
    if isinstance(spec, dict):
        return "random weights"
    if Path(spec).is_dir():
        return "in a folder"
    for name in WEIGHT_FILES:
        if isinstance(try_to_load_from_cache(spec, name, revision=revision), str):
            return "in the cache"
    return "not cached, to be downloaded (size unknown without asking the Hub)"


def _device_and_size() -> tuple[str, int]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return device, MICRO_BATCH[device]


def measure(run: PlannedRun, *, report_s: float | None = None) -> Cost | str:
    """What the folds of a run cost on this machine, or why it cannot be told. `report_s` is what a report costs, if
    that was measured before.

    One step of a fresh model on the utterances nearest to the mean length, after one that is not counted: what is
    loaded at first use is then loaded. Where the encoder is frozen and hears each view once, encoding is measured so,
    and training, whose steps cost little beside what surrounds them, in whole epochs."""
    recipe = copy.copy(run.recipe)
    for kind in ("init_from",) if recipe.init_from else ("audio_encoder", "text_encoder"):
        where = _where(getattr(recipe, kind), getattr(recipe, f"{kind}_revision"))
        if where.startswith("not cached"):
            return f"{getattr(recipe, kind)} is not cached"
    args = recipe.training_arguments(run.run_dir)
    is_encoded = is_encoded_once(recipe, training_data(recipe, run.corpus, everything_of(run.corpus), args))
    _, size = _device_and_size()
    rows = _middling(run, args.per_device_eval_batch_size if is_encoded else size)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            weights = begin_fold(Path(scratch), run, Path(scratch) / "run", 1)
            folder, corpus = Path(scratch) / "run" / "fold-1", run.corpus.select(rows)
            if not is_encoded:
                return _measure_step(recipe, corpus, folder, weights)
            cost = _measure_epochs(recipe, run, corpus, folder, weights)
            return cost._replace(report_s=_measure_report(folder, corpus) if report_s is None else report_s)
        except (ValueError, OSError, ImportError) as error:
            return str(error).strip().splitlines()[0]


def _middling(run: PlannedRun, size: int) -> list[int]:
    """The utterances nearest to the mean length."""
    durations_s = [min(seconds, run.recipe.max_duration_s) for seconds in run.corpus["duration_s"][:]]
    mean_s = sum(durations_s) / len(durations_s)
    return sorted(range(len(durations_s)), key=lambda row: abs(durations_s[row] - mean_s))[:size]


def _changed(recipe: Recipe, **training) -> Recipe:
    """A recipe of which nothing is logged, and what is encoded or decoded is not kept."""
    recipe = copy.copy(recipe)
    always = {"report_to": "none", "disable_tqdm": True, "utterances_per_class": None, "bucket_by_length": False}
    recipe.views_gb, recipe.decoded_gb, recipe.selection = 0.0, 0.0, "last"
    recipe.training = {**recipe.training, **always, **training}
    return recipe


def _timed_fold(recipe: Recipe, corpus, fold: Fold, fold_dir: Path, weights, view_cache: dict) -> tuple[float, dict]:
    """Seconds of a training from the loading of the weights to the saved checkpoint, and `training_cost`."""
    began = time.monotonic()
    with redirect_stdout(io.StringIO()):  # Trainer prints what it logs
        extractor, cost = train.train_fold(recipe, corpus, fold, fold_dir, weights, view_cache)
        if fold.test:
            train.evaluate_fold(recipe, corpus, fold, fold_dir, extractor, cost, view_cache)
    return time.monotonic() - began, cost


def _measure_step(recipe: Recipe, corpus, fold_dir: Path, weights) -> Cost:
    recipe = _changed(
        recipe,
        **{"max_steps": 1, "global_batch_size": len(corpus), "gradient_accumulation_steps": 1},
        **{"save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no"},
        **{"contrastive_chunk_size": None, "contrastive_chunk_s": None},
    )
    fold = Fold(1, list(range(len(corpus))), [])
    for _ in range(2):
        _, cost = _timed_fold(recipe, corpus, fold, fold_dir, weights, {})
    return Cost(utterance_s=1 / cost["steps_per_second"] / len(corpus), checkpoint_bytes=_size_of(fold_dir))


def _measure_epochs(recipe: Recipe, run: PlannedRun, corpus, fold_dir: Path, weights) -> Cost:
    """Of a few utterances, each taken so often that a fold has as many as the first one of the run, or as fill a few
    batches: their views are pooled audio, and which one it is does not matter for the time."""
    batch_size = recipe.training_arguments(run.run_dir).global_batch_size
    first = run.folds[run.numbers[0] - 1]
    most = MEASURED_BATCHES * batch_size
    sides = {
        side: [row % len(corpus) for row in range(min(len(getattr(first, side)), most))]
        for side in ("train", "validation", "test")
    }
    fold = Fold(1, sides["train"], sides["test"], sides["validation"])
    view_cache, seconds, encoding_s = {}, {}, []
    for epochs in (1, 1, 3):  # what is loaded at first use is then loaded
        shorter = _changed(recipe, num_train_epochs=epochs, max_steps=-1, augmentation_period=1)
        if epochs == 1:
            view_cache = {}
        seconds[epochs], cost = _timed_fold(shorter, corpus, fold, fold_dir, weights, view_cache)
        encoding_s.append(cost["encoding_s"])
    num_views = sum(map(len, view_cache.values()))
    epoch_s = max(0.0, (seconds[3] - (seconds[1] - encoding_s[1])) / 2)
    watched = len(sides["validation"]) + len(sides["test"])
    views = recipe.training_arguments(run.run_dir).views_an_utterance
    return Cost(
        utterance_s=epoch_s / (len(sides["train"]) + watched / (3 * views)),
        view_s=encoding_s[1] / num_views,
        fold_s=max(0.0, seconds[1] - encoding_s[1] - epoch_s),
        checkpoint_bytes=_size_of(fold_dir),
    )


def _measure_report(fold_dir: Path, corpus) -> float:
    """Seconds of the report of a run with this one fold, whose utterances get names of their own."""
    rows = [{**row, "id": str(number)} for number, row in enumerate(read_predictions(fold_dir / "predictions.csv"))]
    arrays = dict(np.load(fold_dir / "embeddings.npz"))
    write_csv(fold_dir / "predictions.csv", rows)
    write_arrays(fold_dir / "embeddings.npz", {**arrays, "ids": np.array([row["id"] for row in rows])})
    began = time.monotonic()
    with redirect_stdout(io.StringIO()):
        train.report(fold_dir.parent, labels=corpus.features["label"].names)
    return time.monotonic() - began


def _size_of(fold_dir: Path) -> int:
    return sum(path.stat().st_size for path in (fold_dir / "checkpoint").rglob("*") if path.is_file())


def views_heard_once(run: PlannedRun, number: int, known: dict[str, dict[str, int]]) -> dict[str, int]:
    """The names of the views that a frozen encoder hears once in this fold (`view_keys`), and of how many utterances
    each is. Its weights are loaded for that, once for all runs and folds whose views cannot differ: `known` keeps what
    was found."""
    recipe, fold = run.recipe, run.folds[number - 1]
    args = recipe.training_arguments(run.run_dir)
    if not is_encoded_once(recipe, training_data(recipe, run.corpus, fold, args)):
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        weights = begin_fold(Path(scratch), run, Path(scratch) / "run", number)
        decides = {name: value for name, value in recipe.to_dict().items() if name not in COSTS_NOTHING}
        if isinstance(recipe.audio_encoder, dict):
            decides["seed"] = args.seed  # of random weights
        if recipe.init_from:
            decides["fold"] = number
        audio_encoder = str(checkpoint_of_fold(weights.audio, number)) if recipe.init_from else weights.audio
        decides["window_s"] = window_of(recipe, run.corpus, fold, audio_encoder)
        key = json.dumps(decides, default=str)
        if key not in known:
            start = start_model(recipe, run.corpus, fold, weights, args.seed)
            speech = training_data(recipe, run.corpus, everything_of(run.corpus), args, start.extractor)
            known[key] = {
                name: len(part)
                for _, part in by_corpus(speech)
                for name in view_keys(start.model.lascl.to(args.device), part, start.extractor).values()
            }
    return known[key]


def _utterances(run: PlannedRun, number: int) -> float:
    """How many utterances a fold trains on, counted over the epochs; evaluating one after every epoch counts as a
    third of it, forward without backward, of one of its views."""
    args = run.recipe.training_arguments(run.run_dir)
    fold = run.folds[number - 1]
    epochs = args.num_train_epochs
    if args.max_steps > 0:
        epochs = args.max_steps * args.global_batch_size / len(fold.train)
    num_watched = len(fold.validation) + len(fold.test)
    return epochs * len(fold.train) + (epochs + 1) * num_watched / (3 * args.views_an_utterance)
