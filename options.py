"""What may be typed at each command, and what of it does not go together: read without what the command runs, since
importing PyTorch takes seconds. `lascl-predict` reads its own, as lightly; those of `lascl-train` are the recipe's."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path


# What may be chosen; here, since where it is used is imported later.
HUB_MAIN = ("best_validation", "first_fold", "full_data")  # what main of a published run holds
HEADS = {"model": "the model's own head", "label": "label head", "classifier": "classifier"}  # of lascl-compare


def typed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """What was typed. An option that does not exist is told first, with the nearest that does: what is missing may be
    what it was to be."""
    argv = sys.argv[1:] if argv is None else argv
    known = [option for action in parser._actions for option in action.option_strings]
    for word in argv[: argv.index("--") if "--" in argv else None]:
        option = word.partition("=")[0]
        is_short_for = parser.allow_abbrev and any(name.startswith(option) for name in known)
        if option.startswith("--") and option not in known and not is_short_for:
            near = difflib.get_close_matches(option, known, n=1)
            parser.error(f"there is no {option}{f'; did you mean {near[0]}?' if near else ''}")
    return parser.parse_intermixed_args(argv)


def report_options(argv: list[str] | None) -> argparse.Namespace:
    """Of `lascl-report`."""
    parser = argparse.ArgumentParser(prog="lascl-report", description="Writes RUN/report.html, report.md and figures/.")
    parser.add_argument("run", metavar="RUN", help="a run directory: train.py's output_dir")
    parser.add_argument("--latex", action="store_true", help="print a row for a paper's table instead")
    parser.add_argument("--interval", action="store_true", help="with --latex: 95 %% intervals over speakers instead")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="B",
        help="compare with another run, or a CSV file of any system: id,speaker,reference,prediction; may be repeated",
    )
    args = typed(parser, argv)
    if args.baseline and args.latex:
        parser.error("--baseline is shown in the report: leave out --latex.")
    if args.interval and not args.latex:
        parser.error("--interval belongs to --latex: the report has intervals anyway.")
    return args


def compare_options(argv: list[str] | None) -> argparse.Namespace:
    """Of `lascl-compare`."""
    parser = argparse.ArgumentParser(
        prog="lascl-compare",
        description="Is B better than A? Paired on the same utterances, with intervals that respect speakers. Each is "
        "a run directory, or a CSV file of any system: id, prediction and, unless the other side has them, reference "
        "and speaker.",
    )
    parser.add_argument("run_a", metavar="A", type=Path)
    parser.add_argument("run_b", metavar="B", type=Path)
    parser.add_argument("--head", choices=list(HEADS), default="model", help="whose predictions (default: the model's)")
    parser.add_argument("--common", action="store_true", help="compare only the utterances that both runs tested")
    parser.add_argument("--json", action="store_true", help="print JSON, scores as fractions")
    return typed(parser, argv)


def publish_options(argv: list[str] | None) -> argparse.Namespace:
    """Of `lascl-publish`; `folds` is `None` of all that are finished."""
    parser = argparse.ArgumentParser(prog="lascl-publish", description="Publishes a run's folds.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run directory: train.py's output_dir")
    parser.add_argument("--hub_model_id", required=True, metavar="ORG/NAME", help="the repository on the Hub")
    parser.add_argument("--folds", default="all", help="all that are finished, or some such as 1,3")
    parser.add_argument(
        "--hub_private_repo",
        type={"true": True, "false": False}.__getitem__,
        metavar="true|false",
        help="of a repository that is made now; by default as the organisation has it",
    )
    parser.add_argument("--hub_main", choices=HUB_MAIN, help="what main holds")
    parser.add_argument("--publish_text_encoder", action="store_true", help="with the weights of the text encoder")
    parser.add_argument("--space", metavar="ORG/NAME", help="a Space to try main in the browser, published last")
    parser.add_argument(
        "--torch_index_url",
        metavar="URL",
        help="where a Space on CPUs gets torch's CPU build: a package index; else the far larger CUDA build comes",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="write over files of the same names that are another model's, or that somebody changed since",
    )
    args = typed(parser, argv)
    try:
        args.folds = None if args.folds == "all" else sorted({int(number) for number in args.folds.split(",")})
    except ValueError:
        parser.error(f"--folds must be 'all' or numbers such as 1,3; found {args.folds!r}.")
    return args


def verify_options(argv: list[str] | None) -> argparse.Namespace:
    """Of `lascl-verify`."""
    parser = argparse.ArgumentParser(
        prog="lascl-verify",
        description="Predicts the held-out utterances of a published fold again and compares with what it publishes. "
        "Runs the code of the LaSCL that is installed, none of the repository.",
    )
    parser.add_argument("model", metavar="NAME_OR_FOLDER", help="a repository on the Hub, or a folder of one's files")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub, such as fold-3")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--corpus", help="name of the corpus, as for training")
    which.add_argument("--corpora", help="of several, as for training: emodb,ravdess,mine=csv, or JSON")
    parser.add_argument("--data_dir", help="folder of the corpus; of corpora, the folder that holds theirs")
    parser.add_argument("--labels", help="as for training, if it kept or renamed some")
    parser.add_argument("--corpus_options", help="as for training, as JSON")
    parser.add_argument("--targets", default="corpus", help="as for training, if it learned from votes")
    parser.add_argument("--ties", default="drop", help="likewise")
    parser.add_argument("--batch_size", type=int, default=8, help="utterances predicted at once (default: 8)")
    return typed(parser, argv)


def export_options(argv: list[str] | None) -> argparse.Namespace:
    """Of `lascl-export`; `labels` is a list of words, or `None`."""
    parser = argparse.ArgumentParser(
        prog="lascl-export",
        description="Writes a checkpoint as one ONNX file that takes samples and needs no PyTorch, checked against "
        "PyTorch.",
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder, or its name on the Hub")
    parser.add_argument("folder", metavar="OUT", help="where to: a new or empty folder, or an earlier export")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub, such as fold-3")
    parser.add_argument("--labels", help='other words than the checkpoint\'s, as "joyful, fearful, bored"')
    parser.add_argument("--template", help='what the text encoder reads for these words, as "a {label} voice"')
    parser.add_argument(
        "--check", nargs="+", default=(), metavar="FILE", help="audio files to check with, instead of generated sounds"
    )
    parser.add_argument("--int8", action="store_true", help="a smaller file too, less exact by what is told")
    args = typed(parser, argv)
    if args.labels is not None:
        words = [label.strip() for label in args.labels.split(",")]
        if not all(words):
            parser.error(f"--labels has an empty word between commas: {args.labels!r}")
        args.labels = words
    return args


def words_options(argv: list[str] | None) -> argparse.Namespace:
    """Of `lascl-words`."""
    parser = argparse.ArgumentParser(
        prog="lascl-words",
        description="Where words of your own lie among those that a model was trained on, and how well they work.",
        epilog="Exit codes: 0 done, 1 recordings could not be answered, 2 the command cannot be carried out at all.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint: a folder, or a name on the Hub")
    parser.add_argument("words", metavar='"A, B"', help="the words, separated by commas")
    parser.add_argument("--revision", help="of a Hub name: branch, tag or commit")
    parser.add_argument(
        "--check", metavar="LABELLED.csv", help="recordings, columns path and label: recall by word, and a temperature"
    )
    parser.add_argument(
        "--standardise",
        choices=("training", "recordings"),
        default="training",
        help="the recordings of --check: as lascl-predict does",
    )
    parser.add_argument(
        "--store", action="store_true", help="keep the temperature in the checkpoint, for these words (needs --check)"
    )
    parser.add_argument("--device", help="default: a GPU if there is one")
    args = typed(parser, argv)
    if args.standardise == "recordings" and not args.check:
        parser.error("--standardise is for the recordings of --check.")
    if args.store and not args.check:
        parser.error("--store needs --check: a temperature is fitted to labelled recordings.")
    return args


def views_options(argv: list[str] | None) -> argparse.Namespace:
    """Of `lascl-views`."""
    parser = argparse.ArgumentParser(
        prog="lascl-views",
        description="Says what is kept of what frozen encoders made of audio, and of audio that was decoded and "
        "resampled, or deletes it: then it is made anew when it is needed.",
    )
    parser.add_argument("--views_dir", type=Path, help="of runs that have one; by default the Hugging Face cache's")
    parser.add_argument("--decoded_dir", type=Path, help="likewise, of decoded audio")
    parser.add_argument("--empty", action="store_true", help="delete it")
    args = typed(parser, argv)
    for folder in (args.views_dir, args.decoded_dir):
        if folder and not folder.is_dir():
            print(f"lascl-views: there is no folder {folder}.", file=sys.stderr)
            sys.exit(2)
    return args
