"""What a user of a finished checkpoint does, on the demo's run: `python demo.py runs/demo`.

Takes an utterance of a voice that the first fold never heard and asks the fold's checkpoint about it, through
transformers' pipeline and the code in the checkpoint.
"""

import csv
import sys
from pathlib import Path

import soundfile
from transformers import pipeline

from lascl.data import load_corpus


def main(run_dir: str):
    fold = Path(run_dir) / "fold-1"
    with open(fold / "predictions.csv", encoding="utf-8", newline="") as file:
        unseen = next(csv.DictReader(file))
    corpus = load_corpus("synthetic")
    path = corpus["audio"][list(corpus["id"]).index(unseen["id"])]
    samples, sampling_rate = soundfile.read(path, dtype="float32")

    classifier = pipeline("audio-classification", model=str(fold / "checkpoint"), trust_remote_code=True)
    answers = classifier({"raw": samples, "sampling_rate": sampling_rate})

    print(f"\n{path}\nA voice that this model never heard ({unseen['speaker']}), meant to sound {unseen['reference']}:")
    for answer in answers:
        print(f"  {answer['label']:<10} {100 * answer['score']:5.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
