"""Compose and check a launch, say what would run where; nothing is started.

    python -m verl_v05.dry_run --config-path pkg://verl_v05.config --config-name v05 [overrides of main_ppo]

Exit codes: 0 valid, 2 invalid config.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from value_model.files import write_json
from verl_v05.dry_run import Problem, failed
from verl_v05.dry_run.compose import compose_launch
from verl_v05.dry_run.tables import as_data, print_plan, print_problems

if TYPE_CHECKING:
    from verl_v05.dry_run.plan import Plan

VALID, INVALID = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one dry run; see the module. Returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    try:
        config = compose_launch(args.config_path, args.config_name, args.overrides)
        if args.cfg:
            print(OmegaConf.to_yaml(config))
        # verl prints what a dry run has no use for, such as that it disabled a critic that nobody asked for.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            plan, problems = _examine(config, _given(args.model_config, config))
    except (HydraException, OmegaConfBaseException) as error:
        plan, problems = None, [Problem("error", _whole(error))]
    console = Console()
    if plan is not None:
        print_plan(plan, config, console)
    print_problems(problems, console)
    if args.json is not None:
        write_json(args.json, as_data(plan, problems), indent=2)
    return INVALID if plan is None else VALID


def _examine(config: DictConfig, given: dict[str, Path]) -> tuple[Plan | None, list[Problem]]:
    # Imported here: verl's trainers take seconds that a mistyped override need not wait for.
    from verl_v05.dry_run.checks import check_config, check_model
    from verl_v05.dry_run.from_verl import read_workers
    from verl_v05.dry_run.model_sizes import ShapeError, find_config, measure
    from verl_v05.dry_run.plan import make_plan

    problems = check_config(config)
    if failed(problems):
        return None, problems
    workers, critic = read_workers(config), None
    try:
        policy = measure(find_config("actor_rollout_ref.model.path", config.actor_rollout_ref.model.path, given))
        if workers.critic is not None:
            critic = measure(find_config("critic.model.path", config.critic.model.path, given), critic=True)
    except ShapeError as error:
        return None, [*problems, Problem("error", str(error))]
    problems += check_model(config, workers, policy)
    plan = None if failed(problems) else make_plan(config, workers, policy, critic)
    return plan, problems


def _given(values: list[str], config: DictConfig) -> dict[str, Path]:
    """``MODEL=PATH``, or ``PATH`` for the policy."""
    pairs = [value.rpartition("=") for value in values]
    return {model or config.actor_rollout_ref.model.path: Path(path) for model, _, path in pairs}


def _whole(error: BaseException) -> str:
    """hydra puts the reason of some errors into their cause."""
    cause = error.__cause__
    return str(error) if cause is None or str(cause) in str(error) else f"{error}\n{cause}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m verl_v05.dry_run", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", help="hydra overrides, as main_ppo gets them")
    parser.add_argument("--config-path", "-cp", default="config", help="as for main_ppo")
    parser.add_argument("--config-name", "-cn", default="ppo_trainer", help="as for main_ppo")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the composed config too")
    given = "config.json, or its folder, of a model that is not on this machine; without MODEL that of the policy"
    parser.add_argument("--model-config", action="append", default=[], metavar="[MODEL=]PATH", help=given)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan as data")
    return parser


if __name__ == "__main__":
    sys.exit(main())
