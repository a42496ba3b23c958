"""Labels recordings with a trained checkpoint: `lascl-predict MODEL INPUT... [--output FILE]`.

An existing `--output` is continued, by the same checkpoint and options only. From Python:

    import lascl
    from lascl.predict import stream

    for answer in lascl.predict_files("path/to/checkpoint", ["a.wav", "b.flac"]):
        print(answer.path, answer.label or answer.failure)
    for window in stream("path/to/checkpoint", "call.wav", window_s=3.0, hop_s=1.0):
        print(window.start_s, window.end_s, window.label)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lascl.console import unless_pipe_closes
from lascl.inference.checkpoints import checkpoint_of
from lascl.inference.finding import find_recordings
from lascl.inference.outputs import FORMATS, SUFFIXES, one_line
from lascl.lazy import lazily
from lascl.options import typed


if TYPE_CHECKING:
    from lascl.inference import Recogniser, Segment, Window, read_segments, segments, stream

__all__ = ["Recogniser", "Segment", "Window", "main", "read_segments", "segments", "stream"]
ENDINGS = {".csv": "csv", ".jsonl": "jsonl"}
DTYPES = ("float32", "bfloat16", "float16")

# What a program needs, when it is first used: PyTorch takes seconds, and what is typed wrong is told before.
__getattr__ = lazily(__name__, dict.fromkeys(set(__all__) - {"main"}, "lascl.inference"))


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Answers all inputs, writes the rows, and says on stderr what else there is to know.

    Exits with code 1 when files could not be answered (each is listed with its reason; all others are done), with 2 and
    a sentence when the command itself cannot be carried out, and with 130 when interrupted: the rows so far are kept.
    """
    try:
        options = read_options(sys.argv[1:] if argv is None else argv)
        options.model = checkpoint_of(options.model)
        found = find_recordings(
            options.inputs, lambda: sys.stdin.buffer.read(), options.standardise_by, options.data_dir
        )
        if not found.paths:
            raise ValueError(" ".join(found.failures.values()) or "The list of files is empty.")
        if options.window is not None and found.has_segments:
            raise ValueError("--window cuts whole recordings, and segments are cut already: leave one of them out.")
        from lascl.inference.labelling import label_recordings
    except ValueError as error:
        print(f"lascl-predict: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lascl-predict: interrupted before anything was done.", file=sys.stderr)
        sys.exit(130)
    label_recordings(options, found)


def parser_of_options() -> argparse.ArgumentParser:
    """What may be typed."""
    parser = argparse.ArgumentParser(
        prog="lascl-predict",
        description="Labels recordings with a trained LaSCL checkpoint.",
        epilog="Exit codes: 0 all done, 1 files could not be answered, 2 the command cannot be carried out at all, 130 "
        "interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint: a folder, or a name on the Hub; of a run, the model of all its data",
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="files, folders, quoted patterns, a CSV with a column `path` (and `start,end,speaker` of segments), RTTM "
        "files, or - for a list of paths on stdin",
    )
    parser.add_argument("--data_dir", metavar="DIR", help="of the recordings of RTTM files, if not beside them")
    parser.add_argument("--revision", help="of a Hub name: branch, tag or commit")
    parser.add_argument("--format", choices=FORMATS, help="default: as --output ends, csv on the standard output")
    parser.add_argument("--output", type=Path, help="a file, continued if it is there (default: standard output)")
    parser.add_argument(
        "--overwrite", action="store_true", help="do not continue: replace what is there, whatever it is"
    )
    parser.add_argument("--embeddings", type=Path, metavar="OUT.npz", help="audio embeddings too, a row a file")
    parser.add_argument("--abstain", type=share, default=0.0, metavar="P", help="no label where no probability is P")
    parser.add_argument("--labels", metavar='"A, B"', help="other words than the trained ones")
    parser.add_argument("--template", metavar='"a {label} voice"', help="what is read for a label of --labels")
    parser.add_argument(
        "--standardise",
        choices=("training", "recordings"),
        default="training",
        help="by the statistics of what was trained on (default), or of these recordings, all heard first",
    )
    parser.add_argument(
        "--standardise_by", metavar="COLUMN", help="by those of each value of a column of the list, such as speaker"
    )
    parser.add_argument("--window", type=above_0, metavar="S", help="when, not only what: windows of S seconds")
    parser.add_argument("--hop", type=above_0, metavar="S", help="between their starts (default: 1, or the window)")
    parser.add_argument("--vad", action="store_true", help='leave out windows without speech; needs "lascl[vad]"')
    parser.add_argument("--textgrid", type=Path, metavar="DIR", help="segments for Praat too, a file a recording")
    parser.add_argument("--srt", type=Path, metavar="DIR", help="as subtitles")
    parser.add_argument("--audacity", type=Path, metavar="DIR", help="as label tracks for Audacity")
    parser.add_argument("--batch_size", type=at_least_1, metavar="N", help="at once (default: by length)")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="of the audio encoder; scores are in float32"
    )
    parser.add_argument("--num_workers", type=at_least_1, default=2, metavar="N", help="threads that read (default: 2)")
    return parser


def read_options(argv: list[str]) -> argparse.Namespace:
    """What was typed; what does not go together ends here."""
    parser = parser_of_options()
    options = typed(parser, argv)
    if options.template is not None and options.labels is None:
        parser.error("--template needs --labels.")
    if options.standardise_by is not None:
        options.standardise = "recordings"
    if options.standardise == "recordings" and options.window is not None:
        parser.error("--standardise recordings hears every file before the first answer: leave out --window.")
    if options.window is None:
        for name in ("hop", "vad", *SUFFIXES):
            if getattr(options, name):
                parser.error(f"--{name} needs --window.")
    else:
        if options.embeddings is not None:
            parser.error("--embeddings has a row a file: leave out --window.")
        options.hop = options.hop or min(1.0, options.window)
    if options.format == "table" and options.output is not None:
        parser.error("--format table is for reading on the screen; for --output take csv or jsonl.")
    if options.output is not None:
        settle_format(parser, options)
    options.format = options.format or "csv"
    return options


def settle_format(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """The format that an output's name says, if it was not given; both must agree."""
    ending = options.output.suffix.lower()
    told = ENDINGS.get(ending)
    if told is None and options.format is None:
        parser.error(
            f"--output {options.output}: the ending {ending or '(none)'} is of no format that there is, csv (.csv) or "
            "jsonl (.jsonl). Choose such a name, or say which with --format."
        )
    if None not in (told, options.format) and told != options.format:
        parser.error(f"--output {options.output} is named as {told}, but --format is {options.format}: change one.")
    options.format = options.format or told


def above_0(text: str) -> float:
    """A finite number above 0, for argparse."""
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0; found {text}")
    return value


def share(text: str) -> float:
    """A number in [0, 1], for argparse."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1]; found {text}")
    return value


def at_least_1(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; found {text}")
    return value


if __name__ == "__main__":
    main()
