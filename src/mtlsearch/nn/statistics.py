"""BatchNorm's running statistics, computed anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtlsearch.nn.paths import Paths


@torch.no_grad()
def recompute_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, Sequence[str]]]) -> None:
    """Make all running statistics the mean over these batches, and over the tasks that use a norm.

    Those that a training leaves follow weights that were still changing; and where paths share a norm, paths
    that are no longer there.

    Args:
        network: `network(image, tasks)`; its mode is kept.
        batches: images, each with the names of the tasks that they are for.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.momentum is not None]
    if not norms:
        return
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    paths = [module for module in network.modules() if isinstance(module, Paths)]
    network.eval()
    for norm in norms:
        norm.train()
    for part in paths:
        part.averaging(True)
    try:
        for i, (image, tasks) in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (i + 1)
            network(image, tasks)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for part in paths:
            part.averaging(False)
        for module, mode in modes.items():
            module.training = mode
