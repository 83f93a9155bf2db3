"""Detection: coding, matching, mining, selection, the head, mean average precision, training and pictures."""

import json
import math
import pickle
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.detection import MeanAveragePrecision

import mtlsearch as ms
from mtlsearch import predict
from mtlsearch.nn import detection as parts
from mtlsearch.nn import heads
from mtlsearch.report.boxes import draw_boxes
from mtlsearch.report.delta import delta_m
from mtlsearch.report.labels import overlays
from mtlsearch.report.sheet import predictions
from mtlsearch.searcher import halved
from mtlsearch.task import has_labels, metric_directions
from mtlsearch.tasks import detection, from_spec
from mtlsearch.tasks.detection import AveragePrecision, assign, match, ssd_loss
from mtlsearch.tasks.evaluation import Evaluation
from mtlsearch.tasks.metrics import shared
from tiny import BoxData, make_tasks, make_trainer

SHAPES = ["box", "ball", "cone"]
NAN = math.nan


def make(**arguments):
    return detection(num_classes=3, class_names=SHAPES, **arguments)


def label(*rows):
    """A label from rows of x1, y1, x2, y2, class."""
    numbers = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return {"boxes": numbers[:, :4], "labels": numbers[:, 4].long()}


def grid(side=8, size=32, prior=10):
    """Square priors (P, 4) round the places of a map of side x side."""
    places = torch.zeros(1, 1, side, side)
    return parts.priors((size, size), places, [(prior / size, prior / size)])


def perfect(labels, priors, classes=3, sure=20.0):
    """The prediction that says exactly what the labels do."""
    assigned = [assign(own, priors) for own in labels]
    codes = torch.stack([code for code, _ in assigned])
    truth = torch.stack([own for _, own in assigned])
    logits = sure * nn.functional.one_hot(truth, classes + 1).float()
    return torch.cat([codes, priors.expand(len(labels), -1, 4), logits], dim=2)


LABELS = [label((2, 3, 11, 14, 0), (18, 16, 30, 31, 2)), label((10, 4, 22, 15, 1))]


# Boxes and their coding


def test_coding_by_hand():
    prior, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[1.0, 2, 21, 12]])
    # Centres (5, 10) and (11, 7), sides (10, 20) and (20, 10).
    expected = [6 / 10 / 0.1, -3 / 20 / 0.1, math.log(2) / 0.2, math.log(0.5) / 0.2]
    assert parts.encode(box, prior)[0].tolist() == pytest.approx(expected)


def test_decoding_undoes_coding():
    generator = torch.Generator().manual_seed(0)
    low, side = torch.rand(2, 50, 2, 2, generator=generator, dtype=torch.double)
    boxes, priors = (40 * torch.cat([low, low + side[:] + 0.01], dim=-1)).unbind(1)
    offsets = parts.encode(boxes, priors)
    assert torch.allclose(parts.decode(offsets, priors), boxes, rtol=0, atol=1e-10)
    offsets.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: parts.decode(x, priors), offsets)


def test_wild_offsets_decode_to_finite_boxes():
    box = parts.decode(torch.full((1, 4), 1e4), torch.tensor([[0.0, 0, 10, 20]]))
    assert box.isfinite().all()
    assert (box[0, 2] - box[0, 0]).item() == pytest.approx(10 * 62.5, rel=1e-4)


# Priors


def test_priors_by_hand_for_an_odd_size():
    """An image of 33 x 50 whose stride of 32 makes a map of 2 x 2."""
    boxes = parts.priors((33, 50), torch.zeros(1, 5, 2, 2), [(0.2, 0.4)])
    centres = [[12.5, 8.25], [37.5, 8.25], [12.5, 24.75], [37.5, 24.75]]
    sides = [6.6, 13.2]
    expected = [[x - sides[0] / 2, y - sides[1] / 2, x + sides[0] / 2, y + sides[1] / 2] for x, y in centres]
    assert torch.allclose(boxes, torch.tensor(expected))


def test_sides_are_those_of_ssd():
    sides = parts.prior_sides(3, 0.2, 0.6)
    assert [len(level) for level in sides] == [6, 6, 4]
    for level, s in zip(sides, (0.2, 0.4, 0.6)):
        widths, heights = np.array(level).T
        ratios = [1, 2, 1 / 2, 3, 1 / 3, 1] if len(level) == 6 else [1, 2, 1 / 2, 1]
        assert widths / heights == pytest.approx(ratios)
        assert (widths * heights)[:-1] == pytest.approx(s**2)
        assert widths[-1] == pytest.approx(math.sqrt(s * (s + 0.2)))
    assert len(parts.prior_sides(1, 0.2, 0.6)[0]) == 4


# The head


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (47, 31)])
@pytest.mark.parametrize("settings", [{}, {"fpn": 8}, {"extra": 2}, {"fpn": 8, "extra": 1}])
def test_head_fits_any_size(size, settings):
    channels, strides = [4, 6, 8, 10], [2, 4, 8, 16]
    module = heads.boxes({"name": "ssd", **settings}, 3)(channels, strides)
    sizes = [[-(-pixels // stride) for pixels in size] for stride in strides]
    features = [torch.randn(2, c, *s, requires_grad=True) for c, s in zip(channels, sizes)]
    prediction = module(features, size)
    used = sizes[1:]
    for _ in range(settings.get("extra", 0)):
        used.append([-(-side // 2) for side in used[-1]])
    count = sum(6 * h * w for h, w in used[:-1]) + 4 * math.prod(used[-1])
    assert prediction.shape == (2, count, 4 + 4 + 1 + 3)
    _, boxes, _ = parts.split(prediction)
    assert torch.equal(prediction[1, :, 4:8], boxes)
    x, y = parts.centred(boxes)[0].T
    assert x.min() > 0 and x.max() < size[1] and y.min() > 0 and y.max() < size[0]
    assert (x.min() + x.max()).item() == pytest.approx(size[1], abs=1e-3)
    prediction[..., [0, 1, 2, 3, 8, 9, 10, 11]].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert [x.grad is not None for x in features] == [False, True, True, True]


def test_a_place_predicts_for_its_own_priors():
    """A feature that is bright in one place changes what is predicted there and beside it."""
    module = parts.ssd(2, finest=4)([3, 3], [4, 8]).eval()
    dark = [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4)]
    bright = [dark[0].clone(), dark[1]]
    bright[0][..., 1, 6] += 5
    changed = (module(bright, (32, 32)) - module(dark, (32, 32))).abs().amax(dim=2)[0] > 1e-6
    centres = parts.centred(module(dark, (32, 32))[0, changed, 4:8])[0]
    assert changed.sum() == 9 * 6
    assert (centres - torch.tensor([26.0, 6.0])).abs().max() <= 4


def test_top_down_path_carries_what_is_coarse_to_the_finest_level():
    module = parts.ssd(2, fpn=8)([3, 3], [4, 8]).eval()
    features = [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4)]
    changed = [features[0], features[1] + 1]
    difference = (module(changed, (32, 32)) - module(features, (32, 32)))[0, : 64 * 6]
    assert difference[:, :4].abs().max() > 0.01 and not difference[:, 4:8].any()
    plain = parts.ssd(2)([3, 3], [4, 8]).eval()
    assert torch.equal(plain(changed, (32, 32))[0, : 64 * 6], plain(features, (32, 32))[0, : 64 * 6])


def test_head_exports_and_pickles_and_needs_no_boxes_in_its_file():
    module = pickle.loads(pickle.dumps(heads.boxes("ssd", 3)))([4, 6], [4, 8]).eval()
    assert not any("prior" in name for name in module.state_dict())
    features = [torch.randn(2, 4, 9, 13), torch.randn(2, 6, 5, 7)]
    exported = torch.export.export(module, (features, (33, 50))).module()
    other = [torch.randn_like(x) for x in features]
    assert torch.allclose(exported(other, (33, 50)), module(other, (33, 50)), atol=1e-5)


def test_bfloat16_keeps_the_digits_of_priors():
    module = parts.ssd(3)([4], [4])
    features = [torch.randn(2, 4, 16, 300)]
    with torch.autocast("cpu", torch.bfloat16):
        reduced = module(features, (64, 1199))
    assert torch.equal(reduced[..., 4:8], module(features, (64, 1199))[..., 4:8])


# Matching


def test_matching_by_hand():
    priors = torch.tensor(
        [[0.0, 0, 10, 10], [1, 0, 11, 10], [10, 10, 20, 20], [0, 0, 40, 40], [50, 50, 60, 60]]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [12, 10, 22, 20], [50, 50, 51, 51]])
    # The first box is prior 0 and shares 9/11 with prior 1. The second has its best with prior 2: 8/12. The third
    # shares 1/100 with prior 4, its best. Prior 3 shares at most 100/1600 with any.
    assert match(boxes, priors).tolist() == [0, 0, 1, -1, 2]
    assert match(boxes, priors, threshold=0.9).tolist() == [0, -1, 1, -1, 2]


def test_the_closer_box_has_the_prior_that_two_want():
    prior = torch.tensor([[0.0, 0, 10, 10]])
    assert match(torch.tensor([[0.0, 0, 10, 3], [0, 0, 10, 8]]), prior).tolist() == [1]


def test_own_prior_is_not_lost_to_a_box_that_overlaps_it_more():
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    boxes = torch.tensor([[0.0, 0, 10, 9.5], [0, 0, 10, 4]])
    # The first box overlaps both more than the second does, whose best is prior 1.
    assert match(boxes, priors).tolist() == [0, 1]


def test_assigned_are_offsets_and_classes():
    priors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    codes, classes = assign(label((21, 20, 31, 30, 2)), priors)
    assert classes.tolist() == [0, 3]
    assert codes[1].tolist() == pytest.approx([1, 0, 0, 0])


# The loss


def test_mining_takes_three_times_as_many_of_the_hardest():
    priors = grid()
    one = label((8, 8, 18, 18, 0))
    _, classes = assign(one, priors)
    matched = int((classes > 0).sum())
    prediction = perfect([one], priors, sure=0.0).requires_grad_()
    with torch.no_grad():
        prediction[0, ::3, 9] += 1.0  # a third takes everything for a box
    total, count = ssd_loss(prediction, [one])
    total.backward()
    taken = prediction.grad[0, :, 8:].abs().sum(dim=1) > 0
    assert count == matched and matched >= 1
    assert taken.sum() == 4 * matched and taken[classes > 0].all()
    hard = taken & (classes == 0)
    assert prediction[0, hard, 9].eq(1).all()
    assert not prediction.grad[..., 4:8].any()


def test_loss_by_hand():
    """Two priors, one box, which is one prior shifted by a pixel; even logits of three classes and background."""
    priors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    prediction = torch.cat([torch.zeros(1, 2, 4), priors[None], torch.zeros(1, 2, 4)], dim=2)
    total, count = ssd_loss(prediction, [label((22, 20, 32, 30, 2))])
    # The offset is 2 / 10 / 0.1 = 2, whose smooth L1 is 1.5; both priors have a cross entropy of ln 4.
    assert count == 1 and total.item() == pytest.approx(1.5 + 2 * math.log(4))


def test_perfect_prediction_costs_next_to_nothing():
    priors = grid()
    total, count = ssd_loss(perfect(LABELS, priors), LABELS)
    assert count >= 3 and total < 1e-4


def test_an_image_without_boxes_teaches_background():
    prediction = perfect([label()], grid(), sure=0.0).requires_grad_()
    total, count = ssd_loss(prediction, [label()])
    assert count == 1 and total.item() == pytest.approx(3 * math.log(4), rel=1e-5)
    total.backward()
    background = prediction.grad[0, :, 8]
    assert (background < 0).sum() == 3 and (background <= 0).all()


def test_unlabelled_images_change_nothing():
    priors = grid()
    task = make()
    prediction = torch.randn(3, len(priors), 12, generator=torch.Generator().manual_seed(0))
    prediction[..., 4:8] = priors
    prediction.requires_grad_()
    total, count = task.loss(prediction, [LABELS[0], None, LABELS[1]])
    known = task.loss(prediction[[0, 2]], LABELS)
    assert torch.allclose(total, known[0]) and count == known[1]
    total.backward()
    assert not prediction.grad[1].any() and prediction.grad[[0, 2]].any()
    apart = [task.loss(prediction[i : i + 1], [own]) for i, own in ((0, LABELS[0]), (2, LABELS[1]))]
    assert torch.allclose(apart[0][0] + apart[1][0], total) and apart[0][1] + apart[1][1] == count


def test_all_unlabelled_is_a_zero_on_the_graph():
    task = make()
    prediction = perfect(LABELS, grid()).requires_grad_()
    total, count = task.loss(prediction, [None, None])
    total.backward()
    assert total == 0 and count == 0 and not prediction.grad.any()
    assert not has_labels(task, [None, None]) and has_labels(task, [None, label()])


def test_loss_is_in_full_precision_and_asks_the_device_for_nothing():
    prediction = perfect(LABELS, grid(), sure=3.0)
    assert ssd_loss(prediction.bfloat16(), LABELS)[0].dtype == torch.float32
    meta = [{key: value.to("meta") for key, value in own.items()} for own in LABELS]
    total, count = ssd_loss(prediction.to("meta"), [*meta])
    assert total.shape == count.shape == ()


def test_wrong_predictions_and_targets_are_named():
    with pytest.raises(ValueError, match=r"\(B, priors, 9 \+ classes\): found \(2, 3, 8, 8\)"):
        ssd_loss(torch.zeros(2, 3, 8, 8), LABELS)
    with pytest.raises(ValueError, match="2 images have as many labels of boxes: found 1"):
        ssd_loss(perfect(LABELS, grid()), LABELS[:1])


# Selection


def test_decoding_a_perfect_prediction_recovers_the_truth():
    found = make().target.decode(perfect(LABELS, grid()))
    for own, truth in zip(found, LABELS):
        order = own["labels"].argsort()
        assert torch.allclose(own["boxes"][order], truth["boxes"], atol=1e-3)
        assert torch.equal(own["labels"][order], truth["labels"])
        assert own["scores"].min() > 0.99


def test_suppression_is_by_class_and_boxes_end_at_the_border():
    priors = torch.tensor(
        [[0.0, 0, 10, 10], [1, 0, 11, 10], [25, 25, 35, 35], [22, 22, 32, 32], [0, 0, 32, 32]]
    )
    # Places at (5, 5) and at (30, 30), (27, 27): the image has 32 pixels a side where priors divide it evenly.
    priors = torch.cat([priors[:4], torch.tensor([[-1.0, -1, 5, 5], [27, 27, 33, 33]])])
    logits = torch.full((6, 4), -9.0)
    logits[:, 0] = 9
    for row, number, value in ((0, 1, 15), (1, 1, 14), (2, 2, 13), (3, 3, 12)):
        logits[row, number] = value
    prediction = torch.cat([torch.zeros(6, 4), priors, logits], dim=1)[None]
    found = make(score=0.5).target.decode(prediction)[0]
    assert found["labels"].tolist() == [0, 1, 2]  # the second one overlaps the first too much
    assert found["boxes"].tolist() == [[0, 0, 10, 10], [25, 25, 32, 32], [22, 22, 32, 32]]
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    loose = make(score=0.5, nms=0.99).target.decode(prediction)[0]
    assert loose["labels"].tolist() == [0, 0, 1, 2]
    assert make(score=0.9999999).target.decode(prediction)[0]["boxes"].shape == (0, 4)


def test_at_most_a_hundred_boxes_are_found():
    priors = grid(side=16, size=160, prior=9)
    assert len(make().target.decode(perfect([label()], priors, sure=0.0))[0]["boxes"]) == 100


def test_a_prediction_for_another_size_has_its_boxes_there():
    target = make().target
    small = perfect(LABELS, grid())
    large = target.resize(small, (32, 32), (64, 96))
    for a, b in zip(target.decode(small), target.decode(large)):
        assert torch.allclose(a["boxes"] * torch.tensor([3, 2, 3, 2]), b["boxes"], atol=1e-3)


# Metrics


def values(task, *batches):
    metrics = shared([make_one() for make_one in task.metrics.values()])
    for prediction, target in batches:
        for metric in metrics:
            metric.update(prediction, target)
    return {name: metric.compute().item() for name, metric in zip(task.metrics, metrics)}


def test_metrics_of_the_perfect_and_of_the_shifted():
    priors, task = grid(), make()
    assert values(task, (perfect(LABELS, priors), LABELS)) == pytest.approx(
        {"map": 1, "map_50": 1, "map_50_box": 1, "map_50_ball": 1, "map_50_cone": 1}
    )
    moved = [{**own, "boxes": (own["boxes"] + 9).clamp(max=32)} for own in LABELS]
    assert values(task, (perfect(LABELS, priors), moved)) == pytest.approx(
        dict.fromkeys(("map", "map_50", "map_50_box", "map_50_ball", "map_50_cone"), 0)
    )


def test_metrics_by_hand():
    """Of two boxes of a class one is found, after a false one: precision 1/2 up to a recall of 1/2."""
    priors, task = grid(), make()
    truth = [label((2, 3, 11, 14, 0), (18, 16, 30, 31, 0))]
    prediction = perfect([label((2, 3, 11, 14, 0), (20, 2, 31, 12, 0))], priors)
    weaker = (parts.centred(priors)[0] < 16).all(dim=1)
    prediction[0, weaker, 9:] *= 0.5
    found = values(task, (prediction, truth))
    assert found["map_50_box"] == pytest.approx(51 / 101 * 0.5, abs=1e-6)  # at the recalls 0, 0.01 to 0.5
    assert found["map_50"] == found["map_50_box"]
    assert math.isnan(found["map_50_ball"]) and math.isnan(found["map_50_cone"])


def test_metrics_are_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(1)
    priors, task = grid(), make()
    prediction = perfect(LABELS, priors, sure=1.0)
    prediction += torch.randn(prediction.shape, generator=generator)
    prediction[..., 4:8] = priors
    theirs = MeanAveragePrecision(class_metrics=True)
    theirs.update(task.target.decode(prediction), LABELS)
    expected, found = theirs.compute(), values(task, (prediction, LABELS))
    assert 0 < found["map"] < found["map_50"] < 1
    assert found["map"] == pytest.approx(expected["map"].item())
    assert found["map_50"] == pytest.approx(expected["map_50"].item())
    by_class = [found[f"map_50_{name}"] for name in SHAPES]
    assert np.mean(by_class) == pytest.approx(found["map_50"])


def test_nothing_to_find_is_nan_and_unlabelled_images_are_left_out():
    priors, task = grid(), make()
    for target in ([None, None], [label(), label()]):
        assert all(map(math.isnan, values(task, (perfect(LABELS, priors), target)).values()))
    assert values(task, (perfect(LABELS, priors), [LABELS[0], None]))["map"] == pytest.approx(1)
    # A box where there is none costs precision.
    prediction = perfect([LABELS[0], LABELS[0]], priors)
    assert values(task, (prediction, [label(), LABELS[0]]))["map"] < 1


def test_the_parts_of_a_metric_work_once(monkeypatch):
    task, calls = make(), []
    for name in ("update", "compute"):
        whole = getattr(AveragePrecision, name)
        monkeypatch.setattr(
            AveragePrecision, name, lambda self, *a, n=name, f=whole: (calls.append(n), f(self, *a))[1]
        )
    prediction = perfect(LABELS, grid())
    evaluation = Evaluation([task])
    metrics, others = evaluation.metrics["detection"], Evaluation([task]).metrics["detection"]
    for metric in [*metrics] * 2:
        metric.update(prediction, LABELS)
    assert [metric.compute().item() for metric in metrics] == pytest.approx([1.0] * 5)
    assert calls == ["update", "update", "compute"]
    assert metrics[0].whole is metrics[-1].whole is not others[0].whole
    evaluation.reset()
    assert not len(metrics[1].whole.images)
    alone = list(task.metrics.values())[-1]()  # one of them is a metric by itself
    alone.update(prediction, LABELS)
    assert alone.compute() == pytest.approx(1.0)


def test_names_of_classes_in_metrics():
    target = detection(num_classes=5, class_names=["traffic light", "a.b", "traffic-light", "3d", ""]).target
    assert target.metrics == [
        "map_50_traffic_light",
        "map_50_a_b",
        "map_50_traffic_light_2",
        "map_50_class_3d",
        "map_50_class_4",
    ]
    assert list(detection(num_classes=1).metrics) == ["map", "map_50"]
    assert all(metric_directions([make()])["detection"].values())


def test_missing_package_is_one_line(monkeypatch):
    task = make()
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r'pip install "mtlsearch\[detection\]"'):
        task.metrics["map"]()


def test_delta_m_leaves_out_classes_that_are_not_there():
    directions = {"detection": {"map": True, "map_50_cone": True}}
    assert delta_m({"detection": {"map": 0.6}}, {"detection": {"map": 0.5}}, directions)[
        "all"
    ] == pytest.approx(20)
    with pytest.raises(ValueError, match="map_50_cone"):
        delta_m({"detection": {"map": 0.6, "map_50_cone": 0.1}}, {"detection": {"map": 0.5}}, directions)


# The task


def test_task_survives_json_and_pickle():
    task = make(head={"name": "ssd", "fpn": 8}, nms=0.3, score=0.2, weight=2.0)
    again = from_spec("detection", json.loads(json.dumps(task.spec)))
    assert again.spec == task.spec and vars(again.target) == vars(task.target)
    for other in (again, pickle.loads(pickle.dumps(task)), deepcopy(task)):
        assert values(other, (perfect(LABELS, grid()), LABELS)) == pytest.approx(
            dict.fromkeys(task.metrics, 1)
        )
        assert other.head([4], [4]).top_down is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2, "class_names": ["a"]}, "class_names"),
        ({"num_classes": 2, "nms": 2}, "nms is a fraction"),
        ({"num_classes": 2, "score": -0.1}, "score is a fraction"),
        ({"num_classes": 2, "head": "light"}, "light.*ssd"),
        ({"num_classes": 2, "head": {"name": "ssd", "width": 3}}, "width"),
        ({"num_classes": 2, "head": {"name": "ssd", "smallest": 0.5, "largest": 0.2}}, "0.5 to 0.2"),
        ({"num_classes": 2, "head": {"name": "ssd", "extra": -1}}, "extra"),
        ({"num_classes": 2, "head": {"name": "ssd", "fpn": True}}, "fpn"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_spec("detection", {"kind": "detection", "arguments": arguments})


# Training


def pair(**arguments):
    return [detection(num_classes=2, class_names=["dark", "light"], **arguments), *make_tasks("semantic")]


@pytest.mark.parametrize("baseline", [ms.SingleTask, ms.HardSharing])
def test_baselines_train_evaluate_derive_and_load(baseline, tmp_path):
    """Every second image lacks boxes, the others have no classes of pixels."""
    data = BoxData(pair(), missing={"detection": range(0, 8, 2), "semantic": range(1, 8, 2)})
    searcher = baseline(data.tasks, "test_resnet", seed=0)
    result = ms.search(searcher, data, trainer=lambda stage: make_trainer(1), dir=tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    for split in ("val", "test"):
        assert set(content[split]["detection"]) <= {"map", "map_50", "map_50_dark", "map_50_light"}
        assert all(0 <= value <= 1 for value in content[split]["detection"].values())
    assert content["cost"]["per_task"]["detection"]["macs"] > 0
    assert content["directions"]["detection"]["map_50_light"] is True
    assert content["breakdowns"] == {"detection": ["map_50_dark", "map_50_light"], "semantic": []}
    spec = json.loads((tmp_path / "architecture.json").read_text())["tasks"]["detection"]
    assert spec == data.tasks[0].spec
    image = torch.rand(2, 3, 33, 47)
    network = ms.load(tmp_path)
    assert torch.equal(network(image)["detection"], result.network.eval()(image)["detection"])


def test_a_class_without_boxes_has_no_number():
    data = BoxData([detection(num_classes=3, class_names=["dark", "light", "none"])])
    trainer = make_trainer(1)
    trainer.fit(ms.HardSharing(data.tasks, "test_resnet"), data)
    logged = {name for name in trainer.callback_metrics if name.startswith("val/detection/")}
    assert logged == {f"val/detection/{name}" for name in ("map", "map_50", "map_50_dark", "map_50_light")}


def test_a_search_halves_batches_of_boxes():
    data = BoxData(pair())
    data.setup()
    batch = next(iter(data.train_dataloader()))
    first, second = halved(batch)
    assert first["detection"] == batch["detection"][:2] and second["detection"] == batch["detection"][2:]
    searcher = ms.MTLNAS(data.tasks, "test_resnet", single_task=False)
    before = [p.detach().clone() for p in searcher.net.arch_parameters()]
    make_trainer(1, limit_val_batches=0).fit(searcher, data)
    assert all((a != b).any() for a, b in zip(before, searcher.net.arch_parameters()) if a.numel())


def test_a_small_network_learns_to_find_a_rectangle():
    """In 60 steps the loss of the same four images falls below a third."""
    torch.manual_seed(0)
    data = BoxData([detection(num_classes=2)], batch_size=8)
    data.setup()
    batch = data.collate(data.samples("train"))
    task, network = data.tasks[0], ms.HardSharing(data.tasks, "test_resnet").net
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        total, count = task.loss(network(batch["image"], ["detection"])["detection"], batch["detection"])
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
    assert losses[-1] < losses[0] / 3


# Pictures


def test_boxes_are_drawn_where_they_are():
    target, image = make().target, np.full((32, 64, 3), 50, np.uint8)
    picture = draw_boxes(target, image, label((8, 4, 24, 28, 1)))
    assert picture.shape == (256, 512, 3) and picture.dtype == np.uint8
    changed = np.argwhere((picture != 50).any(axis=2))
    assert changed.min(axis=0).tolist() == [4 * 8, 8 * 8]
    assert changed[:, 0].max() == 28 * 8 - 1
    assert (picture[28 * 8 - 1, 100] == target_colour(1)).all()
    assert (draw_boxes(target, image, label()) == 50).all()


def target_colour(number):
    return ms.tasks.segmentation(num_classes=5).target.picture(np.array([[number]]))[0, 0]


def test_only_sure_boxes_are_drawn():
    target, image = make().target, np.full((300, 300, 3), 50, np.uint8)
    both = {**label((10, 10, 90, 90, 0), (150, 150, 250, 250, 1)), "scores": torch.tensor([0.9, 0.1])}
    picture = draw_boxes(target, image, both)
    assert picture.shape == image.shape
    assert (picture[10:90, 10:90] != 50).any() and (picture[100:] == 50).all()
    empty = {"boxes": torch.tensor([[5.0, 5, 5, 5]]), "labels": torch.tensor([0]), "scores": torch.ones(1)}
    assert (draw_boxes(target, image, empty) != 50).any()


def test_sheets_show_boxes_beside_other_tasks(tmp_path):
    data = BoxData(pair())
    samples = data.samples("train")[:3]
    samples[1]["detection"] = None
    figure = overlays(data.tasks, [("train", sample) for sample in samples])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "detection", "semantic"]
    assert [text.get_text() for text in figure.axes[4].texts] == ["unlabelled"]
    figure.savefig(tmp_path / "labels.png")
    batch = ms.data.Collate({task.name: task.target for task in data.tasks})(samples)
    network = ms.HardSharing(data.tasks, "test_resnet").net.eval()
    figure = predictions(network, data.tasks, batch)
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles[1:3] == ["detection\nground truth", "detection\nprediction"] and "semantic" in titles[3]
    figure.savefig(tmp_path / "sheet.png")
    del batch["detection"]
    predictions(network, data.tasks, batch)


def test_predict_writes_boxes_in_the_pixels_of_the_image():
    priors, task = grid(), make()
    image = np.zeros((64, 96, 3), np.uint8)

    def network(batch, names):
        assert batch.shape[-2:] == (32, 32) and names == ["detection"]
        return {"detection": perfect(LABELS[:1], priors)}

    output = predict.infer(network, image, [task], (32, 32))["detection"]
    written = dict(predict.render(task, output, image))
    assert set(written) == {"detection.json", "detection_overlay.png"}
    boxes = {row["class"]: row for row in json.loads(written["detection.json"])["boxes"]}
    assert boxes["box"]["box"] == pytest.approx([6, 6, 33, 28], abs=0.02)
    assert boxes["cone"]["box"] == pytest.approx([54, 32, 90, 62], abs=0.02)
    assert boxes["cone"]["score"] > 0.99
