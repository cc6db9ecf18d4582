"""The wheel, installed beside verl in an environment that knows nothing of this checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow

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
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a new environment with the locked packages and our wheel."""
    work = tmp_path_factory.mktemp("wheel")
    wheels, python = work / "wheels", work / "env" / "bin" / "python"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*build, str(ROOT)], check=True)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(work / "env")], check=True)
    requirements = ["-r", str(ROOT / "requirements.lock"), *map(str, wheels.glob("*.whl"))]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True)
    return python


def run(python: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([python, *args], cwd=cwd, env=env, capture_output=True, text=True)


def test_installing_the_wheel_is_all_it_takes(clean_python: Path, tmp_path: Path) -> None:
    found = run(clean_python, "-c", CHECK, cwd=tmp_path)
    assert found.stdout.split()[-1:] == ["V05Trainer"], found.stderr


def test_stock_entry_point_finds_the_config_and_checks_it(clean_python: Path, tmp_path: Path) -> None:
    command = ["-m", "verl.trainer.main_ppo", "--config-path", "pkg://verl_v05.config", "--config-name", "v05"]
    composed = run(clean_python, *command, "--cfg", "job", cwd=tmp_path)
    assert "agent_loop_manager_class: verl_v05.rollout.manager.V05AgentLoopManager" in composed.stdout, composed.stderr
    refused = run(clean_python, *command, "algorithm.v05.k_max=3", cwd=tmp_path)
    assert refused.returncode == 1
    assert "algorithm.v05.k_max=3 is not allowed: it must be at least k_init (4)" in refused.stderr
