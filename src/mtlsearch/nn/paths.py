"""One backbone run along several paths: a block may be run, skipped or half run, for each task.

Tasks share every activation up to the first block on which they differ: what is stacked on the batch axis are
the *branches*, groups of tasks whose activations are the same so far. A block that no task runs is not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from mtlsearch.backbones import Backbone, Node
from mtlsearch.nn.branches import (
    Branch,
    BranchNorm,
    Gate,
    Gates,
    Parts,
    Pass,
    cat,
    chosen_images,
    merged,
    parted,
)


def skippable(backbone: Backbone) -> list[Node]:
    """The nodes that a task can skip: blocks whose output has their input's shape, and those whose shortcut is
    a module called `downsample`, which stays."""
    modules = dict(backbone.model.named_modules())
    return [node for node in backbone.nodes if _skips(node, modules[node.path])]


def _skips(node: Node, module: nn.Module) -> bool:
    learns = any(True for _ in module.parameters())
    return learns and (node.keeps_shape or isinstance(getattr(module, "downsample", None), nn.Module))


class Paths(nn.Module):
    """A backbone whose skippable blocks have a gate for each task.

    Args:
        backbone: its modules are taken over.

    Raises:
        ValueError: it has no block that can be skipped.
    """

    refusal = (
        "This backbone has no block that can be skipped: its output must have its input's shape, or the "
        "block a `downsample` as shortcut. Any ResNet, ConvNeXt, MobileNet or ViT has some."
    )

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.blocks = [node.path for node in self.gated(backbone)]
        if not self.blocks:
            raise ValueError(self.refusal)
        self.backbone = backbone
        self._pass = Pass(grows=_grows(backbone, self.blocks[0]))
        model = backbone.model
        for path, module in list(model.named_modules()):
            if isinstance(module, _BatchNorm):
                _replace(model, path, BranchNorm(module, self._pass))
        for index, path in enumerate(self.blocks):
            _replace(model, path, self.gate(model.get_submodule(path), index))

    def gated(self, backbone: Backbone) -> list[Node]:
        """The nodes that have gates."""
        return skippable(backbone)

    def gate(self, block: nn.Module, index: int) -> Block:
        """A block with its gates."""
        return Block(block, index, self._pass)

    def block(self, index: int) -> Block:
        """The block of this index, its gate round it."""
        module = self.backbone.model.get_submodule(self.blocks[index])
        assert isinstance(module, Block)
        return module

    def drop(self, unused: Sequence[int]) -> None:
        """Remove the blocks of these indices, which no task runs; their shortcuts stay."""
        for index in unused:
            self.block(index).block = None

    def separate(self, gates: Gates) -> None:
        """Give each norm running statistics for every path of these hard gates that reaches it.

        They start as copies of those that there are. Two paths are one up to the first block on which they
        differ. A pass in evaluation shows which of them reach a norm.
        """
        reached: dict[BranchNorm, list[Branch]] = {}
        norms = [module for module in self.modules() if isinstance(module, BranchNorm)]
        if not norms:
            return

        def look(norm: nn.Module, _: Any) -> None:
            assert isinstance(norm, BranchNorm)
            reached.setdefault(norm, []).extend(self._pass.here())

        hooks = [norm.register_forward_pre_hook(look) for norm in norms]
        image, like = self.backbone.example(), self.backbone.mean
        image = image.to(like.device, like.dtype if image.is_floating_point() else None)
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.no_grad():
                self(image, list(gates[0]), gates)
        finally:
            for hook in hooks:
                hook.remove()
            self.backbone.train(training)
        for norm, paths in reached.items():
            norm.separate(paths)

    def forward(self, image: Tensor, tasks: Sequence[str], gates: Gates) -> dict[str, list[Tensor]]:
        """Feature pyramids by task, finest level first.

        Args:
            image: (B, 3, H, W) in [0, 1].
            tasks: those wanted, in the order in which running statistics take them.
            gates: for each block, the gate of each of these tasks.
        """
        run = self._pass
        run.begin(tasks, gates)
        image = self.backbone.normalize(image)
        if image.ndim == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        rows = len(image)
        try:
            stack = image if run.grows else torch.cat([image] * len(tasks))
            levels = self.backbone.pyramid(self.backbone.model(stack))
        finally:
            history, run.history, run.gates = run.history, {}, ()
        pyramids: dict[str, list[Tensor]] = {task: [] for task in tasks}
        for level in levels:
            branches = history[len(level) // rows]
            for branch, part in zip(branches, level.split(rows)):
                for task in branch:
                    pyramids[task].append(part)
        return pyramids


class Block(nn.Module):
    """A block with its gates, and its shortcut apart so that what skips the block need not run it.

    Args:
        block: as it is in the backbone.
        index: its place in the gates.
        run: the pass.
    """

    def __init__(self, block: nn.Module, index: int, run: Pass) -> None:
        super().__init__()
        shortcut = getattr(block, "downsample", None)
        self.shortcut: nn.Module = nn.Identity()
        self._given: _Given | None = None
        if isinstance(shortcut, nn.Module):
            self.shortcut, self._given = shortcut, _Given()
            block.downsample = self._given
        self.block: nn.Module | None = block
        self.index = index
        self._pass = run

    def forward(self, stack: Tensor) -> Tensor:
        run = self._pass
        gates = run.gates[self.index]
        if not run.grows:  # of every branch, the rows of its first task
            rows_of = stack.chunk(len(run.order))
            stack = cat([rows_of[run.order[branch[0]]] for branch in run.branches])
        parts = [parted(branch, gates) for branch in run.branches]
        rows = len(stack) // len(run.branches)
        run.stacked = run.branches
        skips = self.shortcut(stack)
        mixed = self._branched(stack, skips, parts, rows)
        run.branches = [branch for own in parts for branch, _ in own]
        run.rest()
        if not run.grows:
            outputs = mixed.split(rows)
            where = {task: i for i, branch in enumerate(run.branches) for task in branch}
            return cat([outputs[where[task]] for task in run.order])
        return mixed

    def _branched(self, stack: Tensor, skips: Tensor, parts: Sequence[Parts], rows: int) -> Tensor:
        """The stack after the block: of each branch, the rows for every gate on it."""
        results = self._results(stack, skips, self._pass.gates[self.index], rows)
        return merged(skips, results, [[gate for _, gate in own] for own in parts], rows)

    def _results(
        self, stack: Tensor, skips: Tensor, gates: Mapping[str, Gate], rows: int
    ) -> dict[int, Tensor] | Tensor:
        """The block's output for each branch that wants it, by its place; where all do, as a stack."""
        run = self._pass
        users = [[task for task in branch if gates[task] is not False] for branch in run.branches]
        wanted = [i for i, tasks in enumerate(users) if tasks]
        if not wanted:
            return {}
        if self.block is None:
            raise ValueError(f"Block {self.index} is not in this network, and a gate wants it.")
        run.stacked = [users[i] for i in wanted]
        images = [chosen_images([gates[task] for task in users[i]]) for i in wanted]
        if not self.training and any(image is not None for image in images):
            offsets = torch.arange(len(stack), device=stack.device).split(rows)
            chosen = torch.cat(
                [offsets[i] if image is None else offsets[i][image] for i, image in zip(wanted, images)]
            )
            output = skips.index_copy(0, chosen, self._called(stack[chosen], skips[chosen]).to(skips.dtype))
            return output if len(wanted) == len(users) else dict(enumerate(output.split(rows)))
        if len(wanted) == len(users):
            return self._called(stack, skips)
        inputs, shortcuts = stack.split(rows), skips.split(rows)
        output = self._called(cat([inputs[i] for i in wanted]), cat([shortcuts[i] for i in wanted]))
        return dict(zip(wanted, output.split(rows)))

    def _called(self, stack: Tensor, skips: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """The block's output, its shortcut given, and these in place of its parameters and buffers, by name."""
        assert self.block is not None
        if not len(stack):
            return skips
        if self._given is not None:
            self._given.value = skips
        try:
            output: Tensor = (
                functional_call(self.block, dict(tensors), (stack,)) if tensors else self.block(stack)
            )
        finally:
            if self._given is not None:
                self._given.value = None
        return output


class _Given(nn.Module):
    """Stands for a shortcut that has been computed."""

    value: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor | None:
        return self.value


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _grows(backbone: Backbone, block: str) -> bool:
    """Whether the model's code goes on with twice the rows after a block: a ViT reshapes by those it began with."""
    module = backbone.model.get_submodule(block)
    hook = module.register_forward_hook(lambda _, __, output: torch.cat([output, output]))
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            last = backbone.model(backbone.example())[-1]
    except RuntimeError:
        return False
    finally:
        hook.remove()
        backbone.train(training)
    return len(last) == 2 and torch.allclose(last[0], last[1], atol=1e-4)
