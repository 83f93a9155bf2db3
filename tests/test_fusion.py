import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtlsearch.nn.fusion import Fusion, gated_product, resize


def plain(weights, gates, maps, axis):
    """As the equation is written: scale, concatenate, convolve."""
    weight = torch.cat(weights, dim=1)
    scaled = [maps[0], *(gate * m for gate, m in zip(gates, maps[1:]))]
    if axis == 1:
        return F.conv2d(torch.cat(scaled, 1), weight[:, :, None, None])
    return torch.cat(scaled, -1) @ weight.T


def inputs(layout, size=(5, 7), widths=(6, 4, 6)):
    torch.manual_seed(0)
    shape = {"tokens": (2, size[0]), "last": (2, *size)}.get(layout)
    maps = [torch.randn(*((*shape, c) if shape else (2, c, *size)), dtype=torch.double) for c in widths]
    if layout == "channels_last":
        maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    weights = [torch.randn(6, width, dtype=torch.double).requires_grad_() for width in widths]
    gates = torch.rand(len(widths) - 1, dtype=torch.double).requires_grad_()
    return weights, gates, [m.requires_grad_() for m in maps], 1 if shape is None else -1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "tokens", "last"])
@pytest.mark.parametrize("wanted", ["all", "weights", "arch"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])  # larger and smaller than the weights
def test_gated_product_is_the_plain_one_in_values_and_gradients(layout, wanted, size):
    weights, gates, maps, axis = inputs(layout, size)
    leaves = {"all": [*weights, gates, *maps], "weights": [*weights, *maps], "arch": [gates, *maps]}[wanted]
    frozen_weights = [w.detach() for w in weights] if wanted == "arch" else weights
    frozen_gates = gates.detach() if wanted == "weights" else gates
    ours = gated_product(frozen_weights, frozen_gates, maps, axis)
    theirs = plain(frozen_weights, frozen_gates, maps, axis)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    pull = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad((ours * pull).sum(), leaves), torch.autograd.grad((theirs * pull).sum(), leaves)
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_without_gates_all_are_on():
    weights, _, maps, axis = inputs("contiguous")
    ones = torch.ones(2, dtype=torch.double)
    assert torch.allclose(gated_product(weights, None, maps, axis), plain(weights, ones, maps, axis))


def test_bf16_autocast_stays_close_and_trains():
    torch.manual_seed(0)
    fusion = Fusion(8, [8], init_w_ti=0.5)
    own, source, gates = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), torch.rand(1, requires_grad=True)
    exact = fusion(own, [source], gates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = fusion(own, [source], gates)
        rough.sum().backward()
    assert torch.allclose(exact, rough.float(), atol=0.05)
    assert gates.grad.isfinite().all() and fusion.weights[1].grad.isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_backward_pass_keeps_nothing_but_the_maps(layout):
    weights, gates, maps, axis = inputs(layout)
    known = {t.untyped_storage().data_ptr() for t in (*weights, gates, *maps)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated_product(weights, gates, maps, axis)
    assert kept and {t.untyped_storage().data_ptr() for t in kept} == known


def test_initialisation_follows_equation_3():
    fusion = Fusion(3, [3, 3], init_w_ti=0.8)
    own, first, second = (weight.detach() for weight in fusion.weights)
    assert torch.allclose(own, 0.8 * torch.eye(3))
    assert torch.allclose(first, 0.1 * torch.eye(3)) and torch.allclose(second, 0.1 * torch.eye(3))


def test_initialisation_where_channels_differ_is_a_rectangular_identity():
    _, narrow, wide = (weight.detach() for weight in Fusion(4, [2, 6], init_w_ti=0.5).weights)
    assert torch.allclose(narrow, 0.25 * torch.eye(4, 2)) and torch.allclose(wide, 0.25 * torch.eye(4, 6))


def test_with_w_ti_one_the_fusion_starts_as_the_identity_up_to_its_norm():
    fusion = Fusion(4, [4], init_w_ti=1.0).eval()
    own = torch.rand(2, 4, 3, 3)
    assert torch.allclose(fusion(own, [torch.randn(2, 4, 3, 3)]), own, rtol=1e-4)


def test_random_initialisation_is_not_diagonal():
    torch.manual_seed(0)
    assert all((weight != 0).all() for weight in Fusion(4, [4], init_w_ti="random").weights)


def test_no_activation_keeps_negative_features():
    own = torch.randn(2, 4, 3, 3)
    assert (Fusion(4, [4], activation=False).eval()(own, [own]) < 0).any()
    assert (Fusion(4, [4], activation=True).eval()(own, [own]) >= 0).all()


def test_a_closed_gate_equals_a_dropped_source():
    torch.manual_seed(0)
    fusion = Fusion(4, [4, 4], init_w_ti="random").eval()
    own, first, second = torch.randn(3, 2, 4, 3, 3)
    closed = fusion(own, [first, second], torch.tensor([0.0, 1.0]))
    fusion.keep([1])
    assert len(fusion.weights) == 2
    assert torch.allclose(fusion(own, [second]), closed, atol=1e-6)


def test_learning_rate_factors_are_declared_for_weight_and_norm():
    fusion = Fusion(4, [4], lr_factor=100.0)
    assert fusion.weights.lr_factors["1"] == fusion.norm.lr_factors["bias"] == 100.0


def test_resize_brings_sources_to_the_target_in_either_layout():
    source = torch.randn(1, 3, 8, 8)
    like = torch.empty(1, 5, 4, 4)
    resized = resize(source, like, 1)
    assert resized.shape == (1, 3, 4, 4)
    last = resize(source.movedim(1, -1), like.movedim(1, -1), -1)
    assert torch.allclose(last.movedim(-1, 1), resized)
    assert resize(like, like, 1) is like


def test_fusion_of_tokens_equals_fusion_of_maps():
    torch.manual_seed(0)
    maps, tokens = Fusion(4, [4], init_w_ti="random"), Fusion(4, [4], init_w_ti="random", axis=-1)
    tokens.load_state_dict(maps.state_dict(), strict=False)
    own, source = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    flat = [x.flatten(2).mT for x in (own, source)]
    assert torch.allclose(tokens(flat[0], flat[1:]), maps(own, [source]).flatten(2).mT, atol=1e-5)


def test_norm_kind_follows_the_layout():
    assert isinstance(Fusion(4, [], axis=1).norm, nn.BatchNorm2d)
    assert isinstance(Fusion(4, [], axis=-1).norm, nn.BatchNorm1d)
