"""What tests share: their order, Ray, and the demo's task."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from rich.console import Console
from xdist.scheduler import LoadFileScheduling

from recipes.demo.make import Settings, make_demo
from recipes.demo.warm_python import start_server

ROOT = Path(__file__).parents[1]
PRELOAD_WITH_RAY = "ray._private.workers.default_worker,value_model.checkpoint,verl_v05.rollout.manager"

# A shell that runs the tests in the background has them ignore the interrupts that some of them send to processes.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Whole processes of 5 to 10 GB: on one machine they run one after the other.
TRAININGS = {"tests/test_end_to_end.py", "tests/test_value_model_run.py"}


class Scheduling(LoadFileScheduling):
    """Of pytest-xdist: a worker runs all tests of a file, as these share what takes long to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "trainings" if file in TRAININGS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes last; what needs a GPU is skipped without one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's task with a short warm-up."""
    path = tmp_path_factory.mktemp("task") / "task"
    make_demo(path, Settings(clean_steps=200, mixed_steps=100), Console(stderr=True))
    return path


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[None]:
    """Ray on this machine, for a module's actors: its own one, whatever else of Ray is running here.

    Its processes are forks of a start-up server, as the demo's are: importing the value model would take each of them
    longer than most tests take. The server is the module's too, as ray keeps the raylet it was first imported for.
    """
    python = start_server("torch,sentence_transformers", PRELOAD_WITH_RAY)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"py_executable": python, "env_vars": {"PYTHONPATH": path}}  # classes of tests are unpickled by name
    options = {"include_dashboard": False, "object_store_memory": 200_000_000, "log_to_driver": False}
    ray.init("local", num_cpus=4, runtime_env=environment, **options)
    yield
    ray.shutdown()
    for child in psutil.Process().children():
        if child.status() != psutil.STATUS_ZOMBIE and str(Path(python).parent) in child.cmdline():
            child.terminate()
