"""What a thousand utterances cost under a frozen encoder: seconds, memory and disk of training, and of labelling.

    python benchmarks/thousand_utterances.py --audio ../shared/corpora/emodb \
        --audio_encoder ../shared/encoders/whisper-base --text_encoder ../shared/encoders/all-MiniLM-L6-v2

The utterances are links to the recordings in a folder, each as often as it takes. One fold of `small-corpus` is trained
on a clean view of each, and then on nine views; the model labels them all. Each is a command in a process of its own,
and finds nothing that another has heard. Writes `results/benchmarks/thousand_utterances.json`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean

import soundfile
import torch
from measuring import MIB, report_found, run_apart, save_table


UTTERANCES, SPEAKERS, LABELS = 1000, 10, ("anger", "happiness", "neutral", "sadness")
VIEWS = {"a clean view of each": ("--augmentation", "none"), "nine views of each": ()}  # options of `train.py`


def write_corpus(folder: Path, audio: list[Path]) -> Path:
    """The links and their manifest; labels and speakers are of no matter to what is measured."""
    (folder / "audio").mkdir(parents=True)
    lines = ["path,label,speaker"]
    for row in range(UTTERANCES):
        source = audio[row % len(audio)]
        link = folder / "audio" / f"{row:05d}{source.suffix}"
        link.symlink_to(source.resolve())
        lines.append(f"audio/{link.name},{LABELS[row // SPEAKERS % len(LABELS)]},speaker-{row % SPEAKERS}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def measure(program: str, *argv: str) -> dict[str, float]:
    """Seconds of a command, its imports included, and the most memory that its process had; here."""
    began = time.monotonic()
    with redirect_stdout(sys.stderr):
        importlib.import_module(f"lascl.{program}").main(list(argv))
    return {"s": time.monotonic() - began, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def apart(folder: Path, *command: str) -> dict[str, float]:
    """`measure`, in a process and with caches of its own."""
    caches = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return run_apart(__file__, "--measure", json.dumps(command), **caches)


def costs(root: Path, corpus: Path, encoders: list[str]) -> Iterator[dict]:
    """Of each command its name, how many views were encoded, seconds in all and of encoding, and memory; of training
    the bytes of the views on disk."""
    for number, (name, options) in enumerate(VIEWS.items()):
        run, views = root / f"run-{number}", root / f"views-{number}"
        given = ["--corpus", "csv", "--data_dir", str(corpus), "--output_dir", str(run), "--views_dir", str(views)]
        command = ["train", "small-corpus", *given, "--folds", "1", "--disable_tqdm", "true", *encoders, *options]
        found = apart(root / f"caches-{number}", *command)
        trained = json.loads((run / "fold-1" / "metrics.json").read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in views.glob("*.npy"))
        blocks = len(list(views.glob("*.npy")))
        yield {
            "what": f"`train.py small-corpus --folds 1`, {name}",
            **found,
            "views": blocks * UTTERANCES,
            "encoding_s": trained["encoding_s"],
            "bytes": size,
        }
    command = ["predict", str(run / "fold-1" / "checkpoint"), str(corpus / "audio"), "--output", str(root / "out.csv")]
    yield {"what": "`lascl-predict`", **apart(root / "caches", *command), "views": UTTERANCES}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", help="a folder with WAV or FLAC files")
    parser.add_argument("--audio_encoder", help="a folder, or a name that is in the cache")
    parser.add_argument("--text_encoder", help="likewise")
    parser.add_argument("--audio_layers", default="2,3,4", help="default: %(default)s")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # of the processes that this starts
    options = parser.parse_args(argv)
    if options.measure:
        report_found(measure(*json.loads(options.measure)))
        return
    audio = sorted(path for path in Path(options.audio).rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    encoders = [
        *("--audio_encoder", options.audio_encoder, "--text_encoder", options.text_encoder),
        *("--audio_layers", options.audio_layers),
    ]
    with tempfile.TemporaryDirectory() as name:
        corpus = write_corpus(Path(name) / "corpus", audio)
        measured = []
        for found in costs(Path(name), corpus, encoders):
            print(f"{found['what']}: {found['s']:.0f} s", flush=True)
            measured.append(found)
    rows = [
        [
            found["what"],
            f"{found['views']:,}",
            f"{found['s']:.0f}",
            f"{found['encoding_s']:.0f}" if "encoding_s" in found else "-",
            f"{found['mib']:.0f}",
            f"{found['bytes'] / MIB:.0f}" if "bytes" in found else "-",
        ]
        for found in measured
    ]
    mean_s = fmean(soundfile.info(audio[row % len(audio)]).duration for row in range(UTTERANCES))
    save_table(
        "thousand_utterances",
        f"{UTTERANCES:,} utterances of {mean_s:.1f} s on average under a frozen {Path(options.audio_encoder).name}",
        ["command", "views", "s", "of these encoding", "peak MiB", "views on disk, MiB"],
        rows,
        "Seconds of the whole command, from its imports to its report. What was encoded is found again by every later "
        "fold, run and seed; encoding grows with the length of the utterances.",
        measured=measured,
        mean_duration_s=mean_s,
        num_threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
