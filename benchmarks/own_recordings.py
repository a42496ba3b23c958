"""What own statistics and an own temperature are worth: a model on a labelled list that it was not trained on.

    python benchmarks/own_recordings.py MODEL LABELLED.csv --heading "nEMO, by a model of the other three"

LABELLED.csv has the columns path, label and speaker. Every recording is heard once, and answered among the labels of
the list thrice: standardised by the checkpoint's statistics, by those of all recordings, and by those of its speaker
(`lascl-predict --standardise`, `--standardise_by speaker`). The temperature is fitted to the other speakers
(`lascl-words --check`). Writes `results/benchmarks/own_recordings.json`.

Letters: n recordings, W words, D width of the joint space.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from measuring import save_table

from lascl.evaluation import score
from lascl.inference.files import Answer
from lascl.inference.own_statistics import EVERYTHING, GroupStatistics, PooledRecordings
from lascl.inference.recogniser import Recogniser
from lascl.inference.words import fit_temperature, negative_log_likelihood


def answers_by(model: Recogniser, paths: Sequence[str], speakers: Sequence[str]) -> dict[str, list[Answer]]:
    """By whose statistics, an answer for each recording."""
    lascl = model.model.lascl
    of_training = GroupStatistics(0, lascl.pooled_mean.cpu().numpy(), lascl.pooled_std.cpu().numpy())
    with closing(PooledRecordings(model)) as pooled:
        for _ in pooled.hear(paths):
            pass
        found = {
            "training utterances": list(pooled.answers({EVERYTHING: of_training})),
            "these recordings": list(pooled.answers(pooled.statistics())),
            "each speaker's": list(pooled.answers(pooled.statistics(speakers), speakers)),
        }
    failures = [answer.failure for answer in found["these recordings"] if answer.failure]
    if failures:
        raise SystemExit("\n".join(failures))
    return found


def measure(answers: list[Answer], model: Recogniser, labels: list[str], speakers: list[str]) -> dict:
    """UA, recall by word, and the mean negative log likelihood by the model's own temperature and by one that is fitted
    to the other speakers of each recording."""
    words, references = model.labels, np.array([model.labels.index(label) for label in labels])
    scores = score([answer.label for answer in answers], labels, labels=words)
    label_embeds = model.model.get_label_embeddings().detach().cpu().numpy()
    cosines = np.stack([answer.audio_embeds for answer in answers]) @ label_embeds.T  # (n, W)
    fitted, temperatures = 0.0, []
    for speaker in sorted(set(speakers)):
        tested = np.array(speakers) == speaker
        temperatures.append(fit_temperature(cosines[~tested], references[~tested]))
        fitted += tested.sum() * negative_log_likelihood(cosines[tested], references[tested], temperatures[-1])
    return {
        "ua": scores["ua"],
        "likelihood": negative_log_likelihood(cosines, references, model.model.config.contrastive_temperature),
        "temperature": float(np.mean(temperatures)),
        "fitted_likelihood": float(fitted / len(answers)),
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--heading", default="Recordings of one's own")
    options = parser.parse_args(argv)
    with open(options.labelled, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [str(options.labelled.parent / row["path"]) for row in rows]
    labels, speakers = [row["label"] for row in rows], [row["speaker"] for row in rows]
    words = sorted(set(labels))
    model = Recogniser.load(options.model, labels=words)
    measured = {
        name: measure(answers, model, labels, speakers) for name, answers in answers_by(model, paths, speakers).items()
    }
    table = [
        [
            name,
            f"{100 * found['ua']:.1f}",
            f"{found['likelihood']:.3f}",
            f"{found['fitted_likelihood']:.3f}",
            f"{found['temperature']:.3f}",
        ]
        for name, found in measured.items()
    ]
    own = model.model.config.contrastive_temperature
    save_table(
        "own_recordings",
        f"{options.heading}: {len(rows)} recordings of {len(set(speakers))} speakers, {len(words)} words",
        [
            "standardised by the statistics of",
            "UA, %",
            f"negative log likelihood by the trained temperature, {own:g}",
            "by one fitted to the other speakers",
            "which is",
        ],
        table,
        f"By chance UA is {100 / len(words):.1f} % and the likelihood {np.log(len(words)):.3f}. The lower two rows use "
        "the recordings that are tested, but none of their labels.",
        measured=measured,
    )


if __name__ == "__main__":
    main()
