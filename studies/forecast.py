"""What a study would cost: `--dry_run`."""

from __future__ import annotations

import copy
import io
import json
import shutil
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig

from lascl import LaSCLConfig, train
from lascl.data import Fold
from lascl.modeling_lascl import LaSCLModel
from lascl.studies.plan import PlannedRun, Study
from lascl.studies.run import begin_fold, in_words
from lascl.training.fold import everything_of, is_encoded_once, training_data
from lascl.training.pooled import by_corpus, view_keys
from lascl.training.run_directory import environment
from lascl.training.start import checkpoint_of_fold, read_extractor, window_of


# What changes neither a step's time nor a checkpoint's size: variants that differ in nothing else are measured once.
COSTS_NOTHING = (
    *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
    *("label_anchors", "prediction_head", "label_template"),
    *("objective", "seed", "split_seed", "folds", "validation", "selection", "protocol", "num_folds"),
)
MICRO_BATCH = {"cpu": 2, "cuda": 8}  # utterances of the step that `--dry_run` measures
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
GB = 1e9


def foretell(study: Study, folder: Path, runs: list[PlannedRun], mine: set[tuple[int, int]]):
    """`--dry_run`: what would run, and what it would cost, measured from one step on this machine. Writes nothing but
    temporary files, and asks nothing of the network."""
    measured, forecast, encoded = {}, Forecast(), set()
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
                measured[key] = measure(run)
            if isinstance(measured[key], str):
                forecast.num_unknown += len(left)
                line += f"; time not measured: {measured[key]}"
            else:
                line += f", about {in_words(forecast.add(run, left, encoded, *measured[key]))} left here"
        print(line, flush=True)
    forecast.tell(folder, sum(not runs[index].is_done(number) for index, number in mine), len(mine))
    states = {}
    for run in runs:
        for kind in ("init_from",) if run.recipe.init_from else ("audio_encoder", "text_encoder"):
            spec, revision = getattr(run.recipe, kind), getattr(run.recipe, f"{kind}_revision")
            states.setdefault(_where(spec, revision), set()).add(spec if isinstance(spec, str) else spec["model_type"])
    for state, names in states.items():
        print(f"Encoders, {state}: {', '.join(sorted(names))}.")


@dataclass
class Forecast:
    """What the folds that are left would cost.

    Args:
        total_s: seconds of training and encoding.
        kept_bytes: of checkpoints in the end.
        at_once_bytes: of what is there beside them while a fold trains.
        num_unknown: folds whose time could not be measured.
    """

    total_s: float = 0.0
    kept_bytes: int = 0
    at_once_bytes: int = 0
    num_unknown: int = 0

    def add(
        self,
        run: PlannedRun,
        numbers: list[int],
        encoded: set[str],
        utterance_s: float,
        view_s: float,
        checkpoint_bytes: int,
    ) -> float:
        """Adds these folds of a run, at what `measure` found, and returns their seconds. A frozen encoder hears each
        view of the corpus once for all folds and variants: `encoded` names those that are counted already."""
        seconds = sum(_utterances(run, number) for number in numbers) * utterance_s
        views = {name: size for number in numbers for name, size in views_heard_once(run, number).items()}
        seconds += sum(size for name, size in views.items() if name not in encoded) * view_s
        encoded.update(views)
        self.total_s += seconds
        self.kept_bytes += len(numbers) * checkpoint_bytes
        # Weights and AdamW's two moments, so often while one is being saved; one fold at a time.
        limit = run.recipe.training.get("save_total_limit", 2) or 2
        self.at_once_bytes = max(self.at_once_bytes, 3 * checkpoint_bytes * (limit + 1))
        return seconds

    def tell(self, folder: Path, num_left: int, num_folds: int):
        device, size = _device_and_size()
        unknown = f" Time is not measured for {self.num_unknown} of them." if self.num_unknown else ""
        print(f"\n{num_left} of {num_folds} folds to run.{unknown}")
        if self.total_s:
            print(
                f"Time: about {in_words(self.total_s)} on this machine ({environment()['device']}), from one step of "
                f"{size} utterances on {device}: an upper bound, since a step of the whole batch shares one update. On "
                "other machines: not measured."
            )
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


def measure(run: PlannedRun) -> tuple[float, float, int] | str:
    """Seconds of training an utterance (all its views), seconds of encoding a view (0 unless that is done once, before
    training) and bytes of a checkpoint, or why they cannot be told.

    One step of a fresh model on the utterances nearest to the mean length, after one that is not counted: what is
    loaded at first use is then loaded."""
    recipe = copy.copy(run.recipe)
    for kind in ("init_from",) if recipe.init_from else ("audio_encoder", "text_encoder"):
        where = _where(getattr(recipe, kind), getattr(recipe, f"{kind}_revision"))
        if where.startswith("not cached"):
            return f"{getattr(recipe, kind)} is not cached"
    _, size = _device_and_size()
    durations_s = [min(seconds, recipe.max_duration_s) for seconds in run.corpus["duration_s"][:]]
    mean_s = sum(durations_s) / len(durations_s)
    rows = sorted(range(len(durations_s)), key=lambda row: abs(durations_s[row] - mean_s))[:size]
    changed = {"max_steps": 1, "global_batch_size": len(rows), "gradient_accumulation_steps": 1}
    changed |= {"save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    changed |= {
        "contrastive_chunk_size": None,
        "contrastive_chunk_s": None,
        "utterances_per_class": None,
        "bucket_by_length": False,
    }
    changed["report_to"], recipe.views_gb = "none", 0.0  # encoding is measured, and nothing of it kept
    recipe.selection, recipe.training = "last", {**recipe.training, **changed}
    with tempfile.TemporaryDirectory() as scratch:
        measured = copy.copy(run)
        measured.recipe = recipe
        try:
            weights = begin_fold(Path(scratch), measured, Path(scratch) / "run", 1)
            fold_dir = Path(scratch) / "run" / "fold-1"
            corpus, fold = run.corpus.select(rows), Fold(1, list(range(len(rows))), [])
            for _ in range(2):
                view_cache = {}
                with redirect_stdout(io.StringIO()):  # Trainer prints what it logs
                    _, cost = train.train_fold(recipe, corpus, fold, fold_dir, weights, view_cache)
        except (ValueError, OSError, ImportError) as error:
            return str(error).strip().splitlines()[0]
        size = sum(path.stat().st_size for path in (fold_dir / "checkpoint").rglob("*") if path.is_file())
    num_encoded = max(1, sum(map(len, view_cache.values())))
    return 1 / cost["steps_per_second"] / len(rows), cost.get("encoding_s", 0.0) / num_encoded, size


def views_heard_once(run: PlannedRun, number: int) -> dict[str, int]:
    """The names of the views that a frozen encoder hears once in this fold (`view_keys`), and of how many utterances
    each is. No weights are loaded for that: they go by where they come from."""
    recipe, fold = run.recipe, run.folds[number - 1]
    args = recipe.training_arguments(run.run_dir)
    if not is_encoded_once(recipe, training_data(recipe, run.corpus, fold, args)):
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        audio_encoder, _ = begin_fold(Path(scratch), run, Path(scratch) / "run", number)
        source = [recipe.audio_encoder, recipe.audio_encoder_revision]
        if isinstance(recipe.audio_encoder, dict):
            source.append(args.seed)  # of random weights
        if recipe.init_from:
            source = audio_encoder = str(checkpoint_of_fold(audio_encoder, number))
        config = AutoConfig.from_pretrained(audio_encoder, revision=recipe.audio_encoder_revision or "main")
        if not recipe.init_from:
            config = LaSCLConfig(audio_config=config, **recipe.model_config())
        extractor = read_extractor(recipe, audio_encoder, window_of(recipe, run.corpus, fold, audio_encoder))
    with torch.device("meta"):
        model = LaSCLModel(config)
    speech = training_data(recipe, run.corpus, everything_of(run.corpus), args, extractor)
    return {
        name: len(part)
        for _, part in by_corpus(speech)
        for name in view_keys(model, part, extractor, weights=json.dumps(source)).values()
    }


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
