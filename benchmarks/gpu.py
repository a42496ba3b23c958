"""What one GPU makes of LaSCL: training steps against transformers' own, memory, gradients, prediction, waiting.

    python benchmarks/gpu.py [--minutes 8] [--commit HASH]

WavLM-Large, all 24 layers, random weights, rows as long as IEMOCAP's. Writes `results/benchmarks/gpu.json` anew after
every part; a part that fails, or for which no time is left, says so there. Needs torch, transformers, accelerate, numpy
and scikit-learn, and of what LaSCL imports besides the wheels of datasets (with dill and multiprocess), soundfile, soxr
and audiomentations. `--commit` is for a machine that has the files without their history.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from types import SimpleNamespace

import attention
import measuring
import numpy as np
import torch
from measuring import (
    MIB,
    SAMPLING_RATE,
    WAVLM_LARGE,
    WHOLE,
    call_price,
    iemocap_lengths,
    padded_batch,
    peak_cuda_mib,
    random_model,
    save_table,
    seconds_in_turns,
)
from torch import nn
from transformers import (
    AutoConfig,
    Trainer,
    TrainingArguments,
    Wav2Vec2FeatureExtractor,
    WavLMForSequenceClassification,
    set_seed,
)

from lascl import LaSCLTrainer, LaSCLTrainingArguments, encoders_lascl
from lascl.inference.recogniser import Recogniser
from lascl.training.gradient_cache import cached_forward, cut_into_chunks


NUM_LABELS, NUM_VIEWS = 4, 2
CALL_PRICE = dict(encoders_lascl.CALL_PRICE)  # in samples, by device type
# The paper's run: 5 folds of 50 epochs, 4/5 of 5531 utterances, 32 at once.
STEPS_OF_THE_PAPER = 5 * 50 * -(-5531 * 4 // 5 // 32)


@dataclass(frozen=True)
class Size:
    """How much is measured; the default is what a GPU of a data centre is given."""

    encoder: dict
    num_utterances: tuple[int, ...] = (32, 8)  # the second if transformers' own does not fit with the first
    precisions: tuple[str, ...] = ("bfloat16", "tf32", "float32")
    rounds: int = 5
    prices_s: tuple[float, ...] = (10, 20, 40, 80, 160)
    checked_utterances: int = 8
    most_utterances: int = 512
    chunk_utterances: int = 16
    attention: tuple[tuple[int, int, float], ...] = ((64, 99, 0.1), (64, 249, 0.1), (64, 499, 0.1), (8, 1499, 0.1))
    num_files: int = 512
    compiler: str = "inductor"


LARGE = Size(encoder=WAVLM_LARGE)


@contextlib.contextmanager
def computing_in(precision: str, device: str):
    """`bfloat16` by autocast; `tf32`: float32 whose products are rounded on entry; `float32` without."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Candidates:
    """LaSCL's model and trainer and transformers' own, with the state of an optimiser each."""

    def __init__(self, size: Size, device: str, folder: str):
        self.device = device
        ours = random_model(size.encoder, NUM_LABELS)
        stock = WavLMForSequenceClassification(AutoConfig.for_model(**size.encoder, num_labels=NUM_LABELS))
        stock.freeze_feature_encoder()
        fields = {"output_dir": folder, "use_cpu": device == "cpu", "report_to": "none"}
        self.ours = LaSCLTrainer(ours, LaSCLTrainingArguments(**fields, num_views=NUM_VIEWS))
        self.stock = Trainer(stock, TrainingArguments(**fields))
        self.optimizers = {}
        for trainer in (self.ours, self.stock):
            model = trainer.model.to(device).train()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self.optimizers[trainer] = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step(self, trainer: Trainer, precision: str, batch: dict, price: int = WHOLE):
        """Forward, loss, backward and update, as Trainer has them."""
        if trainer is self.stock:
            batch = {name: values for name, values in batch.items() if name != "lengths"}
        with computing_in(precision, self.device), call_price(price):
            loss = trainer.compute_loss(trainer.model, batch)
        with computing_in("tf32" if precision == "tf32" else "float32", self.device):
            loss.backward()
        self.optimizers[trainer].step()
        self.optimizers[trainer].zero_grad()


def fits(run) -> bool:
    """Runs once; whether the memory was enough."""
    try:
        run()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def spread(times: list[float]) -> dict[str, float]:
    return {"seconds": median(times), "least": min(times), "most": max(times)}


def training_steps(size: Size, found: Candidates) -> list[dict]:
    """Seconds of a step and peak memory beyond what is held between steps."""
    own_price, rows = CALL_PRICE[found.device], []
    for precision in size.precisions:
        for num_utterances in size.num_utterances:
            batch = padded_batch(iemocap_lengths(num_utterances, NUM_VIEWS), NUM_LABELS, found.device)
            ways = {
                "transformers": partial(found.step, found.stock, precision, batch),
                "LaSCL, batch whole": partial(found.step, found.ours, precision, batch),
                "LaSCL": partial(found.step, found.ours, precision, batch, own_price),
            }
            runs = {name: run for name, run in ways.items() if fits(run)}
            peaks = {}
            for name, run in runs.items():
                held = torch.cuda.memory_allocated() / MIB if found.device == "cuda" else 0
                peak = peak_cuda_mib(run)
                peaks[name] = None if peak is None else peak - held
            times = seconds_in_turns(runs, size.rounds)
            for name in ways:
                measured = {**spread(times[name]), "peak_mib": peaks[name]} if name in runs else {}
                about = {"precision": precision, "num_utterances": num_utterances, "candidate": name}
                rows.append({**about, **measured})
            if "transformers" in runs:
                break
    return rows


def prices(size: Size, found: Candidates) -> list[dict]:
    """Seconds of a step by what one more call is taken to cost: what the constant `CALL_PRICE` is read from."""
    lengths, rows = iemocap_lengths(size.num_utterances[0], NUM_VIEWS), []
    batch = padded_batch(lengths, NUM_LABELS, found.device)
    for precision in size.precisions:
        steps = {
            price_s: partial(found.step, found.ours, precision, batch, int(price_s * SAMPLING_RATE))
            for price_s in size.prices_s
        }
        for price_s, times in seconds_in_turns(steps, min(size.rounds, 3)).items():
            num_groups = len(encoders_lascl.length_groups(lengths, int(price_s * SAMPLING_RATE)))
            rows.append({"precision": precision, "price_s": price_s, "num_groups": num_groups, **spread(times)})
    return rows


def gradients_of(model: nn.Module, outputs, labels: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    loss, _ = model.joint_loss(outputs.audio_embeds, outputs.label_embeds, outputs.class_logits, labels)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


def difference(found, expected) -> dict[str, float]:
    """Of two losses, relative; of two sets of gradients, against the largest entry of all."""
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    worst = max(float((found[1][name] - gradient).abs().max()) for name, gradient in expected[1].items())
    return {"loss": abs(found[0] - expected[0]) / abs(expected[0]), "gradient": worst / largest}


def same_gradients(size: Size, found: Candidates) -> dict[str, dict]:
    """In float32: groups against the whole batch, without chance; and chunks, with dropout, against the same chunks in
    the same order with all graphs kept."""
    model = found.ours.model
    batch = padded_batch(iemocap_lengths(size.checked_utterances, NUM_VIEWS), NUM_LABELS, found.device)
    labels, result = batch.pop("labels"), {}
    with computing_in("float32", found.device):
        with without_chance(model):
            with call_price(WHOLE):
                whole = gradients_of(model, model(**batch), labels)
            with call_price(0):
                result["groups"] = difference(gradients_of(model, model(**batch), labels), whole)
        rows_per_chunk = NUM_VIEWS * max(1, size.checked_utterances // 4)
        with call_price(WHOLE):
            set_seed(1)
            cached = gradients_of(model, cached_forward(model, batch, rows_per_chunk), labels)
            set_seed(1)
            kept = gradients_of(model, with_all_graphs_kept(model, batch, rows_per_chunk), labels)
        result["chunks, with dropout"] = difference(cached, kept)
    return result


@contextlib.contextmanager
def without_chance(model: nn.Module):
    """No dropout and no masks."""
    config = model.lascl.audio_encoder.config
    layers = [(m, "p", m.p) for m in model.modules() if isinstance(m, nn.Dropout)]
    layers += [(m, "dropout", m.dropout) for m in model.modules() if isinstance(getattr(m, "dropout", None), float)]
    masks, config.apply_spec_augment = config.apply_spec_augment, False
    for module, name, _ in layers:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        config.apply_spec_augment = masks
        for module, name, probability in layers:
            setattr(module, name, probability)


def with_all_graphs_kept(model: nn.Module, batch: dict, rows_per_chunk: int) -> SimpleNamespace:
    """The chunks of the gradient cache, forwarded in their order and put together by hand."""
    chunks = cut_into_chunks(batch, rows_per_chunk)
    parts = [
        model(**{name: batch[name][rows, :length] for name in ("input_values", "attention_mask")})
        for rows, length in chunks
    ]
    back = torch.tensor([row for rows, _ in chunks for row in rows]).argsort().to(parts[0].audio_embeds.device)
    return SimpleNamespace(
        audio_embeds=torch.cat([part.audio_embeds for part in parts])[back],
        class_logits=torch.cat([part.class_logits for part in parts])[back],
        label_embeds=parts[-1].label_embeds,
    )


def synchronisations(size: Size, found: Candidates) -> dict[str, dict]:
    """How often a training step makes the CPU wait for the GPU, as torch counts it, and where; empty without one."""
    if found.device != "cuda":
        return {}
    batch = padded_batch(iemocap_lengths(size.checked_utterances, NUM_VIEWS), NUM_LABELS, found.device)
    result = {}
    for name, trainer in (("LaSCL", found.ours), ("transformers", found.stock)):
        step = partial(found.step, trainer, "bfloat16", batch, 0)
        step()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step()
            torch.cuda.set_sync_debug_mode("default")
        places = [f"{os.path.basename(w.filename)}:{w.lineno}" for w in told if "synchroniz" in str(w.message)]
        result[name] = {"count": len(places), "places": Counter(places)}
    return result


def prediction(size: Size, found: Candidates) -> list[dict]:
    """Files a second, and seconds of audio a second, of `lascl-predict`'s core: from waveforms in memory to
    probabilities, in batches of 32 of like length."""
    model = found.ours.model
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    rng = np.random.default_rng(0)
    files = [rng.standard_normal(n).astype(np.float32) for n in sorted(iemocap_lengths(size.num_files, 1))]
    heard_s, rows = sum(map(len, files)) / SAMPLING_RATE, []
    model.eval()
    model.lascl.takes_odd_audio = True
    for precision in size.precisions:
        recogniser = Recogniser(model, extractor)

        def run(recogniser=recogniser, precision=precision):
            with computing_in(precision, found.device):
                for start in range(0, len(files), 32):
                    recogniser(files[start : start + 32])

        times = seconds_in_turns({"": run}, min(size.rounds, 3))[""]
        rate = {"files_a_second": len(files) / median(times), "times_real_time": heard_s / median(times)}
        rows.append({"precision": precision, **spread(times), **rate})
    model.train()
    return rows


def attention_by_length(size: Size, found: Candidates) -> list[dict]:
    """`benchmarks/attention.py`'s figures; bfloat16 on a GPU."""
    return [
        {"batch_size": rows, "num_frames": frames, **attention.measure(rows, frames, dropout, found.device)}
        for rows, frames, dropout in size.attention
    ]


def largest_batches(size: Size, found: Candidates) -> list[dict]:
    """The most utterances, doubled from 8, with whose views a step in bfloat16 fits."""
    own_price = CALL_PRICE[found.device]
    args, rows = found.ours.args, []
    for name, trainer, price, chunk in (
        ("transformers", found.stock, WHOLE, None),
        ("LaSCL, batch whole", found.ours, WHOLE, None),
        ("LaSCL", found.ours, own_price, None),
        ("LaSCL, chunks", found.ours, own_price, size.chunk_utterances),
    ):
        args.contrastive_chunk_size, num_utterances, fitted, seconds = chunk, 8, 0, None
        while num_utterances <= size.most_utterances:
            batch = padded_batch(iemocap_lengths(num_utterances, NUM_VIEWS), NUM_LABELS, found.device)
            started = time.perf_counter()
            if not fits(partial(found.step, trainer, "bfloat16", batch, price)):
                break
            measuring.synchronise()
            fitted, seconds, num_utterances = num_utterances, time.perf_counter() - started, 2 * num_utterances
        row = {"candidate": name, "num_utterances": fitted, "seconds": seconds, "chunk_utterances": chunk}
        rows.append({**row, "tried_up_to": size.most_utterances})
    args.contrastive_chunk_size = None
    return rows


def kernels(size: Size, found: Candidates) -> dict[str, list]:
    """Where the time of a step in bfloat16 goes: the 15 kernels (on a CPU, operators) that take most, in ms."""
    batch = padded_batch(iemocap_lengths(size.num_utterances[0], NUM_VIEWS), NUM_LABELS, found.device)
    result = {}
    for name, price in (("LaSCL, batch whole", WHOLE), ("LaSCL", CALL_PRICE[found.device])):
        with torch.profiler.profile() as profile:
            found.step(found.ours, "bfloat16", batch, price)
            measuring.synchronise()
        if found.device == "cuda":
            events = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
            times = [(e.key[:90], e.self_device_time_total / 1e3, e.count) for e in events]
        else:
            times = [(e.key, e.self_cpu_time_total / 1e3, e.count) for e in profile.key_averages()]
        times.sort(key=lambda entry: -entry[1])
        result[name] = [("all", sum(ms for _, ms, _ in times), sum(n for *_, n in times)), *times[:15]]
    return result


def compiled(size: Size, found: Candidates) -> list[dict]:
    """Steps in bfloat16 with every transformer layer compiled, for any length; last, because it stays so."""
    batch = padded_batch(iemocap_lengths(size.num_utterances[-1], NUM_VIEWS), NUM_LABELS, found.device)
    own_price, rows = CALL_PRICE[found.device], []
    for name, price in (("LaSCL, batch whole", WHOLE), ("LaSCL", own_price)):
        times = seconds_in_turns({"": partial(found.step, found.ours, "bfloat16", batch, price)}, size.rounds)[""]
        rows.append({"candidate": name, "compiled": False, **spread(times)})
    for layer in found.ours.model.lascl.audio_encoder.encoder.layers:
        layer.compile(dynamic=True, backend=size.compiler)
    for name, price in (("LaSCL, batch whole", WHOLE), ("LaSCL", own_price)):
        step = partial(found.step, found.ours, "bfloat16", batch, price)
        started = time.perf_counter()
        step()
        measuring.synchronise()
        first_s = time.perf_counter() - started
        times = seconds_in_turns({"": step}, size.rounds)[""]
        rows.append({"candidate": name, "compiled": True, "first_step_s": first_s, **spread(times)})
    return rows


PARTS = {
    "training_steps": training_steps,
    "prices": prices,
    "same_gradients": same_gradients,
    "synchronisations": synchronisations,
    "prediction": prediction,
    "attention": attention_by_length,
    "kernels": kernels,
    "largest_batches": largest_batches,
    "compiled": compiled,
}


def table_rows(measured: dict) -> list[list]:
    """Of the steps: precision, batch, candidate, seconds, memory, and hours of the paper's run."""
    rows, steps = [], measured.get("training_steps", [])
    for step in steps if isinstance(steps, list) else []:
        about = [step["precision"], f"{step['num_utterances']} x {NUM_VIEWS}", step["candidate"]]
        if "seconds" not in step:
            rows.append([*about, "out of memory", "", "", ""])
            continue
        same = [
            s for s in steps if (s["precision"], s["num_utterances"]) == (step["precision"], step["num_utterances"])
        ]
        stock = next((s for s in same if s["candidate"] == "transformers" and "seconds" in s), None)
        ratio = f"{step['seconds'] / stock['seconds']:.2f}" if "seconds" in stock else ""
        peak = "" if step["peak_mib"] is None else f"{step['peak_mib'] / 1024:.1f}"
        hours = f"{STEPS_OF_THE_PAPER * step['seconds'] / 3600:.1f}" if step["num_utterances"] == 32 else ""
        seconds = f"{step['seconds']:.3f} ({step['least']:.3f} to {step['most']:.3f})"
        rows.append([*about, seconds, ratio, peak, hours])
    return rows


def main(argv: list[str] | None = None, size: Size = LARGE):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--commit")
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started, measured = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        found = Candidates(size, device, folder)
        for name, part in PARTS.items():
            begun = time.monotonic()
            if begun - started > 60 * options.minutes:
                measured[name] = {"not_run": "no time was left"}
            else:
                try:
                    measured[name] = part(size, found)
                except Exception as error:  # the next part may still be measured
                    measured[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
                measured[f"{name}_took_s"] = time.monotonic() - begun
            gc.collect()
            write(size, device, measured, options.commit)
            print(name, measured[name], flush=True)


def write(size: Size, device: str, measured: dict, commit: str | None):
    save_table(
        "gpu",
        f"Training steps of WavLM-Large's shape, {size.encoder['num_hidden_layers']} layers, on a GPU",
        ["precision", "utterances x views", "candidate", "s", "time, ratio", "peak GiB of the step", "paper's run, h"],
        table_rows(measured),
        "Random weights, rows as long as IEMOCAP's (0.6 to 10 s), convolutions frozen, fused AdamW; median, least and "
        f"most of {size.rounds} rounds taken in turns. `transformers`: WavLMForSequenceClassification in Trainer. The "
        f"paper's run, 5 folds x 50 epochs, is {STEPS_OF_THE_PAPER} steps: hours by calculation.",
        **({"commit": commit} if commit else {}),
        size=asdict(size),
        measured_on=device,
        **measured,
    )


if __name__ == "__main__":
    main()
