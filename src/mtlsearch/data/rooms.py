"""Rooms with simple solids in them, drawn at random.

World coordinates are metres with z up; a room is the box from the origin to `Scene.room`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("sphere", "box", "cylinder", "cone")
CLASSES = ("floor", "wall", "ceiling", *SHAPES)
FINISHES = ("plain", "striped", "checked")
OBJECTS = tuple(f"{finish} {shape}" for shape in SHAPES for finish in FINISHES)
WALLS = ("plain", "striped", "brick")
FLOORS = ("plain", "checked", "planks")
SCENES = tuple(f"{wall} walls, {floor} floor" for wall in WALLS for floor in FLOORS)


@dataclass(frozen=True)
class Paint:
    """A procedural texture.

    Args:
        pattern: a key of `render.PATTERNS`.
        colours: (2, 3), linear RGB in [0, 1].
        period: metres after which the pattern repeats.
        phase: (3,), its shift in periods.
        gloss: strength of the highlight.
    """

    pattern: str
    colours: np.ndarray
    period: float
    phase: np.ndarray
    gloss: float


@dataclass(frozen=True)
class Solid:
    """A shape that fills [-1, 1]³, scaled by `half` (3,), turned by `rotation` (3, 3), moved to `centre`.

    `shape` and `finish` are indices into `SHAPES` and `FINISHES`.
    """

    shape: int
    finish: int
    paint: Paint
    half: np.ndarray
    rotation: np.ndarray
    centre: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A room, what stands in it, its light, and a camera.

    Args:
        room: (3,), its width, length and height.
        wall, floor: indices into `WALLS` and `FLOORS`.
        paints: of the floor, the walls and the ceiling.
        solids: what stands in it.
        eye: (3,), the camera's place.
        camera: (3, 3), whose rows are the camera's right, down and forward axes.
        focal: focal length in half image widths.
        light: (3,), the lamp's place.
        lamp, ambient: (3,), linear RGB of the lamp and of the light that comes from everywhere.
        exposure: mean of the image in linear RGB.
        noise: standard deviation of the sensor's noise at full brightness.
    """

    room: np.ndarray
    wall: int
    floor: int
    paints: tuple[Paint, Paint, Paint]
    solids: tuple[Solid, ...]
    eye: np.ndarray
    camera: np.ndarray
    focal: float
    light: np.ndarray
    lamp: np.ndarray
    ambient: np.ndarray
    exposure: float
    noise: float


def draw(rng: np.random.Generator) -> Scene:
    """A random scene: the camera near one end of the room, three to seven solids before it."""
    room = rng.uniform((3.0, 4.0, 2.4), (5.5, 6.5, 3.1))
    eye = [*room[:2] * rng.uniform((0.3, 0.06), (0.7, 0.15)), rng.uniform(1.0, 1.7)]
    target = [*room[:2] * rng.uniform((0.35, 0.7), (0.65, 0.9)), rng.uniform(0.3, 0.9)]
    camera = look_at(np.array(eye), np.array(target), roll=rng.normal(0, np.radians(2)))
    focal = 1 / np.tan(np.radians(rng.uniform(58, 76)) / 2)
    wall, floor = int(rng.integers(len(WALLS))), int(rng.integers(len(FLOORS)))
    tint = np.array((1, 0, -1)) * rng.uniform(-0.12, 0.12)

    solids: list[Solid] = []
    for _ in range(rng.integers(3, 8)):
        solid = draw_solid(rng, solids, room, np.array(eye), camera[2], focal)
        if solid is not None:
            solids.append(solid)
    return Scene(
        room=room,
        wall=wall,
        floor=floor,
        paints=(
            draw_paint(rng, FLOORS[floor], period=(0.8, 1.4), value=(0.15, 0.7), saturation=0.6),
            draw_paint(rng, WALLS[wall], period=(0.5, 1.2), value=(0.4, 0.9), saturation=0.5),
            draw_paint(rng, "plain", period=(0.5, 1.0), value=(0.7, 0.95), saturation=0.3),
        ),
        solids=tuple(solids),
        eye=np.array(eye),
        camera=camera,
        focal=float(focal),
        light=room * rng.uniform((0.15, 0.1, 0.8), (0.85, 0.5, 0.95)),
        lamp=rng.uniform(3.0, 6.0) * (1 + tint),
        ambient=rng.uniform(0.15, 0.45) * (1 - tint),
        exposure=rng.uniform(0.16, 0.34),
        noise=rng.uniform(0.005, 0.02),
    )


def draw_paint(
    rng: np.random.Generator,
    pattern: str,
    *,
    period: tuple[float, float],
    value: tuple[float, float],
    saturation: float,
) -> Paint:
    """Two colours, one a brighter or darker relative of the other."""
    first = rng.uniform(*value) * (1 - rng.uniform(0, saturation) * rng.permutation((0, rng.random(), 1)))
    second = np.clip(first * rng.choice((0.5, 0.7, 1.4, 1.8)) + rng.normal(0, 0.04, 3), 0.03, 0.95)
    colours = np.stack([first, second])
    return Paint(pattern, colours, rng.uniform(*period), phase=rng.random(3), gloss=rng.uniform(0, 0.6))


def draw_solid(
    rng: np.random.Generator,
    others: list[Solid],
    room: np.ndarray,
    eye: np.ndarray,
    forward: np.ndarray,
    focal: float,
) -> Solid | None:
    """One more solid on the floor within sight, or on top of the last box; None where no place is found."""
    shape, finish = int(rng.integers(len(SHAPES))), int(rng.integers(len(FINISHES)))
    half = rng.uniform(0.3, 0.6, 3)
    if SHAPES[shape] == "sphere":
        half[:] = half[0]
    elif SHAPES[shape] != "box":
        half[1] = half[0]
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    if SHAPES[shape] == "cylinder" and rng.random() < 0.2:
        rotation = rotation @ np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])  # lying on its side
    paint = draw_paint(rng, FINISHES[finish], period=(0.25, 0.5), value=(0.2, 0.9), saturation=1.0)
    reach, rise = np.linalg.norm(half[:2]), np.abs(rotation[2]) @ half

    for below in others[-1:]:
        fits = SHAPES[below.shape] == "box" and below.half[:2].min() > 0.6 * reach
        on_floor = below.centre[2] <= below.half[2]
        if fits and on_floor and rng.random() < 0.5:
            centre = np.array([*below.centre[:2], 2 * below.half[2] + rise])
            return Solid(shape, finish, paint, half, rotation, centre)
    for _ in range(20):
        bearing = np.arctan2(forward[1], forward[0]) + rng.uniform(-0.85, 0.85) / focal
        place = eye[:2] + rng.uniform(1.6, 3.8) * np.array([np.cos(bearing), np.sin(bearing)])
        gaps = [np.linalg.norm(place - other.centre[:2]) - np.linalg.norm(other.half[:2]) for other in others]
        if np.all((reach < place) & (place < room[:2] - reach)) and all(gap > reach for gap in gaps):
            return Solid(shape, finish, paint, half, rotation, np.array([*place, rise]))
    return None


def look_at(eye: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """The axes (3, 3) of a camera at `eye`, turned by `roll` radians about its viewing direction."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward])
