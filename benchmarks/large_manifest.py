"""What a large corpus costs before training: a manifest of 50,000 rows is checked, folded, and started twice.

    python benchmarks/large_manifest.py --audio path/to/any/folder/of/audio

The rows are links to the files of the folder, spread over 500 speakers. Prints, for the first and the second start, the
seconds until the first training step and the memory just before the model is made; writes
`results/benchmarks/large_manifest.json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lascl.training.run_directory import environment, write_json


RESULT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "large_manifest.json"
ROWS, SPEAKERS, LABELS = 50_000, 500, ("anger", "happiness", "neutral", "sadness")

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
    print("FOUND" + json.dumps(found), flush=True)
    os._exit(0)

LaSCLForAudioClassification.from_encoders = from_encoders
LaSCLTrainer.training_step = training_step
train.main(sys.argv[2:])
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
    from time import time

    command = [sys.executable, "-c", UNTIL_FIRST_STEP, str(time()), "quickstart", "--corpus", "csv"]
    command += ["--data_dir", str(folder), "--output_dir", str(folder / "run"), "--disable_tqdm", "true"]
    done = subprocess.run(
        command, env={**os.environ, "HF_HOME": str(folder / "cache")}, capture_output=True, text=True, check=False
    )
    if "FOUND" not in done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.rpartition("FOUND")[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", required=True, help="a folder with WAV or FLAC files")
    root = Path(parser.parse_args().audio)
    audio = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder, audio)
        starts = {which: start(folder) for which in ("first", "second")}
    print("| start | s until the first step | s before the model | MiB before the model |\n|---|---|---|---|")
    for which, found in starts.items():
        row = (found["s_until_first_step"], found["s_before_model"], found["mib_before_model"])
        print(f"| {which} | {row[0]:.1f} | {row[1]:.1f} | {row[2]:.0f} |")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULT, {**environment(), "rows": ROWS, "speakers": SPEAKERS, "starts": starts})


if __name__ == "__main__":
    main()
