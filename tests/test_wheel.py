"""The wheel: what it contains, and how it works beside verl in an environment that knows nothing of this checkout."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import verl_v05

ROOT = Path(__file__).parent.parent
# All packages of the checkout, so that one which must not be installed would show in the wheel.
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("verl_v05", "value_model", "recipes", "benchmarks", "tests")
INSTALLED = {"verl_v05", "value_model"}

CHECK = """
import verl
from verl.trainer.ppo.v1 import get_trainer_cls
import verl_v05
assert "site-packages" in verl_v05.__file__, verl_v05.__file__
from value_model import ValueModel
p = ValueModel.from_pretrained().predict(["1+2=", "3*4=", "5*4="], [1.0, -1.0, -1.0], ["6*4="])
assert 0 < p[0] < 1
print(get_trainer_cls("v05").__name__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built from a copy: pip builds in place, where an old build folder would add its files to the wheel."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*build, str(source)], check=True)
    (path,) = wheels.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a new environment with the locked packages and our wheel."""
    work = tmp_path_factory.mktemp("environment")
    python = work / "env" / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(work / "env")], check=True)
    requirements = ["-r", str(ROOT / "requirements.lock"), str(wheel)]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True)
    return python


def run(python: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([python, *args], cwd=cwd, env=env, capture_output=True, text=True)


def imported(source: bytes) -> set[str]:
    """Top-level names of the modules that a source imports absolutely."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_the_wheel_installs_our_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    metadata = f"verl_v05-{verl_v05.__version__}.dist-info"
    assert {name.parts[0] for name in names} == {*INSTALLED, metadata}
    assert PurePosixPath(metadata, "licenses", "LICENSE") in names


def test_nothing_in_the_wheel_imports_what_is_only_in_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".py")]
        used = {name: imported(archive.read(name)) for name in modules}
    assert modules
    assert {name: names for name, names in used.items() if names & {*PACKAGES} - INSTALLED} == {}


def test_every_module_config_and_weight_of_the_two_packages_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    files = {path.relative_to(ROOT) for name in INSTALLED for path in (ROOT / name).rglob("*") if path.is_file()}
    # Not the Markdown: most of it is for readers of the checkout.
    wanted = {str(path) for path in files if path.suffix in {".py", ".yaml", ".json", ".safetensors"}}
    assert wanted <= shipped


@pytest.mark.slow
def test_installing_the_wheel_is_all_it_takes(clean_python: Path, tmp_path: Path) -> None:
    found = run(clean_python, "-c", CHECK, cwd=tmp_path)
    assert found.stdout.split()[-1:] == ["V05Trainer"], found.stderr


@pytest.mark.slow
def test_stock_entry_point_finds_the_config_and_checks_it(clean_python: Path, tmp_path: Path) -> None:
    command = ["-m", "verl.trainer.main_ppo", "--config-path", "pkg://verl_v05.config", "--config-name", "v05"]
    composed = run(clean_python, *command, "--cfg", "job", cwd=tmp_path)
    assert "agent_loop_manager_class: verl_v05.rollout.manager.V05AgentLoopManager" in composed.stdout, composed.stderr
    refused = run(clean_python, *command, "algorithm.v05.k_max=3", cwd=tmp_path)
    assert refused.returncode == 1
    assert "algorithm.v05.k_max=3 is not allowed: it must be at least k_init (4)" in refused.stderr
