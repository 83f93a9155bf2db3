"""Linear mixtures of several tasks' features: cross-stitch and sluice units, and mixtures of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORTEST = 0.01
"""A channel's features that are shorter over all positions are not stretched to unit length, so that gradients stay
bounded."""


def near_identity(size: int, own: float) -> Tensor:
    """(size, size): `own` on the diagonal, and the rest of each row's 1 spread over the others."""
    others = torch.full((size, size), (1 - own) / max(size - 1, 1))
    return others.fill_diagonal_(own)


class CrossStitch(nn.Module):
    """What a task gets is, channel by channel, a linear combination of all tasks' features (Misra et al., Eq. 1).

    Args:
        tasks: names, at least two.
        channels: of the features.
        own: the weight in [0, 1] with which a task's own features start, the others sharing the rest.
        axis: where features have their channels, 1 or -1.
        lr_factor: on the learning rate of the weights.
    """

    def __init__(
        self, tasks: Sequence[str], channels: int, *, own: float, axis: int = 1, lr_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.axis = axis
        self.alpha = nn.Parameter(near_identity(len(tasks), own)[..., None].repeat(1, 1, channels))
        self.lr_factors = {"alpha": lr_factor}

    def forward(self, features: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Combinations for the wanted tasks, from the features of all tasks, each of the same shape."""
        first = features[self.tasks[0]]
        alpha = self.alpha.to(first.dtype)
        if self.axis == 1:
            alpha = alpha[..., None, None]
        mixed = {}
        for task in wanted:
            first_weight, *weights = alpha[self.tasks.index(task)]
            result = first_weight * first
            for name, weight in zip(self.tasks[1:], weights):
                result = torch.addcmul(result, weight, features[name])
            mixed[task] = result
        return mixed


class Sluice(nn.Module):
    """What each subspace of a task's channels gets is a linear combination of all subspaces (Ruder et al.).

    Args:
        tasks: names, at least two.
        subspaces: G, into how many equal parts a task's channels are cut.
        own: the weight in [0, 1] with which a subspace itself starts, the others sharing the rest.
        axis: where features have their channels, 1 or -1.
        lr_factor: on the learning rate of the weights.
    """

    def __init__(
        self, tasks: Sequence[str], *, subspaces: int, own: float, axis: int = 1, lr_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.subspaces = subspaces
        self.axis = axis
        self.alpha = nn.Parameter(near_identity(len(tasks) * subspaces, own))
        self.lr_factors = {"alpha": lr_factor}

    def forward(self, features: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Combinations for the wanted tasks, from the features of all tasks, each of the same shape."""
        parts = torch.cat([self.cut(features[task]) for task in self.tasks])
        rows = [self.tasks.index(task) * self.subspaces + g for task in wanted for g in range(self.subspaces)]
        mixed = (self.alpha[rows] @ parts.flatten(1)).view(-1, *parts.shape[1:])
        whole = mixed.unflatten(0, (len(wanted), self.subspaces)).movedim(1, -2).flatten(-2)
        return {task: one.movedim(-1, self.axis) for task, one in zip(wanted, whole)}

    def cut(self, features: Tensor) -> Tensor:
        """Features as (G, B, ..., C / G), a subspace after the other."""
        last = features.movedim(self.axis, -1)
        return last.unflatten(-1, (self.subspaces, -1)).movedim(-2, 0)  # type: ignore[no-any-return]

    def overlap(self, features: Mapping[str, Tensor]) -> Tensor:
        """How far from orthogonal the subspaces are, summed over tasks and pairs: see `overlap`."""
        total = features[self.tasks[0]].new_zeros((), dtype=torch.float)
        for task in self.tasks:
            parts = self.cut(features[task]).flatten(2, -2)
            for i, one in enumerate(parts):
                for other in parts[i + 1 :]:
                    total = total + overlap(one, other)
        return total


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """||one^T other||^2, Frobenius, with channels of unit length, over the number of pairs of channels: the mean of
    their squared cosines, in [0, 1], over the images of the batch.

    Args:
        one, other: subspaces of a layer's features, (B, N, C), N positions of B images.
    """
    with torch.autocast(one.device.type, enabled=False):
        one, other = (F.normalize(part.float(), dim=1, eps=SHORTEST) for part in (one, other))
        return (one.mT @ other).square().mean()


class Mixture(nn.Module):
    """A level of a feature pyramid, mixed with earlier layers of its channels and size (Ruder et al.).

    Args:
        layers: how many earlier layers.
        own: the weight in [0, 1] with which the level itself starts, the layers sharing the rest.
        lr_factor: on the learning rate of the weights.
    """

    def __init__(self, layers: int, *, own: float, lr_factor: float = 1.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([own] + [(1 - own) / layers] * layers))
        self.lr_factors = {"beta": lr_factor}

    def forward(self, level: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """The mixture of a level (B, C, H, W) and layers of that shape."""
        own, *weights = self.beta.to(level.dtype)
        mixed: Tensor = own * level
        for weight, layer in zip(weights, layers):
            mixed = torch.addcmul(mixed, weight, layer)
        return mixed


def as_map(features: Tensor, like: Tensor, axis: int) -> Tensor:
    """Features as (B, C, H, W), with the height and width of a map `like` where they are tokens (B, N, C).

    Tokens that are no positions, such as a class token, stand first and are left out.
    """
    if axis == 1:
        return features
    if features.ndim == 3:
        height, width = like.shape[-2:]
        features = features[:, -height * width :].unflatten(1, (height, width))
    return features.movedim(-1, 1)
