"""What reading, augmenting and the loop around a training step cost: two commits in one run.

    python benchmarks/data_path.py --data_dir path/to/emodb --audio_encoder ... --text_encoder ...

Every part runs in processes of its own, of today's code and of what `--before` and `--loop_before` name, in turns:
views of EmoDB made on one thread; an epoch of EmoDB's recipe as a user starts it, with what it waits for data; steps of
a tiny model, with how often LaSCL looks at a tensor. About six minutes on two quiet cores; writes
`results/benchmarks/data_path.json`. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median


ROOT = Path(__file__).resolve().parents[1]
BEFORE = {"views": "2c92f68", "epoch": "2c92f68", "loop": "e9d9ffa"}  # what this is to be compared with
ROUNDS = {"views": 3, "epoch": 2, "loop": 3}
STEPS, ROWS = 30, 8
LOOKS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
AUGMENTATIONS = ("none", "pitch_shift", "reverberation", "high_low_pass", "mixed")


# ------------------------------------------------------------------- what is measured, with whatever lascl is imported


def views(options) -> dict[str, float]:
    """Utterances a second on one thread: read; augmented, by effect, once they are read; and all of it with two views
    of mixed in batches, as training does it. In the second epoch: files are in the page cache, or decoded."""
    import torch
    from transformers import AutoFeatureExtractor

    from lascl import load_corpus
    from lascl.data import SpeechCollator, SpeechDataset
    from lascl.data.augmentation import augment, build_augmentation

    torch.set_num_threads(1)
    corpus = load_corpus("emodb", options.data_dir, allow_partial=True)
    rows = range(min(options.utterances, len(corpus)))
    extractor = AutoFeatureExtractor.from_pretrained(options.audio_encoder, return_attention_mask=True)
    if "input_features" in extractor.model_input_names:
        extractor = type(extractor)(**{**extractor.to_dict(), "chunk_length": 2})
    kept = {}
    if "decoded" in inspect.signature(SpeechDataset).parameters:
        from lascl.data.decoded import DecodedAudio

        kept = {"decoded": DecodedAudio(options.folder, 1e9)}
    rate = extractor.sampling_rate
    audio = {"sampling_rate": rate, "max_duration_s": 10, "augmentation": "mixed", "num_views": 2, **kept}
    speech, collate = SpeechDataset(corpus, rows, **audio), SpeechCollator(extractor)
    clean = [speech.view(row, 0, 0) for row in rows]
    found = {"read": _rate(rows, lambda row: speech.view(row, 0, 0))}
    for name in AUGMENTATIONS:
        drawn = partial(augment, sampling_rate=rate, name=build_augmentation(name, rate), seed=0, epoch=0)
        found[f"augmented: {name}"] = _rate(rows, partial(_augmented, clean, drawn))
    batches = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    per_second = _rate(batches, lambda batch: collate([speech[row] for row in batch]))
    return {**found, "in batches: mixed": per_second * len(rows) / len(batches)}


def _augmented(clean, drawn, row: int):
    return drawn(clean[row], utterance_id=str(row))


def _rate(items, make) -> float:
    started = time.perf_counter()
    for item in items:
        make(item)
    return len(items) / (time.perf_counter() - started)


def epoch(options) -> dict[str, float]:
    """Seconds of an epoch of a fold, and the share that its steps waited for data, by the recipe's defaults."""
    import lascl.train

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        lascl.train.main(
            [
                *("emodb", "--data_dir", options.data_dir, "--allow_partial", "true", "--folds", "1"),
                *("--audio_encoder", options.audio_encoder, "--text_encoder", options.text_encoder),
                *("--num_train_epochs", "1", "--save_strategy", "no", "--disable_tqdm", "true", "--use_cpu", "true"),
                *("--output_dir", f"{folder}/run"),
            ]
        )
        metrics = json.loads(Path(folder, "run", "fold-1", "metrics.json").read_text(encoding="utf-8"))
    return {"seconds": metrics["train_runtime_s"], "data_wait_share": metrics["data_wait_share"]}


def loop(options) -> dict[str, float]:
    """Milliseconds of a step of a tiny wav2vec2 in Trainer's loop, logged every ten, and how often LaSCL looks at a
    tensor's values in it, for which a GPU would be waited for if the tensor were there."""
    import torch
    from transformers import AutoConfig, Wav2Vec2FeatureExtractor

    from lascl import LaSCLConfig, LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments
    from lascl.data import SpeechCollator

    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tiny |= {"conv_dim": [8, 8], "conv_kernel": [40, 3], "conv_stride": [20, 2], "num_feat_extract_layers": 2}
    tiny |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    config = LaSCLConfig(
        audio_config=AutoConfig.for_model("wav2vec2", **tiny, do_stable_layer_norm=True),
        text_config=AutoConfig.for_model("roberta"),
        id2label={index: f"label {index}" for index in range(4)},
    )
    model = LaSCLForAudioClassification(config)
    model.lascl.label_features = torch.randn_like(model.lascl.label_features)
    clips = [torch.randn(800 + 40 * number).numpy() for number in range(ROWS)]
    items = [{"id": str(n), "label": n % 4, "views": [clips[n % ROWS]] * 2} for n in range(ROWS * STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        args = LaSCLTrainingArguments(
            folder, global_batch_size=ROWS, num_train_epochs=1, logging_strategy="steps", logging_steps=10, use_cpu=True
        )
        args.set_save("no")
        args.dataloader_num_workers = 0  # the loop alone
        collator = SpeechCollator(Wav2Vec2FeatureExtractor(return_attention_mask=True))
        trainer = LaSCLTrainer(model, args, train_dataset=items, data_collator=collator)
        trainer.train()
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        with _counted_looks() as looks:
            trainer.train()
    return {"ms a step": 1000 * seconds / STEPS, "looks a step": sum(looks.values()) / STEPS, "by place": looks}


@contextlib.contextmanager
def _counted_looks() -> Iterator[dict[str, int]]:
    """How often code of lascl's looks at a tensor's values, by function and way."""
    import torch

    stock, found = {name: getattr(torch.Tensor, name) for name in LOOKS}, {}

    def spied(name):
        def look(tensor, *args, **kwargs):
            frame = sys._getframe(1)
            if frame.f_globals.get("__name__", "").startswith("lascl."):
                place = f"{frame.f_code.co_qualname}, {name}"
                found[place] = found.get(place, 0) + 1
            return stock[name](tensor, *args, **kwargs)

        return look

    for name in LOOKS:
        setattr(torch.Tensor, name, spied(name))
    try:
        yield found
    finally:
        for name, method in stock.items():
            setattr(torch.Tensor, name, method)


PARTS = {"views": views, "epoch": epoch, "loop": loop}


# --------------------------------------------------------------------------------------------------- before and after


@contextlib.contextmanager
def package_of(commit: str | None, folder: Path) -> Iterator[Path]:
    """A folder for PYTHONPATH that has `lascl` as a commit had it, in a worktree of git's; `None` is what is here."""
    folder.mkdir()
    if commit is None:
        (folder / "lascl").symlink_to(ROOT)
        yield folder
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder / "lascl"), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder / "lascl")], check=True)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="EmoDB")
    parser.add_argument("--audio_encoder", default="openai/whisper-tiny.en")
    parser.add_argument("--text_encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--utterances", type=int, default=256, help="of which views are made")
    parser.add_argument("--before", default=BEFORE["views"], help="a commit, for what is read and augmented")
    parser.add_argument("--loop_before", default=BEFORE["loop"], help="a commit, for the loop")
    parser.add_argument("--part", choices=PARTS, help="one part with the lascl that is imported")
    parser.add_argument("--folder", help="of a part: where it may keep what it decodes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    import measuring  # here, because a part runs with other commits, which have other functions than it needs

    options = parsed(argv)
    argv = [
        f"--{name}={getattr(options, name)}" for name in ("data_dir", "audio_encoder", "text_encoder", "utterances")
    ]
    commits = {"views": options.before, "epoch": options.before, "loop": options.loop_before}
    measured, rows = {}, []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as packages:
        now = packages.enter_context(package_of(None, Path(folder) / "now"))
        for number, part in enumerate(PARTS):
            before = packages.enter_context(package_of(commits[part], Path(folder) / f"before-{number}"))
            found = {"before": [], "after": []}
            for _ in range(ROUNDS[part]):
                for name, package in (("before", before), ("after", now)):
                    own = {"PYTHONPATH": str(package), "HF_ASSETS_CACHE": f"{folder}/assets-{name}"}
                    command = (__file__, f"--part={part}", f"--folder={folder}/decoded", *argv)
                    found[name].append(measuring.run_apart(*command, **own))
            measured[part] = found
            rows += rows_of(part, found)
    measuring.save_table(
        "data_path",
        "Reading, augmenting and the loop, before and after",
        ["what", "before", "after", "after / before"],
        rows,
        f"EmoDB, {Path(options.audio_encoder).name}. Median (least to most) of {ROUNDS['views']} rounds, of "
        f"{ROUNDS['epoch']} epochs, each taken in turns in a process of its own; before: {commits['views']}, of the "
        f"loop {commits['loop']}. Views on one thread; the epoch as `recipes/emodb.yaml` has it, workers by default. "
        "Looks: how often LaSCL reads a tensor's values in a step on a CPU.",
        measured=measured,
        commits=commits,
    )


def rows_of(part: str, found: dict[str, list[dict]]) -> list[list[str]]:
    """A row for each number that a part reports."""
    titles = {
        "views": "utterances a second, {}",
        "epoch": "epoch of the recipe, {}",
        "loop": "a step of a tiny model, {}",
    }
    rows = []
    for name in (name for name, value in found["after"][0].items() if isinstance(value, (int, float))):
        values = {when: [run[name] for run in runs] for when, runs in found.items()}
        middle = {when: median(numbers) for when, numbers in values.items()}
        spread = [f"{middle[when]:.3g} ({min(values[when]):.3g} to {max(values[when]):.3g})" for when in found]
        ratio = f"{middle['after'] / middle['before']:.2f}" if middle["before"] else "-"
        rows.append([titles[part].format(name), *spread, ratio])
    return rows


if __name__ == "__main__":
    if parsed(None).part:
        told = parsed(None)
        print("FOUND " + json.dumps(PARTS[told.part](told)), flush=True)
    else:
        main()
