"""Scores, and the numbers of a run made of them."""

from lascl.evaluation.metrics import score
from lascl.evaluation.results import read_predictions, results_table, summarise_run


__all__ = ["read_predictions", "results_table", "score", "summarise_run"]
