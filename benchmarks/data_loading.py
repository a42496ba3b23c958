"""How fast utterances are read, augmented and collated, and how long training waits for them.

    python benchmarks/data_loading.py --data_dir path/to/emodb --audio_encoder ... --text_encoder ...

Prints utterances per second by number of workers and augmentation (two views each), and the share of its time that
EmoDB training (recipes/emodb.yaml, one epoch of one fold) waits for the next batch; writes
`results/benchmarks/data_loading.json`. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

from measuring import save_table
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor

import lascl.train
from lascl import load_corpus
from lascl.data import SpeechCollator, SpeechDataset


AUGMENTATIONS = ("none", "gain", "noise", "pitch_shift", "reverberation", "mixed")
SECONDS_A_MEASUREMENT = 5
TRAININGS = (("mixed", 0), ("mixed", 1), ("gain", 0))  # augmentation and number of workers


def utterances_per_second(corpus, extractor, augmentation: str, num_workers: int) -> float:
    """From the first batch that arrives, so that starting workers does not count; files are in the page cache."""
    dataset = SpeechDataset(
        corpus,
        range(len(corpus)),
        sampling_rate=extractor.sampling_rate,
        max_duration_s=10,
        augmentation=augmentation,
        num_views=2,
    )
    loader = DataLoader(dataset, batch_size=16, collate_fn=SpeechCollator(extractor), num_workers=num_workers)
    started, count = None, 0
    while started is None or time.perf_counter() - started < SECONDS_A_MEASUREMENT:
        for batch in loader:
            if started is None:
                started = time.perf_counter()
                continue
            count += len(batch["labels"]) // dataset.num_views
            if time.perf_counter() - started >= SECONDS_A_MEASUREMENT:
                break
    return count / (time.perf_counter() - started)


def share_of_waiting(arguments, augmentation: str, num_workers: int) -> dict[str, float]:
    """Seconds of training, and the share of its steps' time that was waiting for data."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        lascl.train.main(
            [
                *("emodb", "--data_dir", arguments.data_dir, "--output_dir", f"{folder}/run", "--folds", "1"),
                *("--audio_encoder", arguments.audio_encoder, "--text_encoder", arguments.text_encoder),
                *("--num_train_epochs", "1", "--save_strategy", "no", "--disable_tqdm", "true"),
                *("--augmentation", augmentation, "--dataloader_num_workers", str(num_workers)),
                *("--allow_partial", str(arguments.allow_partial)),
            ]
        )
        metrics = json.loads(Path(folder, "run", "fold-1", "metrics.json").read_text(encoding="utf-8"))
    return {"train_runtime_s": metrics["train_runtime_s"], "share": metrics["data_wait_share"]}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="EmoDB")
    parser.add_argument("--allow_partial", action="store_true", help="even if utterances are missing")
    parser.add_argument("--audio_encoder", default="openai/whisper-tiny.en")
    parser.add_argument("--text_encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args(argv)
    corpus = load_corpus("emodb", arguments.data_dir, allow_partial=arguments.allow_partial)
    extractor = AutoFeatureExtractor.from_pretrained(arguments.audio_encoder, chunk_length=2)
    speeds, rows = {}, []
    for augmentation in AUGMENTATIONS:
        speeds[augmentation] = {
            str(workers): utterances_per_second(corpus, extractor, augmentation, workers)
            for workers in arguments.workers
        }
        rows.append([augmentation, *(f"{speed:.0f}" for speed in speeds[augmentation].values())])
    waiting, sentences = {}, []
    for augmentation, workers in TRAININGS:
        waiting[f"{augmentation}, {workers} workers"] = result = share_of_waiting(arguments, augmentation, workers)
        sentences.append(f"{result['share']:.1%} with {augmentation} and {workers} workers")
    save_table(
        "data_loading",
        "Utterances a second, read, augmented and collated (two views each) by number of workers",
        ["augmentation", *map(str, arguments.workers)],
        rows,
        f"{len(corpus)} utterances of EmoDB, files in the page cache. Of its steps' time, an epoch of training "
        f"(`recipes/emodb.yaml`) waits for data: {'; '.join(sentences)}.",
        utterances_per_second=speeds,
        waiting=waiting,
    )


if __name__ == "__main__":
    main()
