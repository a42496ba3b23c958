"""Runs variants of a recipe and sets them side by side: `lascl-study RECIPE [--field value ...]`.

    STUDY/<variant>/seed-S/   a run directory each, as of `train.py`: one recipe, one seed
    STUDY/study.json table.md figures/

RECIPE is a study's recipe, a YAML file with a `study:` mapping (`table-1` to `table-4` and `grid` are shipped),
or a plain one with `--vary FIELD=A,B,C`. Fields on the command line hold for all variants. What is finished is known
from the run directories alone: the same command again goes on where it stopped, fold by fold.
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import itertools
import json
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import should_reduce_batch_size
from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig
from transformers.utils import logging

from lascl import LaSCLConfig, train
from lascl.console import unless_pipe_closes
from lascl.data import Fold
from lascl.evaluation.studies import (
    choice_table,
    choose_on_validation,
    folder_name,
    protocol_line,
    study_table,
    summarise_study,
)
from lascl.evaluation.study_figures import write_pairs
from lascl.modeling_lascl import LaSCLModel
from lascl.training.exits import memory_advice
from lascl.training.fold import everything_of, is_encoded_once, training_data
from lascl.training.pooled import view_keys
from lascl.training.prepare import begin_run, check_batches_of_folds, divide, read_corpus
from lascl.training.protocol import note_begun
from lascl.training.recipe import CORPUS_FIELDS, OBJECTIVES, Recipe, find_recipe, parse_recipe
from lascl.training.run_directory import environment, is_disk_full, open_run, write_json, write_text
from lascl.training.start import Weights, checkpoint_of_fold, read_extractor, window_of


KEYS = ("recipe", "seeds", "against", "choose", "variants", "vary", "paper")
# What changes neither a step's time nor a checkpoint's size: variants that differ in nothing else are measured once.
COSTS_NOTHING = (
    *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
    *("label_anchors", "prediction_head", "label_template"),
    *("objective", "seed", "split_seed", "folds", "validation", "selection", "protocol", "num_folds"),
)
MICRO_BATCH = {"cpu": 2, "cuda": 8}  # utterances of the step that `--dry_run` measures
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
GB = 1e9


@dataclass
class Study:
    """What a study compares.

    Args:
        name: of its recipe; also of its folder under `runs/`, unless `output_dir` is given.
        recipe: the plain recipe that the variants override.
        fields: for all variants.
        variants: by name, the fields of each.
        seeds: one run of each variant with each.
        against: the variant that the others are compared with.
        choose: `validation`: nothing is compared; for each fold the variant that is best in validation is tested.
        paper: by row, WA and UA that the paper reports.
    """

    name: str
    recipe: str
    fields: dict
    variants: dict[str, dict]
    seeds: list[int]
    against: str
    choose: str | None = None
    paper: dict[str, list] = field(default_factory=dict)


@dataclass
class PlannedRun:
    """One variant with one seed. `folds` is None, and `failure` a sentence, where it cannot be started or failed."""

    variant: str
    seed: int
    run_dir: Path
    recipe: Recipe
    corpus: datasets.Dataset | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    folds: list[Fold] | None = None
    failure: str | None = None

    @property
    def numbers(self) -> list[int]:
        """The folds that the recipe wants."""
        return [] if self.folds is None else self.recipe.fold_numbers(len(self.folds))

    def is_done(self, number: int) -> bool:
        return (self.run_dir / f"fold-{number}" / "metrics.json").is_file()

    @property
    def is_complete(self) -> bool:
        return self.folds is not None and all(self.is_done(number) for number in self.numbers)


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Runs what is missing of a study, then writes and prints its table.

    Exits with code 2 and a sentence when the study is wrong in itself (nothing is started then), when a variant failed
    (the others are finished first) or when the disk is full.
    """
    logging.disable_progress_bar()
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="lascl-study",
        usage="lascl-study RECIPE [options] [--field value ...]",
        description="Runs variants of a recipe, fold by fold, and sets them side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="another plain recipe under the study's variants than its own")
    parser.add_argument("--vary", action="append", metavar="FIELD=A,B", help="of a plain recipe; several: all pairs")
    parser.add_argument("--seeds", help="one run of each variant with each, such as 42,43,44")
    parser.add_argument("--output_dir", help="the study's folder (default: runs/RECIPE)")
    parser.add_argument("--dry_run", action="store_true", help="only say what would run, and what it would cost")
    parser.add_argument("--max_hours", type=float, help="start no fold after that; 0: only the table of what is done")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="this process's share, of N over one folder")
    options, rest = parser.parse_known_args(argv)
    try:
        study, typed = read_study(rest, options)
        part, parts = read_shard(options.shard)
        folder = Path(options.output_dir or f"runs/{study.name}")
        runs = plan_runs(study, typed, folder)
    except ValueError as error:
        print(f"lascl-study: {error}", file=sys.stderr)
        sys.exit(2)
    read_corpora(runs)
    mine = {
        (index, number)
        for index, run in enumerate(runs)
        for number in run.numbers
        if shard_of(index, number, parts) == part
    }
    if options.dry_run:
        foretell(study, folder, runs, mine)
    else:
        try:
            train_folds(folder, runs, mine, options.max_hours)
            finish(study, folder, runs)
        except Exception as error:
            if not is_disk_full(error):
                raise
            print(f"lascl-study: the disk of {folder} is full. Free some space, then the same again.", file=sys.stderr)
            sys.exit(2)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    failures = {}
    for run in runs:
        if run.failure:
            failures.setdefault(run.failure, []).append(f"{run.variant}, seed {run.seed}")
    for failure, names in failures.items():
        those = names[0] if len(names) == 1 else f"{len(names)} runs, {names[0]} the first"
        print(f"lascl-study: {those}: {failure}", file=sys.stderr)
    if failures:
        sys.exit(2)


def read_study(argv: list[str], options: argparse.Namespace) -> tuple[Study, list[str]]:
    """The study that RECIPE (`argv[0]`) describes, and the fields for all variants that were typed behind it.

    Raises:
        ValueError: no recipe, one without variants, a `study:` that says something unknown, or a typed field that
            the study varies.
    """
    named = bool(argv) and not argv[0].startswith("-")
    name, typed = (argv[0], argv[1:]) if named else ("quickstart", argv)
    path = find_recipe(name)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    is_study = isinstance(content, dict) and "study" in content
    if is_study:
        if options.vary:
            raise ValueError(f"{path.stem} is a study already: --vary belongs to a plain recipe.")
        study = _study_of(path, content, options.recipe)
    else:
        if not options.vary:
            raise ValueError(f"{path.stem} is a plain recipe: say what differs, --vary FIELD=A,B,C.")
        if not options.output_dir:
            raise ValueError("A plain recipe's study needs --output_dir.")
        variants = read_variants(options.vary)
        study = Study(path.stem, options.recipe or name, {}, variants, [42], next(iter(variants)))
    if options.seeds:
        study.seeds = read_seeds(options.seeds)
    varied = {name for fields in study.variants.values() for name in fields}
    for option in typed:
        field_name = option.lstrip("-").partition("=")[0].replace("-", "_")
        if option.startswith("--") and field_name in varied:
            raise ValueError(f"{study.name} varies {field_name}: leave --{field_name} out, it cannot hold for all.")
        if option.startswith("--") and field_name == "seed":
            raise ValueError("A study has several seeds: give --seeds instead of --seed.")
    _check_folders(study.variants)
    return study, typed


def _study_of(path: Path, content: dict, recipe: str | None) -> Study:
    fields = {name: value for name, value in content.items() if name != "study"}
    told = content["study"]
    if not isinstance(told, dict) or not (told.get("variants") or told.get("vary")):
        raise ValueError(f"{path}: study must say its variants: `variants: {{name: {{field: value}}}}` or `vary`.")
    unknown = sorted(told.keys() - set(KEYS))
    if unknown:
        raise ValueError(f"{path}: study has no key {unknown[0]!r}; it has {', '.join(KEYS)}.")
    variants = {name: dict(fields or {}) for name, fields in (told.get("variants") or {}).items()}
    if told.get("vary"):
        axes = [[(name, value) for value in values] for name, values in told["vary"].items()]
        variants |= _all_pairs(axes)
    against = told.get("against", next(iter(variants)))
    if against not in variants:
        raise ValueError(f"{path}: against must be one of the variants {', '.join(variants)}; found {against!r}.")
    if told.get("choose") not in (None, "validation"):
        raise ValueError(f"{path}: choose must be validation (never the test); found {told['choose']!r}.")
    seeds = told.get("seeds", [42])
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{path}: seeds must be a list of numbers; found {seeds!r}.")
    return Study(
        path.stem,
        recipe or told.get("recipe", "quickstart"),
        fields,
        variants,
        seeds,
        against,
        told.get("choose"),
        told.get("paper") or {},
    )


def read_variants(vary: list[str]) -> dict[str, dict[str, str]]:
    """Each variant's name and fields, from `FIELD=A,B` once or more.

    Raises:
        ValueError: something without `=`, or a value given twice.
    """
    axes = []
    for axis in vary:
        name, equals, values = axis.partition("=")
        if not (name and equals and values):
            raise ValueError(f"--vary wants FIELD=A,B,C; found {axis!r}.")
        axes.append([(name, value) for value in values.split(",")])
    return _all_pairs(axes)


def _all_pairs(axes: list[list[tuple]]) -> dict[str, dict]:
    variants = {}
    for combination in itertools.product(*axes):
        name = ",".join(f"{field}={value}" for field, value in combination)
        if name in variants:
            raise ValueError(f"The variant {name} is given twice.")
        variants[name] = dict(combination)
    return variants


def _check_folders(variants: dict[str, dict]):
    taken = {}
    for name in variants:
        folder = folder_name(name).lower()  # some file systems do not tell a from A
        if folder in taken:
            raise ValueError(f"The variants {taken[folder]!r} and {name!r} would share a folder. Rename one.")
        if len(folder) > 200 or "|" in name:
            raise ValueError(f"The variant {name[:60]!r} has no name for a folder and a table. Name it under variants.")
        taken[folder] = name


def read_seeds(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds wants numbers such as 42,43; found {seeds!r}.") from None


def read_shard(shard: str) -> tuple[int, int]:
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"--shard wants I/N with I from 1 to N, such as 1/4; found {shard!r}.")
    return int(part), int(parts)


def shard_of(index: int, number: int, parts: int) -> int:
    """Which of 1 to `parts` trains fold `number` of run `index`: of these alone, so shards need not know of each other,
    and turning from run to run, so that all get as many of the folds."""
    return (index + number - 1) % parts + 1


def plan_runs(study: Study, typed: list[str], folder: Path) -> list[PlannedRun]:
    """A run for each variant and seed, every recipe parsed.

    Raises:
        ValueError: a variant that is wrong in itself; the message names it.
    """
    runs = []
    for variant, fields in study.variants.items():
        for seed in study.seeds:
            run_dir = folder / folder_name(variant) / f"seed-{seed}"
            argv = [study.recipe, *as_options({**study.fields, **fields}), *typed]
            # Each from the same run of another study: `--init_from OTHER/{variant}/seed-{seed}`.
            argv = [part.replace("{variant}", folder_name(variant)).replace("{seed}", str(seed)) for part in argv]
            try:
                recipe, _ = parse_recipe([*argv, "--seed", str(seed), "--output_dir", str(run_dir)])
            except ValueError as error:
                raise ValueError(f"{variant}: {error}") from None
            if recipe.push_to_hub or recipe.hub_main:
                raise ValueError("A study publishes nothing: give the run that you want to lascl-publish.")
            if study.choose and recipe.validation == "none":
                raise ValueError(f"{study.name} chooses in validation: validation cannot be none.")
            runs.append(PlannedRun(variant, seed, run_dir, recipe))
    return runs


def as_options(fields: dict) -> list[str]:
    """Fields of a YAML file as they are typed."""
    return [
        part
        for name, value in fields.items()
        for part in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def read_corpora(runs: list[PlannedRun]):
    """Gives each run its corpus and folds, each read once for all runs that share it, or the reason why not."""
    corpora, foldings = {}, {}
    for run in runs:
        recipe = run.recipe
        try:
            args = recipe.training_arguments(run.run_dir)  # forms the process group, and refuses what cannot work
        except (ValueError, ImportError) as error:
            run.failure = str(error)
            continue
        source = json.dumps([getattr(recipe, name) for name in CORPUS_FIELDS])
        division = (source, recipe.num_folds, recipe.protocol, recipe.validation, recipe.split_seed)
        with PartialState().main_process_first():  # no exception may leave it, or the others wait for ever
            try:
                if source not in corpora:
                    corpora[source] = read_corpus(recipe)
                corpus, skipped = corpora[source]
                if division not in foldings:
                    foldings[division] = divide(recipe, corpus)
                folds = foldings[division]
                check_batches_of_folds(recipe, corpus, folds, args)
                if any(run.run_dir.glob("fold-*")):
                    open_run(run.run_dir, recipe, corpus)  # or refuses another recipe
                run.corpus, run.skipped, run.folds = corpus, skipped, folds
            except (ValueError, OSError, ImportError) as error:
                run.failure = str(error)


def train_folds(folder: Path, runs: list[PlannedRun], mine: set[tuple[int, int]], max_hours: float | None):
    """Trains those folds of `mine` that are not done; the report of a run follows its last fold. A run that fails is
    left, the next begun; with several processes it ends the study, since they would wait for each other."""
    process, began, view_cache = PartialState(), time.monotonic(), {}
    todo = [(runs[index], number) for index, number in sorted(mine) if not runs[index].is_done(number)]
    finished = 0
    for position, (run, number) in enumerate(todo):
        if run.failure:
            continue
        elapsed_s = time.monotonic() - began
        # The first process's clock decides for all.
        if broadcast_object_list([max_hours is not None and elapsed_s >= 3600 * max_hours])[0]:
            process.print(f"\n{max_hours:g} hours are over, {len(todo) - position} of {len(todo)} folds are left.")
            return
        left = f", about {in_words(elapsed_s / finished * (len(todo) - position))} left" if finished else ""
        done = len(mine) - len(todo) + finished
        process.print(
            f"\n## {done} of {len(mine)} folds done{left}: {run.variant}, seed {run.seed}, fold {number}\n", flush=True
        )
        try:
            weights = begin_fold(folder, run, run.run_dir, number)
            recipe = copy.copy(run.recipe)
            recipe.folds = str(number)
            train.cross_validate(recipe, run.run_dir, run.corpus, run.folds, weights, view_cache=view_cache)
            finished += 1
        except Exception as error:
            if is_disk_full(error) or process.num_processes > 1:
                raise
            run.failure = _failure(error, run)
            gc.collect()
            torch.cuda.empty_cache()
            continue
        write_run_report(folder, run)


def _failure(error: Exception, run: PlannedRun) -> str:
    if should_reduce_batch_size(error):
        return memory_advice(run.recipe.training_arguments(run.run_dir))
    if not isinstance(error, (ValueError, OSError, ImportError)):
        traceback.print_exc()
    return f"{str(error).strip() or type(error).__name__}"


def begin_fold(folder: Path, run: PlannedRun, run_dir: Path, number: int) -> Weights:
    """Begins or goes on with the run and returns its weights. Shards open one at a time, and the last that is made is
    the fold's folder: where one is, encoders with random weights are whole, and nobody starts the run anew."""
    with PartialState().main_process_first():
        is_main = PartialState().is_main_process
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock") if is_main else nullcontext():
            weights = begin_run(run_dir, run.recipe, run.corpus, run.folds, run.skipped)
            if is_main:
                note_begun(run_dir, run.corpus, run.folds[number - 1])
            (run_dir / f"fold-{number}").mkdir(exist_ok=True)
    return weights


def write_run_report(folder: Path, run: PlannedRun):
    """Writes `results.json` and the report of a complete run, unless they are there: whoever comes last does it."""
    if PartialState().is_main_process and run.is_complete:
        with FileLock(folder / ".lock"):
            last = run.run_dir / "report.md"  # is what a report ends with
            trained = max((run.run_dir / f"fold-{n}" / "metrics.json").stat().st_mtime_ns for n in run.numbers)
            if not last.is_file() or last.stat().st_mtime_ns < trained:
                train.report(run.run_dir, labels=run.corpus.features["label"].names)
    PartialState().wait_for_everyone()


def finish(study: Study, folder: Path, runs: list[PlannedRun]):
    """Writes and prints the table of the variants that are complete, and says what is left."""
    for run in runs:
        write_run_report(folder, run)
    if not PartialState().is_main_process:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of two shards that end at once, the later sees both
        missing = [run for run in runs if not run.is_complete]
        unfinished = {run.variant for run in missing}
        names = [name for name in study.variants if name not in unfinished]
        sections = []
        if names and not (study.choose and unfinished):  # what is not finished might have been chosen
            shown = study.against if study.against in names else names[0]
            first = folder / folder_name(shown) / f"seed-{study.seeds[0]}"
            if study.choose:
                results = choose_on_validation(folder, names, study.seeds)
            else:
                results = summarise_study(folder, names, study.seeds, against=study.against, paper=study.paper)
            results |= {"unfinished": sorted(unfinished), "protocol": protocol_line(first)}
            sections.append(choice_table(results) if study.choose else study_table(results))
            sections.append(f"Protocol of {shown}: {results['protocol']}")
            pair = _ce_and_full(study, runs, names)
            if pair:
                where = tuple(folder / folder_name(name) / f"seed-{study.seeds[0]}" for name in pair)
                sections.append(write_pairs(folder / "figures", pair, where))
        if missing:
            states = [f"* {run.variant}, seed {run.seed}: {_state(run)}" for run in missing]
            sections.append("\n".join(["Not finished, and not above:", "", *states]))
        if names and not (study.choose and unfinished):
            write_json(folder / "study.json", results)
            write_text(folder / "table.md", "\n\n".join(sections) + "\n")
    print("\n" + "\n\n".join(sections))
    print(f"\n{folder}: " + ("give the same command again for what is left." if missing else "table.md, study.json"))


def _state(run: PlannedRun) -> str:
    if run.folds is None:
        return "could not start"
    return f"{sum(map(run.is_done, run.numbers))} of {len(run.numbers)} folds"


def _ce_and_full(study: Study, runs: list[PlannedRun], names: list[str]) -> tuple[str, str] | None:
    """The finished variants that are cross entropy alone and the full method: what the others are compared with, or,
    where that is cross entropy itself, the first of the paper's objective."""
    of = {objective: [run.variant for run in runs if run.recipe.objective == objective] for objective in OBJECTIVES}
    full = of["lascl"][:1] if study.against in of["ce"] else [study.against]
    pair = (*of["ce"][:1], *full)
    return pair if len(pair) == 2 and set(pair) <= set(names) and not study.choose else None


def foretell(study: Study, folder: Path, runs: list[PlannedRun], mine: set[tuple[int, int]]):
    """`--dry_run`: what would run, and what it would cost, measured from one step on this machine. Writes nothing but
    temporary files, and asks nothing of the network."""
    measured, total_s, kept, at_once, unknown, encoded = {}, 0.0, 0, 0, 0, set()
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
                unknown += len(left)
                line += f"; time not measured: {measured[key]}"
            else:
                utterance_s, view_s, checkpoint_bytes = measured[key]
                seconds = sum(_utterances(run, number) for number in left) * utterance_s
                # A frozen encoder hears each view of the corpus once for all folds and variants.
                views = set().union(*(_views_heard_once(run, number) for number in left))
                seconds, encoded = seconds + len(views - encoded) * len(run.corpus) * view_s, encoded | views
                total_s, kept = total_s + seconds, kept + len(left) * checkpoint_bytes
                # Weights and AdamW's two moments, so often while one is being saved; one fold at a time.
                limit = run.recipe.training.get("save_total_limit", 2) or 2
                at_once = max(at_once, 3 * checkpoint_bytes * (limit + 1))
                line += f", about {in_words(seconds)} left here"
        print(line, flush=True)
    device, size = _device_and_size()
    left = sum(not runs[index].is_done(number) for index, number in mine)
    parent = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
    print(
        f"\n{left} of {len(mine)} folds to run." + (f" Time is not measured for {unknown} of them." if unknown else "")
    )
    if total_s:
        print(
            f"Time: about {in_words(total_s)} on this machine ({environment()['device']}), from one step of {size} "
            f"utterances on {device}: an upper bound, since a step of the whole batch shares one update. On other "
            "machines: not measured."
        )
    print(
        (f"Disk: {kept / GB:.1f} GB kept, {at_once / GB:.1f} GB more while a fold trains; " if total_s else "Disk: ")
        + f"{shutil.disk_usage(parent).free / GB:.0f} GB are free."
    )
    states = {}
    for run in runs:
        for kind in ("init_from",) if run.recipe.init_from else ("audio_encoder", "text_encoder"):
            spec, revision = getattr(run.recipe, kind), getattr(run.recipe, f"{kind}_revision")
            states.setdefault(_where(spec, revision), set()).add(spec if isinstance(spec, str) else spec["model_type"])
    for state, names in states.items():
        print(f"Encoders, {state}: {', '.join(sorted(names))}.")


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
    changed |= {"contrastive_chunk_size": None, "utterances_per_class": None, "bucket_by_length": False}
    changed["report_to"] = "none"
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
    num_encoded = max(1, len(view_cache) * len(rows))
    return 1 / cost["steps_per_second"] / len(rows), cost.get("encoding_s", 0.0) / num_encoded, size


def _views_heard_once(run: PlannedRun, number: int) -> set[str]:
    """The names of the views that a frozen encoder hears once in this fold (`view_keys`). No weights are loaded for
    that: they go by where they come from."""
    recipe, fold = run.recipe, run.folds[number - 1]
    args = recipe.training_arguments(run.run_dir)
    if not is_encoded_once(recipe, training_data(recipe, run.corpus, fold, args)):
        return set()
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
        extractor = read_extractor(recipe, audio_encoder, window_of(recipe, run.corpus, fold))
    with torch.device("meta"):
        model = LaSCLModel(config)
    speech = training_data(recipe, run.corpus, everything_of(run.corpus), args, extractor)
    return set(view_keys(model, speech, extractor, weights=json.dumps(source)).values())


def _utterances(run: PlannedRun, number: int) -> float:
    """How many utterances a fold trains on, counted over the epochs; evaluating one after every epoch counts as a
    third of it, forward without backward, of one of its views."""
    args = run.recipe.training_arguments(run.run_dir)
    fold = run.folds[number - 1]
    epochs = args.num_train_epochs
    if args.max_steps > 0:
        epochs = args.max_steps * args.global_batch_size / len(fold.train)
    heard = len(fold.validation) + len(fold.test)
    return epochs * len(fold.train) + (epochs + 1) * heard / (3 * args.views_an_utterance)


def in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


if __name__ == "__main__":
    main()
