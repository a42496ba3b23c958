"""Real clips from files to rows: by lascl-predict's machinery, by the stock pipeline, and by ONNX in float32 and int8.

    python benchmarks/real_clips.py --audio_encoder path/to/whisper-base --corpora path/to/corpora

Clips of at most 6 s from all corpora alike, brought to 16 kHz first; the encoder with random heads, and a random WavLM
of Base's shape. The clips are dealt into rounds, and within each round every way labels the same clips in turn, so that
a machine that is slow for a while is slow for all. The pipeline gets arrays, since given file names it would start
ffmpeg for each. All but int8 must give the same probabilities to 1e-4. Beside it stands what commands cost before they
answer anything, in seconds of CPU. Writes `results/benchmarks/real_clips.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import soundfile
import torch
from measuring import SAMPLING_RATE, load_listener, random_model, save_table
from transformers import Wav2Vec2FeatureExtractor, pipeline

from lascl import LaSCLForAudioClassification
from lascl.data import read_audio
from lascl.inference import Recogniser
from lascl.inference.export import INT8, MODEL, export
from lascl.inference.files import BATCH_S, length_buckets, predict_files
from lascl.inference.finding import find_recordings
from lascl.inference.outputs import RowFormat


WAVLM_BASE = {"model_type": "wavlm", "layerdrop": 0.0}
NUM_CLIPS, LONGEST_S, ROUNDS = 200, 6.0, 5
PIPELINE_BATCH_SIZES = (1,)  # its best on a CPU: padding costs more than a batch saves
TOLERANCE = 1e-4
OURS, ONNX, ONNX_INT8 = "lascl-predict", "ONNX, float32", "ONNX, int8"
START_UP_RUNS = 3
STARTED = {
    "lascl-predict --help": ["-m", "lascl.predict", "--help"],
    "lascl-predict, a wrong argument": ["-m", "lascl.predict", "model", "a.wav", "--abstain", "60"],
    "import lascl.predict": ["-c", "import lascl.predict"],
    "from lascl.predict import Recogniser": ["-c", "from lascl.predict import Recogniser"],
    "import torch, transformers": ["-c", "import torch, transformers"],
}
CPU_SECONDS = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


def write_clips(corpora: str, folder: Path) -> list[str]:
    """Paths of NUM_CLIPS clips at 16 kHz, from all over the corpora, shuffled."""
    listed = [path for path in find_recordings([corpora], bytes).paths if soundfile.info(path).duration <= LONGEST_S]
    if len(listed) < NUM_CLIPS:
        raise SystemExit(f"{corpora} holds {len(listed)} clips of at most {LONGEST_S:g} s; needed are {NUM_CLIPS}.")
    chosen = [listed[index] for index in np.linspace(0, len(listed) - 1, NUM_CLIPS).astype(int)]
    paths = []
    for number, index in enumerate(np.random.default_rng(0).permutation(NUM_CLIPS)):
        paths.append(str(folder / f"{number:03}.wav"))
        soundfile.write(paths[-1], read_audio(chosen[index]), SAMPLING_RATE, subtype="FLOAT")
    return paths


def save_checkpoint(audio_encoder: str | None, longest_s: float, folder: Path) -> str:
    """A checkpoint with random heads, of a pre-trained encoder or a random WavLM; returns what it is, in words."""
    if audio_encoder is None:
        model, extractor = random_model(WAVLM_BASE), Wav2Vec2FeatureExtractor(return_attention_mask=True)
        kind = "random {0.model_type}, {0.num_hidden_layers} layers, {0.hidden_size} wide"
    else:
        encoder, extractor = load_listener(audio_encoder, longest_s)
        model = random_model(encoder.config.to_dict())
        model.lascl.audio_encoder = encoder
        kind = f"{Path(audio_encoder).name}, {math.ceil(longest_s)} s at once"  # where it lies is nobody's business
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return kind.format(model.config.audio_config)


class Stopwatch:
    """Seconds between entering and leaving what it is hung on."""

    def __init__(self):
        self.seconds = 0.0

    def watch(self, module: torch.nn.Module):
        module.register_forward_pre_hook(lambda *_: self._add(-time.perf_counter()))
        module.register_forward_hook(lambda *_: self._add(time.perf_counter()))

    def _add(self, seconds: float):
        self.seconds += seconds


def ways(checkpoint: str, folder: Path) -> tuple[dict[str, Callable], dict[str, Stopwatch]]:
    """By name: what labels some files and returns their probabilities (N, K); and where its encoder's time is taken, of
    ONNX the whole graph's."""
    model = Recogniser.load(checkpoint, device="cpu")
    row_format, watches = RowFormat("csv", model.labels), {OURS: Stopwatch(), ONNX: Stopwatch(), ONNX_INT8: Stopwatch()}

    def ours(paths: list[str]) -> np.ndarray:
        answers = list(predict_files(model, paths))
        for answer in answers:
            row_format.row(answer.path, answer.label, answer.probabilities)
        return np.stack([answer.probabilities for answer in answers])

    # Another copy, as stock loads it.
    classifier = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    stock = pipeline("audio-classification", model=classifier, feature_extractor=model.feature_extractor, device="cpu")

    def theirs(paths: list[str], batch_size: int) -> np.ndarray:
        audio = [soundfile.read(path, dtype="float32")[0] for path in paths]
        scores = [
            {answer["label"]: answer["score"] for answer in answers}
            for answers in stock(audio, batch_size=batch_size, top_k=None)
        ]
        return np.array([[row[label] for label in model.labels] for row in scores])

    exported = folder / "onnx"
    export(Recogniser.load(checkpoint, device="cpu"), exported, int8=True)
    watches[OURS].watch(model.model.lascl.audio_encoder)
    found = {
        f"pipeline, batch_size {size}": lambda paths, size=size: theirs(paths, size) for size in PIPELINE_BATCH_SIZES
    }
    found[OURS] = ours
    for name, file in ((ONNX, MODEL), (ONNX_INT8, INT8)):
        found[name] = by_onnx(exported, file, model.max_duration_s, watches[name])
    return found, watches


def by_onnx(exported: Path, file: str, max_duration_s: float, watch: Stopwatch) -> Callable:
    """Labels files by an exported graph, in batches as lascl-predict makes them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported / file, options, providers=["CPUExecutionProvider"])
    labels = {"label_embeds": np.load(exported / "labels.npz")["label_embeds"]}

    def run(paths: list[str]) -> np.ndarray:
        audio = [soundfile.read(path, dtype="float32")[0] for path in paths]
        lengths_s = [min(len(samples) / SAMPLING_RATE, max_duration_s) for samples in audio]
        if math.isfinite(max_duration_s):
            lengths_s = [max_duration_s] * len(audio)
        answers = [None] * len(audio)
        for bucket in length_buckets(lengths_s, most_rows=len(audio), most_s=BATCH_S["cpu"]):
            lengths = np.array([len(audio[index]) for index in bucket])
            padded = np.zeros((len(bucket), lengths.max()), np.float32)
            for row, index in zip(padded, bucket):
                row[: len(audio[index])] = audio[index]
            watch.seconds -= time.perf_counter()
            (logits,) = session.run(["logits"], {"input_values": padded, "lengths": lengths, **labels})
            watch.seconds += time.perf_counter()
            for index, row in zip(bucket, torch.from_numpy(logits).double().softmax(dim=-1).numpy()):
                answers[index] = row
        return np.stack(answers)

    return run


def measure(runs: dict[str, Callable], watches: dict[str, Stopwatch], paths: list[str]) -> dict:
    """Of each way: seconds of every round, share of them in the encoder, and how far it is from the first way's
    probabilities."""
    deals = [paths[number::ROUNDS] for number in range(ROUNDS)]
    found = {way: {"seconds": [], "in_encoder": [], "answers": []} for way in runs}
    for run in runs.values():
        run(deals[0][:4])  # warm
    for deal in deals:
        for way, run in runs.items():
            before = watches[way].seconds if way in watches else 0.0
            started = time.perf_counter()
            found[way]["answers"].append(run(deal))
            found[way]["seconds"].append(time.perf_counter() - started)
            if way in watches:
                found[way]["in_encoder"].append((watches[way].seconds - before) / found[way]["seconds"][-1])
    expected = np.concatenate(next(iter(found.values()))["answers"])
    for way, numbers in found.items():
        probabilities = np.concatenate(numbers.pop("answers"))
        numbers["largest_change"] = float(np.abs(probabilities - expected).max())
        numbers["same_labels"] = int((probabilities.argmax(axis=1) == expected.argmax(axis=1)).sum())
        if way != ONNX_INT8 and not numbers["largest_change"] <= TOLERANCE:
            raise SystemExit(
                f"{way} gives {numbers['same_labels']} of {len(paths)} labels as the pipeline one by one does, and "
                f"probabilities to {numbers['largest_change']:.1g}; expected {TOLERANCE:g}."
            )
    audio_s = [sum(soundfile.info(path).duration for path in deal) for deal in deals]
    best = min((way for way in found if way.startswith("pipeline")), key=lambda way: sum(found[way]["seconds"]))
    for numbers in found.values():
        numbers["ratio"] = [theirs / own for theirs, own in zip(found[best]["seconds"], numbers["seconds"])]
        numbers["real_time_factor"] = [own / audio for own, audio in zip(numbers["seconds"], audio_s)]
    return found


def spread(values: list[float], digits: str = ".2f") -> str:
    return f"{median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})" if values else "-"


def start_up() -> dict[str, list[float]]:
    """Seconds of CPU, both modes, of a process of its own, by what it does."""
    found = {name: [] for name in STARTED}
    for _ in range(START_UP_RUNS):
        for name, arguments in STARTED.items():
            done = subprocess.run([sys.executable, "-c", CPU_SECONDS, *arguments], capture_output=True, check=True)
            found[name].append(json.loads(done.stdout))
    return found


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio_encoder", required=True, help="a pre-trained encoder, such as whisper-base")
    parser.add_argument("--corpora", required=True, help="a folder of speech, searched with all that is in it")
    options = parser.parse_args(argv)
    started, models, rows = start_up(), {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        paths = write_clips(options.corpora, folder / "clips")
        durations_s = [soundfile.info(path).duration for path in paths]
        for number, audio_encoder in enumerate((options.audio_encoder, None)):
            place = folder / str(number)
            place.mkdir()
            kind = save_checkpoint(audio_encoder, max(durations_s), place / "checkpoint")
            models[kind] = measure(*ways(str(place / "checkpoint"), place), paths)
            for way, found in models[kind].items():
                figures = [spread(found[key]) for key in ("ratio", "real_time_factor", "in_encoder")]
                change = f"{found['largest_change']:.0e}"
                rows.append([kind, way, *figures, change, f"{found['same_labels']} of {len(paths)}"])
    told = "; ".join(f"`{name}` {spread(seconds)}" for name, seconds in started.items())
    save_table(
        "real_clips",
        f"Labelling {len(paths)} real clips of {min(durations_s):.1f} to {max(durations_s):.1f} s",
        [
            *("model", "way", "speed, ratio to the best pipeline", "real-time factor", "share of time in the encoder"),
            *("largest change of a probability", "same labels"),
        ],
        rows,
        f"From files at 16 kHz to rows, on a CPU; median (least to most) of {ROUNDS} rounds over other clips, each "
        "taken in turns by all ways. Real-time factor: seconds of computing for a second of audio. Of ONNX, the share "
        f"is the whole graph's. Before anything is answered, in seconds of CPU: {told}.",
        models=models,
        start_up_cpu_s=started,
        num_clips=len(paths),
        audio_s=sum(durations_s),
    )


if __name__ == "__main__":
    main()
