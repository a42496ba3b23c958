"""How many utterances a second are classified: one by one, in batches, sorted by length, and by the stock pipeline.

    python benchmarks/batching.py [--audio_encoder openai/whisper-tiny.en]

Generated clips of 1 to 10 s, from arrays to label words, feature extraction included; without an encoder's name, a
WavLM with random weights, small on a CPU and Large on a GPU. Every way must give the same labels in float32. Writes
`results/benchmarks/batching.json`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import SAMPLING_RATE, WAVLM_LARGE, load_listener, median_seconds, random_model, save_table
from transformers import Wav2Vec2FeatureExtractor, pipeline

from lascl.data.features import extract_features


# On a CPU a small one; on a GPU all of WavLM-Large.
ON_CPU = {
    **WAVLM_LARGE,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": [64] * 7,
}
ON_CUDA = WAVLM_LARGE
NUM_CLIPS, DURATIONS_S = 64, (1, 10)
BATCH_SIZES, PIPELINE_BATCH_SIZES = (8, 32), (1, 8)
ROUNDS = 3


def clips() -> list[np.ndarray]:
    """Noise and a gliding tone, of every length between the two alike, in random order."""
    rng = np.random.default_rng(0)
    made = []
    for duration_s in rng.permutation(np.linspace(*DURATIONS_S, NUM_CLIPS)):
        t = np.arange(int(duration_s * SAMPLING_RATE)) / SAMPLING_RATE
        tone = np.sin(2 * np.pi * (rng.uniform(80, 300) + rng.uniform(-20, 20) * t) * t)
        made.append((rng.uniform(0.02, 0.3) * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32))
    return made


def build(name: str | None, device: str):
    """The model, its encoder loaded by name or random, and its feature extractor."""
    if name is None:
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
        return random_model(ON_CUDA if device == "cuda" else ON_CPU).eval().to(device), extractor
    encoder, extractor = load_listener(name, DURATIONS_S[1])
    model = random_model(encoder.config.to_dict())
    model.lascl.audio_encoder = encoder
    return model.eval().to(device), extractor


@torch.inference_mode()
def classify(model, extractor, audio: list[np.ndarray], *, batch_size: int, by_length: bool, bf16: bool) -> list[str]:
    """The label of each clip, in the clips' order."""
    order = np.argsort([len(samples) for samples in audio], kind="stable") if by_length else np.arange(len(audio))
    labels = [""] * len(audio)
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
        inputs = extract_features(extractor, [audio[row] for row in rows]).to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            indices = model(**inputs).logits.argmax(-1).tolist()
        for row, index in zip(rows, indices):
            labels[row] = model.config.id2label[index]
    return labels


def ways(model, extractor, audio: list[np.ndarray]) -> dict[str, partial]:
    """By name: what classifies all clips and returns their labels."""
    orders = [(1, False), *((size, by_length) for by_length in (False, True) for size in BATCH_SIZES)]
    found = {}
    for bf16 in (False, True):
        for batch_size, by_length in orders:
            name = (
                f"batches of {batch_size}{', sorted by length' if by_length else ''}"
                if batch_size > 1
                else "one by one"
            )
            run = partial(classify, model, extractor, audio, batch_size=batch_size, by_length=by_length, bf16=bf16)
            found[f"{name}, {'bfloat16' if bf16 else 'float32'}"] = run
    stock = pipeline("audio-classification", model=model, feature_extractor=extractor, device=model.device)
    for batch_size in PIPELINE_BATCH_SIZES:

        def run(batch_size=batch_size):
            return [answers[0]["label"] for answers in stock(list(audio), batch_size=batch_size, top_k=1)]

        found[f"pipeline, batch_size {batch_size}"] = run
    return found


def speed_rows(seconds: dict[str, float], best_s: float, same: dict[str, int], num_clips: int) -> list[list[str]]:
    """Of each way: its name, clips a second, speed as a ratio to a way that takes `best_s`, and how many labels are the
    same."""
    return [
        [way, f"{num_clips / way_s:.1f}", f"{best_s / way_s:.2f}", f"{same[way]} of {num_clips}"]
        for way, way_s in seconds.items()
    ]


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio_encoder", help="Hub name or folder; by default random weights")
    name = parser.parse_args(argv).audio_encoder
    model, extractor = build(name, "cuda" if torch.cuda.is_available() else "cpu")
    audio = clips()
    runs = ways(model, extractor, audio)
    expected, same = runs["one by one, float32"](), {}
    for way, run in runs.items():
        same[way] = sum(found == wanted for found, wanted in zip(run(), expected, strict=True))
        if same[way] < len(audio) and "bfloat16" not in way:
            raise SystemExit(f"{way} answers {same[way]} of {len(audio)} clips as one by one does; expected all.")
    seconds = median_seconds(runs, ROUNDS)
    best_s = min(seconds[way] for way in runs if way.startswith("pipeline"))
    rows = speed_rows(seconds, best_s, same, len(audio))
    encoder = model.config.audio_config
    if name:
        kind = f"`{Path(name).name if Path(name).is_dir() else name}`"  # where it lies here is nobody's business
    else:
        kind = f"a random {encoder.model_type} of {encoder.num_hidden_layers} layers, {encoder.hidden_size} wide"
    save_table(
        "batching",
        "Classifying clips of {} to {} s".format(*DURATIONS_S),
        ["way", "utterances/s", "speed, ratio to the best pipeline", "same labels"],
        rows,
        f"{len(audio)} generated clips, {kind}; from arrays to labels; median of {ROUNDS} rounds taken in turns.",
        seconds=seconds,
        same_labels=same,
        num_clips=len(audio),
        audio_encoder=kind,
    )


if __name__ == "__main__":
    main()
