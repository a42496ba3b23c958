"""Runs variants of a recipe and sets them side by side: `lascl-study RECIPE --vary FIELD=A,B,C [--field value ...]`.

    STUDY/<variant>/seed-S/   a run directory each, as of `train.py`: one recipe, one seed
    STUDY/study.json table.md

The same command again goes on where it stopped. Each variant is compared with the first one, on the same utterances,
with the first seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from lascl import train
from lascl.evaluation.compare import compare_runs
from lascl.training.recipe import parse_recipe
from lascl.training.run_directory import write_json, write_text


SCORES = ("wa", "ua", "macro_f1")


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


def summarise_study(study: Path, names: list[str], seeds: list[int]) -> dict:
    """The content of `study.json`: of each variant the pooled scores by seed, their mean and standard deviation (n - 1;
    0 for one seed), and `against_first`, what `compare_runs` says of its first seed's run and the first variant's."""
    variants = []
    for name in names:
        runs = [study / name / f"seed-{seed}" for seed in seeds]
        pooled = [json.loads((run / "results.json").read_text(encoding="utf-8"))["pooled"] for run in runs]
        scores = {
            score: {
                "by_seed": [run[score] for run in pooled],
                "mean": float(np.mean([run[score] for run in pooled])),
                "std": float(np.std([run[score] for run in pooled], ddof=1)) if len(pooled) > 1 else 0.0,
            }
            for score in SCORES
        }
        against = None if name == names[0] else compare_runs(study / names[0] / f"seed-{seeds[0]}", runs[0])
        intervals = pooled[0].get("intervals")
        variants.append({"name": name, **scores, "intervals": intervals, "against_first": against})
    return {"seeds": seeds, "variants": variants}


def study_table(results: dict) -> str:
    """`study.json` as Markdown, in per cent: a row a variant, then the comparisons in words."""
    several = len(results["seeds"]) > 1
    lines = ["| variant | WA | UA | macro-F1 | UA against the first, points | p |", "|---" * 6 + "|"]
    for variant in results["variants"]:
        cells = []
        for score in SCORES:
            cell = f"{100 * variant[score]['mean']:.1f}"
            interval = (variant["intervals"] or {}).get(score)
            if several:
                cell += f" ± {100 * variant[score]['std']:.1f}"
            elif interval:
                cell += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
            cells.append(cell)
        against = variant["against_first"]
        difference, p = (
            ("", "") if against is None else (f"{100 * against['ua']['difference']:+.1f}", against["ua"]["p"])
        )
        cells += [difference, p if isinstance(p, str) else "-" if p is None else f"{p:.3f}"]
        lines.append(f"| {variant['name']} | {' | '.join(cells)} |")
    first = results["variants"][0]["name"]
    spread = (
        f"Mean ± standard deviation over the seeds {', '.join(map(str, results['seeds']))}"
        if several
        else "In brackets 95 % intervals over speakers"
    )
    lines += ["", f"{spread}; p of a paired test over speakers on the same utterances, seed {results['seeds'][0]}.", ""]
    lines += [
        f"* {variant['name']} (B), {first} (A): {variant['against_first']['ua']['sentence']}"
        for variant in results["variants"][1:]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
