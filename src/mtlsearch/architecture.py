"""Architecture: what a search found, as plain data that builds a plain network."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from mtlsearch.backbones import Backbone
from mtlsearch.task import Task

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
