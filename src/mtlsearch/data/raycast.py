"""Where rays meet the surfaces of a room. Vectors are (3, N), one column a ray; rays may have any length."""

from __future__ import annotations

import numpy as np

from mtlsearch.data.rooms import SHAPES, Scene

FACES = 6
"""Surfaces 0 to 3 are the walls, 4 is the floor, 5 the ceiling, and `FACES + i` solid i."""


def trace(scene: Scene, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What rays from a point (3,) of the room hit first.

    Returns:
        distance (N,) in lengths of the ray, surface (N,), unit normal (3, N).
    """
    ahead = rays > 0
    exits = (scene.room[:, None] * ahead - origin[:, None]) / rays
    distance = exits.min(0)
    nearest = exits == distance
    surface = (nearest * (2 * np.arange(3)[:, None] + ahead)).max(0)
    normal = np.where(nearest, -np.sign(rays), 0)

    offsets = np.array([origin - solid.centre for solid in scene.solids]).reshape(-1, 3)
    passed2 = (offsets**2).sum(1, keepdims=True) - (offsets @ rays) ** 2 / (rays**2).sum(0)
    for index, (solid, offset) in enumerate(zip(scene.solids, offsets)):
        near = np.flatnonzero(passed2[index] < solid.half @ solid.half)  # the rest miss its bounding sphere
        frame = solid.rotation / solid.half
        reached, facing = HITS[SHAPES[solid.shape]](offset @ frame, frame.T @ rays[:, near])
        first = (reached > 0) & (reached < distance[near])
        near, facing = near[first], frame @ facing[:, first]
        distance[near], surface[near] = reached[first], FACES + index
        normal[:, near] = facing / np.sqrt((facing**2).sum(0))
    return distance, surface, normal


# Each shape fills [-1, 1]³ and is seen from an origin (3,) outside of it: the distance (N,) in lengths of the
# ray, inf for a miss, and the normal (3, N) there, of any length.


def hit_sphere(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c = (rays * rays).sum(0), origin @ rays, origin @ origin - 1
    root = b * b - a * c
    distance = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where(root > 0, distance, np.inf), origin[:, None] + distance * rays


def hit_box(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = -np.sign(rays)
    enter, leave = (side - origin[:, None]) / rays, (-side - origin[:, None]) / rays
    axis, distance = enter.argmax(0), enter.max(0)
    return np.where(distance < leave.min(0), distance, np.inf), side * (axis == np.arange(3)[:, None])


def hit_cylinder(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return hit_frustum(origin, rays, top=1)


def hit_cone(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return hit_frustum(origin, rays, top=0)


def hit_frustum(origin: np.ndarray, rays: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """A round solid with radius 1 at its base (z = -1) and `top` at z = 1."""
    (x, y, z), (dx, dy, dz) = origin, rays
    slope = (top - 1) / 2
    radius, widening = 1 + slope * (z + 1), slope * dz
    a = dx * dx + dy * dy - widening**2
    b = x * dx + y * dy - radius * widening
    root = b * b - a * (x * x + y * y - radius**2)
    spread = np.sqrt(np.maximum(root, 0))
    distances = np.stack([(-b - spread) / a, (-b + spread) / a, (-1 - z) / dz, (1 - z) / dz])

    on_side = (np.abs(z + distances[:2] * dz) <= 1) & (root > 0)
    on_cap = (x + distances[2:] * dx) ** 2 + (y + distances[2:] * dy) ** 2 <= np.array([[1], [top**2]])
    distances[~np.concatenate([on_side, on_cap]) | (distances <= 0)] = np.inf
    which, distance = distances.argmin(0), distances.min(0)

    px, py, pz = origin[:, None] + np.where(distance < np.inf, distance, 0) * rays
    outwards = np.stack([px, py, -slope * (1 + slope * (pz + 1))])
    along = np.stack([0 * px, 0 * px, np.where(which == 2, -1, 1)])
    return distance, np.where(which < 2, outwards, along)


HITS = {"sphere": hit_sphere, "box": hit_box, "cylinder": hit_cylinder, "cone": hit_cone}
