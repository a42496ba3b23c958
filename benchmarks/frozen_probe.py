"""The floor: logistic regression on a frozen encoder, layer by layer, on the folds of a corpus.

    python benchmarks/frozen_probe.py emodb --data_dir path/to/emodb --audio_encoder openai/whisper-tiny.en

For each of the encoder's layers, and for those of `small-corpus.yaml` side by side: mean over the frames of every
utterance, standardised by the training side, L2 logistic regression. `--against RUNS` (a variant's folder of a study,
with a run a seed) compares that with the probes, paired and by speaker. Writes `results/benchmarks/frozen_probe.json`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from measuring import difference_cells, layer_means, load_listener, save_table
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lascl import load_corpus, make_folds
from lascl.data import SpeechDataset
from lascl.evaluation.metrics import SCORES
from lascl.evaluation.results import read_run, score_rows
from lascl.studies.tables import compare_seeds


FIXED_C = 0.1  # of the single layers, as the floor of 87.1 was measured
# Of the layers side by side: the best by UA over the held-out speakers of the training side.
CHOSEN_C = (0.001, 0.01, 0.1, 1.0)
TOGETHER = (1, 2, 3)  # recipes/small-corpus.yaml


def fitted(features: np.ndarray, labels: np.ndarray, speakers: np.ndarray, choose_c: bool):
    """Standardising and logistic regression; C fixed, or the best with each speaker of the training side held out."""
    regression = LogisticRegression(C=FIXED_C, max_iter=5000)
    pipeline = make_pipeline(StandardScaler(), regression)
    if choose_c:
        grid = {"logisticregression__C": CHOSEN_C}
        pipeline = GridSearchCV(pipeline, grid, scoring="balanced_accuracy", cv=LeaveOneGroupOut(), n_jobs=1)
        return pipeline.fit(features, labels, groups=speakers)
    return pipeline.fit(features, labels)


def write_run(folder: Path, corpus, folds, features: np.ndarray, choose_c: bool):
    """The predictions of every fold, as a run directory has them."""
    columns = {name: np.array(corpus[name][:]) for name in ("id", "speaker", "label")}
    names = corpus.features["label"].names
    for fold in folds:
        train, test = fold.train, fold.test
        model = fitted(features[train], columns["label"][train], columns["speaker"][train], choose_c)
        (folder / f"fold-{fold.number}").mkdir(parents=True)
        with open(folder / f"fold-{fold.number}" / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "speaker", "reference", "prediction", "prediction_classifier"])
            for row, chosen in zip(test, model.predict(features[test])):
                answer = names[chosen]
                told = columns["id"][row], columns["speaker"][row], names[columns["label"][row]]
                writer.writerow([*told, answer, answer])


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--audio_encoder", required=True)
    parser.add_argument("--max_duration_s", type=float, default=10.0)
    parser.add_argument("--allow_partial", action="store_true")
    parser.add_argument("--against", type=Path, help="a variant's folder of a study: seed-*/ with a run each")
    options = parser.parse_args(argv)
    corpus = load_corpus(options.corpus, options.data_dir, allow_partial=options.allow_partial)
    folds, labels = make_folds(corpus), corpus.features["label"].names
    longest_s = min(max(corpus["duration_s"][:]), options.max_duration_s)
    encoder, extractor = load_listener(options.audio_encoder, longest_s)
    clip = {"sampling_rate": extractor.sampling_rate, "max_duration_s": longest_s}
    layers = layer_means(encoder, extractor, SpeechDataset(corpus, range(len(corpus)), **clip)).transpose(0, 1).numpy()
    together = [number for number in TOGETHER if number < len(layers)]
    candidates = {f"layer {number}": (layer, False) for number, layer in enumerate(layers)}
    side_by_side = np.concatenate([layers[number] for number in together], axis=-1)
    name = f"layers {', '.join(map(str, together))} side by side"
    candidates[name] = side_by_side, True
    runs = sorted(options.against.glob("seed-*")) if options.against else []
    if options.against and not runs:
        parser.error(f"{options.against} holds no seed-*/: give a variant's folder of a study.")
    rows, measured, sentences = [], {}, []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (features, choose_c) in candidates.items():
            folder = Path(scratch) / name
            write_run(folder, corpus, folds, features, choose_c)
            scores = score_rows([row for fold in read_run(folder).values() for row in fold], labels)
            measured[name] = {score: scores[score] for score in SCORES}
            cells = [f"{100 * scores[score]:.1f}" for score in SCORES]
            rows.append([name, "chosen in training" if choose_c else FIXED_C, *cells])
            if runs:
                compared = compare_seeds([folder] * len(runs), runs)["ua"]
                measured[name]["against"] = compared
                rows[-1] += difference_cells(compared["difference"], compared["interval"], compared["p"])
    columns = ["frozen features", "C", "WA", "UA", "macro-F1"]
    if runs:
        columns += [f"UA of {options.against.name} less this, points", "p"]
        seeds = ", ".join(run.name.removeprefix("seed-") for run in runs)
        sentences = [
            f"{options.against.name}: the mean over the seeds {seeds}; in brackets 95 % intervals over speakers, p of "
            "a paired test over speakers on the same utterances."
        ]
    save_table(
        "frozen_probe",
        f"Logistic regression on {Path(options.audio_encoder).name}, frozen; {options.corpus}, {len(folds)} folds, "
        "pooled, per cent",
        columns,
        rows,
        " ".join(sentences),
        scores=measured,
    )


if __name__ == "__main__":
    main()
