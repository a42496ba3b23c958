"""What a training step costs: LaSCL against cross entropy alone, a bare encoder with a linear head, and stock WavLM.

    python benchmarks/training_step.py

Forward, loss, backward and AdamW on the same 2N rows: all of 10 s, and as long as IEMOCAP's. A WavLM of Large's width
with random weights, its convolutions frozen. On a GPU: all 24 layers, 32 utterances x 2 views, bfloat16, with the peak
of its memory. Writes `results/benchmarks/training_step.json`.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measuring import (
    MIB,
    WAVLM_LARGE,
    WHOLE,
    bytes_saved,
    call_price,
    iemocap_lengths,
    padded_batch,
    peak_cuda_mib,
    random_batch,
    random_model,
    save_table,
    seconds_in_turns,
)
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, WavLMForSequenceClassification

from lascl import LaSCLTrainer, LaSCLTrainingArguments
from lascl.encoders_lascl import build_audio_encoder
from lascl.training.recipe import OBJECTIVES


# Without a duration, rows are as long as IEMOCAP's.
TWO_LAYERS = {**WAVLM_LARGE, "num_hidden_layers": 2}
ON_CPU = [
    {"encoder": TWO_LAYERS, "num_utterances": 2, "duration_s": 10},
    {"encoder": TWO_LAYERS, "num_utterances": 4, "duration_s": None},
]
# The small batch is for stock, which may not fit with the large one.
ON_CUDA = [{"encoder": WAVLM_LARGE, "num_utterances": n, "duration_s": 10} for n in (32, 8)]
NUM_LABELS, NUM_VIEWS, ROUNDS = 4, 2, 3
STOCK = "WavLMForSequenceClassification (stock)"


class LinearHead(nn.Module):
    """The adapted encoder, the mean over its frames, and a linear layer: the least that classifies speech."""

    def __init__(self, encoder: dict):
        super().__init__()
        self.encoder = build_audio_encoder(AutoConfig.for_model(**encoder))
        self.encoder.freeze_feature_encoder()
        self.head = nn.Linear(self.encoder.config.hidden_size, NUM_LABELS)

    def forward(self, input_values, attention_mask, labels, lengths=None):
        hidden = self.encoder(input_values, attention_mask=attention_mask).last_hidden_state
        return F.cross_entropy(self.head(hidden.mean(dim=1)).float(), labels)


def candidates(encoder: dict, device: str, folder: str) -> dict[str, tuple[nn.Module, Callable]]:
    """By name: a model on the device, and what computes its loss from a batch."""
    found = {}
    for name, objective in (("LaSCL (eq. 9)", "lascl"), ("LaSCL's model, cross entropy alone", "ce")):
        model = random_model(encoder, NUM_LABELS, **OBJECTIVES[objective])
        args = LaSCLTrainingArguments(folder, num_views=NUM_VIEWS, use_cpu=device == "cpu")
        found[name] = model, partial(LaSCLTrainer(model, args).compute_loss, model)
    model, compute_loss = found["LaSCL (eq. 9)"]
    found["LaSCL (eq. 9), batch whole"] = model, partial(at_once, compute_loss)
    torch.manual_seed(0)
    bare = LinearHead(encoder)
    found["our encoder, mean, linear head"] = bare, lambda batch: bare(**batch)
    stock = WavLMForSequenceClassification(AutoConfig.for_model(**encoder, num_labels=NUM_LABELS))
    stock.freeze_feature_encoder()
    found[STOCK] = stock, lambda batch: stock(**{name: batch[name] for name in batch if name != "lengths"}).loss
    for model, _ in found.values():
        model.to(device).train()
    return found


def at_once(compute_loss: Callable, batch: dict) -> torch.Tensor:
    with call_price(WHOLE):
        return compute_loss(batch)


def measure(setting: dict, device: str) -> dict[str, dict[str, float]]:
    """By candidate: seconds of a step, bytes its forward pass keeps for backward, and on a GPU the peak memory of a
    step beyond weights and optimiser state; nothing for one that runs out of memory."""
    num_utterances, duration_s = setting["num_utterances"], setting["duration_s"]
    if duration_s is None:
        batch = padded_batch(iemocap_lengths(num_utterances, NUM_VIEWS), NUM_LABELS, device)
    else:
        batch = random_batch(NUM_VIEWS * num_utterances, duration_s, NUM_LABELS, device)

    def forward(compute_loss):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            return compute_loss(batch)

    def step(compute_loss, optimizer):
        forward(compute_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    steps, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, compute_loss) in candidates(setting["encoder"], device, folder).items():
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
            found[name] = {}
            with contextlib.suppress(torch.OutOfMemoryError):
                step(compute_loss, optimizer)  # the optimiser's state is there from now on
                held_mib = torch.cuda.memory_allocated() / MIB if device == "cuda" else 0
                peak_mib = peak_cuda_mib(partial(step, compute_loss, optimizer))
                saved_mib = bytes_saved(partial(forward, compute_loss), model) / MIB
                steps[name] = partial(step, compute_loss, optimizer)
                found[name] = {"saved_mib": saved_mib, "peak_mib": None if peak_mib is None else peak_mib - held_mib}
            optimizer.zero_grad()
            gc.collect()  # what a step that did not fit has left
            torch.cuda.empty_cache()
        for name, times in seconds_in_turns(steps, ROUNDS).items():
            found[name] |= {"seconds": median(times), "least": min(times), "most": max(times)}
    return found


def cells(values: dict[str, float], stock: dict[str, float]) -> list[str]:
    """Memory, seconds and their spread, with their ratio to stock's where stock fits."""
    if not values:
        return ["out of memory", "", "", ""]
    found = []
    for key, digits in (("saved_mib", 0), ("peak_mib", 0), ("seconds", 3)):
        value, other = values[key], stock.get(key)
        ratio = f" ({value / other:.3f})" if value is not None and other else ""
        found.append("" if value is None else f"{value:.{digits}f}{ratio}")
    return [*found, f"{values['least']:.3f} to {values['most']:.3f}"]


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, measured = [], []
    for setting in ON_CUDA if device == "cuda" else ON_CPU:
        found = measure(setting, device)
        measured.append({**setting, "candidates": found})
        duration_s = setting["duration_s"]
        rows_as = f"{setting['num_utterances']} x {NUM_VIEWS}, " + (f"{duration_s:g} s" if duration_s else "IEMOCAP's")
        rows += [[rows_as, name, *cells(values, found[STOCK])] for name, values in found.items()]
    num_layers = measured[0]["encoder"]["num_hidden_layers"]
    save_table(
        "training_step",
        f"A training step of WavLM-Large's shape, {num_layers} layers",
        ["utterances x views", "model and loss", "MiB kept for backward", "peak MiB of the step", "s", "least to most"],
        rows,
        f"Random weights, {num_layers} of WavLM-Large's 24 layers, convolutions frozen, no layer-drop; "
        f"{'bfloat16 autocast' if device == 'cuda' else 'float32'}, fused AdamW. Ratios to stock in parentheses; time "
        f"is the median of {ROUNDS} rounds in turns. Stock has its own attention, the others ours. IEMOCAP's: the "
        "middles of equal parts of its distribution of lengths, cut at 10 s.",
        measured=measured,
    )


if __name__ == "__main__":
    main()
