"""Labels recordings with a trained checkpoint: `lascl-predict MODEL INPUT... [--output FILE]`.

Rows come in the order of the inputs, one a file, or with `--window` one a segment. Files are sorted by length within
groups of some minutes of audio, and a group's rows are written together as soon as it is answered: memory stays
bounded, and a kill loses no more than a group. An existing `--output` is continued. From Python:

    from lascl.predict import stream

    for window in stream("path/to/checkpoint", "call.wav", window_s=3.0, hop_s=1.0):
        print(window.start_s, window.end_s, window.label)
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers.utils import logging

from lascl.data.audio import audio_duration_s
from lascl.inference import Recogniser, Window, segments, stream
from lascl.inference.files import answer_files, find_recordings, read_beside, windows_at_once
from lascl.inference.outputs import (
    FORMATS,
    PATH_WIDTH,
    SUFFIXES,
    EmbeddingFile,
    RowFile,
    RowFormat,
    annotation,
    annotation_names,
    one_line,
)
from lascl.inference.recordings import FFMPEG_SUFFIXES, read_blocks
from lascl.inference.voice import speech_detector
from lascl.inference.windows import check_window
from lascl.training.run_directory import is_disk_full, write_text


__all__ = ["Recogniser", "Window", "main", "segments", "stream"]


def main(argv: list[str] | None = None):
    """Answers all inputs, writes the rows, and says on stderr what else there is to know.

    Exits with code 1 when files could not be answered (each is listed with its reason; all others are done), with 2 and
    a sentence when the command itself cannot be carried out, and with 130 when interrupted: the rows so far are kept.
    """
    logging.disable_progress_bar()
    options = read_options(sys.argv[1:] if argv is None else argv)
    try:
        found = find_recordings(options.inputs, lambda: sys.stdin.buffer.read())
        if not found.paths:
            raise ValueError(" ".join(found.failures.values()) or "The list of files is empty.")
        model = load_model(options)
        is_speech = speech_detector(model.sampling_rate) if options.vad else None
        output = open_output(model, found.paths, options)
        done = {os.path.abspath(path) for path in output.paths}
        todo = [path for path in found.paths if os.path.abspath(path) not in done]
        annotations = plan_annotations(options, found.paths, done)
        embeddings = None
        if options.embeddings is not None:
            embeddings = EmbeddingFile(options.embeddings, model.model.config.projection_dim, output.paths)
        output.begin()
    except BrokenPipeError:
        leave_pipe()
    except (ValueError, OSError) as error:
        stop(2, str(error))
    except KeyboardInterrupt:
        stop(130, "interrupted before anything was done.")
    if done:
        say(f"{len(found.paths) - len(todo)} of {len(found.paths)} files are in {options.output} already.")
    if model.trained_labels is not None:
        trained = ", ".join(model.trained_labels)
        say(f"these labels were not trained: {', '.join(model.labels)}. Trained were {trained}.")
    failures, notes = found.failures, Counter()
    try:
        if options.window is None:
            predict_files(model, todo, output, embeddings, options, failures, notes)
        else:
            predict_segments(model, todo, output, annotations, is_speech, options, failures, notes)
        if embeddings is not None:
            embeddings.finish(output.paths)
        output.finish()
    except KeyboardInterrupt:
        stop(130, interrupted(output))
    except BrokenPipeError:
        leave_pipe()
    except OSError as error:
        if not is_disk_full(error):
            raise
        stop(2, "the disk is full. Free some space, then the same again.")
    report(model, options, failures, notes)
    if failures:
        sys.exit(1)


def read_options(argv: list[str]) -> argparse.Namespace:
    """What was typed; what does not go together ends here."""
    parser = argparse.ArgumentParser(
        prog="lascl-predict",
        description="Labels recordings with a trained LaSCL checkpoint.",
        epilog="Exit codes: 0 all done, 1 files could not be answered, 2 the command cannot be carried out at all, 130 "
        "interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint: a folder, or a name on the Hub")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="files, folders, quoted patterns, a CSV with a column `path`, or - for a list of paths on stdin",
    )
    parser.add_argument("--revision", help="of a Hub name: branch, tag or commit")
    parser.add_argument("--format", choices=FORMATS, help="default: csv, or jsonl if --output ends so")
    parser.add_argument("--output", type=Path, help="a file, continued if it is there (default: standard output)")
    parser.add_argument("--embeddings", type=Path, metavar="OUT.npz", help="audio embeddings too, a row a file")
    parser.add_argument("--abstain", type=share, default=0.0, metavar="P", help="no label where no probability is P")
    parser.add_argument("--labels", metavar='"A, B"', help="other words than the trained ones")
    parser.add_argument("--template", metavar='"a {label} voice"', help="what is read for a label of --labels")
    parser.add_argument("--window", type=above_0, metavar="S", help="when, not only what: windows of S seconds")
    parser.add_argument("--hop", type=above_0, metavar="S", help="between their starts (default: 1, or the window)")
    parser.add_argument("--vad", action="store_true", help='leave out windows without speech; needs "lascl[vad]"')
    parser.add_argument("--textgrid", type=Path, metavar="DIR", help="segments for Praat too, a file a recording")
    parser.add_argument("--srt", type=Path, metavar="DIR", help="as subtitles")
    parser.add_argument("--audacity", type=Path, metavar="DIR", help="as label tracks for Audacity")
    parser.add_argument("--batch_size", type=at_least_1, metavar="N", help="at once (default: by length)")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--num_workers", type=at_least_1, default=2, metavar="N", help="threads that read (default: 2)")
    options = parser.parse_intermixed_args(argv)
    if options.template is not None and options.labels is None:
        parser.error("--template needs --labels.")
    if options.window is None:
        for name in ("hop", "vad", *SUFFIXES):
            if getattr(options, name):
                parser.error(f"--{name} needs --window.")
    else:
        if options.embeddings is not None:
            parser.error("--embeddings has a row a file: leave out --window.")
        options.hop = options.hop or min(1.0, options.window)
    if options.format is None:
        options.format = "jsonl" if options.output and options.output.suffix == ".jsonl" else "csv"
    if options.format == "table" and options.output is not None:
        parser.error("--format table is for reading on the screen; for --output take csv or jsonl.")
    return options


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


def load_model(options: argparse.Namespace) -> Recogniser:
    """The checkpoint with the labels that were asked for, able to hear the windows."""
    labels = None
    if options.labels is not None:
        labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    model = Recogniser.load(
        options.model,
        revision=options.revision,
        labels=labels,
        label_template=options.template,
        device=options.device,
    )
    if options.window is not None:
        check_window(model, options.window, options.hop)
    return model


def open_output(model: Recogniser, paths: list[str], options: argparse.Namespace) -> RowFile:
    """The rows that are there, and where more go."""
    width = min(PATH_WIDTH, max(len(one_line(path)) for path in paths))
    row_format = RowFormat(options.format, model.labels, options.window is not None, model.trained_labels, width)
    decisive = ("model", "revision", "template", "window", "hop", "vad", "abstain")
    begun = {name: getattr(options, name) for name in decisive}
    return RowFile(options.output, row_format, {**begun, "labels": model.labels})


def plan_annotations(options: argparse.Namespace, paths: list[str], done: set[str]) -> dict[str, dict[str, Path]]:
    """For each path, the files of annotations by kind.

    Raises:
        ValueError: a recording is done already, but has no such file.
    """
    folders = {kind: folder for kind in SUFFIXES if (folder := getattr(options, kind)) is not None}
    names = annotation_names(paths) if folders else {}
    planned = {
        path: {kind: Path(folder, f"{names[path]}{SUFFIXES[kind]}") for kind, folder in folders.items()}
        for path in paths
    }
    for path in paths:
        for kind, file in planned[path].items():
            if os.path.abspath(path) in done and not file.is_file():
                raise ValueError(
                    f"{options.output} has {one_line(path)} already, but {one_line(str(file))} is missing. Choose "
                    f"another --output to have it made, or leave --{kind} out."
                )
    return planned


def predict_files(model, paths, output, embeddings, options, failures, notes):
    """One row a file. Fills `failures`, and counts in `notes` what is to be said at the end."""
    answers = answer_files(model, paths, batch_size=options.batch_size, num_workers=options.num_workers)
    with closing(answers), tqdm(total=len(paths), unit="file", disable=None) as progress:
        for answer in answers:
            progress.update()
            if answer.failure:
                failures[answer.path] = answer.failure
                continue
            is_sure = answer.probabilities.max() >= options.abstain
            label = model.labels[int(answer.probabilities.argmax())] if is_sure else ""
            if embeddings is not None:
                embeddings.add(answer.audio_embeds)
            output.write(answer.path, output.format.row(answer.path, label, answer.probabilities))
            notes["rows"] += 1
            notes["without label"] += not is_sure
            if answer.num_windows > 1:
                notes["long"] += 1
                notes["windows"] += answer.num_windows


def predict_segments(model, paths, output, annotations, is_speech, options, failures, notes):
    """One row a segment, written when its whole recording is heard: one that is damaged at its end leaves none."""
    with tqdm(total=total_s(paths), unit="s", unit_scale=True, disable=None) as progress:
        for path in paths:
            before, heard = Counter(notes), Counter()
            windows = stream(
                model,
                heard_blocks(path, model, heard, progress),
                window_s=options.window,
                hop_s=options.hop,
                batch_size=windows_at_once(model, options.window, options.batch_size),
                is_speech=is_speech,
            )
            told = []  # for the annotations
            with tempfile.SpooledTemporaryFile(max_size=2**20) as rows:
                try:
                    for segment in segments(windows, model.labels, abstain_below=options.abstain):
                        times = (segment.start_s, segment.end_s)
                        rows.write(output.format.row(path, segment.label, segment.probabilities, times))
                        notes["rows"] += 1
                        notes["without label"] += not segment.label
                        if annotations[path]:
                            told.append(segment)
                except (ValueError, FileNotFoundError) as error:
                    failures[path] = str(error) if str(error).startswith(path) else f"{path}: {error}"
                    notes.clear()
                    notes.update(before)
                    continue
                for kind, file in annotations[path].items():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_text(file, annotation(kind, told, heard["samples"] / model.sampling_rate))
                notes["silent"] += rows.tell() == 0
                rows.seek(0)
                while part := rows.read(2**20):
                    output.write(path, part)


def heard_blocks(path: str, model: Recogniser, heard: Counter, progress: tqdm) -> Iterator[np.ndarray]:
    """The blocks of a recording, read beside the computing and counted in `heard`."""
    for block in read_beside(read_blocks(path, sampling_rate=model.sampling_rate)):
        heard["samples"] += len(block)
        progress.update(len(block) / model.sampling_rate)
        yield block


def total_s(paths: list[str]) -> int | None:
    """Seconds of audio by the files' headers, to tell the time left; `None` if ffmpeg alone could know."""
    if any(Path(path).suffix.lower() in FFMPEG_SUFFIXES for path in paths):
        return None
    total = 0.0
    for path in paths:
        with suppress(ValueError, FileNotFoundError):  # it is told when its turn comes
            total += audio_duration_s(path)
    return round(total)


def report(model: Recogniser, options: argparse.Namespace, failures: dict[str, str], notes: Counter):
    """Says what the rows do not, and at the end which files have none, and why."""
    if notes["long"]:
        say(
            f"{notes['long']} files are longer than {model.heard_at_once_s:g} s: heard in {notes['windows']} windows "
            f"of {model.window_s:g} s, whose probabilities are averaged. --window tells what is where."
        )
    if notes["without label"]:
        say(f"{notes['without label']} of {notes['rows']} rows have no label: no probability is {options.abstain:g}.")
    if notes["silent"]:
        say(f"{notes['silent']} files have no rows: no window of theirs holds speech.")
    if failures:
        say(f"no answer for {len(failures)}:")
        for reason in failures.values():
            print(f"  {one_line(reason)}", file=sys.stderr)


def interrupted(output: RowFile) -> str:
    """What is kept, and how to go on."""
    if output.path is None:
        return "interrupted. With --output FILE the same command would go on where it stopped."
    return f"interrupted: {len(set(output.paths))} files are in {output.path}. The same command goes on from there."


def leave_pipe():
    """Ends because who reads the rows has seen enough, as `| head` does; unsaid, also by the interpreter at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def say(text: str):
    """Tells something on stderr; stdout has rows alone."""
    print(f"lascl-predict: {one_line(text)}", file=sys.stderr)


def stop(code: int, text: str):
    """Says why, on one line, and ends."""
    say(" ".join(text.split("\n")))
    sys.exit(code)


if __name__ == "__main__":
    main()
