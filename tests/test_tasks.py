import json
import math
import pickle
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_sum

from mtlsearch import tasks
from mtlsearch.task import has_labels, metric_directions
from mtlsearch.tasks.metrics import MeanError
from mtlsearch.tasks.segmentation import PALETTE

FLIP = np.array([[-1.0, 0.0], [0.0, 1.0]])
NAN = math.nan

TASKS = {
    "segmentation": partial(tasks.segmentation, num_classes=3, class_names=["wall", "floor", "ball"]),
    "normals": tasks.normals,
    "raw normals": partial(tasks.normals, raw_codes=True),
    "depth": tasks.depth,
    "edges": partial(tasks.edges, channels=2),
    "keypoints": tasks.keypoints,
    "boundaries": tasks.boundaries,
    "classification": partial(tasks.classification, "scene", num_classes=6, class_names=list("abcdef")),
    "soft classification": partial(tasks.classification, "scene", num_classes=6, soft=True),
}


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]()


def batch(task, size=(3, 4), images=4, seed=0):
    """A prediction and a target that has labels, with every third pixel of dense labels unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.stack([torch.from_numpy(task.target.unlabelled(size))] * images)
    values = torch.rand(target.shape, generator=generator) + 0.1
    known = torch.arange(math.prod(size)).reshape(size) % 3 > 0
    if isinstance(task.target, tasks.ClassMap):
        prediction = torch.randn(images, task.target.num_classes, *size, generator=generator)
        return prediction, torch.where(known, (10 * values).long() % task.target.num_classes, target)
    if isinstance(task.target, tasks.ImageLabel):
        prediction = torch.randn(images, task.target.num_classes, generator=generator)
        if task.target.soft:
            return prediction, values / values.sum(dim=1, keepdim=True)
        return prediction, torch.arange(images) % task.target.num_classes
    if isinstance(task.target, tasks.Normals):
        values = torch.nn.functional.normalize(values - 0.6, dim=1)
    if isinstance(task.target, tasks.Boundaries):
        values = (values > 0.6).float()
    return torch.randn(target.shape, generator=generator), torch.where(known, values, target)


def measure(metric, *batches):
    metric = metric() if not isinstance(metric, Metric) else metric
    for prediction, target in batches:
        metric.update(prediction, target)
    return metric.compute().item()


def vectors(*rows):
    """(1, 3, 1, n) from n vectors."""
    return torch.tensor(rows, dtype=torch.float32).T[None, :, None]


def turned(*degrees):
    """Unit vectors at these angles from (0, 0, -1)."""
    return vectors(*[(math.sin(math.radians(a)), 0.0, -math.cos(math.radians(a))) for a in degrees])


def facing(count):
    return turned(*[0.0] * count)


def values(*numbers):
    """(1, 1, 1, n)."""
    return torch.tensor(numbers, dtype=torch.float32)[None, None, None]


def one_hot(*ids, classes):
    """Logits (1, classes, 1, n) whose best classes are these."""
    return torch.nn.functional.one_hot(torch.tensor([[ids]]), classes).permute(0, 3, 1, 2).float()


# Every task


def test_task_survives_json_and_pickle(task):
    again = tasks.from_spec(task.name, json.loads(json.dumps(task.spec)))
    assert again.spec == task.spec
    assert metric_directions([again]) == metric_directions([task])
    prediction, target = batch(task)
    for other in (again, pickle.loads(pickle.dumps(task))):
        assert other.loss(prediction, target)[0] == task.loss(prediction, target)[0]
        assert vars(other.target) == vars(task.target)


def test_names_of_metrics_fit_a_module_dict_and_a_log(task):
    torch.nn.ModuleDict({name: make() for name, make in task.metrics.items()})
    assert not any(set(name) & set("./ ") for name in task.metrics)


def test_head_has_the_shape_that_the_loss_takes(task):
    prediction, target = batch(task)
    head = task.head([4, 6], [4, 8])
    found = head([torch.randn(4, 4, 2, 2), torch.randn(4, 6, 1, 1)], (3, 4))
    assert found.shape == prediction.shape
    loss, count = task.loss(found, target)
    (loss / count).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_loss_without_labels_is_a_zero_on_the_graph(task):
    prediction, target = batch(task)
    target = torch.stack([torch.from_numpy(task.target.unlabelled((3, 4)))] * len(target))
    prediction.requires_grad_()
    loss, count = task.loss(prediction, target)
    loss.backward()
    assert loss == 0 and count == 0
    assert not prediction.grad.any()
    assert not has_labels(task, target)


def test_unlabelled_entries_change_nothing(task):
    prediction, target = batch(task)
    if not task.target.dense:
        target[1] = torch.from_numpy(task.target.unlabelled((3, 4)))
    labelled = task.target.labelled(target)
    assert labelled.dtype == torch.bool and labelled.any() and not labelled.all()
    loss, count = task.loss(prediction.requires_grad_(), target)
    loss.backward()
    assert count == labelled.sum()
    assert prediction.grad.isfinite().all()
    hidden = ~labelled if labelled.shape == prediction.shape else ~labelled.unsqueeze(1).expand_as(prediction)
    assert not prediction.grad[hidden].any() and prediction.grad[~hidden].any()

    other = torch.where(hidden, prediction.detach() * -7 + 3, prediction.detach())
    assert torch.equal(task.loss(other, target)[0], loss)
    for make in task.metrics.values():
        assert measure(make, (other, target)) == measure(make, (prediction.detach(), target))


def test_loss_never_asks_the_device_for_a_value(task):
    prediction, target = batch(task)
    loss, count = task.loss(prediction.to("meta"), target.to("meta"))
    assert loss.shape == count.shape == ()


def test_uneven_halves_add_up_to_the_whole(task):
    prediction, target = batch(task)
    target[0] = torch.from_numpy(task.target.unlabelled((3, 4)))
    whole = torch.stack(task.loss(prediction, target))
    halves = torch.stack(task.loss(prediction[:1], target[:1])) + torch.stack(
        task.loss(prediction[1:], target[1:])
    )
    assert torch.allclose(whole, halves)


def test_half_precision_gives_the_loss_in_full(task):
    prediction, target = batch(task)
    prediction = 300 * prediction.bfloat16()
    loss, _ = task.loss(prediction, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, task.loss(prediction.float(), target)[0])
    for make in task.metrics.values():
        assert measure(make, (prediction, target)) == measure(make, (prediction.float(), target))


def test_loss_and_metrics_leave_their_inputs_alone(task):
    prediction, target = batch(task)
    copies = prediction.clone(), target.clone()
    task.loss(prediction, target)
    for make in task.metrics.values():
        measure(make, (prediction, target))
    assert torch.equal(prediction, copies[0])
    assert torch.equal(target.nan_to_num(-1.0), copies[1].nan_to_num(-1.0))


def test_metrics_of_two_processes_add_up(task):
    first, second = batch(task, seed=1), batch(task, seed=2)
    for make in task.metrics.values():
        both, one, other = make(), make(), make()
        assert measure(both, first, second) == measure(make, second, first)
        measure(one, first)
        measure(other, second)
        reductions = one._reductions
        assert reductions and all(reduce is dim_zero_sum for reduce in reductions.values())
        for state in reductions:
            setattr(one, state, getattr(one, state) + getattr(other, state))
        one._computed = None
        assert one.compute().item() == pytest.approx(both.compute().item(), rel=1e-6)


def test_metrics_are_quietly_nan_without_labels(task):
    prediction, target = batch(task)
    target = torch.stack([torch.from_numpy(task.target.unlabelled((3, 4)))] * len(target))
    for make in task.metrics.values():
        assert math.isnan(measure(make, (prediction, target)))


def test_metrics_start_afresh_after_reset(task):
    for make in task.metrics.values():
        metric = make()
        measure(metric, batch(task, seed=1))
        metric.reset()
        assert measure(metric, batch(task, seed=2)) == measure(make, batch(task, seed=2))


def test_own_labels_pass_their_check_and_have_a_picture(task):
    task.target.check(task.target.unlabelled((3, 4)))
    for label in batch(task)[1].numpy():
        task.target.check(label)
        if task.target.dense:
            picture = task.target.picture(label)
            assert picture.shape == (3, 4, 3) and picture.dtype == np.uint8
            labelled = task.target.labelled(torch.from_numpy(label)[None]).reshape(-1, 3, 4).any(dim=0)
            assert not picture[~labelled.numpy()].any()
            assert picture.any()
            assert not task.target.picture(task.target.unlabelled((3, 4))).any()


def test_head_may_be_a_function():
    def head(channels, strides):
        return torch.nn.Identity()

    for make in TASKS.values():
        task = make(head=head)
        assert task.head is head and task.spec is None
        with pytest.raises(ValueError, match="own"):
            tasks.from_spec(task.name, task.spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "flow", "arguments": {}}, "unknown kind 'flow'.*segmentation"),
        ({"kind": "depth", "arguments": {"colour": 1}}, "colour"),
        ({"kind": "segmentation", "arguments": {}}, "num_classes"),
        ({"kind": "segmentation", "arguments": {"num_classes": "5"}}, "num_classes"),
        ({"kind": "depth", "arguments": {"head": "lihgt"}}, "lihgt"),
        ({"kind": "depth", "arguments": {"head": "pool"}}, "pool.*light"),
        ({"kind": "depth", "arguments": {"head": {"name": "light", "height": 3}}}, "height"),
        ({"kind": "depth", "arguments": {"weight": "x"}}, "depth"),
        ({"kind": "depth"}, "kind and arguments"),
        ([], "kind and arguments"),
        ({"kind": ["depth"], "arguments": {}}, "unknown kind"),
        ({"kind": "depth", "arguments": [1]}, "cannot be made"),
    ],
)
def test_wrong_specs_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        tasks.from_spec("depth", spec)


def test_arguments_of_a_head_are_kept():
    task = tasks.depth(head={"name": "large_fov", "width": 8, "last_layer_lr": [10.0, 20.0]})
    again = tasks.from_spec("depth", json.loads(json.dumps(task.spec)))
    module = again.head([4], [8])
    assert [m.lr_factors for m in module.modules() if hasattr(m, "lr_factors")] == [
        {"weight": 10.0, "bias": 20.0}
    ]


# Means


def test_mean_keeps_counting_beyond_24_bits():
    metric = MeanError(lambda prediction, target: (prediction, target))
    measure(metric, (torch.tensor(2.0**25), torch.tensor(2**25)))
    for _ in range(64):
        metric.update(torch.tensor(1.0), torch.tensor(0))
    assert metric.compute().item() == 1 + 64 / 2**25


def test_mean_is_over_entries_not_batches():
    metric = tasks.depth().metrics["absolute_error"]
    assert measure(metric, (values(2, 2, 2), values(1, 1, 1)), (values(6), values(1))) == 2.0


# Segmentation


def test_segmentation_by_hand():
    task = tasks.segmentation(num_classes=4)
    target = torch.tensor([[[0, 0, 0, 1, 1, 255]]])
    prediction = one_hot(0, 0, 2, 0, 0, 3, classes=4)
    # Class 0: 2 of 5. Class 1 is there and never found: 0. Class 2 is found and not there: 0.
    # Class 3 is found on an unlabelled pixel alone, so it is in neither and left out.
    assert measure(task.metrics["miou"], (prediction, target)) == pytest.approx((2 / 5 + 0 + 0) / 3)
    assert measure(task.metrics["pixel_accuracy"], (prediction, target)) == pytest.approx(2 / 5)
    loss, count = task.loss(prediction, target)
    log = math.log(math.e + 3)
    assert count == 5 and loss.item() == pytest.approx(2 * (log - 1) + 3 * log, rel=1e-5)


def test_miou_is_of_the_data_set_not_of_images():
    metric = tasks.segmentation(num_classes=2).metrics["miou"]
    first = one_hot(0, 0, 0, 1, classes=2), torch.tensor([[[0, 0, 0, 0]]])
    second = one_hot(0, 1, classes=2), torch.tensor([[[1, 1]]])
    assert measure(metric, first, second) == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert measure(metric, first) == pytest.approx(3 / 4 / 2)


def test_class_map():
    target = tasks.ClassMap(3, ["wall", "floor", "ball"])
    label = np.array([[0, 1], [2, 255]])
    assert target.class_names == ["wall", "floor", "ball"]
    assert tasks.ClassMap(2).class_names == ["0", "1"]
    assert np.array_equal(target.warp(label, FLIP), label)
    assert target.decode(one_hot(2, 0, 1, classes=3)).tolist() == [[[2, 0, 1]]]
    picture = target.picture(label)
    assert np.array_equal(picture[1, 1], [0, 0, 0])


def test_no_two_classes_look_alike_nor_like_paper_or_what_is_unlabelled():
    assert len(np.unique(PALETTE, axis=0)) == 256
    colours = np.concatenate([[[0, 0, 0], [255, 255, 255]], PALETTE[:20].astype(int)])
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)
    assert apart[np.triu_indices(len(colours), 1)].min() > 60


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((1, 2, 2), np.int64), r"\(1, 2, 2\)"),
        (np.zeros((2, 2), np.uint8), "uint8"),
        (np.array([[0, 3], [-1, 255]]), r"0 to 2.*\[-1, 3\]"),
    ],
)
def test_wrong_class_maps_are_refused(label, message):
    with pytest.raises(ValueError, match=message):
        tasks.ClassMap(3).check(label)


@pytest.mark.parametrize("num_classes", [1, 0, 256, 3.0, "3"])
def test_wrong_numbers_of_classes_are_refused(num_classes):
    with pytest.raises(ValueError, match="num_classes"):
        tasks.segmentation(num_classes=num_classes)


def test_wrong_class_names_are_refused():
    for names in (["a", "b"], "abc"):
        with pytest.raises(ValueError, match="class_names"):
            tasks.segmentation(num_classes=3, class_names=names)


# Normals


def test_normals_by_hand():
    task = tasks.normals()
    pair = 5 * turned(0, 10, 20, 90, 180), facing(5)
    assert measure(task.metrics["mean_angle"], pair) == pytest.approx(60, rel=1e-6)
    assert measure(task.metrics["median_angle"], pair) == pytest.approx(20, abs=0.01)
    assert measure(task.metrics["within_11_25"], pair) == pytest.approx(2 / 5)
    assert measure(task.metrics["within_22_5"], pair) == pytest.approx(3 / 5)
    assert measure(task.metrics["within_30"], pair) == pytest.approx(3 / 5)
    loss, count = task.loss(*pair)
    cosines = [math.cos(math.radians(a)) for a in (0, 10, 20, 90, 180)]
    assert count == 5 and loss.item() == pytest.approx(5 - sum(cosines), rel=1e-5)


def test_angles_keep_their_digits_near_zero():
    mean = tasks.normals().metrics["mean_angle"]
    assert measure(mean, (turned(0.001), facing(1))) == pytest.approx(0.001, rel=1e-2)
    unit = torch.nn.functional.normalize(torch.randn(1, 3, 8, 8), dim=1)
    assert measure(mean, (3 * unit, unit)) < 1e-4


def test_median_is_over_all_pixels():
    metric = tasks.normals().metrics["median_angle"]
    batches = [
        (turned(1, 1, 1, 1, 1), facing(5)),
        (turned(40), facing(1)),
        (turned(50), facing(1)),
    ]
    assert measure(metric, *batches) == pytest.approx(1, abs=0.01)
    assert np.median([measure(metric, b) for b in batches]) == pytest.approx(40, abs=0.01)


def test_median_agrees_with_an_exact_one():
    angles = np.random.default_rng(0).uniform(0, 180, 1001)
    found = measure(tasks.normals().metrics["median_angle"], (turned(*angles), facing(1001)))
    assert found == pytest.approx(np.median(angles), abs=0.0051)


def test_median_of_the_worst_and_of_nan_is_the_last_bin():
    metric = tasks.normals().metrics["median_angle"]
    assert measure(metric, (turned(180), facing(1))) == pytest.approx(179.995)
    assert measure(metric, (facing(1) * NAN, facing(1))) == pytest.approx(179.995)


def test_zero_vector_has_a_bounded_gradient_and_no_credit():
    task = tasks.normals()
    prediction = torch.zeros(1, 3, 1, 1, requires_grad=True)
    loss, _ = task.loss(prediction, facing(1))
    loss.backward()
    assert loss == 1
    assert 0 < prediction.grad.norm() <= 1001
    assert measure(task.metrics["mean_angle"], (prediction.detach(), facing(1))) == pytest.approx(90)
    assert task.target.decode(prediction).isfinite().all()


def test_raw_codes_shrink_angles_as_published_tables_do():
    raw = tasks.normals(raw_codes=True)
    # In the order x, z, -y, (0, 0, -1) has the code (1, 0, 1), (0, 0, 1) (1, 2, 1) and (0, 1, 0) (1, 1, 0).
    pair = vectors((0, 0, 1), (0, 2, 0)), facing(2)
    cosines = 2 / math.sqrt(12), 1 / 2
    assert raw.loss(*pair)[0].item() == pytest.approx(2 - sum(cosines), rel=1e-5)
    expected = np.degrees(np.arccos(cosines)).mean()
    assert measure(raw.metrics["mean_angle"], pair) == pytest.approx(expected, rel=1e-5)
    assert measure(raw.metrics["median_angle"], (pair[0][..., 1:], pair[1][..., 1:])) == pytest.approx(
        60, abs=0.01
    )

    true = turned(20), facing(1)
    assert 5 < measure(raw.metrics["mean_angle"], true) < 16
    assert tasks.normals().spec["arguments"]["raw_codes"] is False


def test_flip_negates_x_and_zoom_turns_nothing():
    target = tasks.Normals()
    label = np.array([0.6, 0.0, -0.8], np.float32).reshape(3, 1, 1)
    assert target.warp(label, FLIP).ravel() == pytest.approx([-0.6, 0.0, -0.8])
    assert target.warp(label, 2.5 * np.eye(2)).ravel() == pytest.approx(label.ravel())
    assert target.warp(label, np.diag([2.0, 1.0])).ravel() == pytest.approx(label.ravel())
    # A quarter turn that takes x to y, and a zoom with it.
    assert target.warp(label, 3 * np.array([[0.0, -1.0], [1.0, 0.0]])).ravel() == pytest.approx(
        [0.0, 0.6, -0.8]
    )


def test_warp_agrees_with_a_rendered_sphere():
    """A sphere seen from afar looks the same when it is flipped or turned, and so must its normals."""
    ys, xs = np.mgrid[-4:5, -4:5] / 6.0
    sphere = np.stack([xs, ys, -np.sqrt(np.maximum(1 - xs**2 - ys**2, 0))]).astype(np.float32)
    target = tasks.Normals()
    assert target.warp(sphere[:, :, ::-1], FLIP) == pytest.approx(sphere, abs=1e-6)
    # np.rot90 turns the picture anticlockwise: with y down, (x, y) goes to (y, -x).
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    assert target.warp(np.rot90(sphere, axes=(1, 2)), turn) == pytest.approx(sphere, abs=1e-6)


def test_warp_renormalises_and_keeps_unlabelled():
    label = np.array([[0.3, NAN], [0.0, NAN], [0.4, NAN]], np.float32).reshape(3, 1, 2)
    warped = tasks.Normals().warp(label, FLIP)
    assert warped[:, 0, 0] == pytest.approx([-0.6, 0.0, 0.8])
    assert np.isnan(warped[:, 0, 1]).all() and warped.dtype == np.float32


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((2, 2, 3), np.float32), r"\(2, 2, 3\)"),
        (np.zeros((3, 2, 2)), "float64"),
        (np.full((3, 2, 2), 128, np.float32), "length 1.*222"),
        (np.array([NAN, 1, 0], np.float32).reshape(3, 1, 1), "in part"),
    ],
)
def test_wrong_normals_are_refused(label, message):
    with pytest.raises(ValueError, match=message):
        tasks.Normals().check(label)


def test_picture_of_normals():
    label = np.array([[1, -1, NAN], [0, 0, NAN], [0, 0, NAN]], np.float32).reshape(3, 1, 3)
    assert tasks.Normals().picture(label).tolist() == [[[255, 128, 128], [0, 128, 128], [0, 0, 0]]]


# Depth and other maps


def test_depth_by_hand():
    task = tasks.depth()
    pair = values(2.0, 1.3, 3.0, 1.0, -4.0, 9.0), values(2.0, 1.0, 2.0, 4.0, 4.0, NAN)
    assert measure(task.metrics["absolute_error"], pair) == pytest.approx((0 + 0.3 + 1 + 3 + 8) / 5)
    assert measure(task.metrics["relative_error"], pair) == pytest.approx((0 + 0.3 + 0.5 + 0.75 + 2) / 5)
    # Ratios 1, 1.3, 1.5, 4, and none for a negative depth; the bounds are 1.25, 1.5625 and 1.953125.
    assert measure(task.metrics["delta_1"], pair) == pytest.approx(1 / 5)
    assert measure(task.metrics["delta_2"], pair) == pytest.approx(3 / 5)
    assert measure(task.metrics["delta_3"], pair) == pytest.approx(3 / 5)
    loss, count = task.loss(*pair)
    assert count == 5 and loss.item() == pytest.approx(12.3)


def test_delta_is_below_its_bound_both_ways():
    task = tasks.depth()
    pair = values(1.25, 1.24, 4.0, 4.1), values(1.0, 1.0, 5.0, 5.0)
    assert measure(task.metrics["delta_1"], pair) == 0.5
    assert measure(task.metrics["delta_3"], (values(1.9, 1.0, 2.0), values(1.0, 1.9, 1.0))) == pytest.approx(
        2 / 3
    )


def test_zoom_divides_depth():
    label = np.array([[[3.0, NAN]]], np.float32)
    warped = tasks.Depth().warp(label, 1.5 * np.array([[0.0, -1.0], [1.0, 0.0]]))
    assert warped[0, 0, 0] == pytest.approx(2.0) and np.isnan(warped[0, 0, 1])
    assert warped.dtype == np.float32
    assert tasks.Depth().warp(label, FLIP)[0, 0, 0] == 3
    assert tasks.DenseMap(1).warp(label, 2 * np.eye(2))[0, 0, 0] == 3


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.ones((2, 2), np.float32), r"\(2, 2\)"),
        (np.ones((1, 2, 2), np.float16), "float16"),
        (np.array([[[0.0, 2.0, NAN]]], np.float32), "positive.*found 0"),
        (np.array([[[math.inf]]], np.float32), "infinite"),
    ],
)
def test_wrong_depths_are_refused(label, message):
    with pytest.raises(ValueError, match=message):
        tasks.Depth().check(label)


def test_picture_of_depth_is_robust_and_of_a_constant_map_is_flat():
    label = np.linspace(1, 2, 100, dtype=np.float32).reshape(1, 10, 10)
    outlier = label.copy()
    outlier[0, 9, 9] = 1000
    assert (
        np.abs(tasks.Depth().picture(label)[:5].astype(int) - tasks.Depth().picture(outlier)[:5]).max() < 12
    )
    assert len(np.unique(tasks.Depth().picture(np.ones((1, 2, 2), np.float32)).reshape(-1, 3), axis=0)) == 1


def test_maps_by_hand():
    task = tasks.edges(channels=2)
    target = torch.tensor([[[[0.0]], [[NAN]]], [[[1.0]], [[0.5]]]])
    prediction = torch.full((2, 2, 1, 1), 0.25)
    loss, count = task.loss(prediction, target)
    assert (loss.item(), count.item()) == (0.25 + 0.75 + 0.25, 3)
    assert measure(task.metrics["absolute_error"], (prediction, target)) == pytest.approx(1.25 / 3)


def test_a_prediction_is_not_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 4\) and \(2, 2, 3, 4\)"):
        tasks.edges(channels=2).loss(torch.zeros(2, 1, 3, 4), torch.zeros(2, 2, 3, 4))


def test_picture_of_edges_shows_every_channel():
    label = np.zeros((2, 1, 3), np.float32)
    label[0, 0, 0], label[1, 0, 1] = 1, 1
    assert tasks.DenseMap(2).picture(label)[0, :, 0].tolist() == [255, 255, 0]


def test_boundaries_by_hand():
    task = tasks.boundaries()
    target = torch.tensor([1.0, 0.0, 1.0, NAN]).reshape(1, 1, 1, 4)
    prediction = torch.tensor([3.0, 1.0, 0.0, 9.0]).reshape(1, 1, 1, 4)
    loss, count = task.loss(prediction, target)
    expected = math.log(1 + math.exp(-3)) + math.log(1 + math.e) + math.log(2)
    assert count == 3 and loss.item() == pytest.approx(expected, rel=1e-6)
    # By falling probability: a hit, a miss, a hit. Half the recall at precision 1, the rest at 2/3.
    score = measure(task.metrics["average_precision"], (prediction, target))
    assert score == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    picture = task.target.picture(task.target.decode(prediction)[0].numpy())
    assert picture[0, :, 0].tolist() == [243, 186, 128, 255]


def test_probabilities_of_boundaries_do_not_hang_on_the_batch():
    """Logits that all lie in 0..1 are logits nevertheless."""
    task, generator = tasks.boundaries(), torch.Generator().manual_seed(0)
    target = (torch.rand(8, 1, 4, 4, generator=generator) > 0.5).float()
    prediction = 2 * torch.rand(8, 1, 4, 4, generator=generator) + target
    prediction[:4] /= 3  # each of the first four within 0..1
    apart = measure(task.metrics["average_precision"], *zip(prediction.split(1), target.split(1)))
    assert apart == measure(task.metrics["average_precision"], (prediction, target))


def test_finding_no_boundary_at_all_is_not_rewarded():
    """With one pixel in ten on a boundary, the absolute error of 0 everywhere is 0.1; its precision is chance."""
    target = (torch.arange(100) % 10 == 0).float().reshape(1, 1, 10, 10)
    nothing, found = torch.full_like(target, -9.0), torch.where(target > 0, -1.0, -2.0)
    metric = tasks.boundaries().metrics["average_precision"]
    assert measure(metric, (nothing, target)) == pytest.approx(0.1)
    assert measure(metric, (found, target)) == pytest.approx(1)


def test_what_is_no_boundary_is_refused():
    with pytest.raises(ValueError, match=r"found 0.5.*tasks.edges"):
        tasks.Boundaries().check(np.array([[[0.0, 0.5, NAN]]], np.float32))


# Classification


def test_classification_by_hand():
    task = tasks.classification("scene", num_classes=7)
    prediction = torch.arange(7.0).repeat(4, 1)
    target = torch.tensor([6, 2, 1, -100])
    assert measure(task.metrics["top1"], (prediction, target)) == pytest.approx(1 / 3)
    assert measure(task.metrics["top5"], (prediction, target)) == pytest.approx(2 / 3)
    loss, count = task.loss(prediction, target)
    log = math.log(sum(math.exp(i) for i in range(7)))
    assert count == 3 and loss.item() == pytest.approx(3 * log - 9, rel=1e-5)
    assert task.target.decode(prediction).tolist() == [6, 6, 6, 6]


def test_top_k_gives_no_credit_for_ties():
    task = tasks.classification("scene", num_classes=10)
    pair = torch.zeros(10, 10), torch.arange(10)
    assert measure(task.metrics["top1"], pair) == pytest.approx(0.1)
    assert measure(task.metrics["top5"], pair) == pytest.approx(0.5)


def test_top5_needs_more_than_five_classes():
    assert list(tasks.classification("scene", num_classes=5).metrics) == ["top1"]
    assert list(tasks.classification("scene", num_classes=6).metrics) == ["top1", "top5"]


def test_soft_targets_by_hand():
    task = tasks.classification("scene", num_classes=2, soft=True)
    prediction = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, 9.0]])
    target = torch.tensor([[0.9, 0.1], [0.25, 0.75], [NAN, NAN]])
    loss, count = task.loss(prediction, target)
    assert count == 2 and loss.item() == pytest.approx(2 * 0.4**2 + 2 * 0.5**2)
    # The first is a tie, which goes to class 0 and is right; the second is wrong.
    assert measure(task.metrics["top1"], (prediction, target)) == 0.5
    assert task.target.labelled(target).tolist() == [True, True, False]
    assert task.target.decode(prediction)[1].tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("soft", "label", "message"),
    [
        (False, np.array([1]), r"\(1,\)"),
        (False, np.array(1, np.int32), "int32"),
        (False, np.array(3), "0 to 2.*found 3"),
        (True, np.array(1), "int64"),
        (True, np.array([0.5, 0.1, 0.1], np.float32), "sum of 0.7"),
        (True, np.array([-0.5, 1.0, 0.5], np.float32), "minimum of -0.5"),
        (True, np.array([NAN, 0.5, 0.5], np.float32), "NaN"),
    ],
)
def test_wrong_image_labels_are_refused(soft, label, message):
    with pytest.raises(ValueError, match=message):
        tasks.ImageLabel(3, soft=soft).check(label)


def test_one_pixel_of_one_image():
    for task in (tasks.segmentation(num_classes=2), tasks.normals(), tasks.depth(), tasks.edges()):
        channels = {"semantic": 2, "normals": 3}.get(task.name, 1)
        target = torch.zeros(1, 1, 1, dtype=torch.long) if channels == 2 else torch.ones(1, channels, 1, 1)
        prediction = torch.ones(1, channels, 1, 1)
        assert deepcopy(task).loss(prediction, target)[1] == 1
        assert all(math.isfinite(measure(make, (prediction, target))) for make in task.metrics.values())
