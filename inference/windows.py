"""When the mood turns: overlapping windows over a recording of any length, averaged and merged into segments.

Letters: K labels, W windows that are answered at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lascl.data.audio import read_blocks


if TYPE_CHECKING:
    from lascl.inference.recogniser import Recogniser


@dataclass
class Window:
    """What was heard between two moments of a recording.

    Args:
        start_s, end_s: since the recording began, in seconds.
        label: the most probable.
        probabilities: (K,), in the order of `Recogniser.labels`.
    """

    start_s: float
    end_s: float
    label: str
    probabilities: np.ndarray


def stream(
    model: Recogniser | str | Path,
    audio: str | Path | np.ndarray | Iterable[np.ndarray],
    *,
    window_s: float = 3.0,
    hop_s: float = 1.0,
    batch_size: int = 1,
    is_speech: Callable[[np.ndarray], bool] | None = None,
) -> Iterator[Window]:
    """Yields windows of a recording as soon as they are heard and answered; memory does not grow with its length.

    Windows start every `hop_s`; the last one ends with the recording and is as long as the others. A recording that is
    shorter than a window is one window.

    Args:
        model: a `Recogniser`, or what `Recogniser.load` takes.
        audio: a file; or mono float32 samples at the model's `sampling_rate`, as an array (samples,) or as an iterable
            of arrays, such as a microphone's blocks of any length.
        window_s: length of a window in seconds, at least one frame of the encoder and at most what it hears at once.
        hop_s: from the start of one window to the next, in seconds, above 0 and at most `window_s`.
        batch_size: W. Above 1 is faster, and windows come W at a time.
        is_speech: of the samples of a window, whether to answer it; others are left out.

    Raises:
        ValueError: a window or hop out of range; samples that are no mono floats, NaN, infinite or far too large, or
            less than a frame of the encoder; or as `read_blocks`.
        FileNotFoundError: no such file.
    """
    model = loaded(model)
    check_window(model, window_s, hop_s)
    if isinstance(audio, str | Path):
        audio = read_blocks(audio, sampling_rate=model.sampling_rate)
    elif isinstance(audio, np.ndarray):
        audio = [audio]
    rate = model.sampling_rate
    cut = cut_windows(map(_checked, audio), round(window_s * rate), round(hop_s * rate))
    wanted = ((start, samples) for start, samples in cut if is_speech is None or is_speech(samples))
    while batch := list(itertools.islice(wanted, batch_size)):
        probabilities, _ = model([samples for _, samples in batch])  # (W, K)
        if not np.isfinite(probabilities).all():
            raise ValueError("Audio gives no finite probabilities: its samples are far too large.")
        for (start, samples), row in zip(batch, probabilities):
            label = model.labels[int(row.argmax())]
            yield Window(start / rate, (start + len(samples)) / rate, label, row)


def loaded(model: Recogniser | str | Path, **options) -> Recogniser:
    """A recogniser as it is, or one from a folder or Hub name, for which there may be options of `Recogniser.load`."""
    if not isinstance(model, str | Path):
        return model
    from lascl.inference.recogniser import Recogniser  # here, for this module needs no PyTorch, which takes seconds

    return Recogniser.load(model, **options)


def check_window(model: Recogniser, window_s: float, hop_s: float):
    """Raises ValueError unless a model can hear such windows, and they leave nothing out."""
    if not model.min_duration_s <= window_s <= model.max_duration_s:
        limit = "" if model.max_duration_s == float("inf") else f" and at most the {model.max_duration_s:g} s it hears"
        raise ValueError(
            f"The window must be at least one frame of the encoder, {model.min_duration_s:g} s,{limit}; found "
            f"{window_s:g} s."
        )
    if not 0 < hop_s <= window_s:
        raise ValueError(
            f"The hop must be above 0 s and at most the window, {window_s:g} s, or audio would be left out; found "
            f"{hop_s:g} s."
        )
    if round(hop_s * model.sampling_rate) < 1:
        raise ValueError(f"The hop must be at least one sample; found {hop_s:g} s.")


def _checked(block: np.ndarray) -> np.ndarray:
    block = np.asarray(block)
    if block.ndim != 1 or not np.issubdtype(block.dtype, np.floating):
        raise ValueError(f"Audio must be mono, (samples,), of floats; found {block.shape}, {block.dtype}.")
    if not np.isfinite(block).all():
        raise ValueError("Audio holds NaN or infinite samples.")
    return block.astype(np.float32, copy=False)


def cut_windows(blocks: Iterable[np.ndarray], size: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """First sample and samples of each window. Of what was heard, no more than a window and a block are kept."""
    heard, begins = np.zeros(0, np.float32), 0  # the first sample of `heard`
    start = 0  # of the next window
    for block in blocks:
        heard = np.concatenate([heard, block])
        while start + size <= begins + len(heard):
            yield start, heard[start - begins :][:size]
            start += hop
        # The last window may have to reach back by a whole window from the end.
        keep_from = max(begins, min(start, begins + len(heard) - size))
        heard, begins = heard[keep_from - begins :], keep_from
    end = begins + len(heard)
    is_covered = start > 0 and start - hop + size == end
    if end and not is_covered:
        start = max(0, end - size)
        yield start, heard[start - begins :]


def segments(windows: Iterable[Window], labels: list[str], *, abstain_below: float = 0.0) -> Iterator[Window]:
    """Merges windows, in the order of their starts, into segments that touch but do not overlap.

    At every moment the probabilities are the mean of the windows that cover it. Neighbours of the same label become
    one, with the mean over its time as probabilities. Where no window was, no segment is.

    Args:
        windows: from `stream`.
        labels: the K labels.
        abstain_below: where the highest probability is lower, the label is empty.
    """
    current = None
    for start_s, end_s, probabilities in _moments(windows):
        label = labels[int(probabilities.argmax())] if probabilities.max() >= abstain_below else ""
        if current is not None and (current.label, current.end_s) == (label, start_s):
            before_s, now_s = current.end_s - current.start_s, end_s - start_s
            current.probabilities = (before_s * current.probabilities + now_s * probabilities) / (before_s + now_s)
            current.end_s = end_s
            continue
        if current is not None:
            yield current
        current = Window(start_s, end_s, label, probabilities)
    if current is not None:
        yield current


def _moments(windows: Iterable[Window]) -> Iterator[tuple[float, float, np.ndarray]]:
    """Start, end and mean probabilities of every stretch between two bounds of windows that some window covers."""
    active, reached_s = [], 0.0  # windows that may cover more; everything before `reached_s` is told
    for window in itertools.chain(windows, [None]):
        until_s = float("inf") if window is None else window.start_s
        while active and reached_s < until_s:
            end_s = min(until_s, *(other.end_s for other in active))
            if end_s > reached_s:
                yield reached_s, end_s, np.mean([other.probabilities for other in active], axis=0)
            reached_s = end_s
            active = [other for other in active if other.end_s > reached_s]
        reached_s = max(reached_s, until_s)
        if window is not None:
            active.append(window)
