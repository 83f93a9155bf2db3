"""A mixed cell as the papers write it: every operation of every edge on its own, weighted and summed."""

from __future__ import annotations

import copy

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
