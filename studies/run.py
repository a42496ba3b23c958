"""Running a study: its folds one by one, the report of each run, the table of what is complete."""

from __future__ import annotations

import copy
import gc
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from lascl import train
from lascl.console import in_words, say
from lascl.studies.figures import write_pairs
from lascl.studies.floors import finished_floors
from lascl.studies.plan import PlannedRun, Study
from lascl.studies.tables import (
    choice_table,
    choose_on_validation,
    folder_name,
    protocol_line,
    study_table,
    summarise_study,
)
from lascl.training.exits import what_is_refused, what_ran_out
from lascl.training.prepare import begin_run
from lascl.training.protocol import note_begun
from lascl.training.recipe import OBJECTIVES
from lascl.training.run_directory import claimed, is_disk_full, write_json, write_text
from lascl.training.start import Weights


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
            if process.is_main_process:
                say("", f"{max_hours:g} hours are over, {len(todo) - position} of {len(todo)} folds are left.")
            return
        left = f", about {in_words(elapsed_s / finished * (len(todo) - position))} left" if finished else ""
        done = len(mine) - len(todo) + finished
        if process.is_main_process:
            told = f"## {done} of {len(mine)} folds done{left}: {run.variant}, seed {run.seed}, fold {number}"
            say("", told, "")
        try:
            with claimed(run.run_dir, [f"fold-{number}"]):
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
    sentence = what_ran_out(error, run.run_dir, run.recipe.training_arguments(run.run_dir))
    if sentence is None and what_is_refused(error) is None:
        traceback.print_exc()
    return sentence or str(error).strip() or type(error).__name__


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
                floors = finished_floors(study, folder, runs)
                told = {"against": study.against, "paper": study.paper, "floors": floors}
                results = summarise_study(folder, names, study.seeds, **told)
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
    left = "give the same command again for what is left." if missing else "table.md, study.json"
    say("", "\n\n".join(sections), "", f"{folder}: {left}")


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
