"""The gradient cache (Gao et al., 2021, arXiv:2101.06983): a contrastive batch of any size in the memory of one chunk.

Letters: B rows of a batch, D width of the joint space, K labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.checkpoint import get_device_states, set_device_states

from lascl.encoders_lascl import valid_lengths
from lascl.modeling_lascl import LaSCLOutput


def cut_into_chunks(
    inputs: Mapping[str, torch.Tensor], rows_per_chunk: int | None = None, *, size_per_chunk: int | None = None
) -> list[tuple[list[int], int | None]]:
    """Rows of each chunk, and the length to which padding is cut off in it.

    Waveforms are sorted by length, because a loss over the whole batch does not care for its order: each chunk is as
    long as its own longest row. The adapted encoders give the same answer for any amount of padding. Inputs without
    an `attention_mask`, and Whisper's fixed window, stay as they are.

    Args:
        inputs: (B, ...), and `lengths` (a list of B numbers) if they are known.
        rows_per_chunk: at most so many rows in each; they differ by one row at most.
        size_per_chunk: or rows x longest at most so many samples (mel frames, of Whisper), a single longer row apart.
    """
    given = inputs["input_values"] if "input_values" in inputs else next(iter(inputs.values()))
    num_rows, lengths = len(given), None
    if "input_values" in inputs and inputs.get("attention_mask") is not None:
        known = inputs.get("lengths")
        lengths = np.array(valid_lengths(inputs["attention_mask"]).tolist() if known is None else known)
    order = np.arange(num_rows) if lengths is None else np.argsort(lengths, kind="stable")
    if size_per_chunk is None:
        chunks = np.array_split(order, -(-num_rows // rows_per_chunk))
    else:
        sizes = np.full(num_rows, given.shape[-1]) if lengths is None else lengths[order]
        chunks = _filled_chunks(order, sizes, size_per_chunk)
    return [(rows.tolist(), None if lengths is None else int(lengths[rows].max())) for rows in chunks]


def _filled_chunks(order: np.ndarray, sizes: np.ndarray, size_per_chunk: int) -> list[np.ndarray]:
    """The rows by rising size, cut from the largest on: each chunk takes as many as fit beside its largest."""
    chunks, end = [], len(order)
    while end:
        taken = min(end, max(1, size_per_chunk // max(1, int(sizes[end - 1]))))
        chunks.append(order[end - taken : end])
        end -= taken
    return chunks[::-1]


def cached_forward(
    model: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    rows_per_chunk: int | None = None,
    *,
    size_per_chunk: int | None = None,
) -> LaSCLOutput:
    """What `model(**inputs)` gives, with the gradients that it gives, in the memory of one chunk of rows.

    Each chunk is forwarded without a graph. Backward takes the gradient with respect to the outputs, forwards one chunk
    after the other again with the random numbers of the first time (torch's on every device, and numpy's, from which
    SpecAugment draws) and adds up the parameters' gradients. Costs a second forward pass. With DistributedDataParallel
    the processes meet once, in the last chunk.

    Args:
        model: a `LaSCLForAudioClassification`, wrapped or not, in which rows do not depend on each other.
        inputs: its inputs (B, ...), and `lengths` (a list of B numbers) if they are known; without `labels`.
        rows_per_chunk, size_per_chunk: one of them, at least 1, as of `cut_into_chunks`.

    Returns:
        `audio_embeds` (B, D), `label_embeds` (K, D) and `class_logits` (B, K; `None` if the model has none), rows in
        the order of `inputs`; nothing else.
    """
    # Autograd calls backward only for what has an input with a gradient.
    trigger = torch.ones((), requires_grad=True)
    chunks = cut_into_chunks(inputs, rows_per_chunk, size_per_chunk=size_per_chunk)
    audio_embeds, label_embeds, class_logits = _CachedForward.apply(trigger, model, inputs, chunks)
    return LaSCLOutput(audio_embeds=audio_embeds, label_embeds=label_embeds, class_logits=class_logits)


class _CachedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, trigger, model, inputs, chunks):
        ctx.model, ctx.inputs, ctx.chunks, ctx.generators = model, inputs, chunks, []
        audio_embeds, class_logits = [], []
        for rows, length in chunks:
            chunk = _take(inputs, rows, length)
            ctx.generators.append(_generators(chunk))
            outputs = model(**chunk)
            audio_embeds.append(outputs.audio_embeds)
            class_logits.append(outputs.class_logits)
        ctx.set_materialize_grads(False)  # zeros in place of no gradient would let weight decay act
        back = np.argsort(np.concatenate([rows for rows, _ in chunks])).tolist()
        class_logits = None if class_logits[0] is None else torch.cat(class_logits)[back]
        # The labels' embeddings do not depend on the rows: those of the last chunk are those of all.
        return torch.cat(audio_embeds)[back], outputs.label_embeds, class_logits

    @staticmethod
    def backward(ctx, audio_grad, label_grad, logits_grad):
        before = _generators(ctx.inputs)
        for number, (rows, length) in enumerate(ctx.chunks):
            is_last = number == len(ctx.chunks) - 1
            chunk = _take(ctx.inputs, rows, length)
            _set_generators(ctx.generators[number])
            # Until the last chunk, DDP must only add up.
            sync = contextlib.nullcontext if is_last else getattr(ctx.model, "no_sync", contextlib.nullcontext)
            with sync(), torch.enable_grad():
                outputs = ctx.model(**chunk)
                pairs = [
                    (outputs.audio_embeds, None if audio_grad is None else audio_grad[rows]),
                    (outputs.class_logits, None if logits_grad is None else logits_grad[rows]),
                    (outputs.label_embeds, label_grad if is_last else None),
                ]
                pairs = [(output, grad) for output, grad in pairs if grad is not None and output.requires_grad]
                torch.autograd.backward([output for output, _ in pairs], [grad for _, grad in pairs])
        _set_generators(before)
        return None, None, None, None


def _take(inputs: Mapping[str, torch.Tensor | list[int]], rows: list[int], length: int | None) -> dict:
    taken = {name: values[rows] for name, values in inputs.items() if isinstance(values, torch.Tensor)}
    if length is not None:
        taken = {name: tensor[:, :length] for name, tensor in taken.items()}
    lists = {name: [values[row] for row in rows] for name, values in inputs.items() if name not in taken}
    return taken | lists


def _generators(inputs: Mapping[str, torch.Tensor]):
    """States of the random generators that a forward pass of `inputs` draws from."""
    first = next(iter(inputs.values()))
    return torch.get_rng_state(), np.random.get_state(), first.device.type, *get_device_states(first)


def _set_generators(states):
    cpu, numpy, device_type, devices, device_states = states
    torch.set_rng_state(cpu)
    np.random.set_state(numpy)
    set_device_states(devices, device_states, device_type=device_type)
