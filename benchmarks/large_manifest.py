"""What a large corpus costs before training: a manifest of 50,000 rows is checked, folded, and started twice.

    python benchmarks/large_manifest.py --audio path/to/any/folder/of/audio

The rows are links to the files of the folder, spread over 500 speakers. Prints, for the first and the second start, the
seconds until the first training step and the memory just before the model is made; writes
`results/benchmarks/large_manifest.json`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

from measuring import FOUND, run_apart, save_table


ROWS, SPEAKERS, LABELS = 50_000, 500, ("anger", "happiness", "neutral", "sadness")
STARTS = ("first", "second")

# Ends at the first training step; runs in a process of its own, as a user's does.
UNTIL_FIRST_STEP = """
import json, os, resource, sys, time
import lascl.train as train
from lascl import LaSCLForAudioClassification, LaSCLTrainer

found = {}
build = LaSCLForAudioClassification.from_encoders

def from_encoders(*args, **kwargs):
    found["mib_before_model"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["s_before_model"] = time.time() - float(sys.argv[1])
    return build(*args, **kwargs)

def training_step(self, *args, **kwargs):
    found["s_until_first_step"] = time.time() - float(sys.argv[1])
    print(f"{sys.argv[2]}{json.dumps(found)}", flush=True)
    os._exit(0)

LaSCLForAudioClassification.from_encoders = from_encoders
LaSCLTrainer.training_step = training_step
train.main(sys.argv[3:])
"""


def write_manifest(folder: Path, audio: list[Path]):
    (folder / "audio").mkdir()
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "speaker"])
        for row in range(ROWS):
            source = audio[row % len(audio)]
            link = folder / "audio" / f"{row:05d}{source.suffix}"
            link.symlink_to(source.resolve())
            writer.writerow([f"audio/{link.name}", LABELS[row * 7919 % len(LABELS)], f"speaker-{row * 31 % SPEAKERS}"])


def start(folder: Path) -> dict[str, float]:
    recipe = ["quickstart", "--corpus", "csv", "--data_dir", str(folder), "--output_dir", str(folder / "run")]
    recipe += ["--disable_tqdm", "true"]
    return run_apart("-c", UNTIL_FIRST_STEP, str(time.time()), FOUND, *recipe, HF_HOME=str(folder / "cache"))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", required=True, help="a folder with WAV or FLAC files")
    root = Path(parser.parse_args(argv).audio)
    audio = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder, audio)
        starts = {which: start(folder) for which in STARTS}
    rows = [
        [
            which,
            f"{found['s_until_first_step']:.1f}",
            f"{found['s_before_model']:.1f}",
            f"{found['mib_before_model']:.0f}",
        ]
        for which, found in starts.items()
    ]
    save_table(
        "large_manifest",
        f"Starting to train on a manifest of {ROWS:,} rows",
        ["start", "s until the first step", "s before the model", "MiB before the model"],
        rows,
        f"{SPEAKERS} speakers; the second start finds what the first has checked.",
        num_rows=ROWS,
        num_speakers=SPEAKERS,
        starts=starts,
    )


if __name__ == "__main__":
    main()
