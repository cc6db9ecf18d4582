"""The documentation names what is there: files, keys, counts."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.statement import PAGE, row, rows, seconds_of, stated

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_can_be_read_in_a_minute_or_two() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 800


def keys(group: Any, prefix: str = "") -> list[str]:
    found = []
    for field in fields(group):
        value = getattr(group, field.name)
        found += keys(value, f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]
    return found


def test_every_key_of_the_config_is_documented() -> None:
    from verl_v05.settings import V05Settings

    table = (ROOT / "docs" / "configuration.md").read_text()
    named = set(re.findall(r"`([a-z_.]+)`", table))
    missing = [key for key in keys(V05Settings()) if key not in named and key.rpartition(".")[2] not in named]
    assert missing == []


def test_the_page_of_failures_has_a_row_for_each_statement_of_a_test() -> None:
    statements, page = stated(), rows(PAGE.read_text())
    assert len({s.fault for s in statements}) == len(statements)
    assert list(page.values()) == [row(s, seconds_of(page.get(s.fault, " |  |  | "))) for s in statements]


def test_the_readme_states_the_number_of_private_methods_overridden() -> None:
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from verl_v05.rollout.manager import V05AgentLoopManager
    from verl_v05.rollout.worker import V05AgentLoopWorker, _VerlWorker
    from verl_v05.trainer.base import SyncTrainer
    from verl_v05.trainer.recorded import RecordedTrainer
    from verl_v05.trainer.v05 import V05Trainer

    ours = {
        PPOTrainerSync: (SyncTrainer, RecordedTrainer, V05Trainer),
        _VerlWorker: (V05AgentLoopWorker,),
        AgentLoopManagerTQ: (V05AgentLoopManager,),
    }
    overridden = {
        name
        for theirs, classes in ours.items()
        for made in classes
        for name in vars(made)
        if name.startswith("_") and not name.startswith("__") and hasattr(theirs, name)
    }
    overridden -= {"_abc_impl"}
    assert f"{len(overridden)} private methods overridden" in (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert [name for name in overridden if f"`{name}`" not in page] == []
