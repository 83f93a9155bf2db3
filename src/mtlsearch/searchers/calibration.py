"""Fusion layers that start as the identity, their norms included."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlsearch.multitask import Batch, parts_of
from mtlsearch.nn.fusion import Fusion
from mtlsearch.searchers.ranges import check_choice
from mtlsearch.searchers.start import FromSingleTask

BN_INITS = ("standard", "identity")


class Calibrated(FromSingleTask):
    """Sets the BatchNorms of fusion layers by the first batch.

    Eq. 3 of MTL-NAS lets a fusion layer start as the identity so that pre-trained networks change little, but the
    BatchNorm behind it, at scale 1 and shift 0, changes every feature. With `fusion_bn_init="identity"` scale and
    shift start as deviation and mean of what comes in. This is ours; "standard" is the paper's.
    """

    calibrates = False
    """Whether the first batch is still to come; a second training leaves the norms as they are."""

    def begin_norms(self, init: str) -> None:
        """Set how the norms start: one of `BN_INITS`."""
        check_choice("fusion_bn_init", init, BN_INITS)
        self.calibrates = init == "identity"

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        wanted, self.calibrates = self.calibrates, False
        if wanted and self.trainer.current_epoch == 0:  # not where a training goes on
            part = parts_of(batch.get("weights", batch) if isinstance(batch, dict) else batch)[0]
            image = (self.unpack(part) if self.unpack is not None else part)["image"]
            calibrate(self.joined(), image, self.expected_gates())

    def expected_gates(self) -> Tensor | None:
        """The gates of its edges for calibration, nothing drawn; None: all are 1."""
        return None


@torch.no_grad()
def calibrate(network: nn.Module, image: Tensor, gates: Tensor | None = None) -> None:
    """Set the norms of the network's fusion layers so that, for these images, they give what they get.

    Args:
        network: called as `network(image, None, gates)`; nothing but these norms changes.
        image: (B, 3, H, W); under DDP each process has its own, and all take the mean.
        gates: (number of edges,); None: all are 1.
    """
    norms = [module.norm for module in network.modules() if isinstance(module, Fusion)]
    own = {id(buffer) for norm in norms for buffer in norm.buffers()}
    others = [(buffer, buffer.clone()) for buffer in network.buffers() if id(buffer) not in own]
    handles = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    try:
        network(image, None, gates)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, before in others:
            buffer.copy_(before)


def _take_statistics(norm: Any, inputs: tuple[Tensor]) -> None:
    x = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
    axes = [axis for axis in range(x.ndim) if axis != 1]
    moments = torch.stack([x.mean(axes), x.square().mean(axes)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(moments)
        moments /= dist.get_world_size()
    mean, variance = moments[0], (moments[1] - moments[0].square()).clamp_min(0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)
