"""A photograph of a room, and exact labels of everything in it.

Camera coordinates are x right, y down, z forward. Vectors are (3, N), one column a pixel, row by row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlsearch.data.raycast import FACES, trace
from mtlsearch.data.rooms import CLASSES, FINISHES, FLOORS, OBJECTS, SHAPES, WALLS, Paint, Scene

FACE_CLASSES = (1, 1, 1, 1, 0, 2)
"""Of the room's six faces, indices into `CLASSES`."""
SUBPIXELS = ((0, 0), (1 / 3, -1 / 3), (-1 / 3, 1 / 3))
"""Where a pixel is sampled. Its labels are those of the first place, its centre."""
SMALLEST_BOX = 1 / 400
"""The part of an image that a solid must cover to be worth detecting."""


def render(scene: Scene, rng: np.random.Generator, size: int) -> dict[str, Any]:
    """An image of size x size pixels with its labels, which are taken at the pixels' centres.

    Returns:
        image (H, W, 3) uint8; semantic (H, W) uint8, indices into `CLASSES`; normals (3, H, W), unit vectors;
        depth (1, H, W) in metres; edges (2, H, W) and keypoints (1, H, W) in [0, 1]; boxes (n, 4), xyxy in
        pixels, and box_labels (n,), indices into `SHAPES`; and what `classify` returns.
    """
    rays = camera_rays(scene, size)
    world = scene.camera.T @ rays
    depth, surface, normal = trace(scene, scene.eye, world)
    point = scene.eye[:, None] + depth * world
    view = -world / np.sqrt((world**2).sum(0))
    pixel = 2 / size / scene.focal
    paint = albedo(scene, point, surface, depth * pixel / np.maximum((normal * view).sum(0), 0.1))
    light = shade(scene, rng, point, view, surface, normal, paint)
    image = photograph(scene, rng, light.reshape(3, -1, size, size).mean(1))

    depth, surface, rays, normal, paint = (
        a[..., : size * size].reshape(*a.shape[:-1], size, size)
        for a in (depth, surface, rays, scene.camera @ normal, paint)
    )
    classes = np.array([*FACE_CLASSES, *(solid.shape + CLASSES.index(SHAPES[0]) for solid in scene.solids)])
    boxes, box_labels = find_boxes(scene, surface)
    return {
        "image": image,
        "semantic": classes[surface].astype(np.uint8),
        "normals": normal.astype(np.float32),
        "depth": depth[None].astype(np.float32),
        "edges": find_edges(surface, depth * rays, normal, paint, pixel),
        "keypoints": find_keypoints(scene, size),
        "boxes": boxes,
        "box_labels": box_labels,
        **classify(scene, np.bincount(surface.ravel(), minlength=len(classes)) / size**2),
    }


def camera_rays(scene: Scene, size: int) -> np.ndarray:
    """Rays (3, N) in camera coordinates through each of `SUBPIXELS` of all pixels, row by row.

    Their z is 1, so that a distance in lengths of a ray is a depth.
    """
    centres = np.arange(size) + 0.5
    places = np.stack([np.meshgrid(centres + x, centres + y) for x, y in SUBPIXELS], axis=1)
    flat = (places.reshape(2, -1) * 2 / size - 1) / scene.focal
    return np.concatenate([flat, np.ones((1, flat.shape[1]))])


# The photograph


def photograph(scene: Scene, rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """What a sensor makes of linear RGB (3, H, W): (H, W, 3) uint8."""
    light = light * (scene.exposure / light.mean())
    light += scene.noise * np.sqrt(light) * rng.standard_normal(light.shape)
    codes: np.ndarray = (255 * np.clip(light, 0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)
    return codes.transpose(1, 2, 0)


def shade(
    scene: Scene,
    rng: np.random.Generator,
    point: np.ndarray,
    view: np.ndarray,
    surface: np.ndarray,
    normal: np.ndarray,
    paint: np.ndarray,
) -> np.ndarray:
    """Linear RGB (3, N) of points seen from direction `view`; each subpixel has its own point of the lamp."""
    lamps = scene.light + rng.uniform(-0.15, 0.15, (len(SUBPIXELS), 3))
    away = point.reshape(3, len(SUBPIXELS), -1) - lamps.T[:, :, None]
    lit = np.concatenate([trace(scene, lamp, away[:, i])[0] > 0.998 for i, lamp in enumerate(lamps)])
    away = away.reshape(3, -1)
    distance2 = (away**2).sum(0)
    to_lamp = -away / np.sqrt(distance2)
    direct = lit * np.maximum((normal * to_lamp).sum(0), 0) / (1 + distance2 / 4)
    # Less of the room is seen from its corners and from below; a surface does not darken itself.
    gap = np.abs(np.minimum(point, scene.room[:, None] - point))
    ambient = np.prod(1 - 0.5 * np.exp(-4 * gap) * (1 - np.abs(normal)), axis=0) * (0.7 + 0.3 * normal[2])

    gloss = np.array([0.0] * FACES + [solid.paint.gloss for solid in scene.solids])
    halfway = to_lamp + view
    aligned = np.maximum((normal * halfway).sum(0), 0) / np.sqrt((halfway**2).sum(0))
    matt = paint * (scene.lamp[:, None] * direct + scene.ambient[:, None] * ambient)
    radiance: np.ndarray = matt + 0.4 * scene.lamp[:, None] * gloss[surface] * lit * aligned**40
    return radiance


def albedo(scene: Scene, points: np.ndarray, surface: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Linear RGB (3, N) of the paint; patterns fade where a pixel covers `footprint` (N,) metres of them."""
    colour = np.empty_like(points)
    for index in np.unique(surface):
        here = np.flatnonzero(surface == index)
        paint, place = unroll(scene, index, points[:, here])
        pattern = PATTERNS[paint.pattern](*(place / paint.period + paint.phase[:, None]))
        sharp = np.clip(1.5 - 5 * footprint[here] / paint.period, 0, 1)
        mix = 0.4 + sharp * (pattern - 0.4)
        colour[:, here] = paint.colours[0][:, None] * (1 - mix) + paint.colours[1][:, None] * mix
    return colour


def unroll(scene: Scene, surface: int, points: np.ndarray) -> tuple[Paint, np.ndarray]:
    """A surface's paint, and points (3, N) in the coordinates of its pattern, in metres."""
    if surface >= FACES:
        solid = scene.solids[surface - FACES]
        return solid.paint, (solid.rotation.T @ (points - solid.centre[:, None]))[::-1]
    x, y, z = points
    flat = np.zeros_like(z)
    return scene.paints[FACE_CLASSES[surface]], np.stack(
        [(y, z, flat), (x, z, flat), (x, y, flat)][surface // 2]
    )


def plain(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return 0.2 + 0.1 * (np.sin(2.1 * x + 1.3 * y) + np.sin(1.7 * y - 2.3 * z))


def striped(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (x % 1 < 0.5).astype(float)


def checked(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    odd: np.ndarray = (np.floor(2 * x) + np.floor(2 * y) + np.floor(2 * z)) % 2
    return odd


def brick(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    row = np.floor(2 * y)
    x = x + row / 2
    mortar = (x % 1 < 0.1) | (2 * y % 1 < 0.2)
    return np.where(mortar, 1, 0.5 * tone(np.floor(x), row))


def planks(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    row = np.floor(4 * x)
    return tone(row, np.floor(0.5 * y + 0.39 * row))


def tone(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for every pair of whole numbers."""
    return np.abs(np.sin(12.9898 * i + 78.233 * j)) * 43758.5453 % 1


PATTERNS = {"plain": plain, "striped": striped, "checked": checked, "brick": brick, "planks": planks}
"""Of places (N,) in periods the share (N,) of the second colour."""


# Labels


def find_edges(
    surface: np.ndarray, points: np.ndarray, normal: np.ndarray, paint: np.ndarray, pixel: float
) -> np.ndarray:
    """Texture edges, where a surface's paint changes, and occlusion edges, where one surface hides another.

    Both lie on the two pixels that meet there. A jump is the distance of one pixel's point to the other's
    tangent plane in widths of a pixel (`pixel` metres at a depth of one), so neither a slanted floor nor the
    line on which a solid stands is one.
    """
    edges = np.zeros((2, *surface.shape), np.float32)
    for one, two in (np.s_[..., :-1], np.s_[..., 1:]), (np.s_[..., :-1, :], np.s_[..., 1:, :]):
        same = surface[one] == surface[two]
        step = points[two] - points[one]
        jump = np.minimum(np.abs((normal[one] * step).sum(0)), np.abs((normal[two] * step).sum(0)))
        jump /= pixel * np.minimum(points[one][2], points[two][2])
        texture = same * np.clip(np.abs(paint[two] - paint[one]).max(0) / 0.3, 0, 1)
        occlusion = ~same * np.clip(jump - 1, 0, 1)
        for side in one, two:
            edges[side] = np.maximum(edges[side], np.stack([texture, occlusion]))
    return edges


def find_keypoints(scene: Scene, size: int) -> np.ndarray:
    """(1, H, W), a bump of height 1 at each visible corner of a box or of the room and tip of a cone."""
    corners = np.stack(np.meshgrid((-1, 1), (-1, 1), (-1, 1))).reshape(3, 8)
    salient = {"box": corners, "cone": np.array([[0], [0], [1]])}
    points = [(corners + 1) / 2 * scene.room[:, None]]
    for solid in scene.solids:
        if SHAPES[solid.shape] in salient:
            local = salient[SHAPES[solid.shape]] * solid.half[:, None]
            points.append(solid.centre[:, None] + solid.rotation @ local)
    rays = np.concatenate(points, axis=1) - scene.eye[:, None]
    rays = rays[:, trace(scene, scene.eye, rays)[0] > 0.998]

    x, y, z = scene.camera @ rays
    ahead = z > 0
    column, row = ((scene.focal * c[ahead] / z[ahead] + 1) * size / 2 for c in (x, y))
    inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < size)
    centres, width = np.arange(size) + 0.5, size / 40
    across, down = (np.exp(-(((centres - c[inside, None]) / width) ** 2) / 2) for c in (column, row))
    bumps: np.ndarray = (down[:, :, None] * across[:, None, :]).max(0, initial=0)
    return bumps[None].astype(np.float32)


def find_boxes(scene: Scene, surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) round what is visible of the solids, xyxy with x2 = last column + 1, and shapes (n,)."""
    boxes, labels = [], []
    for index, solid in enumerate(scene.solids):
        rows, columns = np.nonzero(surface == FACES + index)
        if len(rows) >= SMALLEST_BOX * surface.size:
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            labels.append(solid.shape)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def classify(scene: Scene, area: np.ndarray) -> dict[str, Any]:
    """What the image shows as a whole.

    Args:
        area: the part of the image that each surface covers.

    Returns:
        object (), the solid that shows most, in `OBJECTS`, and object_soft (12,), each kind's share in what
        shows of all solids; -100 and NaN where none does. scene (), the room's patterns in `SCENES`, and
        scene_soft (9,), the surer the more of walls and floor shows.
    """
    kinds = np.array([solid.shape * len(FINISHES) + solid.finish for solid in scene.solids], int)
    shown = area[FACES:].sum()
    soft = np.bincount(kinds, area[FACES:], len(OBJECTS)) / shown if shown else np.full(len(OBJECTS), np.nan)
    wall, floor = soften(scene.wall, len(WALLS), area[:4].sum()), soften(scene.floor, len(FLOORS), area[4])
    return {
        "object": np.int64(kinds[area[FACES:].argmax()] if shown else -100),
        "object_soft": soft.astype(np.float32),
        "scene": np.int64(scene.wall * len(FLOORS) + scene.floor),
        "scene_soft": np.outer(wall, floor).ravel().astype(np.float32),
    }


def soften(index: int, classes: int, area: float) -> np.ndarray:
    """A distribution (classes,) round a class, the surer the larger the part of the image that shows it."""
    sure = area / (area + 0.1)
    distribution = np.full(classes, (1 - sure) / classes)
    distribution[index] += sure
    return distribution
