"""Coarse strides traded for dilation, for the backbones whose own code cannot (VGG)."""

from __future__ import annotations

from torch import nn


def dilate(model: nn.Module, output_stride: int) -> None:
    """Change a plain sequence of convolutions and pools in place so that its stride stays at `output_stride`.

    A pool that would go beyond it becomes a 3x3 pool of stride 1, and the convolutions after it are dilated
    by the factor it no longer reduces, as in DeepLab-LargeFOV.
    """
    stride, dilation = 1, 1
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            if stride >= output_stride:
                parent = model.get_submodule(path.rpartition(".")[0])
                setattr(parent, path.rpartition(".")[2], nn.MaxPool2d(3, stride=1, padding=1))
                dilation *= 2
            else:
                stride *= 2
        elif isinstance(module, nn.Conv2d) and dilation > 1 and module.kernel_size != (1, 1):
            module.dilation = (dilation, dilation)
            module.padding = (
                dilation * (module.kernel_size[0] // 2),
                dilation * (module.kernel_size[1] // 2),
            )
