"""Check a machine for V0.5 on its GPU, in stages with a time limit and a log each.

    python -m verl_v05.check_gpu [--only STAGE ...] [--out DIR]

Writes DIR/check_gpu.json, DIR/check_gpu.md and DIR/logs/. Exit codes: 0 all that ran is well, 1 a stage failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from value_model.files import write_json, write_text
from verl_v05.check_gpu.page import line, page
from verl_v05.check_gpu.runner import Outcome, gpus, run_child
from verl_v05.check_gpu.stages import RUNS, Place, Stage, StageError, make_stages, printed_facts

CHECKOUT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None, stages: Sequence[Stage] | None = None) -> int:
    """Run the stages, by default all; returns the exit code."""
    args = _parser().parse_args(argv)
    out, cards = args.out.resolve(), gpus()
    machine = {"gpus": cards, "cores": os.cpu_count(), "host_gib": psutil.virtual_memory().total >> 30}
    task = (args.task or args.out / "task").resolve()
    stages = make_stages(Place(CHECKOUT, out, task)) if stages is None else stages
    known = [stage.name for stage in stages]
    if unknown := [name for name in args.only if name not in known]:
        print(f"--only {' '.join(unknown)} is not allowed: it must be among {', '.join(known)}", file=sys.stderr)
        return 2
    if not (CHECKOUT / "recipes").is_dir():
        print(f"{CHECKOUT} is no checkout of verl-v05: its recipes and tests are what is run here", file=sys.stderr)
        return 2
    results: dict[str, Any] = {"machine": machine, "stages": []}
    print(", ".join(cards) or "no GPU: stages that need one are only described or dry-run", flush=True)
    for stage in stages:
        if args.only and stage.name not in args.only:
            continue
        results["stages"].append(run_stage(stage, out, gpu=bool(cards)))
        print(line(results["stages"][-1]), flush=True)
        # After every stage: a machine may be taken away before the last one.
        write_json(out / "check_gpu.json", results, indent=2)
        write_text(out / "check_gpu.md", page(results))
    print(f"{out / 'check_gpu.md'}, logs beside it", flush=True)
    return int(any(stage["status"] in ("failed", "timeout") for stage in results["stages"]))


def run_stage(stage: Stage, out: Path, gpu: bool) -> dict[str, Any]:
    """Run one stage, or what stands for it without a GPU; its results as data."""
    command = stage.command if gpu else stage.without_gpu
    result: dict[str, Any] = {name: getattr(stage, name) for name in ("name", "what", "limit_s")}
    result |= {"command": _command(stage, command or stage.command), "detail": "", "facts": {}}
    result |= asdict(Outcome(None, 0.0))
    if command is None:
        return result | {"status": "left out", "detail": f"needs a GPU; would run: {stage.what}"}
    shutil.rmtree(out / RUNS / stage.name, ignore_errors=True)  # of an earlier check
    log = out / "logs" / f"{stage.name}.log"
    paths = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    outcome = run_child(command, {**stage.environment, "PYTHONPATH": paths}, stage.limit_s, log)
    result |= {**asdict(outcome), "facts": printed_facts(log), "log": str(log)}
    if outcome.code is None:
        return result | {"status": "timeout", "detail": f"killed at its limit of {stage.limit_s} s"}
    if outcome.code:
        return result | {"status": "failed", "detail": (outcome.first_errors or outcome.last_lines or [""])[0]}
    if not gpu:
        return result | {"status": "ok" if command == stage.command or "DRY_RUN=1" not in command[-1] else "dry run"}
    try:
        return result | {"status": "ok", "facts": result["facts"] | stage.results()}
    except StageError as error:
        return result | {"status": "failed", "detail": str(error)}


def _command(stage: Stage, command: Sequence[str]) -> str:
    """As it can be typed into a shell."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in stage.environment.items()]
    return " ".join([*variables, shlex.join(command)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m verl_v05.check_gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="run these only")
    parser.add_argument("--out", type=Path, default=Path("runs/check_gpu"), metavar="DIR", help="[%(default)s]")
    parser.add_argument("--task", type=Path, metavar="DIR", help="a demo's task, made if absent [OUT/task]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
