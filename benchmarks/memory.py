"""What a forward pass keeps, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def saved_bytes(run: Callable[[], Tensor], known: Sequence[Tensor]) -> int:
    """Bytes of distinct storages that a forward pass keeps for its backward pass, beside the known ones."""
    storages = {t.untyped_storage().data_ptr() for t in known}
    sizes: dict[int, int] = {}
    keep = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            sizes[storage.data_ptr()] = storage.nbytes()
            keep.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep.append(run())
    return sum(sizes.values())
