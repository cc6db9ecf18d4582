"""A plan as tables, and as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verl_v05.dry_run import Problem

if TYPE_CHECKING:
    from verl_v05.dry_run.plan import Place, Plan

STYLES = {"error": "bold red", "warning": "yellow"}
STEP = {
    "first_rollouts": "first rollouts",
    "max_rollouts": "rollouts at most",
    "updates": "optimizer updates",
    "critic_updates": "updates of the critic",
    "max_tokens": "tokens at most",
}


def print_problems(problems: Iterable[Problem], console: Console) -> None:
    for problem in problems:
        style = STYLES[problem.level]
        console.print(f"[{style}]{problem.level}:[/] {escape(problem.message)}", soft_wrap=True)


def print_plan(plan: Plan, config: DictConfig, console: Console) -> None:
    """Print what the launch of ``config`` runs, how much of it, and where."""
    models = [(role, model.name, model.parameters, model.where) for role, model in plan.models.items()]
    title = "Models, their memory by arithmetic and not validated on a GPU"
    console.print(_table(title, ("role", "model", "parameters", "where"), models))
    amounts = [(key, "no limit" if a.number is None else a.number, a.source) for key, a in plan.step.items()]
    step = [(STEP[key], *amount) for key, *amount in amounts if key in STEP]
    title = f"One step: {config.algorithm.adv_estimator}, trainer {config.trainer.v1.trainer_mode}"
    console.print(_table(title, ("what", "how many", "from"), step))
    console.print(_placement(plan, config))
    if config.trainer.device == "cpu":
        console.print("trainer.device=cpu: all of this is host memory, of all processes together; no estimate by GPU.")


def as_data(plan: Plan | None, problems: Sequence[Problem]) -> dict[str, Any]:
    """Everything; ``plan`` is None if the config is invalid."""
    data = {"valid": plan is not None, "problems": [asdict(problem) for problem in problems]}
    if plan is None:
        return data
    return data | asdict(plan) | {"step": {key: amount.number for key, amount in plan.step.items()}}


def _placement(plan: Plan, config: DictConfig) -> Table:
    trainer, size = config.trainer, 1 + max(place.replica_rank for place in plan.places)
    unit = "ranks" if trainer.device == "cpu" else "GPUs"
    title = f"{trainer.nnodes} x {trainer.n_gpus_per_node} = {len(plan.places)} {unit}"
    roles = {"actor": "actor", "reference policy": "reference", "critic": "critic"}
    sharded = " + ".join(name for role, name in roles.items() if role in plan.models)
    rows = []
    for (node, besides), group in groupby(plan.places, key=lambda p: (p.node, p.value_model)):
        places = list(group)
        bundles, ranks = _span([p.bundle for p in places]), _span([p.rank for p in places])
        besides = "value model" if besides else ""
        rows.append((node, bundles, f"{sharded} {ranks}", _replicas(places, size), besides))
    engine = config.actor_rollout_ref.rollout.name
    return _table(title, ("node", "bundles", "shards", f"{engine} replicas", "besides"), rows)


def _replicas(places: list[Place], size: int) -> str:
    first, last = places[0], places[-1]
    if size == 1:
        return _span([first.replica, last.replica])
    if first.replica == last.replica and first.replica_rank > 0:
        return f"{first.replica} (rank {_span([first.replica_rank, last.replica_rank])} of {size})"
    return f"{_span([first.replica, last.replica])} (tp {size})"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]}-{numbers[-1]}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | int | None]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("parameters", "how many") else "left")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in row))
    return table
