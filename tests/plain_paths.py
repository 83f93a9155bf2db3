"""AdaShare's backbone as the paper writes it: a full pass for every task, every block computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from mtlsearch.backbones import Backbone
from mtlsearch.nn.paths import skippable


class PlainPaths(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.blocks = [node.path for node in skippable(backbone)]
        self.backbone = copy.deepcopy(backbone)

    def forward(self, image: Tensor, tasks: Sequence[str], gates: Sequence[Mapping[str, Any]]) -> Any:
        return {task: self.one(image, [gate[task] for gate in gates]) for task in tasks}

    def one(self, image: Tensor, gates: Sequence[Any]) -> list[Tensor]:
        """v * block(x) + (1 - v) * skip(x), skip(x) being x or the shortcut that the block computes."""
        with ExitStack() as hooks:
            for path, gate in zip(self.blocks, gates):
                block: Any = self.backbone.model.get_submodule(path)
                shortcuts: list[Tensor] = []
                if isinstance(getattr(block, "downsample", None), nn.Module):
                    keep = block.downsample.register_forward_hook(
                        lambda _, __, output, kept=shortcuts: kept.append(output)
                    )
                    hooks.callback(keep.remove)

                def mix(_: Any, inputs: Any, output: Tensor, v: Any = gate, kept: Any = shortcuts) -> Tensor:
                    v = float(v) if isinstance(v, bool) else v
                    return v * output + (1 - v) * (kept[0] if kept else inputs[0])

                hooks.callback(block.register_forward_hook(mix).remove)
            return self.backbone(image)


def own_name(name: str) -> str:
    """A parameter's or buffer's name in `Paths`, by its name here."""
    for part in (".shortcut", ".block", ".norm"):
        name = (
            name.replace(f"{part}.", ".")
            if part != ".shortcut"
            else name.replace(".shortcut.", ".downsample.")
        )
    return name
