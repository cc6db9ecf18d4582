"""The stages: what each runs on a GPU, what in its place without one, and what its results must be."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Facts = dict[str, object]
MAX_PROBS_DIFF = 0.05  # mean difference of sglang's probabilities from the trainer's; about 0.01 in bfloat16
# What a training stage tells, from verl's and our metrics.
PHASES = ("step", "gen", "reward", "old_log_prob", "ref", "values", "adv", "update_actor", "update_weights")
TOLD = {
    "tokens_per_s": "perf/throughput",
    "max_memory_allocated_gb": "actor/perf/max_memory_allocated_gb",
    "rollout_probs_diff_mean": "training/rollout_probs_diff_mean",
    "response_length": "response_length/mean",
    "prior_latency_s": "v05/prior/latency_s",
    "prior_accepted": "v05/prior/accepted",
}


RUNS = "check_gpu_runs"  # folder of the training stages' results; what an earlier check left there is deleted


class StageError(RuntimeError):
    """A stage ended without an error, but its results are wrong."""


@dataclass(frozen=True)
class Stage:
    """One check; ``without_gpu`` is its command where there is no GPU, None if it is left out there."""

    name: str
    what: str
    limit_s: int
    command: tuple[str, ...]
    without_gpu: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    results: Callable[[], Facts] = dict  # read after it has ended well on a GPU


@dataclass(frozen=True)
class Place:
    """Folders: of a checkout (whose recipes and tests are not installed with the package), results and demo task."""

    checkout: Path
    out: Path
    task: Path


def make_stages(place: Place) -> list[Stage]:
    """All stages in their order; each can run alone, but ``resume`` only after ``v05``."""
    out = place.out
    tests = (sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", str(place.checkout / "tests"))
    packages, value, policy = module("packages"), module("value_model"), out / "policy"
    speed = (sys.executable, "-m", "benchmarks.estimators.speed", "--rows", "8192", "--repeats", "5")
    estimator = (*speed, "--out", str(out / "estimator.md"), "--device")
    random_policy = module("policy", str(policy), "--tokenizer", str(place.task / "policy"))
    return [
        Stage("packages", "driver, compilers, packages, two kernels", 300, packages, packages),
        Stage("tests", "the tests marked gpu", 420, tests),
        Stage(
            "value",
            "the package's value model: embed, predict, sleep, and again",
            limit_s=180,
            command=value,
            without_gpu=(*value, "--prompts", "64"),
        ),
        Stage(
            "value_released",
            "the released value model's shape with random weights: the same",
            limit_s=300,
            command=(released := (*value, "--released", str(out / "value_model"))),
            without_gpu=(*released, "--layers", "1", "--prompts", "4", "--context", "16"),
        ),
        Stage(
            "estimator",
            "advantages of 8,192 rows beside verl's GRPO, decisions for 2,048 prompts",
            limit_s=180,
            command=(*estimator, "cuda"),
            without_gpu=(*estimator, "cpu"),
        ),
        Stage(
            "sglang",
            "a random Qwen3 of 0.6B: generate, sleep, wake with other weights, twice",
            limit_s=300,
            command=(engine := module("engine", str(out / "engine_policy"))),
            without_gpu=engine,
        ),
        _training(
            place,
            "v05",
            "V0.5, prior from the value model, 4 steps, a checkpoint",
            script="v05",
            limit_s=420,
            variables={"PRIOR": "v0", "STEPS": "4"},
            overrides=("trainer.save_freq=4", "trainer.test_freq=4"),
        ),
        _training(
            place,
            "resume",
            "the same from its checkpoint, steps 5 and 6",
            script="v05",
            limit_s=360,
            variables={"PRIOR": "v0", "STEPS": "6"},
            overrides=("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.resume_mode=auto"),
            checkpoints="v05",
            first=5,
        ),
        _training(
            place,
            "grpo",
            "GRPO in groups of 4, 3 steps",
            script="grpo",
            limit_s=360,
            variables={"GROUP": "4", "STEPS": "3"},
            overrides=("trainer.save_freq=-1", "trainer.test_freq=3"),
        ),
        _training(
            place,
            "big",
            "a random Qwen3 of 0.6B at 4,096 response tokens, 64 rollouts, 2 steps",
            script="v05_fixed_k",
            limit_s=600,
            # A random policy is always wrong, so its prior is of no matter here and a fixed k bounds the step.
            variables={"PRIOR": "history", "K": "4", "STEPS": "2", "ROLLOUTS": "64", "MODEL": str(policy)},
            overrides=(
                "data.max_prompt_length=64",
                "data.max_response_length=4096",
                "actor_rollout_ref.rollout.gpu_memory_utilization=0.5",
                "actor_rollout_ref.rollout.engine_kwargs.sglang.max_total_tokens=null",
                "trainer.save_freq=-1",
                "trainer.test_freq=-1",
            ),
            before=random_policy,
        ),
    ]


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Command that runs a module of this package."""
    return (sys.executable, "-m", f"verl_v05.check_gpu.{name}", *arguments)


def printed_facts(log: Path) -> Facts:
    """What a stage printed as ``FACT {json}``, later ones over earlier ones."""
    facts: Facts = {}
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("FACT {"):
            facts |= json.loads(line.removeprefix("FACT "))
    return facts


def tell(**facts: object) -> None:
    """Print facts for :func:`printed_facts`."""
    print("FACT", json.dumps(facts), flush=True)


def training_results(metrics: Path, first: int) -> Facts:
    """Seconds by phase and more, means over the steps but the first trained, which compiles and warms up.

    Raises:
        StageError: no step, another first one, a gradient that is not finite, a failed prior, or an inference engine
            that computes with other weights than the trainer.
    """
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    steps = {row["step"]: row["data"] for row in rows if "actor/grad_norm" in row["data"]}
    if not steps or min(steps) != first:
        raise StageError(f"the first step trained must be {first}: {metrics} has {sorted(steps) or 'none'}")
    for step, data in steps.items():
        if not math.isfinite(data["actor/grad_norm"]):
            raise StageError(f"step {step}: the gradient's norm is {data['actor/grad_norm']}")
        if failures := data.get("v05/prior/failures"):
            raise StageError(f"step {step}: {failures:g} calls of the prior failed")
        if (difference := data.get(TOLD["rollout_probs_diff_mean"], 0.0)) > MAX_PROBS_DIFF:
            raise StageError(f"step {step}: sglang's probabilities differ from the trainer's by {difference:.3f}")
    later = [data for step, data in steps.items() if step > first] or [*steps.values()]
    facts: Facts = {"steps": len(steps), "first_step_s": round(steps[first].get("timing_s/step", 0.0), 2)}
    phases = {phase: _mean(later, f"timing_s/{phase}") for phase in PHASES}
    facts["phases_s"] = {phase: round(s, 2) for phase, s in phases.items() if s is not None}
    found = {name: _mean(later, key) for name, key in TOLD.items()}
    return facts | {name: round(value, 4) for name, value in found.items() if value is not None}


def _training(
    place: Place,
    name: str,
    what: str,
    script: str,
    limit_s: int,
    variables: Mapping[str, str],
    overrides: Sequence[str],
    checkpoints: str = "",
    first: int = 1,
    before: tuple[str, ...] = (),
) -> Stage:
    """A script of recipes/paper on one GPU, which without one is composed and checked.

    Args:
        checkpoints: stage whose checkpoints it goes on from, by default its own.
        first: step that it must begin with.
        before: command that writes what it trains; with ``--config-only`` what a dry run reads of it.
    """
    run, kept = place.out / RUNS / name, place.out / RUNS / (checkpoints or name) / "checkpoints"
    recipe = str(place.checkout / "recipes" / "paper" / f"{script}.sh")
    train = shlex.join([recipe, f"trainer.default_local_dir={kept}", "trainer.val_before_train=false", *overrides])
    prepare, describe = (f"{shlex.join([*before, *more])} && " * bool(before) for more in ((), ("--config-only",)))
    return Stage(
        name=name,
        what=what,
        limit_s=limit_s,
        command=("bash", "-c", prepare + train),
        without_gpu=("bash", "-c", f"{describe}DRY_RUN=1 {train}"),
        environment={"SETTING": "gpu1", "TASK": str(place.task), "OUT": str(run), **variables},
        results=lambda: training_results(run / "metrics.jsonl", first),
    )


def _mean(rows: list[dict[str, float]], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else None
