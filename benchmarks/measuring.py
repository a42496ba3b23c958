"""What the benchmarks share: models with random weights, times taken in turns, bytes kept for backward, processes of
their own, a table on screen and under `results/`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoFeatureExtractor

from lascl import LaSCLConfig, LaSCLForAudioClassification, encoders_lascl
from lascl.data import SpeechCollator
from lascl.encoders_lascl import encode_audio, load_audio_encoder
from lascl.modeling_lascl import masked_mean
from lascl.training.run_directory import environment, write_json


RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
MIB = 2**20
FOUND = "FOUND "
SAMPLING_RATE = 16_000
ENCODED_AT_ONCE = 8
WHOLE = 10**15  # a call's price at which a batch stays whole
# microsoft/wavlm-large, but without layer-drop: chance must not decide how much is computed.
WAVLM_LARGE = {
    "model_type": "wavlm",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
}


# `length_s` of IEMOCAP's 5531 utterances at 0, 5, ... 100 %, cut at 10 s as the paper cuts.
IEMOCAP_QUANTILES_S = (
    *(0.58, 1.39, 1.68, 1.91, 2.13, 2.32, 2.55, 2.78, 3.0, 3.29, 3.58),
    *(3.89, 4.25, 4.69, 5.18, 5.77, 6.53, 7.37, 8.69, 10.0, 10.0),
)


def random_model(audio_encoder: dict, num_labels: int = 4, **config) -> LaSCLForAudioClassification:
    """A model with random weights and random label features, so that no text encoder is needed.

    Args:
        audio_encoder: `model_type` and other fields of its configuration.
        num_labels: K.
        **config: fields of `LaSCLConfig`.
    """
    torch.manual_seed(0)
    model = LaSCLForAudioClassification(
        LaSCLConfig(
            audio_config=AutoConfig.for_model(**audio_encoder),
            text_config=AutoConfig.for_model("roberta"),
            id2label={index: f"label {index}" for index in range(num_labels)},
            **config,
        )
    )
    model.lascl.label_features = torch.randn_like(model.lascl.label_features)
    return model


def random_batch(num_rows: int, duration_s: float, num_labels: int = 4, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Noise of one length, as a collator gives it: no padding, so that all candidates compute the same frames."""
    torch.manual_seed(0)
    input_values = torch.randn(num_rows, int(duration_s * SAMPLING_RATE), device=device)
    return {
        "input_values": input_values,
        "attention_mask": torch.ones_like(input_values, dtype=torch.int32),
        "labels": torch.arange(num_rows, device=device) % num_labels,
    }


def iemocap_lengths(num_utterances: int, num_views: int) -> list[int]:
    """Samples of each row of a batch, view by view: the middles of equal parts of IEMOCAP's distribution, shuffled."""
    places = np.linspace(0, 1, len(IEMOCAP_QUANTILES_S))
    durations_s = np.interp((np.arange(num_utterances) + 0.5) / num_utterances, places, IEMOCAP_QUANTILES_S)
    np.random.default_rng(0).shuffle(durations_s)
    return num_views * [int(duration_s * SAMPLING_RATE) for duration_s in durations_s]


def padded_batch(lengths: list[int], num_labels: int = 4, device: str = "cpu") -> dict:
    """Noise of these lengths, as `SpeechCollator` gives it."""
    torch.manual_seed(0)
    mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]  # (B, L)
    return {
        "input_values": torch.randn(mask.shape, device=device) * mask,
        "attention_mask": mask.to(torch.int32),
        "labels": torch.arange(len(lengths), device=device) % num_labels,
        "lengths": lengths,
    }


@contextlib.contextmanager
def call_price(price: int):
    """Another price of a call of the encoder, in samples, for all devices."""
    before = dict(encoders_lascl.CALL_PRICE)
    encoders_lascl.CALL_PRICE.update(dict.fromkeys(before, price))
    try:
        yield
    finally:
        encoders_lascl.CALL_PRICE.update(before)


def load_listener(audio_encoder: str, longest_s: float):
    """A pre-trained encoder in evaluation mode and its feature extractor; Whisper's window is the longest clip's."""
    window_s = math.ceil(longest_s)
    extractor = AutoFeatureExtractor.from_pretrained(audio_encoder, return_attention_mask=True)
    if "input_features" in extractor.model_input_names:
        extractor = type(extractor)(**{**extractor.to_dict(), "chunk_length": window_s})
    return load_audio_encoder(audio_encoder, window_s=window_s).eval(), extractor


@torch.no_grad()
def layer_means(encoder, extractor, utterances: Dataset) -> torch.Tensor:
    """(N, layers + 1, width): the mean over valid frames of every hidden state, of items as of `SpeechDataset`."""
    means = []
    for batch in DataLoader(utterances, ENCODED_AT_ONCE, collate_fn=SpeechCollator(extractor)):
        inputs = batch.get("input_features", batch.get("input_values"))
        hidden, mask = encode_audio(encoder, inputs, batch["attention_mask"], all_layers=True)
        means.append(torch.stack([masked_mean(layer, mask) for layer in hidden], dim=1))
    return torch.cat(means)


def median_seconds(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate. They take turns within every round, so that a machine that is slow for a while
    is slow for all; one round before is not counted."""
    return {name: median(times) for name, times in seconds_in_turns(candidates, rounds).items()}


def seconds_in_turns(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """As `median_seconds`, but every round's."""
    seconds = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, run in candidates.items():
            synchronise()
            started = time.perf_counter()
            run()
            synchronise()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bytes_saved(forward: Callable[[], torch.Tensor], module: nn.Module) -> int:
    """Bytes that autograd keeps from a forward pass until its backward pass, parameters not counted."""
    storages = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    kept = sum(storages.values())
    del output  # only now: a storage that is freed earlier could give its address to another
    return kept


def peak_cuda_mib(run: Callable[[], None]) -> float | None:
    """Highest memory allocated on the GPU during a run; `None` without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / MIB


def difference_cells(difference: float, interval: list[float], p: float) -> list[str]:
    """A difference in points with its interval, and p, of `paired_difference`."""
    low, high = interval
    return [f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", "< 0.001" if p < 0.001 else f"{p:.3f}"]


def run_apart(*command: str, **variables: str) -> dict:
    """What `python COMMAND` reports with `report_found`; a process of its own, because the peak of a process's memory
    never falls."""
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode or FOUND not in done.stdout:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.rpartition(FOUND)[2])


def report_found(found: dict):
    """Hands numbers to the process that called `run_apart`; nothing may be printed behind them."""
    print(FOUND + json.dumps(found), flush=True)


def save_table(name: str, title: str, columns: list[str], rows: list[list], notes: str = "", **measured):
    """Prints a table and writes it with machine, versions and commit to `results/benchmarks/NAME.json`, from where
    `make readme` takes it. `measured` are the unrounded numbers behind it."""
    cells = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells)
    print(f"\n{title}\n\n{table}\n\n{notes}\n", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "table": table, "notes": notes, **environment(), **measured}
    write_json(RESULTS / f"{name}.json", {**content, "threads": torch.get_num_threads()})
