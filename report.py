"""The report of a run: `lascl-report RUN` writes `report.html`, `report.md` and `figures/` from the run's files.

The HTML file stands alone: it asks for nothing, runs no script, and can be mailed or printed as it is.
"""

from __future__ import annotations

import base64
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

from lascl.console import unless_pipe_closes
from lascl.evaluation.compare import compare_runs, comparison_cells
from lascl.evaluation.figures import draw_figures, numbered_names
from lascl.evaluation.metrics import SCORE_NAMES
from lascl.evaluation.report_data import Run, best_epoch_on_test, latex_row, load_run
from lascl.evaluation.results import (
    corpora_cells,
    interval_of,
    per_cent,
    results_cells,
    results_table,
    why_no_interval,
)
from lascl.evaluation.votes import most_disputed, votes_cells
from lascl.options import report_options
from lascl.training.run_directory import write_text


TEMPLATES = Path(__file__).resolve().parent / "evaluation"
SHOWN = ("ua", "wa", "macro_f1")  # the scores at the top, in this order


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Writes a run's report, or prints its row for a paper.

    Exits with code 2 and one sentence when RUN is no finished run, a file of it is damaged, or it cannot be written.
    """
    args = report_options(argv)
    try:
        if args.latex:
            print(latex_row(load_run(args.run), intervals=args.interval))
        else:
            write_report(args.run, baselines=args.baseline)
            print(f"{args.run}: report.html, report.md, figures")
    except (ValueError, OSError) as error:
        print(f"lascl-report: {error}", file=sys.stderr)
        sys.exit(2)


def write_report(run_dir: str | Path, results: dict | None = None, *, baselines: Sequence[str | Path] = ()) -> None:
    """Writes `report.html`, `report.md` and `figures/*.png` into a run directory, from its files alone.

    A figure whose file is missing is left out, and the report says so. The same files give the same report.

    Args:
        results: of the run, if they were computed just now: then `results.json` is not checked against the predictions.
        baselines: run directories or CSV files of any system, as `compare_runs` takes them, to be set beside the run.

    Raises:
        ValueError: no finished run is there, a file of it is damaged, or a baseline cannot be compared with it.
        OSError: the directory cannot be written.
    """
    run_dir = Path(run_dir)
    run = load_run(run_dir, results)
    compared = [beside(baseline, run_dir) for baseline in baselines]
    plots, left_out = draw_figures(run)
    figures = run_dir / "figures"
    figures.mkdir(exist_ok=True)
    for plot in plots:
        (figures / f"{plot.name}.png").write_bytes(plot.png)
    fold_head, fold_rows, table_notes = results_cells(run.results)
    content = {
        "run": run,
        "recipe_text": (run_dir / "recipe.yaml").read_text(encoding="utf-8").strip(),
        "scores": {name: SCORE_NAMES[name] for name in SHOWN},
        "pooled": run.results["pooled"],
        "corpora": run.results.get("corpora", {}),
        "corpora_table": corpora_cells(run.results),
        "chance": chance(run),
        "votes_table": votes_cells(run.results),
        "disputed": most_disputed([*run.rows, *run.undecided], run.labels),
        "best_epoch": best_epoch_on_test(run.histories_by_fold),
        "num_speakers": len({row["speaker"] for row in run.rows}),
        "table": results_table(run.results),
        "fold_head": fold_head,
        "fold_rows": fold_rows,
        "table_notes": table_notes,
        "caveats": caveats(run),
        "compared": compared,
        "plots": plots,
        "numbered": numbered_names(run),
        "left_out": left_out,
        "command": f"lascl-train path/to/{run.name}/recipe.yaml --output_dir {run.name}-again",
    }
    environment = templates()
    write_text(run_dir / "report.html", environment.get_template("report.html").render(content))
    write_text(run_dir / "report.md", environment.get_template("report.md.jinja").render(content))


@functools.cache  # to compile them takes longer than all else in a report without figures
def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"per_cent": per_cent, "data_uri": data_uri, "cell": markdown_cell}
    environment.globals |= {"interval_of": interval_of, "why_no_interval": why_no_interval}
    return environment


def chance(run: Run) -> float:
    """The UA of guessing; of several corpora the mean over them, each among its own words."""
    own = run.own_words
    return sum(1 / len(words) for words in own.values()) / len(own) if own else 1 / len(run.labels)


def beside(baseline: str | Path, run_dir: Path) -> dict:
    """What the report shows of a baseline: its name, what was compared, a row a score, and sentences."""
    result = compare_runs(baseline, run_dir)
    return {
        "name": Path(baseline).resolve().name,
        "found": f"On the same {result['num_utterances']} utterances of {result['num_speakers']} speakers; per cent.",
        "rows": comparison_cells(result),
        "sentences": [result[name]["sentence"] for name in SHOWN],
    }


def caveats(run: Run) -> list[str]:
    """What a reader must not conclude from this run, each in a sentence."""
    recipe, done = run.recipe, len(run.results["folds"])
    planned = run.protocol.get("num_folds", done)
    random = [kind for kind in ("audio", "text") if isinstance(recipe.get(f"{kind}_encoder"), dict)]
    sentences = []
    corpora = [entry["corpus"] for entry in recipe.get("corpora") or [{"corpus": recipe.get("corpus")}]]
    if "synthetic" in corpora:
        sentences.append("The speech is synthetic (eSpeak NG). These scores say nothing about human emotion.")
    if random:
        encoders = f"{' and '.join(random)} encoder{'s' * (len(random) - 1)}"
        sentences.append(f"The {encoders} started from random weights: this tests the code, not the method.")
    if run.results.get("transductive"):
        sentences.append(
            "These scores are transductive: audio was standardised with unlabelled recordings of the tested side. "
            "Compare them with transductive scores only."
        )
    if recipe.get("allow_partial"):
        sentences.append(
            "The recipe allows a copy of the corpus with utterances missing. Compare only with runs on the same copy."
        )
    if run.num_skipped:
        sentences.append(f"Utterances left out because of their audio: {run.num_skipped}; skipped.csv names them.")
    if done < planned:
        sentences.append(f"{done} of {planned} folds were run: this is not the full cross-validation.")
    if (run.environment.get("commit") or "").endswith("-dirty"):
        sentences.append("The code was not committed (its commit ends in -dirty): the run cannot be repeated exactly.")
    return sentences


def data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def markdown_cell(text: str) -> str:
    """Text that neither ends a table cell nor turns into markup."""
    escaped = "".join(f"\\{character}" if character in "\\`*[]<>|" else character for character in str(text))
    return " ".join(escaped.split())


if __name__ == "__main__":
    main()
