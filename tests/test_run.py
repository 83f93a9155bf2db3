"""The command line: what it composes, refuses, writes, goes on with and sweeps."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch import rundir, stages
from mtlsearch.data.scenes import Scenes

TINY = [
    "backbone=timm",
    "backbone.name=test_resnet",
    "dataset.size=32",
    "dataset.train=16",
    "dataset.val=4",
    "dataset.test=4",
    "dataset.batch_size=4",
    "epochs=1",
    "searcher.samples=1",
    "trainer.accelerator=cpu",
]
SINGLE = [*TINY[:-2], "searcher=single_task", TINY[-1]]


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def composed(capsys):
    """`composed(*arguments)`: the settings that a command line comes to."""

    def call(*arguments):
        capsys.readouterr()
        assert command.main([*arguments, "--cfg", "job"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return call


def start(*arguments, **options):
    """The command in a process of its own."""
    program = [sys.executable, "-W", "ignore", "-m", "mtlsearch.run", *arguments]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def entries(dir="."):
    return sorted(path.name for path in Path(dir).iterdir())


def contents(dir, *names):
    return {name: (Path(dir) / name).read_bytes() for name in names or entries(dir) if "." in name[1:]}


# What is composed


def test_nothing_named_is_the_main_job(composed):
    settings = composed()
    assert settings["searcher"]["_target_"] == "mtlsearch.MTLNAS"
    assert settings["backbone"]["name"] == "resnet50"
    assert settings["dataset"]["_target_"] == "mtlsearch.data.scenes.Scenes"
    assert settings["tasks"] == ["semantic", "normals"]
    assert settings["searcher"]["entropy_weight"] == 10
    assert composed("searcher=mtlnas", "backbone=resnet50") == settings


def test_later_groups_override_the_first_file_and_flags_may_stand_anywhere(composed):
    settings = composed("searcher=single_task", "--cfg", "job", "tasks=[depth]", "epochs=3")
    assert (settings["tasks"], settings["epochs"]) == (["depth"], 3)
    assert composed("searcher=single_task")["epochs"].keys() == {"single_task"}
    assert composed("experiment=mtlnas/scenes_table3")["tasks"] == ["object_soft", "scene_soft"]


def test_every_argument_of_the_classes_can_be_set_without_a_plus():
    def arguments(*callables):
        parameters = [p for c in callables for p in inspect.signature(c).parameters.values()]
        given = {
            "self",
            "tasks",
            "backbone",
            "balancing",
            "network",
            "supernet",
            "seed",
            "head",
            "pretrained",
        }
        code_only = {"unpack", "stage"}
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return {p.name for p in parameters if p.kind not in kinds} - given - code_only

    def keys(path):
        node = yaml.safe_load((command.CONF / path).read_text())
        node = node.get("searcher", node)
        return {key for key in node if not key.startswith("_")}

    training = [ms.MultiTask.__init__, ms.Searcher.__init__]
    assert keys("searcher/mtlnas.yaml") == arguments(ms.MTLNAS.__init__, *training)
    assert keys("searcher/single_task.yaml") == arguments(ms.SingleTask.__init__, training[0])
    assert keys("dataset/scenes.yaml") == arguments(Scenes.__init__)
    assert keys("backbone/timm.yaml") - {"pretrained"} == arguments(ms.backbones.load) - {"timm_arguments"}


def test_every_backbone_file_names_a_timm_model():
    import timm

    names = {
        path.stem: yaml.safe_load(path.read_text()).get("name")
        for path in command.CONF.glob("backbone/*.yaml")
    }
    assert names.pop("vdcnn") is None and names.pop("searched") is None
    assert names.pop("timm") == "???"
    assert set(names.values()) <= set(timm.list_models())


def test_help_shows_what_can_be_chosen(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for group in ("searcher", "backbone", "dataset", "trainer", "logger", "experiment"):
        for path in (command.CONF / group).glob("*.yaml"):
            assert path.stem in text
    for word in ("mtlnas/", "tasks=", "seed=", "objective=", "resume=", "--config-dir", "-m", "Examples"):
        assert word in text


# What is refused


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("searcher=mtlnsa", "mtlnas"),
        ("backbone=resnet5", "resnet50"),
        ("dataset=scense", "scenes"),
        ("trainer=gpus", "gpu"),
        ("logger=tensorbord", "tensorboard"),
        ("experiment=mtlnas/scenes_tabel1", "mtlnas/scenes_table1"),
        ("experiment=dmo", "demo"),
        ("datset=scenes", "dataset"),
        ("searcher.entropy_wieght=1", "searcher.entropy_weight"),
        ("searcher.optimizer.lrr=1", "searcher.optimizer.lr"),
        ("weights.semntic=2", "weights.semantic"),
        ("dataset.augment.flp=0", "dataset.augment.flip"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(refused, folder, argument, nearest):
    line = refused(argument)
    assert argument.partition("=")[2 if "." not in argument and argument[:6] != "datset" else 0] in line
    assert nearest in line
    assert not entries(folder)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("tasks", "KEY=VALUE"),
        ("tasks=[a", "KEY=VALUE"),
        ("--config-dir=nowhere", "nowhere"),
        ("dataset.size=???", "dataset.size=VALUE"),
        ("searcher.entropy_weight=-1", "at least 0, not -1"),
        ("searcher.init_w_ti=1.5", "[0, 1] or 'random'"),
        ("searcher.init_w_ti=randm", "[0, 1] or 'random'"),
        ("searcher.relaxation=soft", "concrete"),
        ("+searcher.gamma=1", "unexpected keyword argument 'gamma'"),
        ("dataset.augment.flip=2", "flip must be a probability"),
        ("dataset.batch_size=0", "batch_size"),
        ("backbone.name=resnet5", "resnet50"),
        ("tasks=[semantik]", "semantic"),
        ("tasks=semantik", "semantic"),
        ("weights.depth=2", "semantic, normals"),
        ("head=asp", "aspp"),
        ("seed=-1", "whole number"),
        ("seed=one", "whole number"),
        ("epochs=0", "epochs"),
        ("objective=val/semantic/mio", "val/semantic/miou"),
        ("trainer.accelerator=gpus", "accelerator"),
        ("trainer.devices=0", "trainer"),
        ("+trainer.max_epoch=3", "max_epoch"),
        ("dataset._target_=mtlsearch.data.Nothing", "mtlsearch.data.Nothing"),
    ],
)
def test_a_value_that_cannot_be_is_refused(refused, argument, words):
    assert words in refused(*TINY, argument)


def test_the_console_script_and_a_wrong_name_in_a_process_of_its_own(folder):
    program = [sys.executable, "-c", "from mtlsearch.run import console; console()", "searcher=mtlnass"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: There is no searcher 'mtlnass'. Near it: mtlnas, ")


def test_only_what_a_user_can_mend_loses_its_traceback(capsys, monkeypatch):
    def fail(error):
        def work():
            raise error

        return work

    assert command.answer(lambda: None) == 0
    assert command.answer(fail(ValueError("this\nand that"))) == 2
    assert capsys.readouterr().err == "error: this and that\n"
    assert command.answer(fail(OSError(errno.ENOSPC, "No space left on device"))) == 2
    for error in (KeyError("x"), TypeError("x"), RuntimeError("x"), OSError(errno.EACCES, "x")):
        with pytest.raises(type(error)):
            command.answer(fail(error))
    capsys.readouterr()
    monkeypatch.setenv("MTLSEARCH_TRACEBACK", "1")
    assert command.answer(fail(ValueError("this"))) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_package_that_a_logger_lacks_is_named(refused, monkeypatch):
    from pytorch_lightning.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(tensorboard, "_TENSORBOARDX_AVAILABLE", False, raising=False)
    monkeypatch.setattr(
        tensorboard.TensorBoardLogger,
        "__init__",
        lambda *_, **__: (_ for _ in ()).throw(ModuleNotFoundError("tensorboard", name="tensorboard")),
    )
    assert "pip install tensorboard" in refused(*SINGLE, "logger=tensorboard")


# A run


def test_a_run_from_the_start_to_the_report(folder, capsys):
    assert command.main([*TINY, "hydra.run.dir=a", "weights.normals=2", "seed=3"]) == 0
    out = capsys.readouterr().out
    assert "semantic" in out and "Architecture: a/architecture.json\nReport: a/report.html\n" in out
    settings = rundir.read(Path("a"))
    assert (settings["seed"], settings["weights"]["normals"], settings["tasks"]) == (
        3,
        2,
        ["semantic", "normals"],
    )
    assert not OmegaConf.missing_keys(OmegaConf.create(settings))
    metrics = rundir.read_metrics(Path("a"))
    assert metrics["supernet"]["val"].keys() == metrics["val"].keys()
    assert set(ms.load("a")(torch.zeros(1, 3, 32, 32))) == {"semantic", "normals"}
    assert "weights.normals=2" in Path("a/report.html").read_text()

    before = contents("a")
    times = {name: (Path("a") / name).stat().st_mtime_ns for name in before}
    assert command.main(["resume=a"]) == 0
    assert capsys.readouterr().out.endswith(out[out.index("Validation") :])
    assert (contents("a"), entries()) == (before, ["a"])
    assert times == {name: (Path("a") / name).stat().st_mtime_ns for name in before}

    Path("a/report.html").unlink()
    assert command.main(["resume=a"]) == 0
    assert contents("a").keys() == before.keys()
    assert all(contents("a", name) == {name: before[name]} for name in before if name != "report.html")


def test_checkpoints_of_a_finished_run_can_be_left_out():
    for name, kept in (("with", True), ("without", False)):
        assert command.main([*SINGLE, f"hydra.run.dir={name}", f"keep_checkpoints={kept}"]) == 0
        assert bool(list(Path(name).rglob("*.ckpt"))) == kept
    Path("without/report.html").unlink()
    assert command.main(["resume=without"]) == 0
    assert contents("with", "model.safetensors") == contents("without", "model.safetensors")


def test_killed_and_resumed_it_ends_with_the_same_bytes(folder):
    arguments = [*TINY, "epochs=3", "searcher.relaxation=concrete", "searcher.discretization=stochastic"]
    process = start(*arguments, "hydra.run.dir=killed")
    checkpoint = Path("killed/single_task/last.ckpt")
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Path("killed/architecture.json").exists(), "it was over before it could be killed"
    # And once more, in the middle of the search.
    process = start("resume=killed")
    while process.poll() is None and not Path("killed/search/last.ckpt").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Path("killed/architecture.json").exists(), "it was over before it could be killed"

    assert command.main([*arguments, "hydra.run.dir=whole"]) == 0
    assert command.main(["resume=killed"]) == 0
    for name in ("architecture.json", "model.safetensors", "config.yaml", "metrics.csv"):
        assert contents("killed", name) == contents("whole", name), name
    assert entries() == ["killed", "whole"]


def test_killed_before_its_first_checkpoint_it_starts_anew(monkeypatch):
    def die(*_, **__):
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ms, "search", die)
        command.main([*SINGLE, "hydra.run.dir=killed"])
    assert entries("killed/.hydra") and not Path("killed/single_task").exists()
    assert command.main(["resume=killed"]) == 0
    assert command.main([*SINGLE, "hydra.run.dir=whole"]) == 0
    names = ("architecture.json", "model.safetensors", "metrics.csv")
    assert contents("killed", *names) == contents("whole", *names)


def test_a_folder_keeps_to_its_settings(refused, monkeypatch):
    monkeypatch.setattr(command, "run", lambda *_: None)
    assert command.main([*SINGLE, "hydra.run.dir=a"]) == 0
    before = contents("a"), contents("a/.hydra")
    line = refused(*SINGLE, "hydra.run.dir=a", "searcher.optimizer.lr=1", "seed=1")
    assert "seed is 0 there and 1 here" in line and "resume=a" in line
    assert (contents("a"), contents("a/.hydra")) == before
    assert command.main([*SINGLE, "hydra.run.dir=a"]) == 0


def test_a_folder_takes_other_settings_after_those_that_were_refused(refused, monkeypatch):
    assert "No timm model is called 'resnet18s'" in refused(
        *SINGLE, "backbone.name=resnet18s", "hydra.run.dir=a"
    )
    assert not Path("a/config.yaml").exists()
    assert command.main([*SINGLE, "hydra.run.dir=a"]) == 0
    made = contents("a")

    def fail(_):
        raise ValueError("It is no longer there.")

    monkeypatch.setattr(command, "is_finished", lambda _: False)
    monkeypatch.setattr(command, "make", fail)
    refused("resume=a")
    assert contents("a") == made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resume=nowhere"], "nowhere/config.yaml is not there"),
        (["resume=nowhere", "seed=1"], "seed=1 cannot be set"),
        (["-m", "resume=nowhere"], "-m cannot be set"),
        (["resume=sweep"], "hydra.sweep.dir=sweep"),
    ],
)
def test_resume_refuses(refused, folder, arguments, words):
    (folder / "sweep").mkdir()
    (folder / "sweep" / "multirun.yaml").touch()
    assert words in refused(*arguments)
    assert entries(folder) == ["sweep"]


@pytest.mark.parametrize("stop", [SystemExit(1), KeyboardInterrupt()])
def test_ctrl_c_names_the_way_to_go_on(stop, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise stop

    monkeypatch.setattr(ms, "search", interrupted)
    assert command.main([*SINGLE, "hydra.run.dir=a"]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["interrupted: python -m mtlsearch.run resume=a goes on after the last finished epoch."]


def test_two_runs_do_not_share_a_folder(folder):
    with rundir.claim(folder):
        assert os.environ[rundir.FOLDER] == str(folder.resolve())
        with pytest.raises(ValueError, match="Another process is at work"), rundir.claim(folder):
            pass
    assert rundir.FOLDER not in os.environ


def test_half_precision_is_there():
    assert command.main([*SINGLE, "trainer.precision=bf16-mixed", "hydra.run.dir=a"]) == 0
    half = rundir.read_metrics(Path("a"))["val"]["loss"]
    assert command.main([*SINGLE, "hydra.run.dir=b"]) == 0
    whole = rundir.read_metrics(Path("b"))["val"]["loss"]
    assert half != whole and half == pytest.approx(whole, rel=0.2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_and_not_the_cpu(refused):
    assert "gpu" in refused(*SINGLE[:-1], "trainer=gpu")


def test_the_seed_sets_every_source_of_chance(composed):
    def made(seed):
        datamodule, searcher = command.make(composed(*TINY, f"seed={seed}"))
        return datamodule.seed, searcher.seed, torch.cat([p.flatten() for p in searcher.parameters()])

    (data, own, weights), (_, _, again), (_, _, others) = made(5), made(5), made(6)
    assert (data, own) == (5, 5)
    assert torch.equal(weights, again)
    assert not torch.equal(weights, others)


def test_weights_of_losses_reach_the_tasks(composed):
    _, searcher = command.make(composed(*TINY, "weights.semantic=0.5"))
    assert {task.name: task.weight for task in searcher.tasks} == {"semantic": 0.5, "normals": 1.0}


# Stages and loggers


def test_each_stage_has_its_epochs(folder):
    epochs = {"single_task": 2, "search": 3}
    found = {stage: stages.make_trainer(stage, epochs, folder).max_epochs for stage in ("search", "evaluate")}
    assert found == {"search": 3, "evaluate": 1}
    assert stages.make_trainer("search", 7, folder).max_epochs == 7
    with pytest.raises(ValueError, match=r"\+epochs.retrain=N"):
        stages.make_trainer("retrain", epochs, folder)
    with pytest.raises(ValueError, match=r"\+epochs.search=N"):
        stages.make_trainer("search", {**epochs, "search": None}, folder)


def test_slurm_requeues_by_the_command_and_not_by_lightning(folder, monkeypatch):
    for name, value in {
        "NTASKS": "1",
        "JOB_NAME": "job",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("shutil.which", lambda _: None)
    environment = stages.make_trainer("search", 1, folder, accelerator="cpu")._accelerator_connector
    assert environment.cluster_environment.auto_requeue is False


def test_tensorboard_gets_the_curves_of_every_stage(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command.main([*TINY, "logger=tensorboard", "hydra.run.dir=a"]) == 0
    events = EventAccumulator("a/tensorboard").Reload()
    names = set(events.Tags()["scalars"])
    assert {"single_task-train/weights/semantic", "search-train/arch/normals", "search-val/loss"} <= names
    (final,) = events.Scalars("val/semantic/miou")
    assert final.value == pytest.approx(rundir.read_metrics(Path("a"))["val"]["semantic"]["miou"])


def test_wandb_works_offline(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert command.main([*SINGLE, "logger=wandb", "logger.offline=true", "hydra.run.dir=a"]) == 0
    wandb.finish()
    assert list(Path("a/wandb").glob("offline-run-*/*.wandb"))


# Sweeps and processes


def test_a_sweep_goes_on_after_a_failure_and_ends_in_a_table(capfd):
    sweep = ["-m", "searcher.entropy_weight=-1,0", "hydra.sweep.dir=s", "objective=val/normals/mean_angle"]
    assert command.main([*TINY, *sweep]) == 2
    out, err = capfd.readouterr()
    assert "error: entropy_weight must be at least 0, not -1." in err
    table = out[out.rindex("Sweep") :]
    value = rundir.read_metrics(Path("s/1"))["val"]["normals"]["mean_angle"]
    assert "entropy_weight" in table and "normals mean angle ↓" in table
    assert [line.split()[:2] for line in table.splitlines() if line.split()[:1] in (["0"], ["1"])] == [
        ["0", "-1"],
        ["1", "0"],
    ]
    assert "not finished" in table and f"{value:.4g}"[:4] in table
    assert Path("s/probabilities.png").stat().st_size > 1000


def test_a_job_returns_the_objective(composed, monkeypatch):
    metrics = {"val": {"loss": 0.5, "semantic": {"miou": 0.25}}}
    assert rundir.value(metrics, "val/loss") == 0.5
    assert rundir.value(metrics, "val/semantic/miou") == 0.25
    assert rundir.value(metrics, "val/depth/miou") is None


def test_a_process_that_the_first_one_starts_works_in_its_folder(folder, monkeypatch):
    (folder / "a").mkdir()
    (folder / "a" / "config.yaml").write_text("seed: 4\n")
    calls = []
    monkeypatch.setattr(command, "run", lambda *arguments: calls.append(arguments))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(rundir.FOLDER, str(folder / "a"))
    assert command.main([*TINY, "-m", "seed=1,2"]) == 0
    assert calls == [({"seed": 4}, folder / "a")]
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "config.yaml"]


def test_processes_that_a_launcher_starts_need_a_named_folder(refused, monkeypatch, folder):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert "hydra.run.dir=DIR" in refused(*TINY)
    calls = []
    monkeypatch.setattr(command, "run", lambda *arguments: calls.append(arguments))
    assert command.main([*TINY, "hydra.run.dir=a"]) == 0
    assert len(calls) == 1 and not entries("a")


def test_two_processes_make_one_folder(folder):
    process = start(*SINGLE, "trainer=ddp", "trainer.devices=2", "dataset.batch_size=2")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    (report,) = folder.rglob("report.html")
    assert len(list(folder.rglob("config.yaml"))) == 1
    assert "ddp" in rundir.read(report.parent)["trainer"]["strategy"]


# What a stranger adds


def test_a_searcher_of_ones_own_needs_no_change_here(folder, composed):
    (folder / "mine.py").write_text(
        "import mtlsearch as ms\n\n"
        "class Mine(ms.SingleTask):\n"
        "    def __init__(self, tasks, backbone, *, spice, seed=0):\n"
        "        super().__init__(tasks, backbone, seed=seed)\n"
        "        self.spice = spice\n"
    )
    (folder / "conf" / "searcher").mkdir(parents=True)
    (folder / "conf" / "searcher" / "mine.yaml").write_text("_target_: mine.Mine\nspice: 1\n")
    arguments = [*SINGLE[:-2], "--config-dir", "conf", "searcher=mine", "searcher.spice=7", SINGLE[-1]]
    _, searcher = command.make(composed(*arguments))
    assert searcher.spice == 7
    assert command.main([*arguments, "hydra.run.dir=a"]) == 0
    assert command.main(["resume=a"]) == 0


def test_data_are_composed_for_those_who_look_at_them(folder):
    datamodule, dir = command.compose_dataset(["dataset.size=32", "hydra.run.dir=here", "tasks=[depth]"])
    assert ([task.name for task in datamodule.tasks], datamodule.size, dir) == (["depth"], 32, Path("here"))
    datamodule, _ = command.compose_dataset(["experiment=mtlnas/scenes_table3"])
    assert [task.name for task in datamodule.tasks] == ["object_soft", "scene_soft"]
    (folder / "conf" / "dataset").mkdir(parents=True)
    (folder / "conf" / "dataset" / "mine.yaml").write_text("_target_: mtlsearch.data.scenes.Scenes\nval: 9\n")
    datamodule, _ = command.compose_dataset(["--config-dir", "conf", "dataset=mine"])
    assert datamodule.counts["val"] == 9
    assert not list(folder.glob("outputs"))
