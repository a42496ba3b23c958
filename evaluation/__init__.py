"""Scores, intervals that respect speakers, and the numbers of a run made of them."""

from lascl.evaluation.intervals import speaker_counts, speaker_interval, speaker_standard_error
from lascl.evaluation.metrics import expected_calibration_error, score
from lascl.evaluation.results import read_predictions, results_table, summarise_run


__all__ = [
    "expected_calibration_error",
    "read_predictions",
    "results_table",
    "score",
    "speaker_counts",
    "speaker_interval",
    "speaker_standard_error",
    "summarise_run",
]
