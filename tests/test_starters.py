"""The cluster starters start a real Ray and run a recipe on it; two small scripts stand in for Slurm."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STARTERS = ROOT / "recipes" / "launch"

# Writes where it ran, with which arguments and setting.
RECIPE = """#!/usr/bin/env bash
python - "$@" <<'PY'
import os, sys
import ray

ray.init(log_to_driver=False)
nodes, setting = sum(node["Alive"] for node in ray.nodes()), os.environ.get("SETTING")
open(os.environ["OUT"], "w").write(f"{nodes} {setting} {' '.join(sys.argv[1:])}")
PY
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do if [[ $1 == -w ]]; then shift; fi; shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$3"
"""
# In the place of ray: writes its arguments.
RAY = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$ARGUMENTS"
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a starter, with a Ray of its own."""
    ray_folder = tempfile.mkdtemp(prefix="ray")  # tmp_path is too long for Ray's sockets
    bin_folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{bin_folder}",
        "RAY_TMPDIR": ray_folder,
        "PORT": str(free_port()),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OUT": str(tmp_path / "out"),
        "SETTING": "node",
    }
    shutil.rmtree(ray_folder, ignore_errors=True)


def test_every_setting_reaches_the_environment_of_a_ray_job(tmp_path: Path) -> None:
    script(tmp_path / "ray", RAY)
    arguments = tmp_path / "arguments"
    settings = {"SETTING": "node", "PRIOR": "history", "FUSION": "empirical_bayes", "BASELINE": "leave_one_out"}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **settings, "WANDB_MODE": "disabled", "PATH": path, "ARGUMENTS": str(arguments)}
    env.pop("SEED", None)
    subprocess.run([STARTERS / "ray_job.sh", "recipes/paper/v05.sh", "trainer.test_freq=5"], env=env, check=True)
    submitted = arguments.read_text().split("\0")[:-1]
    assert submitted[submitted.index("--") + 1 :] == ["recipes/paper/v05.sh", "trainer.test_freq=5"]
    job = json.loads(submitted[submitted.index("--runtime-env-json") + 1])["env_vars"]
    assert job.items() >= {**settings, "WANDB_MODE": "disabled"}.items()
    assert not job.keys() & {"PATH", "ARGUMENTS", "SEED"}, "only settings, and only those that are set"


@pytest.mark.slow
def test_slurm_starts_ray_on_its_nodes_and_runs_the_recipe_there(tmp_path: Path, env: dict[str, str]) -> None:
    script(tmp_path / "srun", SRUN)
    script(tmp_path / "scontrol", SCONTROL)
    recipe = script(tmp_path / "recipe.sh", RECIPE)
    job = {**env, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node0", "RAY_HEAD_SECONDS": "5"}
    command = [STARTERS / "slurm.sh", recipe, "trainer.test_freq=5"]
    done = subprocess.run(command, env=job, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert Path(env["OUT"]).read_text() == "1 node trainer.test_freq=5"


@pytest.mark.slow
def test_a_ray_job_takes_the_recipe_its_arguments_and_its_settings_along(tmp_path: Path, env: dict[str, str]) -> None:
    dashboard = free_port()
    start = ["ray", "start", "--head", "--block", "--port", env["PORT"], "--num-cpus", "2", "--disable-usage-stats"]
    head = subprocess.Popen(
        [*start, "--dashboard-port", str(dashboard)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(dashboard)
        recipe = script(tmp_path / "recipe.sh", RECIPE)
        submit = {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        command = [STARTERS / "ray_job.sh", recipe, "trainer.test_freq=5"]
        done = subprocess.run(command, env=submit, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert Path(env["OUT"]).read_text() == "1 node trainer.test_freq=5"
    finally:
        head.terminate()
        head.wait(timeout=60)


def wait_for(port: int, seconds: float = 90) -> None:
    """Until the dashboard answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"nothing listens on port {port} after {seconds} s")
