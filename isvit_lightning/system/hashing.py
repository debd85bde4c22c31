"""The one hash over tensors."""

import hashlib
from collections.abc import Mapping

import torch


def hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of names, types, shapes and bytes of ``tensors``, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
