"""How many files a second are labelled: by lascl-predict's machinery, and by the stock pipeline at its best batch size.

    python benchmarks/predict.py [--model path/to/checkpoint]

Generated clips of 1 to 10 s, as WAV files in no order, from files to rows; without a checkpoint, a WavLM with random
weights, small on a CPU and Large on a GPU. Every way must give the same labels, and probabilities to 1e-4. The pipeline
gets arrays that soundfile has read, since given file names it would start ffmpeg for each. Writes
`results/benchmarks/predict.json`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from measuring import SAMPLING_RATE, median_seconds, save_table
from transformers import pipeline

from inference import DURATIONS_S, build, clips, speed_rows
from lascl import LaSCLForAudioClassification
from lascl.inference import Recogniser
from lascl.inference.files import predict_files
from lascl.inference.outputs import RowFormat


PIPELINE_BATCH_SIZES = (1, 4, 8, 16)
ROUNDS = 5
TOLERANCE = 1e-4
OURS = "lascl-predict"


def write_clips(folder: Path, longest_s: float) -> list[str]:
    """Paths of the clips; none is longer than the model hears."""
    paths = []
    for number, samples in enumerate(clips()):
        paths.append(str(folder / f"{number:03}.wav"))
        soundfile.write(paths[-1], samples[: int(min(longest_s, DURATIONS_S[1]) * SAMPLING_RATE)], SAMPLING_RATE)
    return paths


def ways(checkpoint: str, model: Recogniser, paths: list[str], device: str) -> dict:
    """By name: what labels all files and returns their probabilities (N, K)."""
    row_format = RowFormat("csv", model.labels)

    def ours() -> np.ndarray:
        answers = list(predict_files(model, paths))
        for answer in answers:
            row_format.row(answer.path, model.labels[int(answer.probabilities.argmax())], answer.probabilities)
        return np.stack([answer.probabilities for answer in answers])

    # Another copy, as stock loads it.
    classifier = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    stock = pipeline("audio-classification", model=classifier, feature_extractor=model.feature_extractor, device=device)

    def theirs(batch_size: int) -> np.ndarray:
        audio = [soundfile.read(path, dtype="float32")[0] for path in paths]
        scores = [
            {answer["label"]: answer["score"] for answer in answers}
            for answers in stock(audio, batch_size=batch_size, top_k=None)
        ]
        return np.array([[row[label] for label in model.labels] for row in scores])

    found = {f"pipeline, batch_size {size}": lambda size=size: theirs(size) for size in PIPELINE_BATCH_SIZES}
    return {**found, OURS: ours}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a LaSCL checkpoint, Hub name or folder; by default random weights")
    checkpoint = parser.parse_args(argv).model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        kind = f"`{checkpoint}`"
        if checkpoint is None:
            kind = "random weights"
            checkpoint = f"{folder}/checkpoint"
            for part in build(None, device):
                part.save_pretrained(checkpoint)
        elif Path(checkpoint).is_dir():
            kind = "a checkpoint"  # where it lies here is nobody's business
        model = Recogniser.load(checkpoint, device=device)
        encoder = model.model.config.audio_config
        kind += f" of {encoder.model_type}, {encoder.num_hidden_layers} layers, {encoder.hidden_size} wide"
        paths = write_clips(Path(folder), model.max_duration_s)
        runs = ways(checkpoint, model, paths, device)
        expected, same, off = runs[next(iter(runs))](), {}, {}
        for way, run in runs.items():
            probabilities = run()
            same[way] = int((probabilities.argmax(axis=1) == expected.argmax(axis=1)).sum())
            off[way] = float(np.abs(probabilities - expected).max())
            if same[way] < len(paths) or not off[way] <= TOLERANCE:
                raise SystemExit(
                    f"{way} gives {same[way]} of {len(paths)} labels as the pipeline one by one does, and "
                    f"probabilities to {off[way]:.1g}; expected all, and {TOLERANCE:g}."
                )
        seconds = median_seconds(runs, ROUNDS)
    best_s = min(seconds[way] for way in runs if way != OURS)
    rows = [[*row, f"{off[row[0]]:.0e}"] for row in speed_rows(seconds, best_s, same, len(paths))]
    save_table(
        "predict",
        "Labelling files of {} to {} s".format(*DURATIONS_S),
        ["way", "files/s", "speed, ratio to the best pipeline", "same labels", "largest difference of a probability"],
        rows,
        f"{len(paths)} generated WAV files, {kind}; from files to rows; median of {ROUNDS} rounds taken in turns.",
        seconds=seconds,
        same_labels=same,
        largest_difference=off,
        num_clips=len(paths),
        audio_encoder=kind,
    )


if __name__ == "__main__":
    main()
