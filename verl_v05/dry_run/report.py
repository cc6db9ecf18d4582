"""A plan as tables, and as data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verl_v05.dry_run.launch import Engine
from verl_v05.dry_run.memory import GIB, Memory, Phase
from verl_v05.dry_run.placement import Place
from verl_v05.dry_run.plan import Plan
from verl_v05.dry_run.problems import Problem

STYLES = {"fits": "green", "tight": "yellow", "exceeds": "bold red", "error": "bold red", "warning": "yellow"}


def print_problems(problems: Iterable[Problem], console: Console) -> None:
    for problem in problems:
        style = STYLES[problem.level]
        console.print(f"[{style}]{problem.level}:[/] {escape(problem.message)}", soft_wrap=True)


def print_plan(plan: Plan, console: Console) -> None:
    for table in (_models(plan), _step(plan), _placement(plan)):
        console.print(table)
    if plan.memory is not None:
        console.print(_memory(plan.memory))
        console.print(_kv(plan))
    elif plan.launch.device == "cpu":
        console.print("trainer.device=cpu: all of this is host memory, of all processes together; no estimate by GPU.")


def as_data(plan: Plan | None, problems: Sequence[Problem]) -> dict[str, Any]:
    """Everything, sizes in bytes; ``plan`` is None if the config is invalid."""
    data: dict[str, Any] = {"valid": plan is not None, "problems": [asdict(problem) for problem in problems]}
    if plan is None:
        return data
    data |= asdict(plan)
    if plan.memory is not None:
        for phase, entry in zip(plan.memory.phases, data["memory"]["phases"], strict=True):
            entry |= {"total": phase.total, "verdict": phase.verdict}
    return data


def write_data(data: dict[str, Any], path: Path) -> None:
    """Write json, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(partial, path)


def _models(plan: Plan) -> Table:
    launch, shapes = plan.launch, plan.shapes
    table = _table("Models", "role", "model", "parameters", "where")
    state = f"{launch.actor.shards} shards ({launch.actor.strategy}, {launch.actor.model_dtype})"
    table.add_row("actor", launch.actor.model, f"{shapes.policy.parameters:,}", state)
    if launch.reference:
        where = "shards in host memory, layer by layer on the GPU"
        table.add_row("reference policy", launch.actor.model, f"{shapes.policy.parameters:,}", where)
    if launch.critic is not None:
        state = f"{launch.critic.shards} shards ({launch.critic.strategy}, {launch.critic.model_dtype})"
        table.add_row("critic", launch.critic.model, f"{shapes.critic.parameters:,}", state)
    count, ranks = launch.gpus // launch.rollout.gpus, launch.rollout.gpus
    replicas = f"{count} replicas of {ranks} rank{'s' * (ranks > 1)} ({launch.rollout.dtype})"
    table.add_row(launch.rollout.name, launch.actor.model, f"{shapes.policy.parameters:,}", replicas)
    if launch.value_model is not None:
        name = launch.value_model.model or "the package's small one"
        where = f"{launch.value_model.per_node} a node, {launch.value_model.gpu_fraction:g} of a GPU booked"
        table.add_row(
            "value model", f"{name} on {shapes.value_model.encoder}", f"{shapes.value_model.parameters:,}", where
        )
    for role, nodes, gpus in launch.pools:
        table.add_row(role, "", "", f"{nodes} x {gpus} GPUs more")
    return table


def _step(plan: Plan) -> Table:
    launch, step = plan.launch, plan.step
    table = _table(f"One step: {launch.adv_estimator}, trainer {launch.trainer_mode}", "what", "how many", "from")
    group = f"{step.prompts} prompts x {launch.group}"
    table.add_row("first rollouts", f"{step.first_rollouts:,}", group)
    if step.max_rollouts is None:
        table.add_row("rollouts at most", "no limit", "groups of equal outcome are replaced by new prompts")
    elif step.max_rollouts != step.first_rollouts:
        cap = "" if launch.max_rollouts is None else f", capped at {launch.max_rollouts:,}"
        table.add_row("rollouts at most", f"{step.max_rollouts:,}", f"{step.prompts} prompts x {launch.group_max}{cap}")
    epochs = f"{step.prompts} prompts / mini-batches of {launch.mini_batch} x {launch.epochs} epochs"
    table.add_row("optimizer updates", f"{step.updates:,}", epochs)
    if launch.critic is not None:
        epochs = f"{step.prompts} prompts / mini-batches of {launch.critic_mini_batch} x {launch.critic_epochs} epochs"
        table.add_row("updates of the critic", f"{step.critic_updates:,}", epochs)
    if step.max_tokens is not None:
        lengths = f"rollouts x ({launch.prompt_tokens} + {launch.response_tokens})"
        table.add_row("tokens at most", f"{step.max_tokens:,}", lengths)
    return table


def _placement(plan: Plan) -> Table:
    launch = plan.launch
    unit = "ranks" if launch.device == "cpu" else "GPUs"
    title = f"{launch.nodes} x {launch.gpus_per_node} = {launch.gpus} {unit}"
    table = _table(title, "node", "bundles", "shards", f"{launch.rollout.name} replicas", "besides")
    sharded = " + ".join(
        ["actor", *(["reference"] if launch.reference else []), *(["critic"] if launch.critic else [])]
    )
    for (node, besides), group in groupby(plan.places, key=lambda p: (p.node, p.value_model)):
        places = list(group)
        table.add_row(
            str(node),
            _span([p.bundle for p in places]),
            f"{sharded} {_span([p.rank for p in places])}",
            _replicas(places, launch.rollout.gpus),
            "value model" if besides else "",
        )
    return table


def _replicas(places: list[Place], size: int) -> str:
    first, last = places[0], places[-1]
    if size == 1:
        return _span([first.replica, last.replica])
    if first.replica == last.replica and first.replica_rank > 0:
        return f"{first.replica} (rank {_span([first.replica_rank, last.replica_rank])} of {size})"
    return f"{_span([first.replica, last.replica])} (tp {size})"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]}-{numbers[-1]}"


def _memory(memory: Memory) -> Table:
    limit = memory.phases[0].limit / GIB
    table = _table(f"Memory of the fullest GPU of {limit:g} GiB (estimate)", "phase", "GiB", "of it", "verdict")
    for phase in memory.phases:
        style = STYLES[phase.verdict]
        table.add_row(phase.name, f"{phase.total / GIB:.1f}", _items(phase), f"[{style}]{phase.verdict}[/]")
    return table


def _items(phase: Phase) -> str:
    parts = [f"{item.name} {item.size / GIB:.1f}" for item in phase.items]
    return ", ".join([*parts, *([phase.failure] if phase.failure else [])])


def _kv(plan: Plan) -> str:
    kv, launch = plan.memory.kv, plan.launch
    share = "" if kv.rollouts is None else f", {kv.rollouts:g} rollouts a step at most"
    return (
        f"Each replica: KV cache of {kv.size / GIB:.1f} GiB a GPU, {kv.token_size:g} bytes a token: "
        f"{kv.tokens:,} tokens, {kv.sequences:,} sequences of {launch.sequence_tokens} tokens at a time "
        f"(max_num_seqs {kv.max_sequences}){share}.\n{_engine_line(launch.actor)}"
    )


def _engine_line(engine: Engine) -> str:
    kept = "layers' inputs kept, the rest computed anew" if engine.checkpointing else "all activations kept"
    return f"A micro-batch has up to {engine.tokens * engine.sequence_parallel:,} tokens; {kept}."


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("parameters", "how many", "GiB") else "left")
    return table
