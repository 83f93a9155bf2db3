import numpy as np
import pytest

from mtlsearch import tasks
from mtlsearch.data.augment import MEAN_COLOUR, Augment, resize

TARGETS = {
    "semantic": tasks.ClassMap(8),
    "normals": tasks.Normals(),
    "depth": tasks.Depth(),
    "scene": tasks.ImageLabel(3),
}


def tilted_plane(height=40, width=50):
    """A plane seen by parallel rays: its depth rises by `slope` a pixel, which fixes its normal."""
    rows, columns = np.mgrid[:height, :width]
    slope = np.array([0.03, -0.05])
    depth = 5 + slope[0] * columns + slope[1] * rows
    normal = np.array([*slope, -1]) / np.linalg.norm([*slope, -1])
    return {
        "name": "plane",
        "image": np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8),
        "semantic": np.where(columns < width // 3, 1, 6),
        "normals": np.broadcast_to(normal[:, None, None], (3, height, width)).astype(np.float32),
        "depth": depth[None].astype(np.float32),
        "scene": np.array(2),
    }


def slope_of(depth):
    """What the depth rises by a pixel to the right and down, fitted to the labelled pixels."""
    rows, columns = np.nonzero(~np.isnan(depth[0]))
    unknowns = np.stack([columns, rows, np.ones_like(rows)], axis=1)
    return np.linalg.lstsq(unknowns, depth[0, rows, columns], rcond=None)[0][:2]


def test_flip_mirrors_pixels_and_negates_the_normals_x():
    sample = tilted_plane()
    flipped = Augment(flip=1.0)(sample, TARGETS, seed=0)
    np.testing.assert_array_equal(flipped["image"], sample["image"][:, ::-1])
    np.testing.assert_array_equal(flipped["semantic"], sample["semantic"][:, ::-1])
    np.testing.assert_array_equal(flipped["depth"], sample["depth"][..., ::-1])
    expected = sample["normals"][..., ::-1] * np.array([-1, 1, 1])[:, None, None]
    np.testing.assert_allclose(flipped["normals"], expected, atol=1e-6)


def test_zoom_divides_depth_and_leaves_normals():
    sample = tilted_plane() | {"depth": np.full((1, 40, 50), 3.0, dtype=np.float32)}
    zoomed = Augment(scale=(1.5, 1.5), flip=0)(sample, TARGETS, seed=1)
    np.testing.assert_allclose(zoomed["depth"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(zoomed["normals"], sample["normals"], atol=1e-6)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_rotated_normals_are_those_of_the_rotated_depth(flip, seed):
    sample = tilted_plane()
    turned = Augment(rotate=60, flip=flip)(sample, TARGETS, seed)
    slope = slope_of(turned["depth"])
    assert np.linalg.norm(slope - slope_of(sample["depth"])) > 1e-3  # it did turn
    normal = np.array([*slope, -1]) / np.linalg.norm([*slope, -1])
    known = ~np.isnan(turned["normals"][0])
    np.testing.assert_allclose(turned["normals"][:, known] - normal[:, None], 0, atol=2e-3)


@pytest.mark.parametrize("seed", range(8))
def test_labels_move_with_the_image_and_no_value_is_invented(seed):
    sample = tilted_plane()
    sample["image"] = (sample["semantic"][..., None] * [30, 20, 10]).astype(np.uint8)
    sample["semantic"][5:15, 5:15] = 255
    sample["depth"][:] = 4.0
    sample["depth"][:, 20:30, 20:30] = np.nan
    moved = Augment(scale=(0.5, 2.0), rotate=20)(sample, TARGETS, seed)
    assert set(np.unique(moved["semantic"])) <= {1, 6, 255}
    assert len(np.unique(moved["depth"][~np.isnan(moved["depth"])])) == 1
    known = moved["semantic"] != 255
    same = (moved["image"][known] == moved["semantic"][known][:, None] * [30, 20, 10]).all(axis=1)
    assert same.mean() > 0.85  # all but where the image is blended: along borders
    for name in ("semantic", "normals", "depth"):
        TARGETS[name].check(moved[name])


def test_padding_has_the_mean_colour_and_is_unlabelled():
    sample = tilted_plane(10, 12)
    padded = Augment(crop=(20, 30), flip=0.5, colour=0.8)(sample, TARGETS, seed=3)
    outside = padded["semantic"] == 255
    assert outside.sum() == 20 * 30 - 10 * 12
    assert (padded["image"][outside] == MEAN_COLOUR).all()
    assert np.isnan(padded["depth"][:, outside]).all() and not np.isnan(padded["depth"][:, ~outside]).any()
    assert np.isnan(padded["normals"][:, outside]).all()


def test_crop_is_a_window_of_the_image():
    sample = tilted_plane()
    crops = [Augment(crop=(16, 8), flip=0)(sample, TARGETS, seed)["image"] for seed in range(20)]
    corners = {tuple(crop[0, 0, :2]) for crop in crops}
    assert len(corners) > 10
    for crop, (row, column) in zip(crops, (crop[0, 0, :2] for crop in crops), strict=True):
        np.testing.assert_array_equal(crop, sample["image"][row : row + 16, column : column + 8])


@pytest.mark.parametrize("seed", range(20))
def test_zooming_in_pads_nothing(seed):
    zoomed = Augment(scale=(1.0, 2.0))(tilted_plane(), TARGETS, seed)
    assert not np.isnan(zoomed["depth"]).any()


def test_colour_changes_the_image_alone():
    sample = tilted_plane()
    jittered = Augment(colour=0.5, flip=0)(sample, TARGETS, seed=0)
    assert (jittered["image"] != sample["image"]).mean() > 0.5
    for name in ("semantic", "normals", "depth"):
        np.testing.assert_allclose(jittered[name], sample[name], atol=1e-6)


def test_the_seed_alone_decides():
    augment = Augment(crop=(20, 20), scale=(0.7, 1.4), rotate=15, colour=0.4)
    first, other, again = (augment(tilted_plane(), TARGETS, seed) for seed in (5, 6, 5))
    for name in ("image", "semantic", "normals", "depth"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name], equal_nan=name in ("normals", "depth"))


def test_flip_zoom_and_brightness_are_independent():
    sample = {"image": np.full((40, 40, 3), 100, np.uint8), "depth": np.ones((1, 40, 40), np.float32)}
    sample["normals"] = np.broadcast_to(np.float32([0.6, 0, -0.8])[:, None, None], (3, 40, 40))
    augment = Augment(scale=(1.0, 2.0), colour=0.5)
    augmented = [augment(sample, TARGETS, seed) for seed in range(300)]
    flipped = [one["normals"][0, 2, 2] < 0 for one in augmented]
    zoom = [1 / one["depth"][0, 2, 2] for one in augmented]
    brightness = [one["image"][2, 2].mean() for one in augmented]
    assert 0.4 < np.mean(flipped) < 0.6
    assert min(zoom) < 1.1 and max(zoom) > 1.9
    assert min(brightness) < 60 and max(brightness) > 140
    correlation = np.corrcoef([np.array(flipped, float), zoom, brightness])
    assert np.abs(correlation - np.eye(3)).max() < 0.2


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_images(size):
    augment = Augment(scale=(0.3, 3.0), rotate=180, colour=1.0)
    for seed in range(10):
        assert augment(tilted_plane(*size), TARGETS, seed)["image"].shape == (*size, 3)


def test_what_is_not_for_every_pixel_stays():
    sample = tilted_plane() | {"depth": None, "note": "kept"}
    del sample["semantic"]
    augmented = Augment(scale=(2, 2), crop=(8, 8))(sample, TARGETS, seed=0)
    assert augmented["scene"] == 2 and augmented["note"] == "kept" and augmented["depth"] is None
    assert "semantic" not in augmented and augmented["normals"].shape == (3, 8, 8)
    assert sample["image"].shape == (40, 50, 3)


def test_resizing_keeps_depth_and_takes_the_pixel_under_the_centre():
    sample = tilted_plane(30, 60)
    small = resize(sample, TARGETS, (10, 12))
    np.testing.assert_array_equal(small["depth"], sample["depth"][:, 1::3, 2::5])
    np.testing.assert_array_equal(small["semantic"], sample["semantic"][1::3, 2::5])
    blocks = sample["image"].reshape(10, 3, 12, 5, 3).mean(axis=(1, 3))
    assert np.abs(small["image"][1:-1, 1:-1] - blocks[1:-1, 1:-1]).max() < 1.5
    augmented = Augment(resize=(10, 12), flip=0)(sample, TARGETS, seed=0)
    np.testing.assert_array_equal(augmented["depth"], small["depth"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": (0, 1)},
        {"scale": (2, 1)},
        {"scale": (1, 1, 1)},
        {"rotate": -1},
        {"flip": 1.5},
        {"colour": 2},
        {"crop": (0, 4)},
        {"crop": (4.5, 4)},
        {"resize": (4,)},
    ],
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Augment(**arguments)


def test_a_label_of_another_size_is_an_error():
    sample = tilted_plane() | {"depth": np.ones((1, 40, 49), dtype=np.float32)}
    with pytest.raises(ValueError, match=r"plane: its depth label is of shape \(1, 40, 49\).*40x50"):
        Augment()(sample, TARGETS, seed=0)
