"""What `lascl-predict` does with what was typed: rows of a checkpoint's answers, continued after a kill.

Rows come in the order of the inputs, one a file, or with `--window` one a segment. Files are sorted by length within
groups of some minutes of audio, and a group's rows are written together as soon as it is answered: memory stays
bounded, and a kill loses no more than a group.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers.utils import logging

from lascl.data.audio import FFMPEG_SUFFIXES, audio_duration_s, read_blocks
from lascl.data.segments import Segment, path_of
from lascl.inference.checkpoints import fingerprint
from lascl.inference.files import GROUP_FILES, Answer, predict_files, read_beside, why_not, windows_at_once
from lascl.inference.finding import Found, same
from lascl.inference.outputs import (
    PATH_WIDTH,
    SUFFIXES,
    EmbeddingFile,
    RowFile,
    RowFormat,
    annotation,
    annotation_names,
    one_line,
    sole_writer,
    whole_file,
)
from lascl.inference.own_statistics import (
    PooledRecordings,
    as_record,
    check_own_statistics,
    from_record,
    of_another_kind,
    what_is_rough,
)
from lascl.inference.recogniser import Recogniser
from lascl.inference.voice import speech_detector
from lascl.inference.windows import check_window, segments, stream


def label_recordings(options: argparse.Namespace, found: Found):
    """Answers all inputs, writes the rows, and says on stderr what else there is to know.

    Exits as `lascl.predict.main` says.

    Args:
        options: from `lascl.predict.read_options`.
        found: the recordings.
    """
    logging.disable_progress_bar()
    with ExitStack() as held:
        try:
            for file in (options.output, options.embeddings):
                held.enter_context(sole_writer(file))
            answered_by = identity(options, found)
            model = load_model(options)
            answered_by |= settled(model)
            is_speech = speech_detector(model.sampling_rate) if options.vad else None
            output, embeddings = open_outputs(model, found, options, answered_by)
            done = {same(path) for path in output.paths}
            todo = [path for path in found.paths if same(path) not in done]
            annotations = plan_annotations(options, found.paths, done, is_new=not output.paths)
            newer = newer_than(output, [path for path in found.paths if same(path) in done])
            pooled = hear_first(model, found, output, options, held)
            if embeddings is not None:
                embeddings.begin()
            output.begin()
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            stop(2, str(error))
        except KeyboardInterrupt:
            stop(130, "interrupted before anything was done.")
        if done:
            what = "segments" if found.has_segments else "files"
            say(f"{len(found.paths) - len(todo)} of {len(found.paths)} {what} are in {options.output} already.")
        if newer:
            say(
                f"{len(newer)} of them have changed since, {newer[0]} for one: their rows are of what they held "
                "before. --overwrite answers all again."
            )
        if output.format.untrained_labels:
            say(output.format.note()[0].lower() + output.format.note()[1:])
        failures, notes = found.failures, Counter()
        try:
            if options.window is None:
                answers = answers_to(model, todo, found, pooled, output, options)
                write_answers(answers, len(todo), output, embeddings, options, failures, notes)
            else:
                write_segments(model, todo, output, annotations, is_speech, options, failures, notes)
            if embeddings is not None:
                embeddings.finish()
            output.finish()
        except KeyboardInterrupt:
            stop(130, interrupted(output))
        except BrokenPipeError:
            raise
        except OSError as error:
            if is_disk_full(error):
                stop(2, "the disk is full. Free some space, then the same again.")
            where = output.path or "the standard output"
            stop(2, f"{where} cannot be written ({error.strerror or error}). The same command goes on from there.")
        report(model, options, failures, notes, found.has_segments)
        if failures:
            sys.exit(1)


def identity(options: argparse.Namespace, found: Found) -> dict:
    """What decides the rows and is known before anything is loaded, by name: for the record beside them."""
    embeddings = options.embeddings
    if embeddings is not None and options.output is not None:  # so that both may move together
        embeddings = os.path.relpath(os.path.realpath(embeddings), os.path.dirname(os.path.realpath(options.output)))
    known = {
        **{name: getattr(options, name) for name in ("window", "hop", "vad", "abstain", "dtype", "format")},
        "embeddings": None if embeddings is None else str(embeddings),
    }
    if options.standardise == "recordings":  # then each answer depends on all recordings
        known |= {
            "standardise": "recordings",
            "standardise_by": options.standardise_by,
            "inputs": inputs_in_short(found),
        }
    if os.path.isdir(options.model):
        return {**fingerprint(options.model, with_text_encoder=options.labels is not None), **known}
    return known


def inputs_in_short(found: Found) -> str:
    """How many recordings there are, and a hash of which, each with its value of the column, in whatever order."""
    total = blake2b(digest_size=8)
    for path in sorted(found.paths, key=_real_name):
        total.update(os.fsencode(_real_name(path)) + b"\0" + os.fsencode(found.values.get(path, "")) + b"\0")
    return f"{len(found.paths)} files, {total.hexdigest()}"


def _real_name(source: str | Segment) -> str:
    path = os.path.realpath(path_of(source))
    return "\t".join([path, *same(source)[1:]]) if isinstance(source, Segment) else path


def settled(model: Recogniser) -> dict:
    """What decides the rows and is known of a loaded checkpoint."""
    config = model.model.config
    commit = getattr(config, "_commit_hash", None)  # of the Hub
    return {
        **({} if commit is None else {"weights": f"commit {commit}"}),
        "head": config.prediction_head,
        "labels": model.labels,
        "template": config.label_template,
    }


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
        dtype=options.dtype,
    )
    if options.window is not None:
        check_window(model, options.window, options.hop)
    return model


def open_outputs(
    model: Recogniser, found: Found, options: argparse.Namespace, answered_by: dict
) -> tuple[RowFile, EmbeddingFile | None]:
    """The rows that are there, and where more go."""
    width = min(PATH_WIDTH, max(len(one_line(path_of(path))) for path in found.paths))
    row_format = RowFormat(
        options.format,
        model.labels,
        options.window is not None,
        model.trained_labels or model.labels,
        model.untrained_labels,
        width,
        of_segments=found.has_segments,
    )
    output = RowFile(options.output, row_format, answered_by, overwrite=options.overwrite)
    if options.embeddings is None:
        return output, None
    return output, EmbeddingFile(options.embeddings, model.model.config.projection_dim, output)


def newer_than(output: RowFile, done: list[str | Segment]) -> list[str]:
    """Of the files that have rows, those that changed after the last row was written. What changed between the rows of
    several runs is not known."""
    if not done:
        return []
    written = output.path.stat().st_mtime
    files = dict.fromkeys(map(path_of, done))
    return [path for path in files if os.path.isfile(path) and os.stat(path).st_mtime > written]


def plan_annotations(
    options: argparse.Namespace, paths: list[str], done: set[str], *, is_new: bool
) -> dict[str, dict[str, Path]]:
    """For each path, the files of annotations by kind.

    Raises:
        ValueError: a recording is done already, but has no such file; or rows are begun, and there is one.
    """
    folders = {kind: folder for kind in SUFFIXES if (folder := getattr(options, kind)) is not None}
    names = annotation_names(paths) if folders else {}
    planned = {
        path: {kind: Path(folder, f"{names[path]}{SUFFIXES[kind]}") for kind, folder in folders.items()}
        for path in paths
    }
    for path in paths:
        for kind, file in planned[path].items():
            if is_new and not options.overwrite and os.path.exists(file):
                raise ValueError(
                    f"{one_line(str(file))} exists, and is of another run, or corrected by hand. Choose another folder "
                    f"for --{kind}, or replace it with --overwrite."
                )
            if os.path.abspath(path) in done and not os.path.isfile(file):
                raise ValueError(
                    f"{options.output} has {one_line(path)} already, but {one_line(str(file))} is missing. Choose "
                    f"another --output to have it made, or leave --{kind} out."
                )
    return planned


def hear_first(
    model: Recogniser, found: Found, output: RowFile, options: argparse.Namespace, held: ExitStack
) -> PooledRecordings | None:
    """Where recordings are standardised by their own statistics, hears all and takes these, which go into the record of
    the rows; `None` where not, or where an earlier start has taken them.

    Raises:
        ValueError: too few recordings, or a model that does not standardise.
    """
    if options.standardise == "training":
        return None
    pooled = held.enter_context(closing(PooledRecordings(model, options.output and options.output.parent)))
    if output.statistics is not None:
        return None
    check_own_statistics(model, len(found.paths))
    heard = pooled.hear(found.paths, batch_size=options.batch_size, num_workers=options.num_workers)
    with closing(heard), tqdm(total=len(found.paths), desc="Hearing", unit="file", disable=None) as progress:
        for _ in heard:
            progress.update()
    groups = groups_of(found, found.paths, options)
    statistics = pooled.statistics(groups)
    output.statistics = as_record(statistics)
    for text in what_is_rough(statistics, groups):
        say(text)
    return pooled


def groups_of(found: Found, paths: list[str], options: argparse.Namespace) -> list[str] | None:
    """The value of the column that recordings are standardised by, of each path; `None` without one."""
    return None if options.standardise_by is None else [found.values[path] for path in paths]


def answers_to(
    model: Recogniser,
    paths: list[str],
    found: Found,
    pooled: PooledRecordings | None,
    output: RowFile,
    options: argparse.Namespace,
) -> Iterator[Answer]:
    """An answer a file, in order: from what was heard already, or heard now."""
    how = {"batch_size": options.batch_size, "num_workers": options.num_workers}
    if options.standardise == "training":
        yield from predict_files(model, paths, **how)
        return
    statistics = from_record(output.statistics)
    if pooled is not None:
        yield from pooled.answers(statistics, groups_of(found, paths, options))
        return
    for start in range(0, len(paths), GROUP_FILES):
        some = paths[start : start + GROUP_FILES]
        with closing(PooledRecordings(model, options.output.parent)) as part:
            for _ in part.hear(some, **how):
                pass
            yield from part.answers(statistics, groups_of(found, some, options))


def write_answers(answers, count, output, embeddings, options, failures, notes):
    """One row a file. Fills `failures`, and counts in `notes` what is to be said at the end."""
    with closing(answers), tqdm(total=count, unit="file", disable=None) as progress:
        for answer in answers:
            progress.update()
            if answer.failure:
                failures[str(answer.source)] = answer.failure
                continue
            is_sure = answer.probabilities.max() >= options.abstain
            try:
                row = output.format.row(answer.source, answer.label if is_sure else "", answer.probabilities)
            except Exception as error:
                failures[str(answer.source)] = why_not(answer.source, error)
                continue
            if embeddings is not None:
                embeddings.add(answer.audio_embeds)
            output.write(answer.source, row)
            notes["rows"] += 1
            notes["without label"] += not is_sure
            if answer.num_windows > 1:
                notes["long"] += 1
                notes["windows"] += answer.num_windows


def write_segments(model, paths, output, annotations, is_speech, options, failures, notes):
    """One row a segment, written when its whole recording is heard: one that is damaged at its end leaves none."""
    with tqdm(total=total_s(paths), unit="s", unit_scale=True, disable=None) as progress:
        for path in paths:
            counted = Counter()
            with tempfile.SpooledTemporaryFile(max_size=2**20) as rows:
                try:
                    segment_rows(model, path, rows, output, annotations[path], is_speech, options, counted, progress)
                except Exception as error:
                    if isinstance(error, OSError) and is_disk_full(error):
                        raise
                    failures[path] = why_not(path, error)
                    continue
                notes.update(counted)
                notes["silent"] += rows.tell() == 0
                rows.seek(0)
                while part := rows.read(2**20):
                    output.write(path, part)


def segment_rows(model, path, rows, output, annotations, is_speech, options, counted, progress):
    """The rows of a recording into the file `rows`, counted, and its annotations."""
    heard = Counter()
    windows = stream(
        model,
        heard_blocks(path, model, heard, progress),
        window_s=options.window,
        hop_s=options.hop,
        batch_size=windows_at_once(model, options.window, options.batch_size),
        is_speech=is_speech,
    )
    told = []  # for the annotations
    for segment in segments(windows, model.labels, abstain_below=options.abstain):
        times = (segment.start_s, segment.end_s)
        rows.write(output.format.row(path, segment.label, segment.probabilities, times))
        counted["rows"] += 1
        counted["without label"] += not segment.label
        if annotations:
            told.append(segment)
    duration_s = heard["samples"] / model.sampling_rate
    write_annotations(path, {file: annotation(kind, told, duration_s) for kind, file in annotations.items()})


def write_annotations(path: str, contents: dict[Path, str]):
    """All annotations of a recording, or none.

    Raises:
        ValueError: one of them cannot be written.
        OSError: the disk is full.
    """
    written = []
    try:
        for file, content in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as opened:
                opened.write(content.encode(errors="backslashreplace"))
            written.append(file)
    except Exception as error:
        for other in written:
            other.unlink(missing_ok=True)
        if isinstance(error, OSError) and not is_disk_full(error):
            reason = error.strerror or error
            raise ValueError(f"{path}: its annotations {file} cannot be written ({reason}).") from error
        raise


def is_disk_full(error: OSError) -> bool:
    """Whether a file could not be written for want of space, quota or allowed size."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        with suppress(Exception):  # it is told when its turn comes
            total += audio_duration_s(path)
    return round(total)


def report(model: Recogniser, options: argparse.Namespace, failures: dict[str, str], notes: Counter, of_segments: bool):
    """Says what the rows do not, and at the end which files have none, and why."""
    what = "segments" if of_segments else "files"
    if notes["long"]:
        say(
            f"{notes['long']} {what} are longer than {model.heard_at_once_s:g} s: heard in {notes['windows']} windows "
            f"of {model.window_s:g} s, whose probabilities are averaged."
            f"{'' if of_segments else ' --window tells what is where.'}"
        )
    if notes["without label"]:
        say(f"{notes['without label']} of {notes['rows']} rows have no label: no probability is {options.abstain:g}.")
    if options.standardise == "training" and options.window is None and (text := of_another_kind(model, notes["rows"])):
        say(text)
    if notes["silent"]:
        say(f"{notes['silent']} files have no rows: no window of theirs holds speech.")
    if failures:
        say(f"no answer for {len(failures)}:")
        for reason in dict.fromkeys(failures.values()):  # what is wrong with a file is so with all its segments
            print(f"  {one_line(reason)}", file=sys.stderr)


def interrupted(output: RowFile) -> str:
    """What is kept, and how to go on."""
    if output.path is None:
        return "interrupted. With --output FILE the same command would go on where it stopped."
    what = "segments" if output.format.of_segments else "files"
    return f"interrupted: {len(set(output.paths))} {what} are in {output.path}. The same command goes on from there."


def say(text: str):
    """Tells something on stderr; stdout has rows alone."""
    print(f"lascl-predict: {one_line(text)}", file=sys.stderr)


def stop(code: int, text: str):
    """Says why, on one line, and ends."""
    say(" ".join(text.split("\n")))
    sys.exit(code)
