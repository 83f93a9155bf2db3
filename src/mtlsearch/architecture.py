"""Architecture: what a search found, as plain data that builds a plain network."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from mtlsearch.backbones import Backbone, load
from mtlsearch.task import Task
from mtlsearch.tasks import from_spec

KINDS: dict[str, type[Architecture]] = {}
"""Every kind of architecture whose module has been imported."""


@dataclass(frozen=True)
class Architecture(ABC):
    """Subclass it as a frozen dataclass whose fields are plain JSON, name its `kind`, and write `build`.

    Args:
        tasks: by name, the `spec` of each task; None for a task that is not a built-in one.
    """

    tasks: dict[str, dict[str, Any] | None]

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    @abstractmethod
    def build(self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None) -> nn.Module:
        """The network with fresh weights: `network(image, tasks=None) -> {task: prediction}`.

        Args:
            tasks: the tasks, needed where one is not a built-in one.
            backbone: needed where it is not a timm model.
        """

    def check(self) -> None:  # noqa: B027, a kind may have nothing to check
        """Raise a ValueError that names a field whose value makes no sense."""

    @classmethod
    def of(cls, architecture: Architecture) -> Self:
        """The architecture itself, a ValueError where it is of another kind."""
        if not isinstance(architecture, cls):
            raise ValueError(
                f"An architecture of kind {architecture.kind!r} is not of this search space, whose kind is "
                f"{cls.kind!r}."
            )
        return architecture

    def to_json(self) -> str:
        content = {"kind": self.kind, "version": self.version, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Architecture:
        """The architecture in a JSON text, every field checked.

        Raises:
            ValueError: not JSON, an unknown kind or version, a missing, unknown or wrong field.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"This is not an architecture: {error}.") from None
        if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
            raise ValueError("This is not an architecture: it has no 'kind'.")
        kind, version = content.pop("kind"), content.pop("version", None)
        if kind not in KINDS:
            raise ValueError(
                f"Unknown kind of architecture {kind!r}; known are {sorted(KINDS)}. "
                "Import the module that defines it first."
            )
        cls = KINDS[kind]
        if version != cls.version:
            raise ValueError(f"Architecture of kind {kind!r} has version {version}, not {cls.version}.")
        return cls._from_fields(content)

    @classmethod
    def _from_fields(cls, content: Mapping[str, Any]) -> Self:
        names = [field.name for field in dataclasses.fields(cls)]
        missing, unknown = set(names) - set(content), set(content) - set(names)
        if missing or unknown:
            raise ValueError(
                f"Architecture of kind {cls.kind!r}: missing {sorted(missing)}, unknown {sorted(unknown)} fields."
            )
        tasks = content["tasks"]
        if not isinstance(tasks, dict) or not tasks:
            raise ValueError(
                f"Architecture of kind {cls.kind!r}: tasks must be a dict by name, not {tasks!r}."
            )
        architecture = cls(**content)
        architecture.check()
        return architecture


def specs_of(tasks: Sequence[Task]) -> dict[str, dict[str, Any] | None]:
    """The field `tasks` for these tasks."""
    return {task.name: dict(task.spec) if task.spec is not None else None for task in tasks}


def tasks_of(architecture: Architecture, tasks: Sequence[Task] | None) -> list[Task]:
    """An architecture's tasks: those given, checked against its names, or built from their specs."""
    if tasks is None:
        own = [name for name, spec in architecture.tasks.items() if spec is None]
        if own:
            raise ValueError(f"Tasks {own} are not built-in ones: pass all tasks as `tasks=`.")
        return [from_spec(name, spec) for name, spec in architecture.tasks.items() if spec is not None]
    if [task.name for task in tasks] != list(architecture.tasks):
        raise ValueError(
            f"The architecture is for tasks {list(architecture.tasks)}, not {[t.name for t in tasks]}."
        )
    return list(tasks)


def check_spec(backbone: Any) -> None:
    """Raise a ValueError unless this is a backbone's {"name", "arguments"}, or None."""
    if backbone is not None and not (
        isinstance(backbone, dict)
        and backbone.keys() == {"name", "arguments"}
        and isinstance(backbone["name"], str)
        and isinstance(backbone["arguments"], dict)
    ):
        raise ValueError(f"backbone must be null or have a name and arguments, not {backbone!r}.")


def backbone_of(spec: Mapping[str, Any] | None, given: Backbone | None) -> Backbone:
    """The backbone given, or one of this spec with fresh weights."""
    if given is not None:
        return given
    if spec is None:
        raise ValueError("The backbone is not a timm model: pass it as `backbone=`.")
    # Nothing but the structure comes from the file: timm would unpickle a checkpoint.
    arguments = {**spec["arguments"], "pretrained": False, "checkpoint_path": None}
    try:
        return load(spec["name"], **arguments)
    except Exception as error:
        raise ValueError(f"The backbone {dict(spec)} cannot be built: {error}") from error


def check_paths(expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise a ValueError where a backbone's layers are not those that an architecture names."""
    if list(expected) != list(found):
        raise ValueError(
            f"The backbone's layers {list(found)} are not those of the architecture, {list(expected)}: another "
            "model, or another version of timm."
        )
