"""Intervals that respect speakers: utterances of one speaker rise and fall together, so speakers are what is resampled.

A bootstrap over utterances takes the utterances of one voice for independent trials. In the simulated corpora of
`tests/test_intervals.py` its 95 % interval holds the true UA in 32 of 100 corpora, these in 94.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from lascl.evaluation.metrics import SCORES, scores_from_counts


CONFIDENCE = 0.95
ROUNDING = 1e-12  # a difference or standard error below this is 0


def speaker_counts(
    predictions: Sequence[str], references: Sequence[str], speakers: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """One confusion matrix a speaker: all that WA, UA and macro-F1 of any sample of speakers depend on.

    Args:
        predictions, references, speakers: (n,).
        labels: all K classes.

    Returns:
        (S, K, K) counts, speakers sorted, references in rows and predictions in columns.

    Raises:
        ValueError: a prediction or reference that is not in `labels`.
    """
    index = {label: k for k, label in enumerate(labels)}
    unknown = sorted((set(predictions) | set(references)) - index.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of the labels {list(labels)}.")
    names, speaker = np.unique(np.asarray(speakers), return_inverse=True)
    counts = np.zeros((len(names), len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (speaker, [index[label] for label in references], [index[label] for label in predictions]), 1)
    return counts


def speaker_standard_error(
    counts: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    num_resamples: int = 2000,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """The standard error of a statistic of summed counts, by the bootstrap over speakers.

    A resample draws S of the S speakers with replacement, all utterances of each. The standard deviation of the
    statistic over resamples is too small by sqrt((S - 1) / S) (Efron & Tibshirani 1993, "An Introduction to the
    Bootstrap", ch. 5: the bootstrap's variance of a mean divides by S where the unbiased one divides by S - 1), so it
    is widened by sqrt(S / (S - 1)). In a resample that lacks a class, UA and macro-F1 are means over those it has.

    Args:
        counts: (S, ...), one array a speaker, S >= 2.
        statistic: maps sums over speakers, (R, ...), to values (R, M).
        num_resamples: R; the standard error's own relative error is about 1 / sqrt(2 R), 1.6 % at 2000.
        generator: of the resamples; by default one with a fixed seed, so that equal counts give equal numbers.

    Returns:
        (M,)

    Raises:
        ValueError: fewer than two speakers: one says nothing about how speakers differ.
    """
    num_speakers = len(counts)
    if num_speakers < 2:
        raise ValueError(f"A standard error over speakers needs at least two of them; found {num_speakers}.")
    generator = np.random.default_rng(0) if generator is None else generator
    # How often each speaker is drawn; float64 holds these counts exactly, and multiplies far faster than integers.
    times = generator.multinomial(num_speakers, np.full(num_speakers, 1 / num_speakers), size=num_resamples)
    resampled = statistic(np.tensordot(times.astype(np.float64), counts.astype(np.float64), axes=1))
    return resampled.std(axis=0, ddof=1) * np.sqrt(num_speakers / (num_speakers - 1))


def speaker_interval(
    counts: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = scores_from_counts,
    *,
    num_resamples: int = 2000,
    generator: np.random.Generator | None = None,
) -> np.ndarray | None:
    """95 % intervals for scores of speakers like these: score +- t * `speaker_standard_error`.

    t is the 97.5 % quantile of Student's distribution with S - 1 degrees of freedom: S speakers are S observations.
    The interval speaks of other speakers, not of another training run or corpus. Where all speakers score the same
    there is none: a bootstrap cannot see errors that did not occur, and would answer with a width of 0.

    Args:
        counts, statistic, num_resamples, generator: as in `speaker_standard_error`; `statistic` gives fractions, by
            default WA, UA and macro-F1 of confusion matrices.

    Returns:
        (M, 2): low and high of each value of the statistic, clipped to [0, 1], both NaN where no resample changes the
        value; None for a single speaker.
    """
    if len(counts) < 2:
        return None
    error = speaker_standard_error(counts, statistic, num_resamples=num_resamples, generator=generator)
    error = np.where(error > ROUNDING, error, np.nan)
    return np.clip(t_interval(statistic(counts.sum(axis=0)), error, len(counts)), 0, 1)


def t_interval(estimate: np.ndarray, standard_error: np.ndarray, num_speakers: int) -> np.ndarray:
    """(M, 2): estimate -+ t * standard error, t of Student's distribution with `num_speakers` - 1 degrees."""
    half_width = stats.t.ppf((1 + CONFIDENCE) / 2, num_speakers - 1) * standard_error
    return np.stack([estimate - half_width, estimate + half_width], axis=-1)


def named_intervals(intervals: np.ndarray | None) -> dict[str, list[float] | None] | None:
    """What `speaker_interval` gives for the three scores, by their names; None where there is no interval."""
    if intervals is None:
        return None
    # Far finer than the resampling's own noise, and coarse enough that another scipy writes the same file.
    return {name: ends if np.isfinite(ends).all() else None for name, ends in zip(SCORES, intervals.round(6).tolist())}
