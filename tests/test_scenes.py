"""The rendered rooms: labels that agree with geometry and each other, and a cache that can be trusted."""

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mtlsearch.data import raycast, render, rooms, scenes
from mtlsearch.data.scenes import Scenes

SIZE = 48
INSIDE = {
    "sphere": lambda x, y, z: x**2 + y**2 + z**2 <= 1,
    "box": lambda x, y, z: np.maximum(np.maximum(abs(x), abs(y)), abs(z)) <= 1,
    "cylinder": lambda x, y, z: (x**2 + y**2 <= 1) & (abs(z) <= 1),
    "cone": lambda x, y, z: (x**2 + y**2 <= ((1 - z) / 2) ** 2) & (abs(z) <= 1),
}


def render_one(index: int, size: int = SIZE) -> tuple[rooms.Scene, dict[str, np.ndarray]]:
    rng = np.random.default_rng([7, 0, index])
    scene = rooms.draw(rng)
    return scene, render.render(scene, rng, size)


@pytest.fixture(scope="module")
def rendered() -> list[tuple[rooms.Scene, dict[str, np.ndarray]]]:
    return [render_one(index) for index in range(24)]


@pytest.fixture(scope="module")
def labels(rendered) -> list[dict[str, np.ndarray]]:
    return [label for _, label in rendered]


def instances(scene: rooms.Scene, size: int) -> np.ndarray:
    """(H, W), the solid that each pixel shows, -1 for the room."""
    rays = scene.camera.T @ render.camera_rays(scene, size)[:, : size * size]
    surface = raycast.trace(scene, scene.eye, rays)[1]
    return np.maximum(surface - raycast.FACES, -1).reshape(size, size)


def test_same_seed_same_scene():
    first, again, other = render_one(0)[1], render_one(0)[1], render_one(1)[1]
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert (first["image"] != other["image"]).mean() > 0.5


def test_image_uses_its_range(labels):
    for label in labels:
        assert label["image"].shape == (SIZE, SIZE, 3) and label["image"].dtype == np.uint8
        assert 40 < label["image"].mean() < 200
        assert label["image"].std() > 10


def test_normals_are_unit_and_face_the_camera(rendered):
    for scene, label in rendered:
        normals = label["normals"].reshape(3, -1)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
        rays = render.camera_rays(scene, SIZE)[:, : SIZE**2]
        assert ((normals * rays).sum(0) < 1e-4).all()


def test_normals_agree_with_depth(rendered):
    """The cross product of neighbouring points' differences, wherever the surface is smooth."""
    for scene, label in rendered:
        rays = render.camera_rays(scene, SIZE)[:, : SIZE**2].reshape(3, SIZE, SIZE)
        points = label["depth"] * rays
        across = (points[:, 1:-1, 2:] - points[:, 1:-1, :-2]).transpose(1, 2, 0)
        down = (points[:, 2:, 1:-1] - points[:, :-2, 1:-1]).transpose(1, 2, 0)
        estimate = np.cross(down, across)
        estimate /= np.linalg.norm(estimate, axis=-1, keepdims=True)
        cosine = (estimate * label["normals"][:, 1:-1, 1:-1].transpose(1, 2, 0)).sum(-1)
        assert np.median(cosine) > 0.999
        assert (cosine > 0.97).mean() > 0.75


@pytest.mark.parametrize("shape", rooms.SHAPES)
def test_hits_lie_on_the_shape(shape):
    """Points found on each shape satisfy its equation, and no ray that misses passes through it."""
    rng = np.random.default_rng(0)
    inside = INSIDE[shape]
    for direction in rng.normal(size=(20, 3)):
        origin = 4 * direction / np.linalg.norm(direction)
        rays = rng.uniform(-1.2, 1.2, (3, 400)) - origin[:, None]
        distance, normal = raycast.HITS[shape](origin, rays)
        hit = np.isfinite(distance)
        assert hit.any() and not hit.all()
        for before, expected in (1 - 1e-4, False), (1 + 1e-4, True):
            points = origin[:, None] + before * distance[hit] * rays[:, hit]
            assert (inside(*points) == expected).mean() > 0.98  # grazing rays leave again at once
        assert ((normal * rays).sum(0)[hit] < 1e-9).all()
        steps = np.linspace(0, 2, 400)[:, None]
        path = origin[:, None, None] + steps * rays[:, ~hit][:, None]
        assert not inside(*path).any()


def test_nothing_lies_before_what_is_seen(rendered):
    for scene, label in rendered[:8]:
        rays = scene.camera.T @ render.camera_rays(scene, SIZE)[:, : SIZE**2]
        steps = np.linspace(0, 0.995, 200)[:, None] * label["depth"].reshape(1, -1)
        for solid in scene.solids:
            start = solid.rotation.T @ (scene.eye - solid.centre) / solid.half
            path = start[:, None, None] + (solid.rotation.T @ rays / solid.half[:, None])[:, None] * steps
            assert INSIDE[rooms.SHAPES[solid.shape]](*path).mean() < 1e-5


def test_labels_are_those_of_the_pixels_centres():
    scene = rooms.draw(np.random.default_rng(0))
    x, y, z = render.camera_rays(scene, 8)[:, :64].reshape(3, 8, 8)
    np.testing.assert_allclose(x[3] * scene.focal, (np.arange(8) - 3.5) / 4)
    np.testing.assert_allclose(y[:, 3] * scene.focal, (np.arange(8) - 3.5) / 4)
    np.testing.assert_array_equal(z, 1)


def test_depth_is_metric(rendered):
    """Points lie inside the room, and a solid's points within its extent of its centre."""
    for scene, label in rendered:
        rays = render.camera_rays(scene, SIZE)[:, : SIZE**2]
        assert (label["depth"] > 0).all()
        points = scene.eye[:, None] + scene.camera.T @ (label["depth"].reshape(1, -1) * rays)
        assert (points > -1e-4).all() and (points < scene.room[:, None] + 1e-4).all()
        shown = instances(scene, SIZE).ravel()
        for index, solid in enumerate(scene.solids):
            local = solid.rotation.T @ (points[:, shown == index] - solid.centre[:, None])
            assert (np.abs(local) < solid.half[:, None] + 1e-4).all()
        floor = label["semantic"].ravel() == rooms.CLASSES.index("floor")
        np.testing.assert_allclose(points[2, floor], 0, atol=1e-4)


def test_every_class_occurs(labels):
    seen = np.unique([label["semantic"] for label in labels])
    np.testing.assert_array_equal(seen, np.arange(len(rooms.CLASSES)))
    assert len({int(label["scene"]) for label in labels}) >= 6
    assert len({int(label["object"]) for label in labels}) >= 6
    assert len(rooms.OBJECTS) >= 8 and len(rooms.SCENES) >= 8


def test_boxes_are_tight(rendered):
    for scene, label in rendered:
        shown = instances(scene, SIZE)
        large = [i for i in range(len(scene.solids)) if (shown == i).mean() >= render.SMALLEST_BOX]
        assert len(label["boxes"]) == len(label["box_labels"]) == len(large)
        for index, (x1, y1, x2, y2), shape in zip(large, label["boxes"].astype(int), label["box_labels"]):
            assert scene.solids[index].shape == shape
            mask = shown == index
            box = mask[y1:y2, x1:x2]
            assert box.sum() == mask.sum()
            assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()
            assert (label["semantic"][mask] == len(rooms.CLASSES) - len(rooms.SHAPES) + shape).all()


def test_occlusion_edges_lie_where_depth_jumps(rendered):
    found, true = [], []
    for scene, label in rendered:
        occlusion, depth, shown = label["edges"][1], label["depth"][0], instances(scene, SIZE)
        ratio = np.maximum(depth[:, 1:], depth[:, :-1]) / np.minimum(depth[:, 1:], depth[:, :-1])
        hidden = (ratio > 1.3) & (shown[:, 1:] != shown[:, :-1])
        found += [occlusion[:, 1:][hidden], occlusion[:, :-1][hidden]]
        ratio = np.pad(depth, 1, mode="edge")
        ratio = np.stack([ratio[2:, 1:-1], ratio[:-2, 1:-1], ratio[1:-1, 2:], ratio[1:-1, :-2]]) / depth
        true.append(np.maximum(ratio, 1 / ratio).max(0)[occlusion > 0.5])
    assert (np.concatenate(found) > 0.5).mean() > 0.9  # where a solid stands, nothing is hidden
    assert len(np.concatenate(true)) > 0.02 * SIZE**2 * len(rendered)
    assert (np.concatenate(true) > 1.05).mean() > 0.95


def test_a_bare_room_has_no_occlusion_edges():
    scene = rooms.draw(np.random.default_rng(0))
    bare = dataclasses.replace(scene, solids=())
    label = render.render(bare, np.random.default_rng(0), SIZE)
    assert label["edges"][1].max() == 0
    assert label["object"] == -100 and np.isnan(label["object_soft"]).all() and label["boxes"].shape == (0, 4)


def test_texture_edges_follow_the_paint():
    scene = rooms.draw(np.random.default_rng(3))
    uniform = rooms.Paint("striped", np.full((2, 3), 0.5), 1.0, np.zeros(3), 0.0)
    painted = rooms.Paint("striped", np.array([[0.1] * 3, [0.9] * 3]), 1.0, np.zeros(3), 0.0)
    edges = []
    for wall in uniform, painted:
        room = dataclasses.replace(scene, paints=(uniform, wall, uniform), solids=())
        label = render.render(room, np.random.default_rng(0), SIZE)
        edges.append(label["edges"][0])
        assert label["edges"][0][label["semantic"] != rooms.CLASSES.index("wall")].max() == 0
    assert edges[0].max() == 0
    assert edges[1].max() == 1


def test_keypoints_are_what_is_visible():
    """The tip of a cone has its bump where it projects to, unless a box stands before it."""
    scene = rooms.draw(np.random.default_rng(2))
    ahead = scene.camera[2] * (1, 1, 0) / np.linalg.norm(scene.camera[2, :2])
    paint, floor = scene.paints[0], scene.eye * (1, 1, 0)
    half, tall = np.array([0.3, 0.3, 0.4]), np.array([0.4, 0.4, 0.9])
    cone = rooms.Solid(
        rooms.SHAPES.index("cone"), 0, paint, half, np.eye(3), floor + 3 * ahead + half * (0, 0, 1)
    )
    box = rooms.Solid(
        rooms.SHAPES.index("box"), 0, paint, tall, np.eye(3), floor + 1.7 * ahead + tall * (0, 0, 1)
    )
    tip = scene.camera @ (cone.centre + half * (0, 0, 1) - scene.eye)
    column, row = ((scene.focal * tip[:2] / tip[2] + 1) * SIZE / 2).astype(int)
    for solids, hidden in ((cone,), False), ((cone, box), True):
        label = render.render(dataclasses.replace(scene, solids=solids), np.random.default_rng(0), SIZE)
        heat = label["keypoints"][0]
        assert heat.min() >= 0 and heat.max() <= 1
        assert heat[row, column] < 0.1 if hidden else heat[row, column] > 0.7


def test_object_is_the_largest_visible(rendered):
    for scene, label in rendered:
        shown = instances(scene, SIZE)
        areas = [(shown == index).sum() for index in range(len(scene.solids))]
        largest = scene.solids[int(np.argmax(areas))]
        name = f"{rooms.FINISHES[largest.finish]} {rooms.SHAPES[largest.shape]}"
        assert rooms.OBJECTS[int(label["object"])] == name
        np.testing.assert_allclose(label["object_soft"].sum(), 1, rtol=1e-5)
        assert label["object_soft"][int(label["object"])] >= max(areas) / sum(areas) - 1e-6


def test_scene_is_the_pattern_of_walls_and_floor(rendered):
    for scene, label in rendered:
        name = f"{scene.paints[1].pattern} walls, {scene.paints[0].pattern} floor"
        assert rooms.SCENES[int(label["scene"])] == name
        soft = label["scene_soft"]
        np.testing.assert_allclose(soft.sum(), 1, rtol=1e-5)
        assert soft.argmax() == label["scene"]
        shared = [i for i, other in enumerate(rooms.SCENES) if other.split(",")[0] == name.split(",")[0]]
        assert soft[shared].sum() > 1.5 / len(rooms.WALLS)


def test_rendering_is_fast():
    render_one(0, 64)
    started = time.process_time()
    for index in range(10):
        render_one(index, 64)
    assert (time.process_time() - started) / 10 < 0.06


# The data module and its cache

COUNTS = {"train": 4, "val": 2, "test": 2, "size": 32}


def make(tmp_path, tasks=("semantic", "normals"), **options) -> Scenes:
    data = Scenes(tasks, **{**COUNTS, "batch_size": 2, "cache_dir": tmp_path, **options})
    data.prepare_data()
    return data


def refuse(*arguments):
    raise AssertionError("rendered again")


def test_samples_are_what_the_tasks_take(tmp_path):
    data = make(tmp_path, [*scenes.DENSE, *scenes.OTHERS])
    for split in scenes.SPLITS:
        samples = data.samples(split)
        assert len(samples) == COUNTS[split]
        for index in range(len(samples)):
            assert samples[index]["image"].shape == (32, 32, 3)
            for task in data.tasks:
                task.target.check(samples[index][task.name])
            np.testing.assert_allclose(np.linalg.norm(samples[index]["normals"], axis=0), 1, atol=1e-6)


def test_batches(tmp_path):
    data = make(tmp_path, ["normals", "scene"])
    data.setup()
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    assert batches[0]["image"].shape == (2, 3, 32, 32) and batches[0]["normals"].shape == (2, 3, 32, 32)
    assert batches[0]["scene"].shape == (2,)


def test_each_image_has_its_own_boxes(tmp_path):
    data = make(tmp_path, ["detection", "semantic"], train=12, size=48, batch_size=12, augment=None)
    (task, _), found = data.tasks, 0
    assert task.target.class_names == list(rooms.SHAPES)
    for sample in map(data.samples("train").__getitem__, range(12)):
        task.target.check(sample["detection"], (48, 48))
        for box, shape in zip(sample["detection"]["boxes"].astype(int), sample["detection"]["labels"]):
            x1, y1, x2, y2 = box
            there = sample["semantic"][y1:y2, x1:x2] == rooms.CLASSES.index(rooms.SHAPES[shape])
            assert there[0].any() and there[-1].any() and there[:, 0].any() and there[:, -1].any()
            found += 1
    assert found > 12
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert sum(len(label["boxes"]) for label in batch["detection"]) == found


def test_a_part_of_the_images_has_boxes(tmp_path):
    data = make(tmp_path, ["detection"], train=40, labelled={"detection": 0.5})
    data.setup()
    known = [data.tasks[0].target.labelled(batch["detection"]) for batch in data.train_dataloader()]
    assert 10 < sum(int(part.sum()) for part in known) < 30
    assert all("detection" in data.samples("val")[index] for index in range(2))


def test_splits_share_no_scene(tmp_path):
    data = make(tmp_path)
    images = [
        data.samples(split)[i]["image"].tobytes() for split in scenes.SPLITS for i in range(COUNTS[split])
    ]
    assert len(set(images)) == len(images)


def test_more_images_keep_the_first(tmp_path):
    few, many = make(tmp_path).samples("train"), make(tmp_path, train=6).samples("train")
    for index in range(len(few)):
        np.testing.assert_array_equal(few[index]["image"], many[index]["image"])


def test_render_seed_changes_the_scenes(tmp_path):
    one, other = make(tmp_path).samples("val"), make(tmp_path, render_seed=1).samples("val")
    assert (one[0]["image"] != other[0]["image"]).any()


def test_cache_is_used(tmp_path, monkeypatch):
    before = make(tmp_path).samples("train")
    monkeypatch.setattr(render, "render", refuse)
    after = make(tmp_path).samples("train")
    for index in range(len(before)):
        np.testing.assert_array_equal(before[index]["normals"], after[index]["normals"])


def test_boxes_are_in_the_cache(tmp_path):
    make(tmp_path)
    with np.load(next(tmp_path.rglob("train-4.npz")), allow_pickle=False) as stored:
        assert stored["box_counts"].shape == (4,)
        assert stored["box_counts"].sum() == len(stored["boxes"]) == len(stored["box_labels"]) > 0
        assert (stored["boxes"][:, 2:] > stored["boxes"][:, :2]).all()


def test_cache_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLSEARCH_CACHE", str(tmp_path / "elsewhere"))
    make(None)
    assert len(list((tmp_path / "elsewhere").rglob("*.npz"))) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_cache_is_rendered_anew(tmp_path, damage, capsys):
    before = make(tmp_path).samples("train")
    path = next(tmp_path.rglob("train-4.npz"))
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[8000] ^= 0xFF  # within the images
    path.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    after = make(tmp_path).samples("train")
    assert f"{path.name} is damaged" in capsys.readouterr().out.replace("\n", "")
    for index in range(len(before)):
        np.testing.assert_array_equal(before[index]["image"], after[index]["image"])


def test_two_at_once_render_once(tmp_path, monkeypatch):
    genuine, calls = render.render, []

    def slow(*arguments):
        calls.append(arguments)
        time.sleep(0.02)
        return genuine(*arguments)

    monkeypatch.setattr(render, "render", slow)
    with ThreadPoolExecutor(2) as pool:  # a file lock keeps threads apart as it does processes
        one, other = pool.map(make, [tmp_path, tmp_path])
    assert len(calls) == 8
    np.testing.assert_array_equal(one.samples("test")[1]["image"], other.samples("test")[1]["image"])


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"train-4\.npz.*No space left"):
        make(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_partial_labels(tmp_path):
    data = make(tmp_path, train=40, labelled={"normals": 0.5})
    has = ["normals" in data.samples("train")[index] for index in range(40)]
    assert 8 < sum(has) < 32
    assert all("semantic" in data.samples("train")[index] for index in range(40))
    assert all("normals" in data.samples("val")[index] for index in range(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["semantics"]}, "did you mean 'semantic'.*keypoints"),
        ({"labelled": {"dept": 0.5}}, "did you mean 'depth'"),
        ({"labelled": {"depth": 1.5}}, r"in \[0, 1\], not 1.5"),
        ({"train": 0}, "train must be at least 1"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**options)
