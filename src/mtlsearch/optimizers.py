"""Optimisers whose learning rates follow what modules declare, and the schedule of the rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
ADAMW: MakeOptimizer = partial(torch.optim.AdamW, lr=1e-3)


def poly(progress: float, power: float = 0.9) -> float:
    """The factor on the learning rate at `progress` in [0, 1] of the training: (1 - progress)^power."""
    return float((1 - progress) ** power)


def cosine(progress: float) -> float:
    """The factor on the learning rate at `progress` in [0, 1] of the training, half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def scaled_optimizer(
    make: MakeOptimizer, module: nn.Module, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimiser of these parameters of a module, learning rates times the factors that modules declare."""
    wanted = {id(parameter) for parameter in parameters}
    by_factor: dict[float, list[nn.Parameter]] = {}
    for part in module.modules():
        factors = getattr(part, "lr_factors", {})
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) in wanted:
                wanted.remove(id(parameter))
                by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    groups = [{"params": group, "lr_factor": factor} for factor, group in by_factor.items()]
    try:
        optimizer = make(groups)
    except TypeError as error:
        raise ValueError(
            f"The optimizer cannot be made: {error}. At the command line ~searcher.optimizer.NAME leaves one out."
        ) from error
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_factor"]
        group["initial_lr"] = group["lr"]
    return optimizer


def add_learnt(optimizer: torch.optim.Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser with a module's parameters beside its own, without weight decay and outside clipping."""
    factors = getattr(module, "lr_factors", {})
    for name, parameter in module.named_parameters():
        factor = factors.get(name, 1.0)
        rate = factor * optimizer.defaults["lr"]
        group = {"params": [parameter], "lr_factor": factor, "lr": rate, "initial_lr": rate, "clipped": False}
        optimizer.add_param_group({**group, "weight_decay": 0.0})
    return optimizer


def bare(optimizers: Any) -> list[Any]:
    """Lightning's optimisers without its wrappers."""
    listed = optimizers if isinstance(optimizers, list) else [optimizers]
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in listed]
