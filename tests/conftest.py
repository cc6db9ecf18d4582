"""What tests share: their order, and the demo's task."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from rich.console import Console

from recipes.demo.make import Settings, make_demo

# A shell that runs the tests in the background has them ignore the interrupts that some of them send to processes.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
    """Ray on this machine, for a module's replicas."""
    # "local": without an address it would join a Ray that somebody started on this machine.
    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()
