"""AdaShare's supernet on the backbones that people use, with pictures of 32x32."""

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch.searchers.policy_supernet import PolicySupernet
from tiny import make_tasks

BLOCKS = {
    "resnet18": 8,
    "resnet34": 16,
    "resnet50": 16,
    "wide_resnet50_2": 16,
    "mobilenetv2_050": 10,
    "convnext_atto": 12,
    "vit_tiny_patch16_224": 12,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_step_reaches_all_and_what_is_extracted_is_the_supernet(name):
    torch.manual_seed(0)
    backbone = ms.backbones.load(name, **({"size": 32} if name.startswith("vit") else {}))
    for module in backbone.modules():  # a block whose last norm starts at 0 would hide what it does
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
        if hasattr(module, "gamma") and isinstance(module.gamma, nn.Parameter):  # ConvNeXt's scale of a block
            nn.init.uniform_(module.gamma, 0.5, 1.0)
    net = PolicySupernet(make_tasks("semantic", "depth", plain=True), backbone).train()
    assert net.blocks == BLOCKS[name]
    image = torch.rand(2, 3, 32, 32)
    torch.stack([value.square().mean() for value in net(image).values()]).sum().backward()
    assert all(logits.grad.abs().min() > 0 for logits in net.logits)
    for index in range(net.blocks):
        inner = list(net.network.paths.block(index).block.parameters())
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in inner)

    on = torch.ones(net.blocks, 2, dtype=torch.bool)
    on[1] = False  # gone
    on[2, 0] = on[3, 1] = False
    architecture = net.eval().architecture(on)
    network = net.extract(architecture).eval()
    gone = sum(p.numel() for p in net.network.paths.block(1).block.parameters())
    whole, left = (sum(p.numel() for p in part.parameters()) for part in (net.network, network))
    assert whole - left == gone > 0
    with torch.no_grad():
        together, hard = network(image), net(image, gates=architecture)
        for task, prediction in hard.items():
            tolerance = 1e-4 * prediction.abs().max().item()
            assert torch.allclose(together[task], prediction, atol=tolerance)
            assert torch.allclose(network(image, [task])[task], prediction, atol=tolerance)
