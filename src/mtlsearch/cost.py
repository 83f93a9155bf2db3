"""What a network costs: parameters, multiply-accumulates and latency, for all tasks together and for each."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def cost(network: nn.Module, image: Tensor, tasks: list[str], *, repeats: int = 10) -> dict[str, Any]:
    """Cost of `network(image, tasks)` for one image.

    Args:
        network: its mode and device are kept.
        image: (1, 3, H, W) on the network's device.
        repeats: runs whose median is the latency.

    Returns:
        {"params", "backbone_params", "macs", "latency_ms", "per_task": {task: {"params", "macs"}}}. Parameters
        are counted once, however often they are used; those of the backbone leave the heads out. MACs are
        those of convolutions and matrix products, half of what torch's FlopCounterMode counts; a task alone
        has the parameters that its prediction depends on.
    """
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            result: dict[str, Any] = {
                "params": sum(p.numel() for p in network.parameters()),
                "backbone_params": backbone_params(network),
                "macs": _macs(network, image, tasks),
                "latency_ms": _latency(network, image, tasks, repeats),
            }
        result["per_task"] = {
            task: {"params": _used(network, image, task), "macs": _macs(network, image, [task])}
            for task in tasks
        }
    finally:
        network.train(training)
    return result


def backbone_params(network: nn.Module) -> int:
    """Parameters of everything but what is under `heads`: all those of a `Backbone`."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("heads."))


def _macs(network: nn.Module, image: Tensor, tasks: list[str]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image, tasks)
    return int(counter.get_total_flops()) // 2


def _latency(network: nn.Module, image: Tensor, tasks: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        network(image, tasks)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times[1:]), 3)


def _used(network: nn.Module, image: Tensor, task: str) -> int:
    parameters = [p for p in network.parameters() if p.requires_grad]
    prediction = network(image, [task])[task]
    grads = torch.autograd.grad(prediction.float().sum(), parameters, allow_unused=True)
    return sum(p.numel() for p, grad in zip(parameters, grads) if grad is not None)
