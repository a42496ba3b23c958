"""WavLM's attention: memory kept for backward and time, ours against transformers' own.

    python benchmarks/attention.py

A layer of WavLM-Large's shape (1024 wide, 16 heads, feed-forward 4096) on 10 s and 30 s, random weights. On a GPU:
bfloat16, 64 utterances of 10 s, with the peak of its memory. Writes `results/benchmarks/attention.json`.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from measuring import MIB, bytes_saved, median_seconds, peak_cuda_mib, save_table
from transformers import WavLMConfig
from transformers.models.wavlm.modeling_wavlm import WavLMModel

from lascl.encoders_lascl import build_audio_encoder


# Frames of 10 s and of 30 s.
ON_CPU = [(2, 499, 0.0), (2, 499, 0.1), (1, 1499, 0.0), (1, 1499, 0.1)]
ON_CUDA = [(64, 499, 0.0), (64, 499, 0.1)]
ROUNDS = 5


def encoders(num_layers: int, dropout: float, device: str) -> dict[str, torch.nn.Module]:
    """Transformer encoders without the convolutions: stock, ours, and stock with whole layers recomputed."""
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=1024,
        num_attention_heads=16,
        intermediate_size=4096,
        num_hidden_layers=num_layers,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        attention_dropout=dropout,
        hidden_dropout=dropout,
        activation_dropout=0.0,  # as WavLM-Large has it
        layerdrop=0.0,
    )
    stock = WavLMModel(config).train()
    checkpointed = copy.deepcopy(stock)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    ours = build_audio_encoder(config).train()
    ours.load_state_dict(stock.state_dict())
    found = {"stock": stock, "ours": ours, "stock, layers checkpointed": checkpointed}
    return {name: model.encoder.to(device) for name, model in found.items()}


def measure(batch_size: int, num_frames: int, dropout: float, device: str) -> dict[str, dict[str, float]]:
    """By variant: bytes saved for backward by one more layer, seconds of forward and backward of two layers, and the
    peak of the GPU's memory."""
    hidden = torch.randn(batch_size, num_frames, 1024, device=device)

    def forward(encoder):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            return encoder(hidden * 1).last_hidden_state

    def step(encoder):
        forward(encoder).float().square().mean().backward()
        encoder.zero_grad()

    two, three = encoders(2, dropout, device), encoders(3, dropout, device)
    seconds = median_seconds({name: partial(step, encoder) for name, encoder in two.items()}, ROUNDS)
    found = {}
    for name, encoder in three.items():
        saved_mib = None  # checkpointed layers hide what they keep from autograd's hooks
        if "checkpointed" not in name:
            more = bytes_saved(partial(forward, encoder), encoder)
            saved_mib = (more - bytes_saved(partial(forward, two[name]), two[name])) / MIB
        peak_mib = peak_cuda_mib(partial(step, encoder))
        found[name] = {"saved_mib": saved_mib, "seconds": seconds[name], "peak_mib": peak_mib}
    return found


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, measured = [], []
    for batch_size, num_frames, dropout in ON_CUDA if device == "cuda" else ON_CPU:
        found = measure(batch_size, num_frames, dropout, device)
        measured.append({"batch_size": batch_size, "num_frames": num_frames, "dropout": dropout, **found})
        stock = found["stock"]
        for name, values in found.items():
            row = [f"{batch_size} x {num_frames}", f"{dropout:g}", name]
            for key, digits in (("saved_mib", 1), ("peak_mib", 0)):
                value = values[key]
                row.append("" if value is None else f"{value:.{digits}f} ({value / stock[key]:.2f})")
            rows.append([*row, f"{values['seconds'] / stock['seconds']:.2f}"])
    save_table(
        "attention",
        "Attention of WavLM-Large's shape, forward and backward (ratio to stock in parentheses)",
        ["utterances x frames", "dropout", "attention", "MiB kept a layer", "peak MiB, 3 layers", "time / stock"],
        rows,
        f"{'bfloat16 autocast' if device == 'cuda' else 'float32'}, median of {ROUNDS} rounds taken in turns.",
        measured=measured,
    )


if __name__ == "__main__":
    main()
