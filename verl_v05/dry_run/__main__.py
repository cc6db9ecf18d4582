"""Compose and check a launch, say what would run where and whether it fits; nothing is started.

    python -m verl_v05.dry_run --config-path pkg://verl_v05.config --config-name v05 [overrides of main_ppo]

Exit codes: 0 valid, 2 invalid config, 3 a phase clearly exceeds a GPU's memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from verl_v05.dry_run.compose import compose_launch
from verl_v05.dry_run.problems import Problem

if TYPE_CHECKING:
    from verl_v05.dry_run.plan import Plan

VALID, INVALID, TOO_LARGE = 0, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one dry run; see the module. Returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    console = Console()
    try:
        config = compose_launch(args.config_path, args.config_name, args.overrides)
        if args.cfg:
            print(OmegaConf.to_yaml(config))
        plan, problems = _examine(config, _given(args.model_config, config), args.gpu_memory_gib)
    except (HydraException, OmegaConfBaseException) as error:
        plan, problems = None, [Problem("error", _whole(error))]
    return _finish(plan, problems, args.json, console)


def _examine(config: DictConfig, given: dict[str, Path], gpu_memory_gib: float) -> tuple[Plan | None, list[Problem]]:
    # Imported here: torch and verl take seconds that a mistyped override need not wait for.
    from verl_v05.dry_run.checks import check_config, check_model
    from verl_v05.dry_run.launch import read_launch
    from verl_v05.dry_run.memory import GIB
    from verl_v05.dry_run.plan import make_plan, shapes_of
    from verl_v05.dry_run.shapes import ShapeError
    from verl_v05.dry_run.verl_checks import check_with_verl

    problems = check_config(config)
    if not _failed(problems):
        problems += check_with_verl(config)
    if _failed(problems):
        return None, problems
    launch = read_launch(config)
    try:
        shapes = shapes_of(launch, given)
    except ShapeError as error:
        return None, [*problems, Problem("error", str(error))]
    problems += check_model(launch, shapes.policy, config.actor_rollout_ref.rollout.max_model_len)
    plan = None if _failed(problems) else make_plan(launch, shapes, gpu_memory_gib * GIB)
    return plan, problems


def _finish(plan: Plan | None, problems: list[Problem], json: Path | None, console: Console) -> int:
    from verl_v05.dry_run.report import as_data, print_plan, print_problems, write_data

    if plan is not None:
        print_plan(plan, console)
    print_problems(problems, console)
    if json is not None:
        write_data(as_data(plan, problems), json)
    if plan is None:
        return INVALID
    phases = plan.memory.phases if plan.memory is not None else ()
    return TOO_LARGE if any(phase.verdict == "exceeds" for phase in phases) else VALID


def _failed(problems: list[Problem]) -> bool:
    return any(problem.level == "error" for problem in problems)


def _given(values: list[str], config: DictConfig) -> dict[str, Path]:
    """``MODEL=PATH``, or ``PATH`` for the policy."""
    pairs = [value.rpartition("=") for value in values]
    return {model or config.actor_rollout_ref.model.path: Path(path) for model, _, path in pairs}


def _whole(error: BaseException) -> str:
    """hydra puts the reason of some errors into their cause."""
    cause = error.__cause__
    return str(error) if cause is None or str(cause) in str(error) else f"{error}\n{cause}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verl_v05.dry_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help="hydra overrides, as main_ppo gets them")
    parser.add_argument("--config-path", "-cp", default="config", help="as for main_ppo")
    parser.add_argument("--config-name", "-cn", default="ppo_trainer", help="as for main_ppo")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the composed config too")
    parser.add_argument("--gpu-memory-gib", type=float, default=80.0, help="of one GPU (%(default)g)")
    parser.add_argument(
        "--model-config",
        action="append",
        default=[],
        metavar="[MODEL=]PATH",
        help="config.json, or its folder, of a model that is not on this machine; without MODEL that of the policy",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan as data")
    return parser


if __name__ == "__main__":
    sys.exit(main())
