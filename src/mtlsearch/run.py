"""The command line: `python -m mtlsearch.run searcher=mtlnas backbone=resnet50`. `--help` says what there is.

YAML names classes and their arguments, Hydra composes it, and here the objects are made and handed to
`mtlsearch.search`: no other file but `answers` knows Hydra.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mtlsearch import stages
from mtlsearch.answers import CONF, INTERRUPTED, answer, unknown
from mtlsearch.rundir import (
    FOLDER,
    Settings,
    claim,
    difference,
    environment,
    is_finished,
    is_first,
    near,
    read,
    read_metrics,
    released,
    value,
)

if TYPE_CHECKING:
    from mtlsearch.namespace import pl
    from mtlsearch.task import Task


def share(part: int, whole: int, *, _root_: DictConfig) -> int:
    """`${share:1,2}` in a file of settings: a half of `budget`, in whole epochs and at least one."""
    return max(1, round(int(_root_.budget) * part / whole))


OmegaConf.register_new_resolver("share", share, replace=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default the program's own, and return the exit code."""
    if arguments is not None:
        sys.argv[1:] = arguments
    return answer(dispatch)


def console() -> None:
    """The console script. It lacks what `python -m` has: that classes in the working folder can be named."""
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main())


def dispatch() -> None:
    """Go on with a run, or have Hydra compose the settings of one or several."""
    arguments = sys.argv[1:]
    resume = next((argument for argument in arguments if argument.startswith("resume=")), None)
    if FOLDER in os.environ and not is_first():
        dir = Path(os.environ[FOLDER])
        run(read(dir), dir)
    elif resume is not None:
        if others := [argument for argument in arguments if argument != resume]:
            raise ValueError(f"{resume} keeps that run's settings: {' '.join(others)} cannot be set.")
        dir = Path(resume.removeprefix("resume="))
        run(read(dir), dir)
    else:
        named = any(argument.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for argument in arguments)
        if not is_first() and not named:
            raise ValueError("Several processes are at work: name one folder for them, hydra.run.dir=DIR.")
        # Flags first, or argparse refuses those that stand between settings.
        sys.argv[1:] = sorted(arguments, key=lambda argument: "=" in argument and argument[0] != "-")
        COMPOSED.clear()
        Sweep.dirs.clear()
        try:
            with environment(HYDRA_FULL_ERROR="1"):  # or Hydra would exit where `answer` should see the error
                hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")(job)()
            for settings, dir, overrides in COMPOSED:
                begin(settings, dir, overrides)
                with released(dir):
                    run(settings, dir)
        finally:
            if Sweep.dirs and is_first():
                from mtlsearch.report import sweep

                sweep.show(Sweep.dirs[0])


# A run


COMPOSED: list[tuple[Settings, Path, list[str]]] = []
"""Settings, folder and command line of the run to make once Hydra, which shows errors its own way, is done."""


def job(config: DictConfig) -> float:
    """One of a sweep's runs, in a process of its own, and the value to compare; a run alone is left for later."""
    hydra_config = HydraConfig.get()
    settings: Any = OmegaConf.to_container(config, resolve=True)
    dir, overrides = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
    if hydra_config.mode is not RunMode.MULTIRUN:
        COMPOSED.append((settings, dir, overrides))
        return float("nan")
    begin(settings, dir, overrides)
    if not is_finished(dir):
        command = [sys.executable, "-m", "mtlsearch.run", f"resume={dir}"]
        if code := subprocess.run(command, check=False).returncode:
            raise KeyboardInterrupt if code == INTERRUPTED else ValueError(f"The run in {near(dir)} failed.")
    found = value(read_metrics(dir), settings["objective"])
    return float("nan") if found is None else found


def begin(settings: Settings, dir: Path, overrides: Sequence[str]) -> None:
    """Write the settings into the folder of a run, unless they are there.

    Raises:
        ValueError: one has no value; the folder holds a run with others.
    """
    from mtlsearch import files

    if missing := OmegaConf.missing_keys(OmegaConf.create(settings)):
        raise ValueError(f"{min(missing)} has no value yet: add {min(missing)}=VALUE.")
    if not is_first():
        return
    path = dir / "config.yaml"
    if not path.exists():
        files.write(dir / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(list(overrides)))
        files.write(path, OmegaConf.to_yaml(settings))
    elif changed := difference(read(dir), settings):
        raise ValueError(
            f"{near(dir)} holds a run with other settings: {changed}. Name another folder, or go on with that "
            f"run: resume={near(dir)}"
        )


def run(settings: Settings, dir: Path) -> None:
    """Search, evaluate and report in a folder, or go on with that, and show what came of it."""
    if not is_finished(dir):
        try:
            with claim(dir):
                work(settings, dir)
        except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the one into the other
            command = f"python -m mtlsearch.run resume={near(dir)}"
            raise KeyboardInterrupt(f"{command} goes on after the last finished epoch.") from stop
    if is_first():
        from mtlsearch.report import tables

        tables.show(read_metrics(dir))
        for name, file in {"Architecture": "architecture.json", "Report": "report.html"}.items():
            print(f"{name}: {near(dir / file)}", flush=True)


def work(settings: Settings, dir: Path) -> None:
    """Search and report."""
    import mtlsearch as ms
    from mtlsearch import report

    stages.quiet()
    datamodule, searcher = make(settings)
    searched = (dir / "metrics.json").exists()
    result = ms.search(searcher, datamodule, trainer=trainers(settings, dir), dir=dir)
    if not is_first():
        return
    if not settings["keep_checkpoints"]:
        for path in dir.glob("*/last.ckpt"):
            path.unlink()
    if searched:
        datamodule.prepare_data()
        datamodule.setup("fit")
    elif log := logger(settings, "", dir):
        names = [f"{split}/{name}" for split in ("val", "test") for name in metric_names(searcher.tasks)]
        values = {name: value(result.metrics, name) for name in names}
        log.log_metrics({name: number for name, number in values.items() if number is not None})
        log.finalize("success")
    batch = report.figures.examples(datamodule)
    report.write(dir, network=result.network, tasks=searcher.tasks, batch=batch)


# Its objects


def make(settings: Settings) -> tuple[Any, Any]:
    """The datamodule and the searcher."""
    from mtlsearch.namespace import pl

    seed = settings["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, not {seed!r}.")
    stages.check_epochs(settings["epochs"])
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule = make_datamodule(settings)
    tasks = weighted(datamodule.tasks, settings["weights"])
    known = [f"val/{name}" for name in metric_names(tasks)]
    if settings["objective"] not in known:
        raise ValueError(unknown("objective", settings["objective"], known))
    backbone = build(settings["backbone"]) if settings["backbone"] else None
    balancing = settings["balancing"]
    others = {"balancing": build(balancing)} if balancing else {}
    return datamodule, build(settings["searcher"], tasks, backbone, seed=seed, **others)


def make_datamodule(settings: Settings) -> Any:
    """The data set, called with `head`, `seed` and, unless they are null, the names of the tasks.

    One with an entry `datasets` is called with these, made likewise, in place of `head`.
    """
    tasks, node = settings["tasks"], dict(settings["dataset"])
    arguments = {"head": settings["head"], "seed": settings["seed"]}
    if "datasets" in node:
        del arguments["head"]
        parts = node.pop("datasets")
        arguments["datasets"] = {
            name: make_datamodule({**settings, "tasks": None, "dataset": part})
            for name, part in parts.items()
        }
    if tasks is not None:
        arguments["tasks"] = [tasks] if isinstance(tasks, str) else tasks
    return build(node, **arguments)


def build(node: Settings, *args: Any, **kwargs: Any) -> Any:
    """Call what a node of the settings names. The arguments go round Hydra, which would rewrite them."""
    target = instantiate(node, _partial_=True, _convert_="all")
    try:
        return target(*args, **kwargs)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"{node['_target_']} cannot be called: {error}.") from error


def weighted(tasks: Sequence[Task], weights: Mapping[str, float]) -> list[Task]:
    """The tasks with these weights of their losses."""
    names = [task.name for task in tasks]
    if idle := [name for name, weight in weights.items() if weight != 1 and name not in names]:
        raise ValueError(f"weights.{idle[0]} is set, but the tasks are {', '.join(names)}.")
    return [replace(task, weight=weights.get(task.name, task.weight)) for task in tasks]


def metric_names(tasks: Sequence[Task]) -> list[str]:
    return ["loss", *(f"{task.name}/{metric}" for task in tasks for metric in task.metrics)]


def trainers(settings: Settings, dir: Path) -> Callable[[str], pl.Trainer]:
    """What makes the Trainer of a stage."""

    def trainer(stage: str) -> pl.Trainer:
        arguments = instantiate(settings["trainer"], _convert_="all")
        log = logger(settings, stage, dir) if stage != "evaluate" else False
        return stages.make_trainer(stage, settings["epochs"], dir, log, **arguments)

    return trainer


def logger(settings: Settings, stage: str, dir: Path) -> Any:
    """The logger of a stage, which is the prefix of all names; False for none beside metrics.csv."""
    node = settings["logger"]
    if "_target_" not in node:
        return False
    try:
        result = build(node, save_dir=dir, prefix=stage)
    except ModuleNotFoundError as error:
        package = "tensorboard" if "TensorBoard" in node["_target_"] else error.name
        raise ValueError(f"This logger needs a package that is not there: pip install {package}.") from error
    result.log_hyperparams(settings)
    return result


# Other users of the settings


def compose_dataset(arguments: Sequence[str]) -> tuple[Any, Path]:
    """The datamodule of a command line and the folder that it names, for tools that look at data.

    Where neither tasks nor an experiment are named, all tasks are there that the data set labels.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    known, overrides = parser.parse_known_args(arguments)
    if known.config_dir is not None:
        overrides.append(f"hydra.searchpath=[{known.config_dir.resolve()}]")
    if not any(override.startswith(("tasks=", "experiment=")) for override in overrides):
        overrides.append("tasks=null")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("run", overrides, return_hydra_config=True)
    dir = Path(config.hydra.run.dir)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return make_datamodule(settings), dir


class Sweep(Callback):
    """Says at which of its jobs a sweep is."""

    dirs: ClassVar[list[Path]] = []
    """Where the sweep is that is at work."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.dirs[:] = [Path(config.hydra.sweep.dir)]

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if Sweep.dirs and is_first():
            print(f"\nJob {config.hydra.job.num}: {' '.join(config.hydra.overrides.task)}", flush=True)


if __name__ == "__main__":
    from mtlsearch import run as module  # by its name, under which Hydra will find it, and not as __main__

    sys.exit(module.main())
