"""What a pass along several paths carries from block to block, and norms that keep its branches apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Gate = bool | Tensor
"""True runs a block and False skips it. A tensor v, of one number or of one an image, mixes v * block(x) +
(1 - v) * skip(x); one of booleans chooses for each image."""
Gates = Sequence[Mapping[str, Gate]]
Branch = list[str]
"""Tasks whose activations are the same so far."""
Parts = list[tuple[Branch, Gate]]
"""What becomes of a branch in a block: the tasks that stay together, each group with its gate."""


class Pass:
    """What one forward pass carries past the model's own code, which hands on one tensor only.

    Args:
        grows: whether the model's code lets the stack grow on its way; otherwise it has the rows of every task
            from the beginning, and blocks compute each branch once.
    """

    def __init__(self, grows: bool) -> None:
        self.grows = grows
        self.order: dict[str, int] = {}
        self.gates: Gates = ()
        self.branches: list[Branch] = []  # those that differ
        self.stacked: list[Branch] = []  # those that the tensor at hand is made of
        self.history: dict[int, list[Branch]] = {}  # how they were, by how many there were

    def begin(self, tasks: Sequence[str], gates: Gates) -> None:
        self.order = {task: i for i, task in enumerate(tasks)}
        self.gates = gates
        self.branches = [list(tasks)]
        self.history = {}
        self.rest()

    def rest(self) -> None:
        """Between blocks."""
        self.stacked = self.branches if self.grows else [[task] for task in self.order]
        self.history[len(self.stacked)] = self.stacked

    def here(self) -> list[Branch]:
        """The branches that differ, with those tasks only that the tensor at hand is for."""
        tasks = {task for branch in self.stacked for task in branch}
        parts = [[task for task in branch if task in tasks] for branch in self.branches]
        return [part for part in parts if part]


class BranchNorm(nn.Module):
    """A BatchNorm that normalises every branch by its own statistics.

    Its running statistics, (C,), become what a pass of the whole backbone for every task in turn would leave, and
    evaluation takes them for every branch. `separate` makes them (paths, C): each path then has its own.
    """

    def __init__(self, norm: _BatchNorm, run: Pass) -> None:
        super().__init__()
        self.norm: Any = norm
        self.rows: dict[str, int] = {}  # by task; none where all paths share the statistics
        self._pass = run
        self._seen: dict[int, int] | None = None  # how many batches each row is the mean of

    def separate(self, paths: Sequence[Branch]) -> None:
        """Keep running statistics for each of these paths, given as the tasks that take it.

        They start from those that the path's first task has had here.
        """
        norm = self.norm
        if norm.momentum is None or norm.running_mean is None:
            return
        before = [self.rows.get(tasks[0], 0) for tasks in paths]
        for name in ("running_mean", "running_var"):
            rows = getattr(norm, name).reshape(-1, norm.num_features)[before]
            setattr(norm, name, rows if len(paths) > 1 else rows[0])
        several = len(paths) > 1
        self.rows = {task: i for i, tasks in enumerate(paths) for task in tasks} if several else {}

    def average(self, on: bool) -> None:
        """Whether running statistics become the mean over the batches from now on, and over the tasks of each."""
        self._seen = {} if on else None

    def forward(self, stack: Tensor) -> Tensor:
        norm, branches = self.norm, self._pass.stacked
        rows = [self._row(branch) for branch in branches]
        if norm.training and norm.momentum is not None:
            momenta = self._momenta(rows)
        elif len(set(rows)) == 1:
            return self._normalized(stack, rows[0], norm.momentum)
        else:
            momenta = [norm.momentum] * len(rows)
        parts = zip(stack.chunk(len(rows)), rows, momenta)
        return cat([self._normalized(part, row, momentum) for part, row, momentum in parts])

    def _row(self, branch: Branch) -> int:
        if not self.rows:
            return 0
        if branch[0] not in self.rows:
            raise ValueError(
                f"Task {branch[0]!r} has no running statistics in a block that its policy skips, and a gate wants "
                "it: give gates to a network whose policy selects all blocks."
            )
        return self.rows[branch[0]]

    def _normalized(self, part: Tensor, row: int, momentum: float | None) -> Tensor:
        norm = self.norm
        mean, var, before = norm.running_mean, norm.running_var, norm.momentum
        try:
            norm.momentum = momentum
            if self.rows:
                norm.running_mean, norm.running_var = mean[row], var[row]
            result: Tensor = norm(part)
        finally:
            norm.running_mean, norm.running_var, norm.momentum = mean, var, before
        return result

    def _momenta(self, rows: Sequence[int]) -> list[float]:
        """The momentum of each branch's update, one after the other."""
        shares = {}
        for row in set(rows):
            branches = [branch for branch, own in zip(self._pass.stacked, rows) if own == row]
            shares[row] = iter(self._shares(branches, row))
        return [next(shares[row]) for row in rows]

    def _shares(self, branches: Sequence[Branch], row: int) -> list[float]:
        """The same for branches that update one row."""
        order = self._pass.order
        tasks = sorted((task for branch in branches for task in branch), key=order.__getitem__)
        if self._seen is not None:
            self._seen[row] = self._seen.get(row, 0) + 1
            share = dict.fromkeys(tasks, 1 / self._seen[row] / len(tasks))
        else:
            last, momentum = len(tasks) - 1, self.norm.momentum
            share = {task: momentum * (1 - momentum) ** (last - i) for i, task in enumerate(tasks)}
        totals = [sum(share[task] for task in branch) for branch in branches]
        rests = [1 - sum(totals[i + 1 :]) for i in range(len(totals))]
        return [total / rest if rest > 0 else 0.0 for total, rest in zip(totals, rests)]


def cat(parts: Sequence[Tensor]) -> Tensor:
    """The parts on one batch axis, not copied where there is but one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def parted(branch: Branch, gates: Mapping[str, Gate]) -> Parts:
    """A branch as a block leaves it: tasks with one hard gate stay together."""
    parts: Parts = []
    hard: dict[bool, Branch] = {}
    for task in branch:
        gate = gates[task]
        if isinstance(gate, Tensor):
            parts.append(([task], gate))
        elif gate in hard:
            hard[gate].append(task)
        else:
            hard[gate] = [task]
            parts.append((hard[gate], gate))
    return parts


def merged(
    skips: Tensor, results: Mapping[int, Tensor] | Tensor, gates: Sequence[Sequence[Gate]], rows: int
) -> Tensor:
    """The stack after a block: a branch's rows for every gate on it, v * block(x) + (1 - v) * skip(x)."""
    kinds = {gate if isinstance(gate, bool) else None for parts in gates for gate in parts}
    if kinds == {False}:
        return skips
    if isinstance(results, Tensor) and all(len(parts) == 1 for parts in gates):  # the stack stays as it is
        if kinds == {True}:
            return results
        if kinds == {None}:
            return _mixed(skips, results, torch.cat([_of_images(parts[0], rows) for parts in gates]))
    by_branch = dict(enumerate(results.split(rows))) if isinstance(results, Tensor) else results
    outputs = []
    for i, (skip, parts) in enumerate(zip(skips.split(rows), gates)):
        for gate in parts:
            if isinstance(gate, bool):
                outputs.append(by_branch[i] if gate else skip)
            else:
                outputs.append(_mixed(skip, by_branch[i], _of_images(gate, rows)))
    return cat(outputs)


def _mixed(skip: Tensor, result: Tensor, gate: Tensor) -> Tensor:
    gate = gate.view(-1, *[1] * (skip.ndim - 1))
    if gate.dtype == torch.bool:
        return torch.where(gate, result, skip)
    dtype = torch.promote_types(skip.dtype, result.dtype)
    return torch.lerp(skip.to(dtype), result.to(dtype), gate.to(dtype))


def _of_images(gate: Gate, rows: int) -> Tensor:
    """A gate of every image."""
    assert isinstance(gate, Tensor)
    return gate.expand(rows)


def chosen_images(gates: Sequence[Gate]) -> Tensor | None:
    """The images for which one of these gates runs the block; None: all."""
    if not all(isinstance(gate, Tensor) and gate.dtype == torch.bool for gate in gates):
        return None
    return torch.stack([gate for gate in gates if isinstance(gate, Tensor)]).any(0)
