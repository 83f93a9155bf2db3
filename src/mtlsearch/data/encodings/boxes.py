"""Boxes round objects: COCO and BDD100K JSON, KITTI text, Pascal VOC XML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mtlsearch import tasks
from mtlsearch.data.encodings.encoding import Encoding, class_arguments
from mtlsearch.data.reading import find
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task

Object = tuple[str, str, Sequence[float]]
"""Where it stands in its file, the name of its class, and x1, y1, x2, y2."""


@dataclass(frozen=True)
class Entry:
    """What a file with the labels of many images has about one of them."""

    path: Path
    image: str
    content: Any

    def __str__(self) -> str:
        return f"{self.path}, image {self.image!r}"


@dataclass(frozen=True, kw_only=True)
class BoxFiles(Encoding):
    """What all boxes in files share; a label is read from a source as `objects` lists them.

    An image whose labels are there and hold no object has nothing in it; an image without labels is unlabelled.

    Args:
        path: of the file, or the template of the paths of the files with one for each image; it may hold
            `{split}`.
        classes: a name for each.
        name_map: {name in the files: class}, for objects that are called otherwise there.
        ignore: names of objects that are left out.
        least_side: objects less wide or high than this many pixels of the file are left out.
    """

    path: str
    classes: Sequence[str]
    name_map: Mapping[str, str] = field(default_factory=dict)
    ignore: Sequence[str] = ()
    least_side: float = 0.0

    def __post_init__(self) -> None:
        if wrong := [name for name in self.name_map.values() if name not in self.classes]:
            raise ValueError(
                f"name_map leads to {wrong[0]!r}, which is none of the classes {[*self.classes]}."
            )

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.detection(name, **class_arguments(self.classes), **self.options)

    def find(self, root: Path, split: str) -> Mapping[str, Any]:
        return find(root, self.path, split)

    def objects(self, source: Any) -> Iterable[Object]:
        """The objects of one image. A ValueError says what is wrong, and where in the file."""
        raise NotImplementedError

    def read(self, source: Any) -> dict[str, np.ndarray]:
        boxes, ids = [], []
        for place, name, box in self.objects(source):
            if name in self.ignore:
                continue
            number = self._class(place, name)
            x1, y1, x2, y2 = box
            if 0 <= min(x2 - x1, y2 - y1) < self.least_side:
                continue
            if not (x1 < x2 and y1 < y2 and np.isfinite(box).all()):
                raise ValueError(
                    f"{place}: its corners x1, y1, x2, y2 are {[*box]}, expected x1 < x2 and y1 < y2. Mend it; "
                    "least_side=1 leaves out objects without width or height."
                )
            boxes.append(box)
            ids.append(number)
        return make_label(boxes, ids)

    def _class(self, place: str, name: str) -> int:
        meant = self.name_map.get(name, name)
        if meant not in self.classes:
            raise ValueError(
                f"{place}: its class {name!r} is none of {[*self.classes]}. Add it to classes, to name_map as "
                "one of these, or to ignore."
            )
        return list(self.classes).index(meant)


@dataclass(frozen=True, kw_only=True)
class Coco(BoxFiles):
    """COCO JSON, one file for all images: boxes of `annotations`, less the crowds (`iscrowd`).

    Images that its `images` do not list are unlabelled.
    """

    def find(self, root: Path, split: str) -> dict[str, Entry]:
        return _entries(root / self.path.replace("{split}", split), self._images)

    def _images(self, content: Any) -> Iterable[tuple[str, list[Object]]]:
        names = {category["id"]: category["name"] for category in content["categories"]}
        images: dict[Any, tuple[str, list[Object]]] = {
            image["id"]: (image["file_name"], []) for image in content["images"]
        }
        for annotation in content["annotations"]:
            place = f"annotation {annotation.get('id')}"
            for key, known in ("image_id", images), ("category_id", names):
                if annotation[key] not in known:
                    raise ValueError(f"{place}: its {key} {annotation[key]} is not listed. Mend the file.")
            if not annotation.get("iscrowd"):
                _, objects = images[annotation["image_id"]]
                objects.append((place, names[annotation["category_id"]], annotation["bbox"]))
        return images.values()

    def objects(self, source: Entry) -> Iterator[Object]:
        for place, name, box in source.content:
            left, top, width, height = _numbers(place, box)
            yield place, name, (left, top, left + width, top + height)


@dataclass(frozen=True, kw_only=True)
class Bdd100k(BoxFiles):
    """BDD100K JSON: one file for all images, or with `{name}` in the path one for each.

    Objects without a `box2d`, such as lanes, are left out.
    """

    def find(self, root: Path, split: str) -> Mapping[str, Any]:
        if "{name}" in self.path:
            return super().find(root, split)
        path = root / self.path.replace("{split}", split)
        return _entries(path, lambda frames: ((frame["name"], frame) for frame in frames))

    def objects(self, source: Entry | Path) -> Iterator[Object]:
        frame = source.content if isinstance(source, Entry) else _json(source)
        try:
            labels = frame["frames"][0]["objects"] if "frames" in frame else frame.get("labels")
            for number, label in enumerate(labels or []):
                place = f"object {label.get('id', number)}"
                if (box := label.get("box2d")) is not None:
                    corners = [box[key] for key in ("x1", "y1", "x2", "y2")]
                    yield place, label["category"], _numbers(place, corners)
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"does not list objects as BDD100K does: {_fault(error)}.") from error


@dataclass(frozen=True, kw_only=True)
class Kitti(BoxFiles):
    """KITTI text, a file for each image and a line for each object; `DontCare` is left out."""

    def objects(self, source: Path) -> Iterator[Object]:
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            fields, place = line.split(), f"line {number}"
            if fields and len(fields) not in (15, 16):
                raise ValueError(f"{place}: has {len(fields)} fields, expected KITTI's 15 (16 with a score).")
            if fields and fields[0] != "DontCare":
                yield place, fields[0], _numbers(place, fields[4:8])


@dataclass(frozen=True, kw_only=True)
class Voc(BoxFiles):
    """Pascal VOC XML, a file for each image, whose corners are counted from 1 and belong to the box.

    Args:
        skip_difficult: leave out the objects that are marked as difficult.
    """

    skip_difficult: bool = False

    def objects(self, source: Path) -> Iterator[Object]:
        for number, entry in enumerate(_xml(source).iter("object"), start=1):
            if self.skip_difficult and (entry.findtext("difficult") or "0").strip() == "1":
                continue
            place = f"object {number}"
            keys = ("name", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
            name, *corners = (entry.findtext(key) for key in keys)
            if name is None or None in corners:
                raise ValueError(f"{place}: lacks one of {', '.join(keys)}.")
            left, top, right, bottom = _numbers(place, corners)
            yield place, name.strip(), (left - 1, top - 1, right, bottom)


def make_label(boxes: Sequence[Sequence[float]], ids: Sequence[int]) -> dict[str, np.ndarray]:
    """The label with these boxes, each x1, y1, x2, y2, and class ids."""
    return {
        "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "labels": np.array(ids, dtype=np.int64),
    }


def _entries(path: Path, images: Callable[[Any], Iterable[tuple[str, Any]]]) -> dict[str, Entry]:
    """What a JSON file has about each image, by the image's name; `images` lists that from its content."""
    entries: dict[str, Entry] = {}
    try:
        for name, content in images(_json(path)):
            if name in entries:
                raise ValueError(f"it has two entries for the image {name!r}: keep one of them.")
            entries[name] = Entry(path, name, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path}: does not list images as expected: {_fault(error)}.") from error
    return entries


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read as JSON: {error}") from error


def _xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; one with a document type, which may define entities, is refused."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "<!DOCTYPE" in text:
            raise ValueError("it has a DOCTYPE, which labels do not need; remove it")
        return ElementTree.fromstring(text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"cannot be read as XML: {error}") from error


def _numbers(place: str, found: Any) -> list[float]:
    """The four numbers of a box."""
    try:
        x1, y1, x2, y2 = map(float, found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: its box is {found}, expected four numbers.") from error
    return [x1, y1, x2, y2]


def _fault(error: Exception) -> str:
    return f"something lacks {error}" if isinstance(error, KeyError) else str(error)
