"""The examples of docs/extending.md, as their reader would have them: a file and its test each."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCK = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)
FILES = dict(BLOCK.findall(PAGE.read_text()))
TESTS = [name for name in FILES if name.startswith("test_")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_every_addition_is_one_file_and_its_test() -> None:
    assert len(TESTS) == 5 and len(FILES) == 10
    assert {f"test_{name}" for name in FILES if name not in TESTS} == set(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_the_example_works(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(name.removesuffix(".py"))
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    assert tests
    for test in tests:
        test(**{"monkeypatch": monkeypatch} if "monkeypatch" in inspect.signature(test).parameters else {})
