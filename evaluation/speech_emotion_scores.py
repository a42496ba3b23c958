"""The field's scores as a module for `evaluate`; loads from its file, without a network.

import evaluate
from importlib.resources import files

metric = evaluate.load(str(files("lascl.evaluation") / "speech_emotion_scores.py"))
metric.compute(predictions=["joy", "fear"], references=["joy", "joy"])
"""

import datasets
import evaluate

from lascl.evaluation.metrics import expected_calibration_error, score


class SpeechEmotionScores(evaluate.Metric):
    """WA, UA, macro-F1, recall, confusion and, given probabilities, the expected calibration error."""

    def _info(self):
        return evaluate.MetricInfo(
            description=score.__doc__,
            citation="",
            inputs_description=(
                "predictions, references: labels, all names or all indices. labels: all classes, in the order of the "
                "confusion matrix and of the probabilities' columns; by default those that occur, sorted. "
                "probabilities: (n, K), adds `ece`; needs `labels`."
            ),
            features=[
                datasets.Features({name: datasets.Value(kind) for name in ("predictions", "references")})
                for kind in ("int64", "string")
            ],
        )

    def _compute(self, predictions, references, labels=None, probabilities=None):
        if probabilities is not None and labels is None:
            raise ValueError("probabilities without labels: give `labels`, the class of each column.")
        scores = score(predictions, references, labels=labels)
        if probabilities is not None:
            columns = [scores["labels"].index(reference) for reference in references]
            scores["ece"] = expected_calibration_error(probabilities, columns)
        return scores
