"""BatchNorm after a 1x1 product, without the product: its statistics follow from those of the product's input.

With rows d of mean m and covariance S, the rows P d have the mean P m and the variances diag(P S P^T). So a sum
of w * BN(P d) over several inputs is a sum of products with scaled matrices P; neither P d nor its norm is stored,
and the backward pass works on matrices of the size of P.

Maps are rows here, (B H W, blocks * channels), the blocks side by side and a matrix for each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

NARROW = 32
"""Up to so many channels, blocks are multiplied as one matrix with zeros beside the diagonal: it is faster."""


class Norm(_BatchNorm):
    """The statistics of a BatchNorm that neither scales nor shifts; others compute with them."""

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def of_batch(self) -> bool:
        """Whether the batch's statistics count, and not the running ones."""
        return self.training or self.running_mean is None

    def update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics.

        Args:
            mean, variance: of the batch, the variance with `count` as divisor.
            count: of values a channel.
        """
        if count < 2:
            raise ValueError(
                "BatchNorm needs more than one value a channel to train: take larger maps or batches."
            )
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share: Any = self.momentum
        if share is None:  # the mean over all batches
            share = 1 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.lerp_(mean.flatten(), share)
        self.running_var.lerp_(variance.flatten() * (count / (count - 1)), share)


class Normed(NamedTuple):
    """What is needed of BN(P d) without having it."""

    rows: Tensor  # (N, blocks * i): d, less its mean where the batch's statistics count
    mean: Tensor | None  # (blocks * i,) that was taken off
    covariance: Tensor | None  # (blocks, i, i) of d
    scale: Tensor  # (blocks, o) by which P d is scaled
    shift: Tensor | None  # (blocks, o) that is taken off P d before, where it is not of the batch


def normed(rows: Tensor, point: Tensor | None, norm: Norm, known: Normed | None = None) -> Normed:
    """Prepare BN(P d).

    Args:
        rows: d, (N, blocks * i), which is changed in place.
        point: P, (blocks, o, i); None: there is no product, and the fields of the result are for channels.
        norm: of blocks * o channels; its running statistics are moved.
        known: what this gave for the same rows before: nothing is computed or moved again.
    """
    if known is not None:
        if known.mean is not None:
            rows.sub_(known.mean)
        return known._replace(rows=rows)
    shape = (-1,) if point is None else point.shape[:2]
    if not norm.of_batch():
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt_()
        return Normed(rows, None, None, scale.view(shape), norm.running_mean.clone().view(shape))
    mean = rows.mean(0)
    rows.sub_(mean)  # before the product, or digits are lost
    if point is None:
        covariance = variance = rows.square().mean(0)
        norm.update(mean, variance, len(rows))
    else:
        covariance = cross(rows, rows, len(point)).div_(len(rows))
        variance = ((point @ covariance) * point).sum(-1).clamp_(min=0)
        norm.update(point @ mean.view(len(point), -1, 1), variance, len(rows))
    return Normed(rows, mean, covariance, (variance + norm.eps).rsqrt_(), None)


def normed_product(x: Normed, point: Tensor) -> Tensor:
    """BN(P d) itself, as rows (N, blocks * o)."""
    out = product(x.rows, (x.scale[..., None] * point).mT)
    return out if x.shift is None else out.sub_((x.scale * x.shift).flatten())


def add_normed_(out: Tensor, x: Normed, point: Tensor, weights: Tensor) -> None:
    """Add weights * BN(P d) to rows (N, blocks * o); weights are (blocks, o) or (blocks, 1)."""
    factors = weights * x.scale
    add_product_(out, x.rows, (factors[..., None] * point).mT)
    if x.shift is not None:
        out.sub_((factors * x.shift).flatten())


class Gradients(NamedTuple):
    """Of a sum of weights * BN(P d)."""

    weights: Tensor  # (blocks, o)
    point: Tensor | None
    rows: Tensor | None


def normed_gradients(
    grad: Tensor,
    sums: Tensor,
    x: Normed,
    point: Tensor,
    weights: Tensor,
    *,
    want_point: bool,
    want_rows: bool,
) -> Gradients:
    """Gradients from the one for the rows that `add_normed_` added to.

    Args:
        grad: (N, blocks * o).
        sums: (blocks, o), of `grad` over its rows.
        x, point, weights: as there.
        want_point, want_rows: which are computed beside that of the weights.
    """
    blocks = len(point)
    outer = cross(grad, x.rows, blocks)
    own = x.scale * (outer * point).sum(-1)
    if x.shift is not None:
        own = own - x.scale * x.shift * sums
    factors = (weights * x.scale)[..., None]
    # Of the variances, through the scale; times two, for they are quadratic in P and d.
    spread = -(x.scale.square() * weights * own)[..., None] if x.covariance is not None else None
    grad_point = grad_rows = None
    if want_point:
        grad_point = factors * outer
        if x.covariance is not None and spread is not None:
            grad_point += spread * (point @ x.covariance)
    if want_rows:
        scaled = factors * point
        if spread is None:
            grad_rows = product(grad, scaled)
        else:
            count = len(grad)
            mean = (scaled.mT @ sums[..., None]).flatten() / -count
            grad_rows = mean.expand(count, -1).contiguous()
            add_product_(grad_rows, grad, scaled)
            add_product_(grad_rows, x.rows, point.mT @ (spread / count * point))
    return Gradients(own, grad_point, grad_rows)


def product(rows: Tensor, matrices: Tensor) -> Tensor:
    """Rows (N, blocks * i) times matrices (blocks, i, o), block by block: (N, blocks * o)."""
    blocks, _, outputs = matrices.shape
    out = rows.new_empty(len(rows), blocks * outputs)
    add_product_(out, rows, matrices, beta=0)
    return out


def add_product_(out: Tensor, rows: Tensor, matrices: Tensor, *, beta: int = 1) -> None:
    """Add that product to `out`, or to beta times it."""
    blocks, inputs, _ = matrices.shape
    if blocks == 1 or blocks * inputs <= NARROW:
        out.addmm_(rows, torch.block_diag(*matrices), beta=beta)
    else:
        _blocks(out, blocks).baddbmm_(_blocks(rows, blocks), matrices, beta=beta)


def cross(a: Tensor, b: Tensor, blocks: int) -> Tensor:
    """The sums over the rows of a's columns times b's, block by block: (blocks, o, i)."""
    if blocks == 1 or b.shape[1] <= NARROW:
        whole = (a.T @ b).view(blocks, a.shape[1] // blocks, blocks, b.shape[1] // blocks)
        return whole.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
    return torch.bmm(_blocks(a, blocks).mT, _blocks(b, blocks))


def _blocks(rows: Tensor, blocks: int) -> Tensor:
    parted: Tensor = rows.unflatten(1, (blocks, -1)).transpose(0, 1)
    return parted


def to_rows(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as rows (B H W, C): a view where the channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_map(rows: Tensor, like: Tensor) -> Tensor:
    """Rows as a map (B, C, H, W) with the batch and size of `like`, a view."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)
