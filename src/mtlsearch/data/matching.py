"""Which images a folder holds, which labels belong to them, and which of them are for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlsearch.data.encodings import Encoding
from mtlsearch.data.module import SPLITS
from mtlsearch.data.reading import find

FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
SHOWN = 20


@dataclass(frozen=True)
class Item:
    """An image and where its labels lie, by task; unlabelled tasks are not there."""

    name: str
    image: Path
    labels: Mapping[str, Any]


class Mismatch(ValueError):
    """What does not fit together: `problems` has a line for each, the message only the first ones."""

    def __init__(self, root: Path, problems: list[str]) -> None:
        self.problems = problems
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        super().__init__("\n".join([f"{root} cannot be used as it is:", *problems[:SHOWN], *more]))


def match(
    root: Path,
    image: str,
    encodings: Mapping[str, Encoding],
    splits: Mapping[str, str | float],
    split_seed: int,
) -> dict[str, list[Item]]:
    """The items of train, val and test; the arguments are those of `Folder`.

    Raises:
        ValueError: there is no image, or the splits are not described rightly.
        Mismatch: labels without images, tasks without labels, lists with images that are not there.
    """
    by_folder = "{split}" in image
    missing = set(SPLITS) - set(splits) if splits and not by_folder else set()
    if wrong := (set(splits) - set(SPLITS)) | missing:
        raise ValueError(
            f"splits has a key for each of {', '.join(SPLITS)}: mend {', '.join(sorted(wrong))}."
        )
    folders = {split: str(splits.get(split, split)) if by_folder else "" for split in SPLITS}
    images = {folder: find(root, image, folder) for folder in dict.fromkeys(folders.values())}
    for folder, found in images.items():
        if not found:
            raise ValueError(_no_image(root, image.replace("{split}", folder)))
    aliases = {folder: _aliases(root, found) for folder, found in images.items()}

    problems: list[str] = []
    labels = {task: _labels(task, encodings[task], root, aliases, problems) for task in encodings}
    if by_folder:
        names = {split: list(images[folder]) for split, folder in folders.items()}
    elif any(isinstance(value, str) for value in splits.values()):
        names = {split: _read_list(root / str(splits[split]), aliases[""], problems) for split in SPLITS}
    else:
        names = _draw(list(images[""]), splits or FRACTIONS, split_seed, problems)
    if twice := not by_folder and set(names["train"]) & {*names["val"], *names["test"]}:
        problems.append(f"{sorted(twice)[0]} and {len(twice) - 1} more are for training and for evaluation.")
    if problems:
        raise Mismatch(root, problems)

    items: dict[str, list[Item]] = {}
    for split, folder in folders.items():
        sources = {task: found[folder] for task, found in labels.items()}
        items[split] = [
            Item(name, images[folder][name], {task: of[name] for task, of in sources.items() if name in of})
            for name in names[split]
        ]
    return items


def _aliases(root: Path, images: Mapping[str, Path]) -> dict[str, str]:
    """{what a list or a table may call an image: its name}."""
    aliases = {path.relative_to(root).as_posix(): name for name, path in images.items()}
    return (
        aliases
        | {name + path.suffix: name for name, path in images.items()}
        | {name: name for name in images}
    )


def _labels(
    task: str, encoding: Encoding, root: Path, aliases: Mapping[str, Mapping[str, str]], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """{what `{split}` stands for: {name of the image: where its label is}} of one task."""
    labels: dict[str, dict[str, Any]] = {}
    without_image: dict[str, str] = {}
    with_image: set[str] = set()
    for folder, names in aliases.items():
        labels[folder] = {}
        for name, source in encoding.find(root, folder).items():
            if name in names:
                labels[folder][names[name]] = source
                with_image.add(str(source))
            else:
                without_image[str(source)] = name
    # Where the labels of all splits share a folder, each split finds those of the others too.
    problems += [
        f"{source}: there is no image {without_image[source]!r}. Add it, or remove the label."
        for source in sorted(without_image.keys() - with_image)
    ]
    if not with_image:
        problems.append(f"No image has a label for the task {task!r}: nothing fits {encoding}.")
    return labels


def _read_list(path: Path, aliases: Mapping[str, str], problems: list[str]) -> list[str]:
    """The names of the images that a file lists, one on a line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as a list of images: {error}.")
        return []
    listed = {line.strip(): number for number, line in enumerate(lines, start=1) if line.strip()}
    problems += [
        f"{path}, line {number}: there is no image {line!r}."
        for line, number in listed.items()
        if line not in aliases
    ]
    if not listed:
        problems.append(f"{path}: lists no image.")
    return [aliases[line] for line in listed if line in aliases]


def _draw(
    names: list[str], fractions: Mapping[str, Any], seed: int, problems: list[str]
) -> dict[str, list[str]]:
    """The names divided at random by their fractions, with at least one for each split."""
    if min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"splits must be positive fractions that sum to 1: found {dict(fractions)}.")
    count = len(names)
    if count < len(SPLITS):
        problems.append(f"Images: found {count}, expected at least one each for train, val and test.")
    val = max(1, min(round(fractions["val"] * count), count - 2))
    test = max(1, min(round(fractions["test"] * count), count - 1 - val))
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    drawn = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
    return {split: sorted(drawn[split]) for split in SPLITS}


def _no_image(root: Path, template: str) -> str:
    """What to do where a template matches no image."""
    folder = (root / template.split("{name}")[0] / "_").parent
    while not folder.is_dir():
        folder = folder.parent
    there = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return (
        f"No image is called {root / template}. {folder} holds {', '.join(there[:8]) or 'nothing'}"
        f"{', ...' if len(there) > 8 else ''}. Mend root, image or splits."
    )
