"""A mixed cell as the papers write it: every operation of every edge on its own, weighted and summed."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.nn.cells import EDGES, NODES
from mtlsearch.nn.mixed import MixedCell
from mtlsearch.nn.operations import OPERATIONS, operation


class PlainCell(nn.Module):
    """With the weights and statistics of a MixedCell."""

    def __init__(self, mixed: MixedCell) -> None:
        super().__init__()
        self.partial, self.reduction = mixed.partial, mixed.reduction
        self.prepare = copy.deepcopy(mixed.prepare)
        self.operations = nn.ModuleList()
        like = next(mixed.parameters())
        for edge in range(len(EDGES)):
            row = nn.ModuleList(
                operation(name, mixed.channels // mixed.partial, self.stride(edge), affine=False)
                for name in OPERATIONS
            ).to(like.device, like.dtype)
            for name, op in zip(OPERATIONS, row):
                op.load_state_dict(mixed.state(edge, name))
            self.operations.append(row)
        self.train(mixed.training)

    def stride(self, edge: int) -> int:
        return 2 if self.reduction and EDGES[edge][0] < 2 else 1

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, edges: Tensor | None = None) -> Tensor:
        states = [*self.prepare(s0, s1)]
        for node in NODES:
            total = 0
            for i, (source, target) in enumerate(EDGES):
                if target == node:
                    output = self.edge(i, states[source], weights[i])
                    total = total + (output if edges is None else edges[i] * output)
            states.append(total)
        return torch.cat(states[2:], dim=1)

    def edge(self, i: int, x: Tensor, weights: Tensor) -> Tensor:
        """One edge; with partial channels as PC-DARTS's code has it."""
        seen = x.shape[1] // self.partial
        mixed = sum(w * op(x[:, :seen]) for w, op in zip(weights, self.operations[i]))
        if self.partial == 1:
            return mixed
        past = x[:, seen:]
        if self.stride(i) == 2:
            past = F.max_pool2d(past, 2, ceil_mode=True)
        whole = torch.cat([mixed, past], dim=1)
        batch, _, height, width = whole.shape
        return whole.view(batch, self.partial, seen, height, width).transpose(1, 2).reshape(whole.shape)


def paired_gradients(cell: MixedCell, plain: PlainCell) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name of each gradient, the mixed cell's and the plain one's."""
    mirror = copy.deepcopy(cell)
    for parameter, own in zip(mirror.parameters(), cell.parameters()):
        parameter.data = torch.zeros_like(own) if own.grad is None else own.grad
    for edge in range(len(EDGES)):
        for name, op in zip(OPERATIONS, plain.operations[edge]):
            state = mirror.state(edge, name)
            for key, parameter in op.named_parameters():
                yield f"{edge} {name} {key}", state[key], parameter.grad
    for key, parameter in plain.prepare.named_parameters():
        yield key, cell.prepare.get_parameter(key).grad, parameter.grad


def paired_statistics(cell: MixedCell, plain: PlainCell) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name of each buffer, the mixed cell's and the plain one's."""
    for edge in range(len(EDGES)):
        for name, op in zip(OPERATIONS, plain.operations[edge]):
            state = cell.state(edge, name)
            for key, buffer in op.named_buffers():
                yield f"{edge} {name} {key}", state[key], buffer
    for key, buffer in plain.prepare.named_buffers():
        yield key, cell.prepare.get_buffer(key), buffer
