"""K backbones of one structure run as one, in lockstep, so that they can exchange features on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from mtlsearch.backbones import Backbone

Exchange = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]


class Lockstep(nn.Module):
    """A backbone a task, and one forward pass for them all.

    The tasks' activations are stacked on the batch axis and the first backbone's own code runs once, each of
    its layers replaced by the K copies. Parameters that the model's root holds (a ViT's class token and
    position embedding) stay shared.

    Args:
        backbones: by task name, all of one structure. Their modules are taken over.
    """

    def __init__(self, backbones: Mapping[str, Backbone]) -> None:
        super().__init__()
        first = next(iter(backbones.values()))
        self.backbone = first
        self._pass = _Pass()
        nodes = {node.path: i for i, node in enumerate(first.nodes)}
        sources = {task: dict(backbone.model.named_modules()) for task, backbone in backbones.items()}
        for path in _units(first.model, nodes):
            copies = {task: modules[path] for task, modules in sources.items()}
            parent, _, name = path.rpartition(".")
            setattr(first.model.get_submodule(parent), name, Copies(copies, self._pass, nodes.get(path)))

    def forward(
        self, image: Tensor, tasks: Sequence[str], exchange: Exchange | None = None
    ) -> dict[str, list[Tensor]]:
        """Feature pyramids by task.

        Args:
            image: (B, 3, H, W) in [0, 1].
            tasks: whose backbones run.
            exchange: called after every node as `exchange(layer, {task: output})`, with the channels on the
                node's own axis; gives the outputs that go on. It may leave out a task that is not needed any
                further; the first of `tasks` are those that stay to the end.
        """
        image = self.backbone.normalize(image)
        if image.ndim == 4:  # fusion's products, like most convolutions, are faster with the channels last
            image = image.contiguous(memory_format=torch.channels_last)
        self._pass.tasks, self._pass.size, self._pass.exchange = list(tasks), len(tasks), exchange
        try:
            features = self.backbone.model(torch.cat([image] * len(tasks)))
        finally:
            self._pass.exchange = None
        pyramid = [feature.split(len(image)) for feature in self.backbone.pyramid(features)]
        return {task: [level[i] for level in pyramid] for i, task in enumerate(self._pass.tasks)}


class _Pass:
    """What one forward pass carries past the model's own code, which hands on one tensor only.

    `tasks` are those that still run, `size` counts those that the stack has room for.
    """

    tasks: list[str]
    size: int
    exchange: Exchange | None = None


class Copies(nn.Module):
    """One layer's K copies, each at work on its task's part of the stacked batch."""

    def __init__(self, copies: Mapping[str, nn.Module], run: _Pass, layer: int | None) -> None:
        super().__init__()
        self.copies = nn.ModuleDict(copies)
        self._run = run
        self.layer = layer

    def forward(self, stacked: Tensor) -> Tensor:
        run = self._run
        parts = stacked.chunk(run.size)
        outputs = {task: self.copies[task](part) for task, part in zip(run.tasks, parts)}
        if self.layer is not None and run.exchange is not None:
            outputs = run.exchange(self.layer, outputs)
            run.tasks = list(outputs)
        rows = list(outputs.values())
        # A task that is done leaves zeros: a ViT reshapes at its end by the batch size of its beginning.
        return torch.cat(rows + [torch.zeros_like(rows[0])] * (run.size - len(rows)))


def _units(model: nn.Module, nodes: Mapping[str, int]) -> list[str]:
    """Paths of the modules to copy: nodes, and between them whatever holds parameters or buffers of its own."""
    units: list[str] = []
    for path, module in model.named_modules():
        copied = any(path.startswith(f"{unit}.") for unit in units)
        contains = any(node.startswith(f"{path}.") for node in nodes)
        owns = any(True for _ in chain(module.parameters(recurse=False), module.buffers(recurse=False)))
        if path in nodes or (path and owns and not contains and not copied):
            units.append(path)
    return units
