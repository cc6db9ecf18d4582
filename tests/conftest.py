"""What tests share: their order, Ray, and the demo's task."""

import os
import signal
from collections.abc import Generator, Iterator
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
from tests.faults.statement import PAGE, Limit, Statement, stated, updated

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
        if item.get_closest_marker("faults") and not item.get_closest_marker("stated"):
            raise pytest.UsageError(f"{item.nodeid} does not state by @fault(...) what it proves")
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


# Statements about faults, and what was measured of them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write seconds of tests of faults to docs/failures.md")


@pytest.fixture
def limit(request: pytest.FixtureRequest) -> Iterator[Limit]:
    """The context of a stated test from its fault to its outcome."""
    statement: Statement = request.node.get_closest_marker("stated").args[0]
    made = Limit(statement.within_s)
    yield made
    request.node.user_properties.append((statement.fault, made.seconds))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recording(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A stated test that does not say where its fault is put in is measured as a whole."""
    marker = item.get_closest_marker("stated")
    if marker is None or "limit" in getattr(item, "fixturenames", ()):
        return (yield)
    statement: Statement = marker.args[0]
    whole = Limit(statement.within_s)
    try:
        with whole:
            return (yield)
    finally:
        item.user_properties.append((statement.fault, whole.seconds))


class Recording:
    """Of the seconds of stated tests that passed, of a test's cases the longest.

    Where tests run in several processes, in the one that starts them.
    """

    def __init__(self, config: pytest.Config):
        self._passed: set[str] = set()
        self._failed: set[str] = set()
        self._measured: dict[str, float] = {}
        self._writes = config.getoption("record") and not hasattr(config, "workerinput")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)
        if report.when == "teardown":
            for fault, seconds in report.user_properties:
                if report.passed and report.nodeid in self._passed:
                    self._measured[fault] = max(seconds, self._measured.get(fault, 0.0))
                else:
                    self._failed.add(fault)

    def pytest_sessionfinish(self) -> None:
        measured = {fault: s for fault, s in self._measured.items() if fault not in self._failed}
        if self._writes and measured:
            PAGE.write_text(updated(PAGE.read_text(), stated(), measured))


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
