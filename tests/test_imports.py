"""Which module may import which, what `import mtlsearch` loads, and both name spaces of Lightning."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mtlsearch

ROOT = Path(mtlsearch.__file__).parent

# Lower layers first; modules of one layer may import each other.
LAYERS = [
    {"files", "namespace", "task", "cost", "rundir", "optimizers", "checks", "budget"},
    {"backbones"},
    {"nn"},
    {"tasks"},
    {"architecture"},
    {"balancing"},
    {"supernet", "multitask"},
    {"data"},
    {"searcher", "callbacks"},
    {"searchers"},
    {"baselines"},
    {"search"},
    {"report", "testing"},
    {"run", "answers", "stages", "check_data", "predict", "compare"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
HEAVY = {"hydra", "omegaconf", "wandb", "albumentations", "timm"}


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(path):
    """Every module that a file imports, and whether it does so as soon as it is imported itself."""
    tree = ast.parse(path.read_text())
    late = set()
    for node in ast.walk(tree):
        is_check = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.FunctionDef) or is_check:
            late |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in late


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = part_of(path)
    assert own in LEVEL, f"{own} has no place in the layers"
    for name, _ in imports_of(path):
        package, *rest = name.split(".")
        if package == "mtlsearch":
            part = rest[0] if rest else "search"  # `import mtlsearch` is everything up to there
            assert LEVEL[part] <= LEVEL[own], f"{own} imports {name}"


def test_searchers_meet_data_through_bilevel_and_the_default_of_a_pre_search_alone():
    found = set()
    for path in FILES:
        if part_of(path) in (
            "searcher",
            "searchers",
            "baselines",
            "supernet",
            "architecture",
            "multitask",
            "nn",
        ):
            found |= {name for name, _ in imports_of(path) if name.startswith("mtlsearch.data")}
    assert found == {"mtlsearch.data.bilevel.Bilevel", "mtlsearch.data.shapes.Shapes"}


def test_data_knows_no_searcher():
    for path in (ROOT / "data").rglob("*.py"):
        for name, _ in imports_of(path):
            assert not name.startswith(("mtlsearch.search", "mtlsearch.supernet", "mtlsearch.baselines")), (
                path
            )


def test_nn_knows_torch_alone():
    for path in (ROOT / "nn").rglob("*.py"):
        for name, _ in imports_of(path):
            allowed = name.split(".")[0] in {"torch", *sys.stdlib_module_names}
            assert allowed or name.startswith(("mtlsearch.nn", "mtlsearch.backbones")), f"{path}: {name}"


def test_the_supernet_sees_no_trainer():
    for name in ("supernet", "architecture", "backbones", "nn", "searchers/fusion"):
        path = ROOT / name
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            assert not [n for n, _ in imports_of(file) if "lightning" in n or "namespace" in n], file


def test_only_the_command_line_imports_hydra():
    found = {
        part_of(path)
        for path in FILES
        for name, _ in imports_of(path)
        if name.split(".")[0] in ("hydra", "omegaconf")
    }
    assert found == {"run", "answers"}


@pytest.mark.parametrize("name", ["timm", "wandb", "albumentations", "torchjd"])
def test_heavy_packages_are_imported_inside_functions(name):
    early = [p for p in FILES for n, at_once in imports_of(p) if at_once and n.split(".")[0] == name]
    assert not early


def python(code):
    """Run code in a fresh interpreter; what it printed."""
    command = [sys.executable, "-c", f"import torch; torch.set_num_threads(1)\n{code}"]
    environment = {
        "PYTHONPATH": f"{ROOT.parent}:{Path(__file__).parent}",
        "PATH": "",
        "HOME": str(Path.home()),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_loads_nothing_heavy_and_follows_pytorch_lightning():
    loaded = python(
        "import sys, mtlsearch as ms\n"
        f"print(sorted({HEAVY} & set(sys.modules)), ms.namespace.pl.__name__)\n"
        "print(sorted(name for name in ms.__all__ if not hasattr(ms, name)))"
    )
    assert loaded.splitlines() == ["[] pytorch_lightning", "[]"]


def test_lightning_pytorch_is_followed_and_the_wrong_trainer_refused():
    out = python(
        "import tempfile, warnings; warnings.simplefilter('ignore')\n"
        "import lightning.pytorch as pl\n"
        "import mtlsearch as ms\n"
        "from tiny import TinyData, ToySearcher, make_trainer\n"
        "assert ms.namespace.pl is pl\n"
        "searcher = ToySearcher()\n"
        "trainer = make_trainer(1)\n"
        "assert type(trainer).__module__.startswith('lightning.pytorch')\n"
        "trainer.fit(searcher, TinyData(searcher.tasks))\n"
        "print('steps', trainer.global_step)\n"
        "import pytorch_lightning\n"
        "make = lambda stage: pytorch_lightning.Trainer(max_epochs=1, logger=False, accelerator='cpu')\n"
        "try:\n"
        "    ms.search(searcher, TinyData(searcher.tasks), trainer=make, dir=tempfile.mkdtemp())\n"
        "except TypeError as error:\n"
        "    print(error)\n"
    )
    assert "steps 4" in out
    assert "This Trainer is pytorch_lightning's, while mtlsearch follows lightning.pytorch" in out
    assert "import Trainer from lightning.pytorch" in out
