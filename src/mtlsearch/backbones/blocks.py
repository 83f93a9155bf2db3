"""Where the blocks of a timm model are, and to which stage each belongs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from torch import nn


def _local(modules: dict[str, nn.Module], path: str) -> str | None:
    """A path of the whole timm model in its `features_only` form, which flattens or wraps it."""
    forms = (path, path.replace(".", "_", 1), f"model.{path}")
    return next((form for form in forms if form in modules), None)


def find_blocks(model: nn.Module, whole: Any, levels: Sequence[str]) -> list[str]:
    """Module paths of the nodes of a timm model, in order of execution."""
    modules = dict(model.named_modules())
    matcher = whole.group_matcher(coarse=False).get("blocks", ())
    patterns = [matcher] if isinstance(matcher, str) else [p for p, order in matcher if order is None]
    matches = (re.match(pattern, name) for name, _ in whole.named_modules() for pattern in patterns)
    found = dict.fromkeys(_local(modules, match.group(0)) for match in matches if match)
    blocks = [path for path in found if path is not None]
    if not blocks:
        raise ValueError(
            f"{type(whole).__name__} does not name its blocks: pass blocks=[...], paths such as "
            f"{[path for path in modules if path.count('.') == 1][:5]}."
        )
    if all(not list(modules[path].children()) for path in blocks):
        blocks = _layers(modules, blocks)
    blocks = list(dict.fromkeys(_single(modules, path) for path in blocks))
    order = list(modules)
    first = _local(modules, levels[0])
    if first is not None and order.index(first) < order.index(blocks[0]) and first not in _parents(blocks[0]):
        blocks.insert(0, first)
    return blocks


def _layers(modules: dict[str, nn.Module], leaves: Sequence[str]) -> list[str]:
    """Of a plain sequence of leaves (VGG), the last of each layer: convolution, norm, activation."""
    starts = [i for i, path in enumerate(leaves) if isinstance(modules[path], nn.Conv2d)]
    ends = []
    for start in starts:
        end = start
        while end + 1 < len(leaves) and not isinstance(modules[leaves[end + 1]], nn.Conv2d | nn.MaxPool2d):
            end += 1
        ends.append(leaves[end])
    return ends


def _single(modules: dict[str, nn.Module], path: str) -> str:
    """The innermost module round a block that hands on one tensor: DenseNet's layers hand on lists."""
    parent = path.rpartition(".")[0]
    if type(modules[path]).__name__ == "DenseLayer":
        return parent
    return path


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def staged(
    model: nn.Module, blocks: Sequence[str], levels: Sequence[tuple[str, tuple[int, int]]]
) -> list[tuple[str, int]]:
    """Each node with its stage: the first level of the pyramid that is not finer than the node.

    Levels in a row with the same channels and stride are one stage, so a plain ViT has one.
    """
    modules = dict(model.named_modules())
    order = {path: i for i, path in enumerate(modules)}
    ends: list[int] = []
    last = None
    for path, shape in levels:
        local = _local(modules, path)
        if local is None:
            continue
        end = max(i for other, i in order.items() if other == local or other.startswith(f"{local}."))
        if shape == last:
            ends[-1] = end
        else:
            ends.append(end)
        last = shape
    missing = [path for path in blocks if path not in order]
    if missing:
        near = difflib.get_close_matches(missing[0], order, n=3) or list(order)[1:4]
        raise ValueError(f"The backbone has no module {missing[0]!r}. Near it are {near}.")
    return [
        (path, next((s for s, end in enumerate(ends) if order[path] <= end), len(ends))) for path in blocks
    ]
