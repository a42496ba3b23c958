"""What `audio_window: utterance` saves: short clips in a Whisper checkpoint of a long window, trained on and labelled.

    python benchmarks/windows.py --audio_encoder path/to/whisper-base

The same weights with the window fixed and with the utterance's, in one process, in turns: a training step of all
weights, a frozen encoder's pass over the views, and `lascl.predict_files` over files. That an utterance has one answer,
alone and in a batch of others, is checked first. Writes `results/benchmarks/windows.json`.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from measuring import load_listener, save_table, seconds_in_turns
from transformers import AutoConfig

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.data.features import extract_features
from lascl.inference import predict_files
from lascl.inference.recogniser import Recogniser


WINDOW_S, CLIP_S = 10, 2.0
NUM_CLIPS, ROWS_A_STEP, ROUNDS = 64, 8, 5
MIXED_S = (0.6, 1.0, 1.4, CLIP_S, 3.3, 7.9)  # in one batch
TOLERANCE = 1e-5  # of a probability
WINDOWS = ("fixed", "utterance")


def models(audio_encoder: str) -> tuple[dict[str, LaSCLForAudioClassification], object]:
    """The same weights under both windows, and the feature extractor. Labels are random: no text encoder is needed."""
    encoder, extractor = load_listener(audio_encoder, WINDOW_S)
    torch.manual_seed(0)
    config = LaSCLConfig(
        audio_config=encoder.config,
        text_config=AutoConfig.for_model("roberta"),
        id2label={index: f"label {index}" for index in range(4)},
    )
    built = LaSCLForAudioClassification(config)
    built.lascl.audio_encoder.load_state_dict(encoder.state_dict())
    built.lascl.label_features = torch.randn_like(built.lascl.label_features)
    found = {}
    for window in WINDOWS:
        found[window] = copy.deepcopy(built)
        found[window].config.audio_window = window
    return found, extractor


def clip(number: int, duration_s: float, rate: int) -> np.ndarray:
    """Noise that swells and fades, (samples,) float32."""
    noise = np.random.default_rng(number).standard_normal(int(duration_s * rate))
    return (0.1 * noise * np.sin(np.linspace(0, 6 * np.pi, len(noise))) ** 2).astype(np.float32)


def check_answers(recogniser: Recogniser):
    """Refuses a checkpoint whose answers depend on what else is in the batch."""
    rate = recogniser.sampling_rate
    clips = [clip(number, min(seconds, WINDOW_S), rate) for number, seconds in enumerate(MIXED_S)]
    together, _ = recogniser(clips)
    alone = np.concatenate([recogniser([samples])[0] for samples in clips])
    difference = float(np.abs(together - alone).max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"An utterance's probability differs by {difference:.2g} alone and in a batch.")
    return difference


def ways(model, extractor, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, with one model."""
    rate = extractor.sampling_rate
    clips = [clip(number, CLIP_S, rate) for number in range(ROWS_A_STEP)]
    inputs = extract_features(extractor, clips)
    labels = torch.arange(ROWS_A_STEP) % 4
    training, frozen = copy.deepcopy(model).train(), copy.deepcopy(model).eval()

    def step():
        training.zero_grad(set_to_none=True)
        training(**inputs, labels=labels).loss.backward()

    @torch.no_grad()
    def views():
        for _ in range(NUM_CLIPS // ROWS_A_STEP):
            frozen.lascl(**extract_features(extractor, clips))

    recogniser = Recogniser(frozen, extractor)
    paths = sorted(folder.glob("*.wav"))
    return {
        "a training step, all weights": step,
        "views of a frozen encoder": views,
        "lascl-predict, files": lambda: list(predict_files(recogniser, paths)),
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio_encoder", required=True, help="a Whisper, by Hub name or folder")
    options = parser.parse_args(argv)
    built, extractor = models(options.audio_encoder)
    built["utterance"].eval()
    difference = check_answers(Recogniser(built["utterance"], extractor))
    rows, measured = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(NUM_CLIPS):
            soundfile.write(Path(folder) / f"{number}.wav", clip(number, CLIP_S, 16_000), 16_000)
        by_window = {window: ways(model, extractor, Path(folder)) for window, model in built.items()}
        for way in by_window["fixed"]:
            seconds = seconds_in_turns({window: by_window[window][way] for window in WINDOWS}, ROUNDS)
            ratios = [fixed / own for fixed, own in zip(*(seconds[window] for window in WINDOWS))]
            measured[way] = {"seconds": seconds, "ratio": ratios}
            cells = [f"{np.median(seconds[window]):.2f}" for window in WINDOWS]
            rows.append([way, *cells, f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"])
    save_table(
        "windows",
        f"Clips of {CLIP_S:g} s, a window of {WINDOW_S} s, {Path(options.audio_encoder).name}: seconds",
        ["", *WINDOWS, "times faster"],
        rows,
        f"Median, least and most of {ROUNDS} rounds taken in turns; {ROWS_A_STEP} rows a step, {NUM_CLIPS} views or "
        f"files. An utterance's probabilities alone and in a batch of others differ by {difference:.0e} at most.",
        measured=measured,
        difference=difference,
    )


if __name__ == "__main__":
    main()
