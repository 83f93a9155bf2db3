import pickle

import pytest
import torch
from torch import nn

from mtlsearch.nn import heads

DENSE = {
    "light": heads.light(5, width=8),
    "light from stride 2": heads.light(5, width=8, finest=2),
    "large_fov": heads.large_fov(5, width=8),
    "aspp": heads.aspp(5, width=8),
}
PYRAMIDS = {
    "resnet": ([4, 6, 8], [2, 4, 8]),
    "vit": ([6, 6], [16, 16]),
    "one level": ([6], [32]),
}


def pyramid(channels, strides, size=(33, 50), images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, c, -(-size[0] // s), -(-size[1] // s), generator=generator)
        for c, s in zip(channels, strides)
    ]


@pytest.mark.parametrize("head", DENSE)
@pytest.mark.parametrize("shape", PYRAMIDS)
def test_dense_heads_fill_any_size(head, shape):
    channels, strides = PYRAMIDS[shape]
    module = DENSE[head](channels, strides)
    prediction = module(pyramid(channels, strides), (33, 50))
    assert prediction.shape == (2, 5, 33, 50)
    prediction.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_pool_averages_the_last_level():
    module = heads.pool(5)([4, 6], [4, 8]).eval()
    features = pyramid([4, 6], [4, 8])
    prediction = module(features, (33, 50))
    assert prediction.shape == (2, 5)
    constant = features[-1].mean(dim=(2, 3), keepdim=True).expand_as(features[-1])
    assert torch.allclose(module([torch.zeros(0), constant], (1, 1)), prediction, atol=1e-6)


@pytest.mark.parametrize("head", [*DENSE, "pool"])
def test_channels_last_changes_nothing(head):
    channels, strides = PYRAMIDS["resnet"]
    module = (DENSE | {"pool": heads.pool(5)})[head](channels, strides).eval()
    features = pyramid(channels, strides)
    expected = module(features, (33, 50))
    module = module.to(memory_format=torch.channels_last)
    found = module([x.contiguous(memory_format=torch.channels_last) for x in features], (33, 50))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("head", [*DENSE, "pool"])
def test_heads_export_and_pickle(head):
    channels, strides = PYRAMIDS["resnet"]
    make = (DENSE | {"pool": heads.pool(5)})[head]
    module = pickle.loads(pickle.dumps(make))(channels, strides).eval()
    features = pyramid(channels, strides)
    exported = torch.export.export(module, (features, (33, 50))).module()
    other = pyramid(channels, strides, seed=1)
    assert torch.allclose(exported(other, (33, 50)), module(other, (33, 50)), atol=1e-6)


def test_light_uses_every_level_from_its_finest_stride_on():
    channels, strides = PYRAMIDS["resnet"]
    for finest, used in ((2, [True, True, True]), (4, [False, True, True]), (64, [False, False, True])):
        features = [x.requires_grad_() for x in pyramid(channels, strides)]
        heads.light(1, width=8, finest=finest)(channels, strides)(
            features, (33, 50)
        ).square().sum().backward()
        assert [x.grad is not None and bool(x.grad.any()) for x in features] == used


def test_light_keeps_things_in_their_place():
    """A level that is bright in one corner gives a prediction that differs there and nowhere far from it."""
    channels, strides = [4, 4], [4, 8]
    module = heads.light(1, width=8)(channels, strides).eval()
    for level in (0, 1):
        dark = pyramid(channels, strides, (64, 64), 1)
        bright = [x.clone() for x in dark]
        bright[level][..., :1, -1:] += 5
        change = (module(bright, (64, 64)) - module(dark, (64, 64))).abs()[0, 0]
        assert change[:8, -8:].max() > 0.01
        assert change[40:].max() < 1e-6 and change[:, :24].max() < 1e-6


def test_predictions_are_resized_between_pixel_centres():
    module = heads.aspp(1, width=4)([3], [2]).eval()
    feature = torch.randn(1, 3, 1, 3)
    a, b, c = module([feature], (1, 3)).flatten().tolist()
    expected = [a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, 0.75 * b + 0.25 * c, 0.25 * b + 0.75 * c, c]
    assert module([feature], (1, 6)).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_large_fov_sees_twelve_cells_away():
    module = heads.large_fov(1, width=8)([3], [8]).eval()
    dark = torch.zeros(1, 3, 27, 27)
    bright = dark.clone()
    bright[..., 13, 13] = 5
    change = (module([bright], (27, 27)) - module([dark], (27, 27))).abs()[0, 0]
    seen = {(y, x) for y in (1, 13, 25) for x in (1, 13, 25)}
    assert {tuple(p) for p in change.gt(1e-6).nonzero().tolist()} == seen


def test_aspp_is_the_sum_of_its_branches():
    module = heads.aspp(2, width=4, dilations=(1, 3))([3], [8]).eval()
    feature = torch.randn(1, 3, 9, 9)
    expected = module.branches[0](feature) + module.branches[1](feature)
    assert torch.allclose(module([feature], (9, 9)), expected)
    published = heads.aspp(13)([512], [8])
    assert [b[0].dilation for b in published.branches] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    assert all(b[0].out_channels == b[3].out_channels == 1024 for b in published.branches)


@pytest.mark.parametrize(("make", "layers"), [(heads.large_fov, 1), (heads.aspp, 4)])
def test_last_layers_name_their_learning_rates(make, layers):
    for arguments, expected in (({}, (1.0, 1.0)), ({"last_layer_lr": [10.0, 20.0]}, (10.0, 20.0))):
        module = make(7, width=4, **arguments)([3], [8])
        last = [m for m in module.modules() if hasattr(m, "lr_factors")]
        assert len(last) == layers
        for layer in last:
            assert layer.out_channels == 7
            assert layer.lr_factors == dict(zip(("weight", "bias"), expected))
            assert set(layer.lr_factors) == {name for name, _ in layer.named_parameters(recurse=False)}


def test_dropout_is_off_in_evaluation():
    for make in (heads.large_fov(1, width=8), heads.aspp(1, width=8), heads.pool(1, dropout=0.5)):
        module = make([3], [8])
        features = [torch.randn(2, 3, 4, 4)]
        assert not torch.equal(module(features, (4, 4)), module(features, (4, 4)))
        module.eval()
        assert torch.equal(module(features, (4, 4)), module(features, (4, 4)))


def test_heads_by_name():
    assert isinstance(heads.dense("light", 3)([4], [8]), heads.Light)
    assert isinstance(heads.dense({"name": "aspp", "width": 4}, 3)([4], [8]), heads.ASPP)
    assert isinstance(heads.image("pool", 3)([4], [8]), heads.Pool)

    def own(channels, strides):
        return nn.Identity()

    assert heads.dense(own, 3) is own
    for wrong in ("pool", "ligth", {"width": 4}):
        with pytest.raises(ValueError, match="light, aspp, large_fov"):
            heads.dense(wrong, 3)
    with pytest.raises(ValueError, match="wdith"):
        heads.dense({"name": "light", "wdith": 4}, 3)


@pytest.mark.parametrize("size", [(5, 5), (5, 9), (9, 9), (4, 3)])
def test_atrous_convolution_without_dead_taps_is_the_whole_one(size):
    torch.manual_seed(0)
    ours = heads.Atrous(3, 4, 5).double()
    plain = torch.nn.Conv2d(3, 4, 3, padding=5, dilation=5).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    results = []
    for conv in (ours, plain):
        output = conv(x)
        assert output.shape == (2, 4, *size)
        results.append([output, *torch.autograd.grad((output**2).sum(), [x, *conv.parameters()])])
    for a, b in zip(*results):
        assert torch.allclose(a, b, atol=1e-12)
