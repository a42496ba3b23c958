"""Runs variants of a recipe and sets them side by side: `lascl-study RECIPE --vary FIELD=A,B,C [--field value ...]`.

    STUDY/<variant>/seed-S/   a run directory each, as of `train.py`: one recipe, one seed
    STUDY/study.json table.md

The same command again goes on where it stopped. Each variant is compared with the first one, on the same utterances,
with the first seed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from lascl import train
from lascl.evaluation.studies import study_table, summarise_study
from lascl.training.recipe import parse_recipe
from lascl.training.run_directory import write_json, write_text


def main(argv: list[str] | None = None):
    """Runs the variants one after another, then writes and prints the table.

    Exits with code 2 and one sentence when a variant is wrong in itself; variants that are finished are kept.
    """
    parser = argparse.ArgumentParser(prog="lascl-study", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="FIELD=A,B",
        help="values of a field; several times: all pairs",
    )
    parser.add_argument("--seeds", default="42", help="one run of each variant with each, such as 42,43,44")
    parser.add_argument("--output_dir", required=True, help="the study's folder")
    arguments, recipe = parser.parse_known_args(argv)
    try:
        variants = read_variants(arguments.vary)
        seeds = read_seeds(arguments.seeds)
        for options in variants.values():
            parse_recipe([*recipe, *options])
    except ValueError as error:
        print(f"lascl-study: {error}", file=sys.stderr)
        sys.exit(2)
    study = Path(arguments.output_dir)
    for name, options in variants.items():
        for seed in seeds:
            print(f"\n## {name}, seed {seed}\n", flush=True)
            run_dir = study / name / f"seed-{seed}"
            train.main([*recipe, *options, "--seed", str(seed), "--output_dir", str(run_dir)])
    results = summarise_study(study, list(variants), seeds)
    write_json(study / "study.json", results)
    table = study_table(results)
    write_text(study / "table.md", table + "\n")
    print(f"\n{table}\n\n{study}: table.md, study.json")


def read_variants(vary: list[str]) -> dict[str, list[str]]:
    """Each variant's name and options, from `FIELD=A,B` once or more.

    Raises:
        ValueError: something without `=`, or a value given twice.
    """
    axes = []
    for axis in vary:
        field, equals, values = axis.partition("=")
        if not (field and equals and values):
            raise ValueError(f"--vary wants FIELD=A,B,C; found {axis!r}.")
        axes.append([(field, value) for value in values.split(",")])
    variants = {}
    for combination in itertools.product(*axes):
        name = ",".join(f"{field}={value}" for field, value in combination).replace("/", "_")
        if name in variants:
            raise ValueError(f"The variant {name} is given twice.")
        variants[name] = [part for field, value in combination for part in (f"--{field}", value)]
    return variants


def read_seeds(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds wants numbers such as 42,43; found {seeds!r}.") from None


if __name__ == "__main__":
    main()
