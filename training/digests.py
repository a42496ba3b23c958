"""Hashes of weights: whether two models hold the same, without the one at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


class OtherWeights(ValueError):
    """Weights that something was made with are not those that are here."""


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """BLAKE2b, 128 bits, of names, types, shapes and values, in the order of names; a gigabyte takes about two
    seconds."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
