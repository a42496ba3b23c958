"""A recording as a page shows it: the waveform coloured by label, and the same as a table.

Letters: C columns of the waveform, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

from lascl.inference import Window


# Those of LaSCL's figures, for the same label the same colour; instead of black what the page writes in.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "currentColor", "#7F7F7F")
NUM_COLUMNS = 200
SILENCE = 0.02  # height of a column without sound, of 1: the line goes on
NICE_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
MAX_TICKS = 6


def peaks(samples: np.ndarray, num_columns: int = NUM_COLUMNS) -> np.ndarray:
    """(samples,) -> (C,): the highest absolute value in each of C equal stretches, the loudest 1; silence is 0."""
    bounds = np.linspace(0, len(samples), num_columns + 1).astype(int)
    heights = np.array([np.abs(samples[start:end]).max(initial=0) for start, end in pairwise(bounds)])
    return heights / (heights.max() or 1)


def colour(label: str, labels: Sequence[str]) -> str:
    return COLOURS[list(labels).index(label) % len(COLOURS)]


def clock(seconds: float) -> str:
    """Minutes, seconds and tenths: 0:03.5."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 // 10:02}.{tenths % 10}"


def figure(segments: Sequence[Window], labels: Sequence[str], heights: np.ndarray, duration_s: float) -> str:
    """HTML of the waveform with S segments in their labels' colours, the time below, and each label's share of it.

    Everything is placed in per cent, so that it fits a phone as it fits a desk; what is written keeps its size.
    """
    names, bands = [], []
    for segment in segments:
        place = _place(segment.start_s, segment.end_s, duration_s)
        style = f'style="{place};--label:{colour(segment.label, labels)}"'
        names.append(f"<span {style}><span>{escape(segment.label)}</span></span>")
        bands.append(f"<span {style}></span>")
    ticks = "".join(
        f'<span style="left:{100 * moment / duration_s:.2f}%">{_short_clock(moment)}</span>'
        for moment in _ticks(duration_s)
    )
    return (
        '<figure class="timeline"><div class="wave" role="img" aria-label="Waveform, coloured by label. The table '
        'of segments says the same in words.">'
        f'<div class="names">{"".join(names)}</div><div class="bands">{"".join(bands)}'
        f'<svg viewBox="0 0 {len(heights)} 2" preserveAspectRatio="none" focusable="false">'
        f"{_waveform(segments, labels, heights, duration_s)}</svg></div>"
        f'<div class="ticks">{ticks}</div></div>'
        f"<figcaption>{_shares(segments, labels)}</figcaption></figure>"
    )


def table(segments: Sequence[Window], labels: Sequence[str]) -> str:
    """HTML table of S segments: start, end, label, probability."""
    rows = "".join(
        f"<tr><td>{clock(segment.start_s)}</td><td>{clock(segment.end_s)}</td>"
        f'<th scope="row">{_swatch(segment.label, labels)}{escape(segment.label)}</th>'
        f"<td>{segment.probabilities.max():.0%}</td></tr>"
        for segment in segments
    )
    # A long table scrolls within itself, by keys too.
    return (
        '<div class="segments" role="region" aria-label="Table of segments" tabindex="0"><table>'
        f"<caption>Segments ({len(segments)})</caption>"
        '<thead><tr><th scope="col">Start</th><th scope="col">End</th><th scope="col">Label</th>'
        f'<th scope="col">Probability</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _place(start_s: float, end_s: float, duration_s: float) -> str:
    return f"left:{100 * start_s / duration_s:.3f}%;width:{100 * (end_s - start_s) / duration_s:.3f}%"


def _waveform(segments, labels, heights: np.ndarray, duration_s: float) -> str:
    """One SVG path a segment: a bar for each column whose middle it covers."""
    middles = (np.arange(len(heights)) + 0.5) * duration_s / len(heights)
    paths = []
    for segment in segments:
        columns = np.flatnonzero((segment.start_s <= middles) & (middles < segment.end_s))
        half = np.maximum(heights[columns], SILENCE) * 0.94
        bars = "".join(
            f"M{column + 0.18:g} {1 - height:.3f}h.64v{2 * height:.3f}h-.64z" for column, height in zip(columns, half)
        )
        paths.append(f'<path fill="{colour(segment.label, labels)}" d="{bars}"/>')
    return "".join(paths)


def _shares(segments: Sequence[Window], labels: Sequence[str]) -> str:
    """A list of the labels that were heard and their share of the time, longest first."""
    seconds = {label: sum(s.end_s - s.start_s for s in segments if s.label == label) for label in labels}
    total = sum(seconds.values())
    items = "".join(
        f"<li>{_swatch(label, labels)}{escape(label)} {seconds[label] / total:.0%}</li>"
        for label in sorted(seconds, key=seconds.get, reverse=True)
        if seconds[label]
    )
    return f'<ul aria-label="Share of the time">{items}</ul>'


def _swatch(label: str, labels: Sequence[str]) -> str:
    return f'<span class="swatch" style="--label:{colour(label, labels)}"></span>'


def _ticks(duration_s: float) -> list[float]:
    """Round moments, few enough to be read on a phone."""
    step = next((step for step in NICE_STEPS_S if duration_s / step <= MAX_TICKS), NICE_STEPS_S[-1])
    return [index * step for index in range(int(duration_s / step) + 1)]


def _short_clock(seconds: float) -> str:
    return clock(seconds) if seconds % 1 else clock(seconds).removesuffix(".0")
