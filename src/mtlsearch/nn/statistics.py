"""BatchNorm's running statistics: computed anew, and the same on every process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtlsearch.nn.branches import BranchNorm


@torch.no_grad()
def recompute_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, Sequence[str]]]) -> None:
    """Make all running statistics the mean over these batches, and over the tasks that use them.

    Those that a training leaves follow weights that were still changing; and where paths share them, paths
    that are no longer there. Where each path has its own, a batch counts for those paths that it takes.

    Args:
        network: `network(image, tasks)`; its mode is kept.
        batches: images, each with the names of the tasks that they are for.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.momentum is not None]
    if not norms:
        return
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    branched = [module for module in network.modules() if isinstance(module, BranchNorm)]
    inner = {module.norm for module in branched}
    network.eval()
    for norm in norms:
        norm.train()
    for branch_norm in branched:
        branch_norm.average(True)
    # Counted by norm: a batch may be for some tasks only.
    hooks = [norm.register_forward_pre_hook(_Count(norm)) for norm in norms if norm not in inner]
    try:
        for image, tasks in batches:
            network(image, tasks)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for branch_norm in branched:
            branch_norm.average(False)
        for module, mode in modes.items():
            module.training = mode


def average_buffers(module: nn.Module) -> None:
    """Give every process the mean of all processes' buffers: each has running statistics of its own."""
    if dist.is_available() and dist.is_initialized():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()


class _Count:
    """Gives the n-th batch that a norm sees the momentum 1 / n."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm, self.seen = norm, 0

    def __call__(self, *_: object) -> None:
        self.seen += 1
        self.norm.momentum = 1 / self.seen
