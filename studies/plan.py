"""What a study runs: its variants, read from a recipe or typed, and a run for each of them and each seed."""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import yaml
from accelerate import PartialState

from lascl.data import Fold
from lascl.studies.tables import folder_name
from lascl.training.prepare import check_batches_of_folds, divide, read_corpus
from lascl.training.recipe import CORPUS_FIELDS, Recipe, find_recipe, parse_recipe
from lascl.training.run_directory import open_run


KEYS = ("recipe", "seeds", "against", "choose", "variants", "vary", "paper", "floors")
FLOORS = ("logistic_regression",)


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
        floors: names of FLOORS, plain methods on the same folds and states (`lascl.studies.floors`).
    """

    name: str
    recipe: str
    fields: dict
    variants: dict[str, dict]
    seeds: list[int]
    against: str
    choose: str | None = None
    paper: dict[str, list] = field(default_factory=dict)
    floors: list[str] = field(default_factory=list)


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
        return [] if self.folds is None else self.recipe.fold_numbers(self.folds)

    def is_done(self, number: int) -> bool:
        return (self.run_dir / f"fold-{number}" / "metrics.json").is_file()

    @property
    def is_complete(self) -> bool:
        return self.folds is not None and all(self.is_done(number) for number in self.numbers)


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
        if not options.vary and not options.dry_run:  # that tells of a single training too
            raise ValueError(f"{path.stem} is a plain recipe: say what differs, --vary FIELD=A,B,C.")
        if not options.output_dir and not options.dry_run:
            raise ValueError("A plain recipe's study needs --output_dir.")
        variants = read_variants(options.vary) if options.vary else {"as it is": {}}
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
    floors = told.get("floors", [])
    if not isinstance(floors, list) or not set(floors) <= set(FLOORS):
        raise ValueError(f"{path}: floors must be a list of {', '.join(FLOORS)}; found {floors!r}.")
    return Study(
        path.stem,
        recipe or told.get("recipe", "quickstart"),
        fields,
        variants,
        seeds,
        against,
        told.get("choose"),
        told.get("paper") or {},
        floors,
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


def folds_of_shard(runs: list[PlannedRun], part: int, parts: int) -> set[tuple[int, int]]:
    """Index of the run and number of each fold that shard `part` trains."""
    return {
        (index, number)
        for index, run in enumerate(runs)
        for number in run.numbers
        if shard_of(index, number, parts) == part
    }


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
            if recipe.final_model:
                raise ValueError(
                    "A study trains no final model: give train.py the variant that you want, and --final_model."
                )
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
                if (run.run_dir / "recipe.yaml").is_file():
                    open_run(run.run_dir, recipe, corpus)  # or refuses another recipe
                run.corpus, run.skipped, run.folds = corpus, skipped, folds
            except (ValueError, OSError, ImportError) as error:
                run.failure = str(error)
