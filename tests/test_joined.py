"""Baselines that join single-task networks: cross-stitch, sluice, NDDR and the supernets."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch.backbones import from_module, load
from tiny import Killed, Stop, TinyData, copy_state, differing, make_tasks, make_trainer

SYSTEMS = {
    "cross_stitch": ms.CrossStitch,
    "sluice": ms.Sluice,
    "nddr": ms.NDDR,
    "nddr_supernet": partial(ms.NDDR, after="layer"),
    "mtlnas_supernet": ms.MTLNASSupernet,
}
NAMES = ("semantic", "depth", "normals")
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
each = pytest.mark.parametrize("system", SYSTEMS)


def make(system, k=2, backbone="test_resnet", **settings):
    if isinstance(backbone, str):
        backbone = load(backbone, **({"size": 32} if "vit" in backbone else {}))
    return SYSTEMS[system](make_tasks(*NAMES[:k]), backbone, **settings)


def identity(network):
    """Units and mixtures that hand on a task's own features."""
    for name, parameter in network.named_parameters():
        if name.endswith("alpha"):
            eye = torch.eye(len(parameter))
            parameter.data.copy_(eye if parameter.ndim == 2 else eye[..., None].expand_as(parameter))
        elif name.endswith("beta"):
            parameter.data.zero_()[0] = 1.0


# What each is


@pytest.mark.parametrize("after", ["stage", "layer"])
@pytest.mark.parametrize("system", ["cross_stitch", "sluice"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_identity_units_make_single_tasks_exactly(system, backbone, after):
    network = make(system, 3, backbone, after=after).net.eval()
    assert len(network.units)
    before, single = network(IMAGE), network.single_task().eval()(IMAGE)
    assert not torch.allclose(before["depth"], single["depth"], atol=1e-4)
    identity(network)
    for name, prediction in network(IMAGE).items():
        assert torch.equal(prediction, single[name])
