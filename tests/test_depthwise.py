"""The module's gradients are the library's, at every step, kernel and size."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mtlsearch.nn.depthwise import Depthwise


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), list(itertools.product((3, 5), (1, 2), (1, 2))), ids=str
)
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
def test_results_and_gradients_are_those_of_the_library(kernel, stride, dilation, size):
    torch.manual_seed(0)
    module = Depthwise(3, kernel, stride, dilation).double()
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    ours = module(x)
    padding = dilation * (kernel // 2)
    plain = F.conv2d(x, module.weight, None, stride, padding, dilation, groups=3)
    assert torch.allclose(ours, plain, rtol=1e-12)
    grad = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, (x, module.weight), grad) for y in (ours, plain))):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_frozen_part_has_no_gradient():
    module = Depthwise(2, 5)
    module.weight.requires_grad_(False)
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    module(x).sum().backward()
    assert module.weight.grad is None and x.grad is not None


def test_half_precision_is_left_to_the_library():
    module = Depthwise(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(1, 2, 4, 4)).float().sum().backward()
    assert module.weight.grad.dtype == torch.float32
