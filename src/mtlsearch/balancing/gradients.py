"""Balancing by the gradient of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlsearch.balancing.balancing import Balancing, Step

Row = list[Tensor | None]
"""The gradient of one loss by parameter, None where the loss does not reach it."""
OTHERS = ""
"""In place of a task's name: the terms that are not balanced."""


class Gradients(Balancing):
    """Takes the gradient of each task's loss by itself, a backward pass a task, and combines them.

    They are means over all processes and over the batches of an update. A method overrides `combine`.
    """

    def begin(self) -> None:
        self._rows: dict[str, Row] = {}
        self._values: dict[str, list[Tensor]] = {}

    def combine(
        self, rows: Mapping[str, Row], values: Mapping[str, Tensor], step: Step
    ) -> tuple[Row, dict[str, Tensor]]:
        """One gradient from those of the tasks that had labels, and the factors of the tasks in it, if any.

        Args:
            rows: by task in the order of the tasks.
            values: the losses of these tasks.
            step: the last of the update.
        """
        raise NotImplementedError

    def backward(self, step: Step) -> dict[str, Tensor]:
        if step.precision.startswith("16"):
            raise ValueError(
                f"Balancing by gradients takes them at their own size, which {step.precision} does not give: set "
                "the Trainer's precision to bf16-mixed or 32-true."
            )
        others = [term for name, term in step.terms.items() if name not in self.names]
        terms = {name: step.terms.get(name) for name in self.names if name in step.values}
        if others:
            terms[OTHERS] = torch.stack(others).sum()
        for name, value in step.values.items():
            self._values.setdefault(name, []).append(value)
        mine = [name for name, term in terms.items() if term is not None]
        for name, term in terms.items():
            row: Row = [None] * len(step.parameters)
            if term is not None and term.requires_grad:
                found = torch.autograd.grad(
                    term / step.accumulate, step.parameters, retain_graph=name != mine[-1], allow_unused=True
                )
                row = list(found)
            self._rows[name] = added(self._rows[name], row) if name in self._rows else row
        return self._finish(step) if step.ends else {}

    def _finish(self, step: Step) -> dict[str, Tensor]:
        """Set the gradients of the update."""
        rows = averaged(self._rows, step.parameters)
        values = {name: torch.stack(found).mean() for name, found in self._values.items()}
        self._rows, self._values = {}, {}
        others = rows.pop(OTHERS, [None] * len(step.parameters))
        rows = {name: rows[name] for name in self.names if name in rows}
        factors: dict[str, Tensor] = {}
        if rows:
            with torch.no_grad(), torch.autocast(step.parameters[0].device.type, enabled=False):
                combined, factors = self.combine(rows, values, step)
            others = added(others, combined)
        for parameter, gradient in zip(step.parameters, others):
            parameter.grad = gradient
        return factors


def added(one: Row, other: Row) -> Row:
    """The sum of two gradients."""
    return [b if a is None else a if b is None else a + b for a, b in zip(one, other)]


def averaged(rows: Mapping[str, Row], parameters: Sequence[nn.Parameter]) -> dict[str, Row]:
    """Their means over all processes; a parameter that any process reaches is reached."""
    if not (dist.is_available() and dist.is_initialized()):
        return dict(rows)
    reached = torch.tensor(
        [[g is not None for g in row] for row in rows.values()], device=parameters[0].device
    )
    reached = reached.int()
    dist.all_reduce(reached)
    result: dict[str, Row] = {}
    for (name, row), here in zip(rows.items(), (reached > 0).tolist()):
        found = [torch.zeros_like(p) if g is None else g for g, p, on in zip(row, parameters, here) if on]
        result[name] = [None] * len(parameters)
        if found:
            flat = torch.cat([g.flatten() for g in found])
            dist.all_reduce(flat)
            parts = iter((flat / dist.get_world_size()).split([g.numel() for g in found]))
            result[name] = [next(parts).view_as(p) if on else None for p, on in zip(parameters, here)]
    return result
