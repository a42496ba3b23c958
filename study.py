"""Runs variants of a recipe and sets them side by side: `lascl-study RECIPE [--field value ...]`.

    STUDY/<variant>/seed-S/   a run directory each, as of `train.py`: one recipe, one seed
    STUDY/study.json table.md figures/

RECIPE is a study's recipe, a YAML file with a `study:` mapping (`table-1` to `table-4` and `grid` are shipped),
or a plain one with `--vary FIELD=A,B,C`. Fields on the command line hold for all variants. What is finished is known
from the run directories alone: the same command again goes on where it stopped, fold by fold.
"""

from __future__ import annotations

import sys


if __name__ == "__main__":  # what is typed wrong is told before PyTorch is imported, which takes seconds
    from lascl.training.options import check_options

    check_options("lascl-study", sys.argv[1:])

import argparse
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging

from lascl.console import unless_pipe_closes
from lascl.studies.floors import write_floors
from lascl.studies.forecast import foretell
from lascl.studies.plan import PlannedRun, folds_of_shard, plan_runs, read_corpora, read_shard, read_study
from lascl.studies.run import finish, train_folds
from lascl.training.exits import exits_in_a_sentence, what_is_refused, what_ran_out


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Runs what is missing of a study, then writes and prints its table.

    Exits with code 2 and a sentence when the study is wrong in itself (nothing is started then), when a variant failed
    (the others are finished first) or when the disk is full.
    """
    logging.disable_progress_bar()
    options, rest = study_options().parse_known_args(sys.argv[1:] if argv is None else argv)
    with exits_in_a_sentence("lascl-study", what_is_refused):
        study, typed = read_study(rest, options)
        part, parts = read_shard(options.shard)
        folder = Path(options.output_dir or f"runs/{study.name}")
        runs = plan_runs(study, typed, folder)
    read_corpora(runs)
    mine = folds_of_shard(runs, part, parts)
    if options.dry_run:
        foretell(study, folder, runs, mine)
    else:
        with exits_in_a_sentence("lascl-study", partial(what_ran_out, folder=folder)):
            train_folds(folder, runs, mine, options.max_hours)
            write_floors(study, folder, runs)
            finish(study, folder, runs)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if say_failures(runs):
        sys.exit(2)


def study_options() -> argparse.ArgumentParser:
    """What is a study's own on the command line; the rest are its recipe and fields."""
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
    return parser


def say_failures(runs: list[PlannedRun]) -> bool:
    """Prints a line for each reason why runs failed, and says whether any did."""
    failures = {}
    for run in runs:
        if run.failure:
            failures.setdefault(run.failure, []).append(f"{run.variant}, seed {run.seed}")
    for failure, names in failures.items():
        those = names[0] if len(names) == 1 else f"{len(names)} runs, {names[0]} the first"
        print(f"lascl-study: {those}: {failure}", file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    main()
