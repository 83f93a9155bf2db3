"""Networks in which units mix what all tasks' backbones have at a layer: of cross-stitch and of sluice networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mtlsearch.backbones import Backbone
from mtlsearch.searchers.joined import JoinedArchitecture, JoinedNetwork, separate
from mtlsearch.task import Task

Look = Callable[[int, dict[str, Tensor]], None]


@dataclass(frozen=True)
class StitchedArchitecture(JoinedArchitecture):
    """Single-task backbones with units between them.

    Args:
        backbone, nodes: as for `JoinedArchitecture`.
        units: the layers after which there is one, in order.
    """

    units: list[int]

    def check(self) -> None:
        super().check()
        units = self.units
        known = range(len(self.nodes))
        if (
            not isinstance(units, list)
            or any(type(layer) is not int or layer not in known for layer in units)
            or units != sorted(set(units))
        ):
            raise ValueError(
                f"units must be layers in order, numbers below {len(self.nodes)}, not {units!r}."
            )
        if units and len(self.tasks) < 2:
            raise ValueError(f"units must be empty where there is one task, not {units!r}.")


class StitchedNetwork(JoinedNetwork):
    """One backbone a task in lockstep, units on the way, and the tasks' heads.

    Args:
        tasks: any number.
        backbone: for the first task; the others get one of the same structure.
        units: by layer, called as `unit({task: features}, wanted) -> {wanted task: features}`.
    """

    def __init__(self, tasks: Sequence[Task], backbone: Backbone, units: Mapping[int, nn.Module]) -> None:
        super().__init__(*separate(tasks, backbone))
        self.units = nn.ModuleDict({str(layer): unit for layer, unit in units.items()})

    def pyramids(self, image: Tensor, wanted: Sequence[str]) -> dict[str, list[Tensor]]:
        return self.run(image, wanted)

    def run(self, image: Tensor, wanted: Sequence[str], look: Look | None = None) -> dict[str, list[Tensor]]:
        """Feature pyramids of the wanted tasks; `look(layer, {task: features})` sees what a layer ends in."""
        last = self.last_layers(wanted)

        def exchange(layer: int, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
            going = [task for task in outputs if last[task] > layer]
            if str(layer) in self.units:
                outputs = self.units[str(layer)](outputs, going)
            outputs = {task: outputs[task] for task in going}
            if look is not None:
                look(layer, outputs)
            return outputs

        return self.lockstep(image, list(last), exchange)  # type: ignore[no-any-return]

    def last_layers(self, wanted: Sequence[str]) -> dict[str, int]:
        """For each task that has to run, the wanted first, the last layer of it that is needed."""
        last = dict.fromkeys(wanted, len(self.nodes))
        if len(self.units):
            final = max(int(layer) for layer in self.units)
            last |= {task: final for task in self.heads if task not in last}
        return last
