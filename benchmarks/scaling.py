"""How training scales: seconds an utterance with one and two processes, by the size of the contrastive batch.

    python benchmarks/scaling.py

`torchrun` over gloo on a CPU, one thread a process, chunks of 16, an encoder with random weights. On a GPU: one
process, WavLM-Large's shape on 10 s, bfloat16. Writes `results/benchmarks/scaling.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from statistics import median

import torch
from measuring import (
    SAMPLING_RATE,
    WAVLM_LARGE,
    random_model,
    report_found,
    run_apart,
    save_table,
    synchronise,
)
from transformers import TrainerCallback

from lascl import LaSCLTrainer, LaSCLTrainingArguments


SMALL = {
    "model_type": "wav2vec2",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": [32] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "layerdrop": 0.0,
}
ON_CPU = {"encoder": SMALL, "duration_s": 1}
ON_CUDA = {"encoder": WAVLM_LARGE, "duration_s": 10}
PROCESSES_ON_CPU, PROCESSES_ON_CUDA = (1, 2), (1,)
BATCH_SIZES = (8, 32, 128, 1024)
CHUNK_SIZE, NUM_VIEWS, NUM_LABELS = 16, 1, 4
# So many utterances' steps are timed, and one step of a batch that is larger.
UTTERANCES_TIMED = 128
ROUNDS = 3


class StepTimes(TrainerCallback):
    def __init__(self):
        self.ended = []

    def on_step_end(self, args, state, control, **kwargs):
        synchronise()
        self.ended.append(time.perf_counter())


def measure(setting: dict, batch_sizes: list[int]) -> dict[str, float]:
    """By global batch: seconds of an optimiser step, the mean over those after the first. Each process runs this."""
    on_gpu = torch.cuda.is_available()
    samples, found = torch.randn(int(setting["duration_s"] * SAMPLING_RATE)), {}
    for global_batch_size in batch_sizes:
        num_steps = 1 + max(1, UTTERANCES_TIMED // global_batch_size)
        times = StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            args = LaSCLTrainingArguments(
                folder,
                global_batch_size=global_batch_size,
                num_views=NUM_VIEWS,
                contrastive_chunk_size=CHUNK_SIZE,
                num_train_epochs=1,
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
                bf16=on_gpu,
                use_cpu=not on_gpu,
            )
            LaSCLTrainer(
                random_model(setting["encoder"], NUM_LABELS),
                args,
                train_dataset=range(num_steps * global_batch_size),
                data_collator=partial(collate, samples=samples),
                callbacks=[times],
            ).train()
        found[str(global_batch_size)] = (times.ended[-1] - times.ended[0]) / (num_steps - 1)
    return found


def collate(indices: list[int], samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """Ever the same noise: what reading audio costs is measured by `data_loading.py`."""
    return {
        "input_values": samples.repeat(NUM_VIEWS * len(indices), 1),
        "labels": torch.tensor(indices).repeat(NUM_VIEWS) % NUM_LABELS,
    }


def main():
    on_gpu = torch.cuda.is_available()
    setting, processes = (ON_CUDA, PROCESSES_ON_CUDA) if on_gpu else (ON_CPU, PROCESSES_ON_CPU)
    seconds = defaultdict(list)
    for _ in range(ROUNDS):
        for num_processes in processes:
            found = run_apart(
                *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)),
                *(__file__, json.dumps([setting, BATCH_SIZES])),
                OMP_NUM_THREADS="1",
            )
            for batch_size, step_s in found.items():
                seconds[num_processes, int(batch_size)].append(step_s)
    rows = []
    for batch_size in BATCH_SIZES:
        one_s = median(seconds[processes[0], batch_size])
        for num_processes in processes:
            step_s = median(seconds[num_processes, batch_size])
            rows.append([batch_size, num_processes, f"{1000 * step_s / batch_size:.1f}", f"{one_s / step_s:.2f}"])
    encoder = setting["encoder"]
    save_table(
        "scaling",
        "Training by contrastive batch and number of processes",
        ["utterances", "processes", "ms an utterance", f"speed, ratio to {processes[0]}"],
        rows,
        f"A random {encoder['model_type']} of {encoder['num_hidden_layers']} layers, {encoder['hidden_size']} wide, "
        f"utterances of {setting['duration_s']:g} s, {NUM_VIEWS} view{'s' if NUM_VIEWS > 1 else ''}, chunks of "
        f"{CHUNK_SIZE} a process; {'bfloat16' if on_gpu else 'float32, gloo, one thread a process'}. Median of "
        f"{ROUNDS} starts taken in turns.",
        seconds_a_step={f"{size} x {number}": times for (number, size), times in seconds.items()},
        setting=setting,
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        found = measure(*json.loads(sys.argv[1]))
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            report_found(found)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    else:
        main()
