import pytest
import torch

from mtlsearch.nn.stitch import CrossStitch, Mixture, Sluice, as_map, near_identity, overlap

TASKS = ["a", "b", "c"]


def features(axis, tasks=TASKS, channels=4, dtype=torch.double):
    torch.manual_seed(0)
    shape = (2, channels, 3, 5) if axis == 1 else (2, 7, channels)
    return {task: torch.randn(shape, dtype=dtype, requires_grad=True) for task in tasks}


def test_near_the_identity_rows_sum_to_one():
    start = near_identity(3, 0.8)
    assert torch.allclose(start, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))


@pytest.mark.parametrize("axis", [1, -1])
def test_a_cross_stitch_mixes_channel_by_channel(axis):
    unit = CrossStitch(TASKS, 4, own=0.9, axis=axis).double()
    torch.nn.init.normal_(unit.alpha)
    maps = features(axis)
    stacked = torch.stack([maps[task].movedim(axis, -1) for task in TASKS])
    expected = torch.einsum("ijc,j...c->i...c", unit.alpha, stacked)
    mixed = unit(maps, ["c", "a"])
    assert list(mixed) == ["c", "a"]
    for task, wanted in {"a": expected[0], "c": expected[2]}.items():
        assert torch.allclose(mixed[task], wanted.movedim(-1, axis))
    assert mixed["a"].shape == maps["a"].shape


def test_sluice_by_hand():
    """Two tasks with two channels, so that each subspace is one; b's first also gets half of a's second."""
    unit = Sluice(["a", "b"], subspaces=2, own=1.0)
    unit.alpha.data[2, 1] = 0.5
    a, b = torch.tensor([[[[1.0]], [[2.0]]]]), torch.tensor([[[[3.0]], [[4.0]]]])
    mixed = unit({"a": a, "b": b}, ["a", "b"])
    assert mixed["a"].flatten().tolist() == [1.0, 2.0]
    assert mixed["b"].flatten().tolist() == [4.0, 4.0]


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("subspaces", [1, 2, 4])
def test_sluice_mixes_subspaces(axis, subspaces):
    unit = Sluice(TASKS, subspaces=subspaces, own=0.9, axis=axis).double()
    torch.nn.init.normal_(unit.alpha)
    maps = features(axis)
    parts = [part for task in TASKS for part in maps[task].chunk(subspaces, axis)]
    for task, mixed in unit(maps, ["b", "c"]).items():
        rows = unit.alpha[TASKS.index(task) * subspaces :][:subspaces]
        wanted = [sum(weight * part for weight, part in zip(row, parts)) for row in rows]
        assert torch.allclose(mixed, torch.cat(wanted, axis))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(
    "unit", [CrossStitch(["a", "b"], 4, own=0.7), Sluice(["a", "b"], subspaces=2, own=0.7)]
)
def test_gradients(unit, axis):
    unit = unit.double()
    unit.axis = axis
    maps = features(axis, ["a", "b"])

    def outputs(a, b, alpha):
        return tuple(
            torch.func.functional_call(unit, {"alpha": alpha}, ({"a": a, "b": b}, ["a", "b"])).values()
        )

    assert torch.autograd.gradcheck(outputs, (*maps.values(), unit.alpha.detach().requires_grad_()))


def test_overlap_by_hand():
    """Of one image's two positions: channels (3, 4) and (0, 5) against (4, 3) have cosines 0.96 and 0.6."""
    one = torch.tensor([[[3.0, 0.0], [4.0, 5.0]]])
    other = torch.tensor([[[4.0, 0.0], [3.0, 0.0]]])
    assert overlap(one, other).item() == pytest.approx((0.96**2 + 0.6**2) / 4)
    assert overlap(100 * one, other).item() == pytest.approx(overlap(one, other).item())


def test_overlap_is_that_of_orthogonal_and_of_equal_subspaces():
    one, other = torch.eye(4)[None, :, :2], torch.eye(4)[None, :, 2:]
    assert overlap(one, other) == 0
    assert overlap(torch.ones(3, 5, 2), torch.ones(3, 5, 2)).item() == pytest.approx(1.0)


def test_overlap_is_a_mean_over_images_and_a_sum_over_tasks():
    unit = Sluice(["a", "b"], subspaces=2, own=0.9)
    maps = {task: map_.detach().float() for task, map_ in features(1, ["a", "b"]).items()}
    alone = [unit.overlap({task: map_[i : i + 1] for task, map_ in maps.items()}) for i in range(2)]
    assert torch.allclose(unit.overlap(maps), sum(alone) / 2)
    halves = {task: [half.flatten(2).mT for half in map_.chunk(2, 1)] for task, map_ in maps.items()}
    assert torch.allclose(unit.overlap(maps), overlap(*halves["a"]) + overlap(*halves["b"]))


def test_channels_without_features_leave_the_gradient_finite():
    one = torch.zeros(1, 4, 2).requires_grad_()
    other = torch.rand(1, 4, 2)
    overlap(one, other).backward()
    assert one.grad.isfinite().all()
    nearly = (1e-9 * torch.rand(1, 4, 2)).requires_grad_()
    overlap(nearly, other).backward()
    assert nearly.grad.abs().max() < 1


def test_a_mixture_of_layers():
    mixture = Mixture(2, own=0.8)
    level, layers = (
        torch.full((1, 2, 2, 2), 10.0),
        [torch.full((1, 2, 2, 2), 1.0), torch.full((1, 2, 2, 2), 2.0)],
    )
    assert torch.allclose(mixture(level, layers), torch.tensor(8.0 + 0.1 + 0.2))


def test_maps_of_tokens_leave_the_class_token_out():
    tokens = torch.arange(7.0).view(1, 7, 1)
    assert as_map(tokens, torch.empty(1, 1, 2, 3), -1).flatten(1).tolist() == [[1, 2, 3, 4, 5, 6]]
    last = torch.randn(1, 2, 3, 4)
    assert torch.equal(as_map(last, torch.empty(1, 4, 2, 3), -1), last.movedim(-1, 1))


@pytest.mark.parametrize(
    "unit", [CrossStitch(["a", "b"], 4, own=0.7), Sluice(["a", "b"], subspaces=2, own=0.7)]
)
def test_bf16_keeps_its_type_and_trains(unit):
    maps = {task: map_.detach().bfloat16() for task, map_ in features(1, ["a", "b"]).items()}
    exact = unit.float()({task: map_.float() for task, map_ in maps.items()}, ["a"])["a"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = unit(maps, ["a"])["a"]
    rough.float().sum().backward()
    assert rough.dtype == torch.bfloat16 and torch.allclose(exact, rough.float(), atol=0.05)
    assert unit.alpha.grad.isfinite().all()
