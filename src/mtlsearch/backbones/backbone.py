"""Any timm model, or a module of yours, as a backbone: a feature pyramid and the nodes on the way to it."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.backbones.blocks import find_blocks, staged
from mtlsearch.backbones.dilation import dilate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Node:
    """A layer whose output can be looked at, fused or skipped.

    Args:
        path: where its module is in the backbone's `model`.
        stage: the backbone's own stage, counted from 0: its layers share channels and stride.
        channels: of its output.
        axis: which axis of the output holds them, 1 (B, C, H, W) or -1 (B, N, C) and (B, H, W, C).
        signed: whether outputs may be negative.
        keeps_shape: whether its output has its input's shape.
    """

    path: str
    stage: int
    channels: int
    axis: int
    signed: bool
    keeps_shape: bool


class Backbone(nn.Module):
    """A module that turns an image into a feature pyramid, with its nodes named.

    Args:
        model: called with a normalised image, gives a list of feature maps, finest first.
        paths: module paths of its nodes in order of execution, each with its stage.
        mean, std: per channel of an RGB image in [0, 1].
        size: (H, W) of the image with which shapes are probed; (1, T) where `tokens` is given.
        tokens: number of token ids of a model that reads text, (B, T) long; its features are (B, C, 1, T).
        spec: {"name", "arguments"} to build it again by `load`; None for a module of yours.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[tuple[str, int]],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: tuple[int, int] = (64, 64),
        tokens: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        module: Any
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # a node's output is read again after the next layer
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.size = size
        self.tokens = tokens
        inputs, outputs, features = _probe(self, [path for path, _ in paths])
        axes = {path: _axis(output, tokens is not None) for path, output in outputs.items()}
        self.nodes = tuple(
            Node(
                path,
                stage,
                channels=outputs[path].shape[axes[path]],
                axis=axes[path],
                signed=bool((outputs[path] < 0).any()),
                keeps_shape=inputs[path] == outputs[path].shape,
            )
            for path, stage in paths
        )
        self._channels_first = [_axis(feature, tokens is not None) == 1 for feature in features]
        self.channels = [f.shape[1 if first else -1] for f, first in zip(features, self._channels_first)]
        widths = [f.shape[3 if first else 2] for f, first in zip(features, self._channels_first)]
        self.strides = [round(size[1] / width) for width in widths]

    def example(self) -> Tensor:
        """A random image of one sample, normalised, or a text, with which shapes are probed."""
        generator = torch.Generator().manual_seed(0)
        if self.tokens is not None:
            return torch.randint(self.tokens, (1, self.size[1]), generator=generator)
        return torch.randn(1, len(self.mean), *self.size, generator=generator)

    def normalize(self, image: Tensor) -> Tensor:
        """An RGB image in [0, 1] as `model` wants it; anything but floats (token ids) as it is."""
        return (image - self.mean) / self.std if image.is_floating_point() else image

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The model's feature maps with the channels first, whatever its own layout."""
        return [
            f if first else f.movedim(-1, 1).contiguous() for f, first in zip(features, self._channels_first)
        ]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) to feature maps (B, C, H / stride, W / stride), finest first.

        A text (B, T) gives (B, C, 1, T / stride).
        """
        return self.pyramid(self.model(self.normalize(image)))

    def again(self) -> Backbone:
        """A backbone of the same structure: fresh random weights, or a copy where these were given."""
        if self.spec is None or self.spec["arguments"].get("pretrained"):
            return copy.deepcopy(self)
        return load(self.spec["name"], **self.spec["arguments"])


def load(
    name: str,
    *,
    pretrained: bool = False,
    output_stride: int | None = None,
    blocks: Sequence[str] | None = None,
    size: int | None = None,
    **timm_arguments: Any,
) -> Backbone:
    """A timm model, or "vdcnn" with the arguments of `mtlsearch.backbones.vdcnn`, as a `Backbone`.

    Nodes are the blocks that the model's `group_matcher` names, VGG's convolution layers (convolution, norm
    and activation together), and a level of the pyramid before the first block (ResNet's stem).

    Args:
        name: any name of `timm.list_models()`, or "vdcnn".
        pretrained: start from timm's weights, which are downloaded unless they are cached.
        output_stride: keep the coarsest features at this stride (8, 16 or 32), dilating what follows.
        blocks: module paths of the nodes, where the model names none or you want others.
        size: height and width of the images, for models that fix it (ViT, Swin).
        timm_arguments: handed on to `timm.create_model`.

    Raises:
        ValueError: no such model; a path in `blocks` that is not in it.
    """
    given = {"pretrained": pretrained, "output_stride": output_stride, "blocks": blocks, "size": size}
    if name == "vdcnn":
        return _own({**given, **timm_arguments})
    import timm

    known = timm.list_models()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3) or ["resnet18"]
        raise ValueError(f"No timm model is called {name!r}. Did you mean {' or '.join(near)}?")
    spec = {"name": name, "arguments": {k: v for k, v in given.items() if v} | timm_arguments}
    config: Any = timm.get_pretrained_cfg(name)
    own_dilation = name.startswith("vgg")
    if output_stride is not None and not own_dilation:
        timm_arguments["output_stride"] = output_stride
    if config.fixed_input_size:
        size = size or config.input_size[-1]
        timm_arguments["img_size"] = size
    model = timm.create_model(name, pretrained=pretrained, features_only=True, **timm_arguments)
    if output_stride is not None and own_dilation:
        dilate(model, output_stride)
    with torch.device("meta"):
        whole: Any = timm.create_model(name)
    levels = [(level["module"], (level["num_chs"], level["reduction"])) for level in whole.feature_info]
    if blocks is None:
        blocks = find_blocks(model, whole, [path for path, _ in levels])
    return Backbone(
        model,
        staged(model, blocks, levels),
        mean=config.mean,
        std=config.std,
        size=(size or 64, size or 64),
        spec=spec,
    )


def _own(arguments: dict[str, Any]) -> Backbone:
    """The backbone that is not timm's."""
    from mtlsearch.backbones.vdcnn import vdcnn

    given = {name: value for name, value in arguments.items() if value is not None and value is not False}
    try:
        return vdcnn(**given)
    except TypeError as error:
        raise ValueError(f"The backbone 'vdcnn' cannot be made from {given}: {error}.") from error


def from_module(
    model: nn.Module,
    blocks: Sequence[str],
    *,
    size: tuple[int, int] = (64, 64),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    tokens: int | None = None,
    spec: dict[str, Any] | None = None,
) -> Backbone:
    """A module of yours as a `Backbone`: it gives a list of feature maps, and `blocks` are paths in it.

    Layers whose outputs have the same channels and size in a row make a stage. The other arguments are those of
    `Backbone`.
    """
    settings: dict[str, Any] = {"size": size, "mean": mean, "std": std, "tokens": tokens, "spec": spec}
    probe = Backbone(model, [(path, 0) for path in blocks], **settings)
    _, outputs, _ = _probe(probe, list(blocks))
    stages: list[int] = []
    last = None
    for path in blocks:
        stages.append((stages[-1] + (outputs[path].shape != last)) if stages else 0)
        last = outputs[path].shape
    return Backbone(model, list(zip(blocks, stages)), **settings)


def _probe(
    backbone: Backbone, paths: Sequence[str]
) -> tuple[dict[str, torch.Size | None], dict[str, Tensor], list[Tensor]]:
    """Shapes of the nodes' inputs, their outputs, and the features for a random image.

    Raises:
        ValueError: a path names no module, or one that does not give one tensor.
    """
    modules = dict(backbone.model.named_modules())
    for path in paths:
        if path not in modules:
            near = difflib.get_close_matches(path, modules, n=3) or list(modules)[1:4]
            raise ValueError(f"The backbone has no module {path!r}. Near it are {near}.")
    inputs: dict[str, torch.Size | None] = {}
    outputs: dict[str, Tensor] = {}

    def look(path: str, arguments: tuple[Any, ...], output: Any) -> None:
        inputs[path] = arguments[0].shape if arguments and isinstance(arguments[0], Tensor) else None
        outputs[path] = output

    hooks = [
        modules[path].register_forward_hook(
            lambda _, arguments, output, path=path: look(path, arguments, output)
        )
        for path in paths
    ]
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = backbone.model(backbone.example())
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    for path in paths:
        if not isinstance(outputs.get(path), Tensor):
            raise ValueError(
                f"{path!r} cannot be a node: it gives {type(outputs.get(path)).__name__}, not one tensor."
            )
    return inputs, outputs, list(features)


def _axis(output: Tensor, is_text: bool) -> int:
    """Where the channels are: first of (B, C, H, W) and a text's (B, C, 1, T), last of (B, N, C) and (B, H, W, C).

    Images are square here.
    """
    return 1 if output.ndim == 4 and (is_text or output.shape[2] == output.shape[3]) else -1
