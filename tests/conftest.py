"""What tests share: their order, and the demo's task."""

from pathlib import Path

import pytest
from rich.console import Console

from recipes.demo.make import Settings, make_demo


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's task with a short warm-up."""
    path = tmp_path_factory.mktemp("task") / "task"
    make_demo(path, Settings(clean_steps=200, mixed_steps=100), Console(stderr=True))
    return path
