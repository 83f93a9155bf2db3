"""One backbone run along several paths: a block may be run, skipped or half run, for each task.

Tasks share every activation up to the first block on which they differ: what is stacked on the batch axis are
the *branches*, groups of tasks whose activations are the same so far. A block that no task runs is not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtlsearch.backbones import Backbone, Node

Gate = bool | Tensor
"""True runs a block and False skips it. A tensor v, of one number or of one an image, mixes v * block(x) +
(1 - v) * skip(x); one of booleans chooses for each image."""
Gates = Sequence[Mapping[str, Gate]]
Branch = list[str]


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

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.blocks = [node.path for node in skippable(backbone)]
        if not self.blocks:
            raise ValueError(
                "This backbone has no block that can be skipped: its output must have its input's shape, or the "
                "block a `downsample` as shortcut. Any ResNet, ConvNeXt, MobileNet or ViT has some."
            )
        self.backbone = backbone
        self._pass = _Pass(grows=_grows(backbone, self.blocks[0]))
        model = backbone.model
        for path, module in list(model.named_modules()):
            if isinstance(module, _BatchNorm):
                _replace(model, path, BranchNorm(module, self._pass))
        for index, path in enumerate(self.blocks):
            _replace(model, path, Block(model.get_submodule(path), index, self._pass))

    def block(self, index: int) -> Block:
        """The block of this index, its gate round it."""
        module = self.backbone.model.get_submodule(self.blocks[index])
        assert isinstance(module, Block)
        return module

    def drop(self, unused: Sequence[int]) -> None:
        """Remove the blocks of these indices, which no task runs; their shortcuts stay."""
        for index in unused:
            self.block(index).block = None

    def averaging(self, on: bool) -> None:
        """Whether running statistics become the mean over tasks of each batch, see `BranchNorm`."""
        self._pass.averaging = on

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


class _Pass:
    """What one forward pass carries past the model's own code, which hands on one tensor only.

    Args:
        grows: whether the model's code lets the stack grow on its way; otherwise it has the rows of every task
            from the beginning, and blocks compute each branch once.
    """

    def __init__(self, grows: bool) -> None:
        self.grows = grows
        self.averaging = False
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


class Block(nn.Module):
    """A block with its gates, and its shortcut apart so that what skips the block need not run it.

    Args:
        block: as it is in the backbone.
        index: its place in the gates.
        run: the pass.
    """

    def __init__(self, block: nn.Module, index: int, run: _Pass) -> None:
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
            parts = stack.chunk(len(run.order))
            stack = _cat([parts[run.order[branch[0]]] for branch in run.branches])
        parted = [_parted(branch, gates) for branch in run.branches]
        rows = len(stack) // len(run.branches)
        run.stacked = run.branches
        skips = self.shortcut(stack)
        results = self._results(stack, skips, gates, rows)
        run.branches = [branch for parts in parted for branch, _ in parts]
        mixed = _merged(skips, results, [[gate for _, gate in parts] for parts in parted], rows)
        run.rest()
        if not run.grows:
            outputs = mixed.split(rows)
            where = {task: i for i, branch in enumerate(run.branches) for task in branch}
            return _cat([outputs[where[task]] for task in run.order])
        return mixed

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
        images = [_images([gates[task] for task in users[i]]) for i in wanted]
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
        output = self._called(_cat([inputs[i] for i in wanted]), _cat([shortcuts[i] for i in wanted]))
        return dict(zip(wanted, output.split(rows)))

    def _called(self, stack: Tensor, skips: Tensor) -> Tensor:
        """The block's output, its shortcut given."""
        assert self.block is not None
        if not len(stack):
            return skips
        if self._given is not None:
            self._given.value = skips
        try:
            output: Tensor = self.block(stack)
        finally:
            if self._given is not None:
                self._given.value = None
        return output


class _Given(nn.Module):
    """Stands for a shortcut that has been computed."""

    value: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor | None:
        return self.value


class BranchNorm(nn.Module):
    """A BatchNorm that normalises every branch by its own statistics.

    Its running statistics become what a pass of the whole backbone for every task in turn would leave. While
    `averaging`, `momentum` instead is the share of the tasks' mean in what they become.
    """

    def __init__(self, norm: _BatchNorm, run: _Pass) -> None:
        super().__init__()
        self.norm = norm
        self._pass = run

    def forward(self, stack: Tensor) -> Tensor:
        run, momentum = self._pass, self.norm.momentum
        result: Tensor
        if not self.norm.training or momentum is None or len(run.order) == 1:
            result = self.norm(stack)
            return result
        outputs = []
        try:
            for share, part in zip(self._shares(momentum), stack.chunk(len(run.stacked))):
                self.norm.momentum = share
                outputs.append(self.norm(part))
        finally:
            self.norm.momentum = momentum
        return _cat(outputs)

    def _shares(self, momentum: float) -> list[float]:
        """The momentum of each branch's update, one after the other."""
        run = self._pass
        tasks = sorted((task for branch in run.stacked for task in branch), key=run.order.__getitem__)
        last = len(tasks) - 1
        share = {task: momentum * (1 - momentum) ** (last - i) for i, task in enumerate(tasks)}
        if run.averaging:
            share = dict.fromkeys(tasks, momentum / len(tasks))
        totals = [sum(share[task] for task in branch) for branch in run.stacked]
        rests = [1 - sum(totals[i + 1 :]) for i in range(len(totals))]
        return [total / rest if rest > 0 else 0.0 for total, rest in zip(totals, rests)]


def _parted(branch: Branch, gates: Mapping[str, Gate]) -> list[tuple[Branch, Gate]]:
    """A branch as the block leaves it: tasks with one hard gate stay together."""
    parts: list[tuple[Branch, Gate]] = []
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


def _merged(
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
    return _cat(outputs)


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


def _images(gates: Sequence[Gate]) -> Tensor | None:
    """The images for which one of these gates runs the block; None: all."""
    if not all(isinstance(gate, Tensor) and gate.dtype == torch.bool for gate in gates):
        return None
    return torch.stack([gate for gate in gates if isinstance(gate, Tensor)]).any(0)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
