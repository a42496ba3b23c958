"""Puts `results/` and docstrings into README and docs: `python -m lascl.studies.readme README.md docs/*.md`.

A block `<!-- results: NAME -->` ... `<!-- end of results -->` shows `results/NAME/`, a copy of the small files of a run
directory or of a study; what it says is computed from the predictions there. A block `<!-- benchmark: NAME -->` ...
`<!-- end of benchmark -->` shows the table of `results/benchmarks/NAME.json`; where no GPU was at hand there is no
`gpu.json`, and the block says so. What uncommitted code made is refused. A block
`<!-- api: lascl.score lascl.data.Fold -->` ... `<!-- end of api -->` has the signatures and docstrings of these names.
"""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from lascl.evaluation.results import results_table, summarise_run
from lascl.studies.tables import seed_runs, study_table, summarise_study


RUNS = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
BENCHMARKS = re.compile(r"(<!-- benchmark: (?P<name>[\w-]+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL)
API = re.compile(r"(<!-- api: (?P<names>[\w. ]+) -->\n).*?(<!-- end of api -->)", re.DOTALL)
ITEMS, PROSE = ("Args", "Raises", "Warns"), ("Returns", "Yields")  # sections of a docstring: names, or a paragraph


def render(readme: str, results_dir: str | Path) -> str:
    """The text of a README or page with every block filled anew.

    Raises:
        ValueError: a run or a benchmark whose commit is unknown or dirty, or a run whose `results.json` does not follow
            from its predictions.
        OSError: a block whose files are not there.
        AttributeError, ModuleNotFoundError: a name that is not there.
    """
    results_dir = Path(results_dir)
    readme = RUNS.sub(lambda match: match[1] + _run(results_dir / match["name"]) + match[3], readme)
    benchmarks = results_dir / "benchmarks"
    readme = BENCHMARKS.sub(
        lambda match: match[1] + _benchmark(benchmarks / f"{match['name']}.json") + match[3], readme
    )
    return API.sub(lambda match: match[1] + "".join(map(_entry, match["names"].split())) + match[3], readme)


def _run(folder: Path) -> str:
    if (folder / "study.json").is_file():
        return _study(folder)
    return f"\n{results_table(_checked_results(folder))}\n\n{_provenance([folder])}\n\n"


def _study(folder: Path) -> str:
    stored = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    seeds, floors = stored["seeds"], stored.get("floors", {})
    names = [variant["name"] for variant in stored["variants"] if variant["name"] not in floors]
    runs = [run for name in names for run in seed_runs(folder, name, seeds)]
    runs += [run for name in floors for run in seed_runs(folder, name, seeds[:1])]
    for run in runs:
        _checked_results(run)
    told = {name: stored.get(name) for name in ("against", "paper")}
    results = summarise_study(folder, names, seeds, **told, floors=floors)
    return f"\n{study_table(results)}\n\n{_provenance(runs)}\n\n"


def _checked_results(folder: Path) -> dict:
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    _refuse_uncommitted(folder, environment["commit"])
    results = summarise_run(folder, stored["pooled"]["labels"])
    if results != stored:
        raise ValueError(f"{folder}/results.json does not follow from the predictions beside it.")
    return results


def _refuse_uncommitted(path: Path, commit: str | None):
    if commit is None or commit.endswith("-dirty"):
        raise ValueError(f"{path} was made by uncommitted code (commit {commit}). Commit, and run it again.")


def _benchmark(path: Path) -> str:
    if path.name == "gpu.json" and not path.is_file():
        return "\nNothing has been measured on a GPU: `python benchmarks/gpu.py` does so in eight minutes.\n\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    _refuse_uncommitted(path, found["commit"])
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "transformers", "python"))
    threads = f"{found['threads']} thread{'' if found['threads'] == 1 else 's'}"
    made = f"Commit `{found['commit'][:10]}` on {found['device']}, {threads}; {versions}."
    parts = [f"**{found['title']}**", found["table"], *filter(None, [found["notes"]]), made]
    return "\n" + "".join(f"{part}\n\n" for part in parts)


def _provenance(runs: list[Path]) -> str:
    """Of one run, or of a study's: length and corpus are the first's."""
    environments = [json.loads((run / "environment.json").read_text(encoding="utf-8")) for run in runs]
    recipes = [yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")) for run in runs]
    commits = " and ".join(sorted({f"`{environment['commit'][:10]}`" for environment in environments}))
    seeds = sorted({recipe["seed"] for recipe in recipes})
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    corpora = recipes[0]["corpus"] or ", ".join(entry["name"] for entry in recipes[0]["corpora"])
    return (
        f"`{corpora}`, {recipes[0]['num_train_epochs']:g} epochs, {named}, "
        f"{'one run' if len(runs) == 1 else f'{len(runs)} runs'} of commit {commits} on {environments[0]['device']}; "
        "per cent."
    )


def _entry(name: str) -> str:
    """What a public name is, from its signature and docstring."""
    found = pkgutil.resolve_name(name)
    signature = inspect.signature(found)
    plain = [part.replace(annotation=inspect.Parameter.empty) for part in signature.parameters.values()]
    arguments = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    arguments = re.sub(r"<function (\S+) at 0x\w+>", r"\1", arguments)  # a default: where it lies is nobody's matter
    own = vars(found).get("__annotations__", {}) if inspect.isclass(found) else {}
    if (
        len(plain) > len(own) > 0
    ):  # a data class of stock's with many more fields: those of its own are in its docstring
        arguments = "(...)"
    kind = "class " if inspect.isclass(found) else ""
    call = textwrap.fill(
        f"{kind}{name.rpartition('.')[2]}{arguments}", 100, subsequent_indent="    ", break_on_hyphens=False
    )
    return f"\n### `{name}`\n\n```text\n{call}\n```\n\n{markdown(inspect.getdoc(found))}\n"


def markdown(docstring: str) -> str:
    """A docstring with its sections `Args`, `Returns`, `Yields` and `Raises` as Markdown."""
    return "\n".join(_marked_up(docstring.splitlines())).strip() + "\n"


def _marked_up(lines: list[str]) -> Iterator[str]:
    section = None
    for line in lines:
        if line.rstrip(":") in ITEMS + PROSE and line.endswith(":"):
            section = line.rstrip(":")
            yield f"**{section}**"
            yield ""
        elif line and not line.startswith(" "):
            section = None
            yield line
        elif section in ITEMS and re.match(r" {4}\S", line):
            names, colon, rest = line.strip().partition(": ")
            yield f"* `{names}`: {rest}" if colon else f"* {names}"
        elif section in PROSE:
            yield line.removeprefix("    ")
        else:
            yield line[2:] if section in ITEMS else line


if __name__ == "__main__":
    results = Path(__file__).resolve().parent.parent / "results"
    for path in map(Path, sys.argv[1:]):
        path.write_text(render(path.read_text(encoding="utf-8"), results), encoding="utf-8")
