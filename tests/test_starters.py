"""The cluster starters start a real Ray and run a recipe on it; small scripts stand in for Slurm and for verl."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.dashboard.runs import read_metrics

ROOT = Path(__file__).parents[1]
STARTERS = ROOT / "recipes" / "launch"
RECIPE = ROOT / "recipes" / "paper" / "grpo.sh"

# In the place of verl.trainer.main_ppo: verl starts Ray and its task runner, which runs on the node that is not the
# head, opens the loggers as verl's trainer does, and writes what it finds there.
TRAINER = """
import json, os, signal, sys
import psutil, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.trainer.main_ppo import run_ppo
from verl_v05.dry_run.compose import compose_launch


@ray.remote(num_cpus=0)
class Runner:
    def run(self, config):
        from verl.utils.tracking import Tracking

        trainer = config.trainer
        tracking = Tracking(trainer.project_name, trainer.experiment_name, ["file", "wandb"])
        tracking.log(data={"timing_s/step": 1.0}, step=1)
        tracking.finish()
        commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        found = {"environment": dict(os.environ), "nodes": sum(node["Alive"] for node in ray.nodes())}
        found["submitted"] = [c for c in commands if "job submit" in c and os.environ["WANDB_RUN_GROUP"] in c]
        with open(f"/proc/{os.getppid()}/status") as file:
            ignored = int(next(line for line in file if line.startswith("SigIgn")).split()[1], 16)
        found["raylet_ignores_quit"] = bool(ignored >> (signal.SIGQUIT - 1) & 1)
        found["quit_is_default"] = signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL
        found["config"] = {"train": list(config.data.train_files), "test_freq": trainer.test_freq}
        os.makedirs(trainer.default_local_dir)
        with open(os.path.join(trainer.default_local_dir, "found.json"), "w") as file:
            json.dump(found, file)


class OnAnotherNode:
    @staticmethod
    def remote():
        heads = [node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]]
        other = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in heads)
        return Runner.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other, soft=False)).remote()


_, path, _, name, *overrides = sys.argv[1:]
run_ppo(compose_launch(path, name, overrides), OnAnotherNode)
"""
PYTHON = """#!/usr/bin/env bash
if [[ ${3:-} == verl.trainer.main_ppo ]]; then exec "$REAL_PYTHON" "$TRAINER" "${@:4}"; fi
exec "$REAL_PYTHON" "$@"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do if [[ $1 == -w ]]; then shift; fi; shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
printf '%s\\n' ${3//,/ }
"""
# In the place of ray: writes its arguments, and the file that it is given as runtime environment.
RAY = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$ARGUMENTS"
while (( $# )); do if [[ $1 == --runtime-env ]]; then cat "$2" > "$ARGUMENTS.json"; fi; shift; done
"""
# In the place of plain.sh: writes how it was called; a run ends after the others have started.
PLAIN = """#!/usr/bin/env bash
if [[ $1 == run ]]; then until [[ -e $CALLS/head && -e $CALLS/worker ]]; do sleep 0.05; done; fi
echo "$* ${RAY_ADDRESS:-}" > "$CALLS/$1"
if [[ $1 == head ]]; then exec sleep 60; fi
"""
# What a shell that starts a recipe may have and the nodes' Ray has not. It holds what an override has to quote.
LIBRARIES = {"WANDB_ENTITY": "team", "WANDB_RUN_GROUP": "it's, {a}=[b]", "HF_HUB_OFFLINE": "1", "HF_HOME": "/models/hf"}


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


def run(command: Sequence[object], env: dict[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    arguments = [str(argument) for argument in command]
    return subprocess.run(arguments, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)


# A job of Ray


@pytest.fixture
def submission(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """Environment in which ray_job.sh finds a stand-in for ray, and the file of its arguments."""
    script(tmp_path / "ray", RAY)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    arguments = tmp_path / "arguments"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_"))}
    return {**env, "PATH": path, "ARGUMENTS": str(arguments)}, arguments


def test_every_setting_reaches_the_environment_of_a_ray_job(submission: tuple[dict[str, str], Path]) -> None:
    env, arguments = submission
    settings = {"SETTING": "node", "PRIOR": "history", "FUSION": "empirical_bayes", "BASELINE": "leave_one_out"}
    libraries = {**LIBRARIES, "WANDB_BASE_URL": "https://wandb.here", "HF_ENDPOINT": "https://hub.here"}
    env = {name: value for name, value in env.items() if name != "SEED"} | settings | libraries
    subprocess.run([STARTERS / "ray_job.sh", "recipes/paper/v05.sh", "trainer.test_freq=5"], env=env, check=True)
    submitted = arguments.read_text().split("\0")[:-1]
    assert submitted[submitted.index("--") + 1 :] == ["recipes/paper/v05.sh", "trainer.test_freq=5"]
    job = json.loads(arguments.with_suffix(".json").read_text())
    assert job["env_vars"].items() >= {**settings, **libraries}.items()
    assert not job["env_vars"].keys() & {"PATH", "ARGUMENTS", "SEED"}, "only settings, and only those that are set"
    # Rooted: "data" alone would leave recipes/data behind too.
    assert set(job["excludes"]) == {"/.git", "/.venv", "/runs", "/data"}


def test_secrets_reach_a_job_and_no_command_line(submission: tuple[dict[str, str], Path]) -> None:
    env, arguments = submission
    tokens = {"WANDB_API_KEY": secrets.token_hex(8), "HF_TOKEN": secrets.token_hex(8)}
    subprocess.run([STARTERS / "ray_job.sh", "recipes/paper/v05.sh"], env={**env, **tokens}, check=True)
    assert not any(token in arguments.read_text() for token in tokens.values())
    assert json.loads(arguments.with_suffix(".json").read_text())["env_vars"].items() >= tokens.items()


def test_relative_paths_of_a_job_start_where_it_was_submitted_or_at_a_folder_of_its_nodes(
    submission: tuple[dict[str, str], Path],
) -> None:
    env, arguments = submission
    for given, expected in ({}, str(ROOT)), ({"ROOT_DIR": "/shared/me"}, "/shared/me"):
        subprocess.run([STARTERS / "ray_job.sh", RECIPE], env={**env, **given}, cwd=ROOT, check=True)
        assert json.loads(arguments.with_suffix(".json").read_text())["env_vars"]["ROOT_DIR"] == expected


# Waiting for the head


def test_a_head_that_does_not_answer_is_named_in_time() -> None:
    address = f"127.0.0.1:{free_port()}"
    for command in ["worker", address], ["run", "1", RECIPE]:
        done = run([STARTERS / "plain.sh", *command], {**os.environ, "RAY_ADDRESS": address, "WAIT": "1"})
        assert done.returncode == 1 and f"no Ray answers at {address} within 1 s" in done.stderr


def test_a_worker_waits_for_its_head(tmp_path: Path) -> None:
    arguments, port = tmp_path / "arguments", free_port()
    script(tmp_path / "ray", RAY)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "ARGUMENTS": str(arguments)}
    worker = subprocess.Popen([STARTERS / "plain.sh", "worker", f"127.0.0.1:{port}", "--block"], env=env)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1.5)
    with socket.create_server(("127.0.0.1", port)):
        assert worker.wait(30) == 0
    assert arguments.read_text().split("\0")[:3] == ["start", "--address", f"127.0.0.1:{port}"]


# Slurm


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment of a job of two nodes, whose starters only write how they were called."""
    script(tmp_path / "srun", SRUN)
    script(tmp_path / "scontrol", SCONTROL)
    script(tmp_path / "recipes/launch/plain.sh", PLAIN)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node0,node1", "CALLS": str(tmp_path)}
    return {**os.environ, "PATH": path, "PORT": "6400", **job}


@pytest.mark.parametrize(
    ("by_name", "interfaces", "head", "address"),
    [
        ("10.1.2.3", "10.1.2.3 172.17.0.1", "10.1.2.3", "10.1.2.3:6400"),
        ("127.0.1.1", "10.1.2.3 172.17.0.1", "10.1.2.3", "10.1.2.3:6400"),
        ("fe80::1 fd00::7 10.1.2.3", "", "10.1.2.3", "10.1.2.3:6400"),
        ("::1 127.0.0.1", "169.254.3.4 fe80::1 2001:db8::7", "2001:db8::7", "[2001:db8::7]:6400"),
    ],
)
def test_the_head_has_an_address_that_other_nodes_reach(
    by_name: str, interfaces: str, head: str, address: str, slurm: dict[str, str], tmp_path: Path
) -> None:
    script(
        tmp_path / "hostname",
        f'#!/usr/bin/env bash\n[[ $1 == --ip-address ]] && echo "{by_name}" || echo "{interfaces}"',
    )
    assert run([STARTERS / "slurm.sh", "recipe.sh", "a=b"], slurm).returncode == 0
    assert (tmp_path / "head").read_text().split() == ["head", f"--node-ip-address={head}", "--block"]
    assert (tmp_path / "run").read_text().split() == ["run", "2", "recipe.sh", "a=b", address]
    assert (tmp_path / "worker").read_text().split() == ["worker", address, "--block"]


@pytest.mark.parametrize("chosen", ["", "127.0.0.1", "fe80::1"])
def test_an_address_that_other_nodes_do_not_reach_is_refused(
    chosen: str, slurm: dict[str, str], tmp_path: Path
) -> None:
    script(tmp_path / "hostname", "#!/usr/bin/env bash\necho 127.0.1.1 fe80::1")
    done = run([STARTERS / "slurm.sh", "recipe.sh"], {**slurm, "HEAD_ADDRESS": chosen})
    assert done.returncode == 1 and not (tmp_path / "head").exists()
    assert "no address of node0 can be reached from other nodes" in done.stderr and "HEAD_ADDRESS" in done.stderr


def test_a_head_that_cannot_start_ends_the_job_at_once(slurm: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path / "hostname", "#!/usr/bin/env bash\necho 10.1.2.3")
    script(tmp_path / "recipes/launch/plain.sh", "#!/usr/bin/env bash\n[[ $1 != head ]] && exec sleep 60\nexit 3")
    done = run([STARTERS / "slurm.sh", "recipe.sh"], slurm)
    assert done.returncode == 1 and "Ray on node0 has ended with code 3 before the recipe" in done.stderr


# A Ray of two nodes


@pytest.fixture(scope="module")
def ray_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of the starters, with a Ray of its own and a stand-in for verl's trainer."""
    folder = tmp_path_factory.mktemp("bin")
    script(folder / "python", PYTHON)
    (folder / "trainer.py").write_text(TRAINER)
    script(folder / "srun", SRUN)
    script(folder / "scontrol", SCONTROL)
    ray_folder = tempfile.mkdtemp(prefix="ray")  # tmp_path is too long for Ray's sockets
    outside = ("WANDB_", "HF_", "RAY_", "VERL_")
    yield {
        **{name: value for name, value in os.environ.items() if not name.startswith(outside)},
        "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "REAL_PYTHON": sys.executable,
        "TRAINER": str(folder / "trainer.py"),
        "RAY_TMPDIR": ray_folder,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "SETTING": "node",
    }
    shutil.rmtree(ray_folder, ignore_errors=True)


@contextmanager
def started(commands: Sequence[Sequence[object]], env: dict[str, str]) -> Iterator[None]:
    """Processes that end with the context, all at once: a worker alone would look for its head for a while."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([str(word) for word in command], env=env, **quiet) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


@pytest.fixture(scope="module")
def cluster(ray_env: dict[str, str]) -> Iterator[dict[str, str]]:
    """Two nodes by plain.sh, the second started first; the environment of a shell on the head."""
    port, dashboard = free_port(), free_port()
    env = {**ray_env, "PORT": str(port)}
    options = ["--block", "--num-cpus", 4, "--object-store-memory", 100_000_000, "--dashboard-agent-listen-port"]
    head = [STARTERS / "plain.sh", "head", "--dashboard-port", dashboard, *options, free_port()]
    worker = [STARTERS / "plain.sh", "worker", f"127.0.0.1:{port}", *options, free_port()]
    with started([worker, head], env):
        yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}


def check_run(out: Path, train: Path, in_background: bool = False) -> dict[str, str]:
    """A run left its files where the dashboard looks for them; what its trainer's process had as environment.

    A script has what it starts in the background ignore SIGQUIT, by which sglang's schedulers end their server.
    """
    found = json.loads((out / "checkpoints" / "found.json").read_text())
    environment = found["environment"]
    assert found["nodes"] == 2 and found["config"] == {"train": [str(train)], "test_freq": 5}
    assert found["quit_is_default"] and (found["raylet_ignores_quit"] or not in_background)
    assert found["submitted"] == [], "the variables of a job are in its command line"
    assert read_metrics(out / "metrics.jsonl").index.tolist() == [1]
    assert len(list((out / "wandb").glob("offline-run-*"))) == 1
    assert environment.items() >= {**LIBRARIES, "WANDB_MODE": "offline", "WANDB_DIR": str(out)}.items()
    return environment


@pytest.mark.slow
def test_a_run_on_two_nodes_logs_where_the_dashboard_looks(cluster: dict[str, str], tmp_path: Path) -> None:
    settings = {**LIBRARIES, "OUT": "out", "TRAIN": "train.parquet"}
    command = [STARTERS / "plain.sh", "run", 2, RECIPE, "trainer.test_freq=5"]
    done = run(command, {**cluster, **settings}, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(tmp_path / "out", tmp_path / "train.parquet")

    done = run(command, {**cluster, **settings, "WANDB_API_KEY": "x" * 40}, cwd=tmp_path)
    assert done.returncode == 1 and "export it before plain.sh head and worker" in done.stderr


@pytest.mark.slow
def test_a_ray_job_takes_the_recipe_its_arguments_and_its_settings_along(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    wait_for(cluster["RAY_API_SERVER_ADDRESS"])
    key = secrets.token_hex(20)
    settings = {**LIBRARIES, "OUT": "out", "TRAIN": "train.parquet", "WANDB_MODE": "offline", "WANDB_API_KEY": key}
    done = run([STARTERS / "ray_job.sh", RECIPE, "trainer.test_freq=5"], {**cluster, **settings}, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_run(tmp_path / "out", tmp_path / "train.parquet")["WANDB_API_KEY"] == key


@pytest.mark.slow
def test_slurm_starts_ray_on_its_nodes_and_runs_the_recipe_there(ray_env: dict[str, str], tmp_path: Path) -> None:
    settings = {**LIBRARIES, "OUT": str(tmp_path / "out"), "TRAIN": str(tmp_path / "train.parquet")}
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node0,node1", "PORT": str(free_port())}
    done = run([STARTERS / "slurm.sh", RECIPE, "trainer.test_freq=5"], {**ray_env, **settings, **job})
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(tmp_path / "out", tmp_path / "train.parquet", in_background=True)


def wait_for(url: str, seconds: float = 120) -> None:
    """Until the dashboard answers."""
    host, port = url.rsplit("/", 1)[1].split(":")
    stop = threading.Event()
    for _ in range(int(seconds / 0.5)):
        with socket.socket() as sock:
            if sock.connect_ex((host, int(port))) == 0:
                return
        stop.wait(0.5)
    raise TimeoutError(f"nothing listens at {url} after {seconds} s")
