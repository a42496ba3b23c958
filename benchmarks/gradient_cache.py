"""Memory and time of a training step by contrastive batch, with the gradient cache and without.

    python benchmarks/gradient_cache.py

Batches of 16 to 1024 utterances of 3 s in chunks of 16, each in a process of its own whose peak of memory is read at
its end, inputs not counted; an encoder with random weights. On a GPU: WavLM-Large's shape on 10 s, bfloat16, and its
own memory. Writes `results/benchmarks/gradient_cache.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from measuring import (
    MIB,
    WAVLM_LARGE,
    median_seconds,
    random_batch,
    random_model,
    report_found,
    run_apart,
    save_table,
    synchronise,
)

from lascl import LaSCLTrainer, LaSCLTrainingArguments
from lascl.training.trainer import peak_resident_bytes


# What a chunk of it keeps for backward is as much as an idle interpreter with torch, or more.
SMALL = {
    "model_type": "wav2vec2",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": [32] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "layerdrop": 0.0,
}
ON_CPU = {"encoder": SMALL, "duration_s": 3}
ON_CUDA = {"encoder": WAVLM_LARGE, "duration_s": 10}
CACHED = (16, 64, 256, 1024)
PLAIN = (16, 64)
CHUNK_SIZE, NUM_VIEWS, NUM_LABELS = 16, 1, 4
ROUNDS = 5


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def training_step(setting: dict, num_utterances: int, chunk_size: int | None) -> Callable[[dict], None]:
    """A step on a batch through a real `LaSCLTrainer`, optimiser included."""
    model = random_model(setting["encoder"], NUM_LABELS, freeze_feature_encoder=False)
    with tempfile.TemporaryDirectory() as folder:
        args = LaSCLTrainingArguments(
            folder,
            global_batch_size=num_utterances,
            num_views=NUM_VIEWS,
            contrastive_chunk_size=chunk_size,
            bf16=device() == "cuda",
            use_cpu=device() == "cpu",
        )
        trainer = LaSCLTrainer(model, args)
    wrapped = trainer.accelerator.prepare(model).train()  # which brings bfloat16 into each forward pass
    optimizer = trainer.create_optimizer()

    def step(batch):
        trainer.accelerator.backward(trainer.compute_loss(wrapped, batch))
        optimizer.step()
        optimizer.zero_grad()

    return step


def batch_of(setting: dict, num_utterances: int) -> dict[str, torch.Tensor]:
    return random_batch(NUM_VIEWS * num_utterances, setting["duration_s"], NUM_LABELS, device())


def peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if device() == "cuda" else peak_resident_bytes()


def measure(setting: dict, num_utterances: int, chunk_size: int | None) -> dict[str, float]:
    """MiB at the peak, and by how much the steps raised it, inputs not counted; seconds of a step. Runs in a process of
    its own."""
    step = training_step(setting, num_utterances, chunk_size)
    before = peak_bytes()
    step(batch_of(setting, min(num_utterances, CHUNK_SIZE)))  # not timed; makes the optimiser's state
    batch = batch_of(setting, num_utterances)
    synchronise()
    started = time.perf_counter()
    step(batch)
    synchronise()
    seconds = time.perf_counter() - started
    inputs, peak = sum(tensor.nbytes for tensor in batch.values()), peak_bytes()
    mib = {"mib": peak - inputs, "step_mib": peak - inputs - before, "inputs_mib": inputs}
    return {"seconds": seconds, **{name: size / MIB for name, size in mib.items()}}


def time_in_turns(setting: dict, num_utterances: int) -> dict[str, float]:
    """Seconds of a plain and of a cached step on one batch, taken in turns."""
    batch = batch_of(setting, num_utterances)
    kinds = {"plain": None, "cached": CHUNK_SIZE}
    steps = {kind: partial(training_step(setting, num_utterances, size), batch) for kind, size in kinds.items()}
    return median_seconds(steps, ROUNDS)


def main():
    setting = ON_CUDA if device() == "cuda" else ON_CPU
    runs = [("plain", size, None) for size in PLAIN] + [("cached", size, CHUNK_SIZE) for size in CACHED]
    measured = []
    for kind, num_utterances, chunk_size in runs:
        found = run_apart(__file__, "measure", json.dumps([setting, num_utterances, chunk_size]))
        measured.append({"kind": kind, "num_utterances": num_utterances, "chunk_size": chunk_size, **found})
        print(f"{num_utterances} {kind}: {found['mib']:.0f} MiB, {found['seconds']:.1f} s", flush=True)
    turns = run_apart(__file__, "time_in_turns", json.dumps([setting, PLAIN[-1]]))
    (reference,) = (run for run in measured if (run["kind"], run["num_utterances"]) == ("cached", CACHED[0]))
    rows = []
    for run in measured:
        chunk = "none" if run["chunk_size"] is None else run["chunk_size"]
        memory = [f"{run['mib']:.0f} ({run['mib'] / reference['mib']:.2f})"]
        memory += [f"{run['step_mib']:.0f} ({run['step_mib'] / reference['step_mib']:.2f})"]
        rows.append([run["num_utterances"], chunk, *memory])
    encoder, on_gpu = setting["encoder"], device() == "cuda"
    save_table(
        "gradient_cache",
        f"A training step by contrastive batch, clips of {setting['duration_s']:g} s (ratio to {CACHED[0]}, cached)",
        ["utterances", "chunk", "peak MiB", "of it, raised by the steps"],
        rows,
        f"A random {encoder['model_type']} of {encoder['num_hidden_layers']} layers, {encoder['hidden_size']} wide, "
        f"all trained, {NUM_VIEWS} view{'s' if NUM_VIEWS > 1 else ''} an utterance; "
        f"{'bfloat16, tensors on the GPU' if on_gpu else 'float32, the whole process'}, inputs not counted. A batch of "
        f"one chunk is a plain step. Taken in turns, a cached step of {PLAIN[-1]} takes "
        f"{turns['cached'] / turns['plain']:.2f} times a plain one's time.",
        measured=measured,
        setting=setting,
        in_turns=turns,
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        report_found({"measure": measure, "time_in_turns": time_in_turns}[sys.argv[1]](*json.loads(sys.argv[2])))
    else:
        main()
