"""The check of a machine's GPU: its limits, reports and results, without one."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from verl_v05.check_gpu.__main__ import main
from verl_v05.check_gpu.page import NO_GPU, page
from verl_v05.check_gpu.runner import MARK, gpu_memory, gpus, run_child
from verl_v05.check_gpu.stages import Place, Stage, StageError, make_stages, training_results

# In the place of a driver: one card, one process on it. The pid is replaced by the test.
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  *compute-apps*) echo "PID, 1500" ;;
  *memory.used) echo 2000 ;;
  *) echo "NVIDIA H100 80GB HBM3, 81559, 580.65.06" ;;
esac
"""


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have a GPU."""
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(NVIDIA_SMI.replace("PID", str(os.getpid())))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_v05.check_gpu.runner.shutil.which", lambda name: None)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def stage(name: str, code: str, limit_s: int = 60, **changes: object) -> Stage:
    values = {"name": name, "what": f"checks {name}", "limit_s": limit_s, "command": python(code), **changes}
    return Stage(**values)  # type: ignore[arg-type]


def run(stages: list[Stage], out: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    code = main(["--out", str(out), *arguments], stages)
    results = json.loads((out / "check_gpu.json").read_text())
    return code, {result["name"]: result for result in results["stages"]}


def test_a_stage_that_hangs_is_killed_with_its_children_at_its_limit(
    card: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The child leaves the stage's session, as Ray's processes do.
    code = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    started = time.monotonic()
    exit_code, results = run([stage("hangs", code, limit_s=2), stage("next", "print('here')")], tmp_path / "out")
    assert exit_code == 1 and time.monotonic() - started < 30
    assert results["hangs"]["status"] == "timeout" and results["hangs"]["detail"] == "killed at its limit of 2 s"
    assert results["next"]["status"] == "ok"
    assert not psutil.pid_exists(int(Path(results["hangs"]["log"]).read_text()))
    assert re.search(r"hangs +timeout +\d+ s  killed at its limit of 2 s\n", capsys.readouterr().out)


def test_what_a_stage_leaves_behind_is_killed_when_it_ends_well(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    outcome = run_child(python(code), {}, 60, tmp_path / "log")
    assert outcome.code == 0 and outcome.seconds < 30
    assert not psutil.pid_exists(int((tmp_path / "log").read_text()))
    assert MARK not in os.environ


def test_a_failed_stage_tells_its_first_errors_and_last_lines(card: None, tmp_path: Path) -> None:
    code = "for i in range(40): print('line', i)\nprint('ValueError: the first'); 1 / 0"
    exit_code, results = run([stage("fails", code)], tmp_path / "out")
    failed = results["fails"]
    assert exit_code == 1 and failed["status"] == "failed" and failed["code"] == 1
    assert failed["first_errors"] == ["ValueError: the first", "ZeroDivisionError: division by zero"]
    assert failed["last_lines"][-1] == "ZeroDivisionError: division by zero" and "line 39" in failed["last_lines"]
    written = (tmp_path / "out" / "check_gpu.md").read_text()
    assert "## fails: failed" in written and "ValueError: the first" in written


def test_wrong_results_fail_a_stage_that_ended_well(card: None, tmp_path: Path) -> None:
    def wrong() -> dict[str, object]:
        raise StageError("step 2: the gradient's norm is nan")

    exit_code, results = run([stage("trains", "pass", results=wrong)], tmp_path / "out")
    assert exit_code == 1 and results["trains"]["detail"] == "step 2: the gradient's norm is nan"


def test_page_and_data_have_facts_phases_and_memory_by_process(card: None, tmp_path: Path) -> None:
    assert gpus() == ["NVIDIA H100 80GB HBM3, 81559, 580.65.06"]
    assert gpu_memory() == {Path(psutil.Process().cmdline()[0]).name[:40]: 1500, "all": 2000}
    code = 'print(\'FACT {"attention": "sdpa"}\'); import time; time.sleep(0.5)'
    found = {"phases_s": {"gen": 1.5, "step": 4.25}, "tokens_per_s": 812.0}
    exit_code, results = run([stage("trains", code, results=lambda: dict(found))], tmp_path / "out")
    assert exit_code == 0
    assert results["trains"]["facts"] == {"attention": "sdpa", **found}
    assert results["trains"]["memory_mib"]["all"] == 2000 and results["trains"]["command"].startswith(sys.executable)
    written = (tmp_path / "out" / "check_gpu.md").read_text()
    for part in (
        "NVIDIA H100",
        "| trains | checks trains | ok |",
        "| gen | 1.5 |",
        "| all | 2.0 |",
        "- tokens_per_s: 812",
    ):
        assert part in written
    assert NO_GPU not in written


def test_without_a_gpu_it_runs_what_needs_none_and_tells_the_rest(no_card: None, tmp_path: Path) -> None:
    stages = [
        stage("needs", "raise SystemExit('run without a GPU')"),
        stage("instead", "raise SystemExit('run without a GPU')", without_gpu=("bash", "-c", "true DRY_RUN=1")),
        stage("both", "pass", without_gpu=python("pass")),
    ]
    exit_code, results = run(stages, tmp_path / "out")
    assert exit_code == 0
    assert {name: result["status"] for name, result in results.items()} == {
        "needs": "left out",
        "instead": "dry run",
        "both": "ok",
    }
    assert results["needs"]["detail"] == "needs a GPU; would run: checks needs"
    assert NO_GPU in (tmp_path / "out" / "check_gpu.md").read_text()


def test_only_the_named_stages_run(no_card: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [stage(name, "pass", without_gpu=python("pass")) for name in ("one", "two")]
    assert [*run(stages, tmp_path / "out", "--only", "two")[1]] == ["two"]
    assert main(["--out", str(tmp_path), "--only", "three"], stages) == 2
    assert "--only three is not allowed: it must be among one, two" in capsys.readouterr().err


def test_the_stages_are_those_of_the_documentation() -> None:
    place = Place(Path("/checkout"), Path("/out"), Path("/task"))
    stages = {stage.name: stage for stage in make_stages(place)}
    guide = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text()
    assert all(f"| `{name}` | {stage.limit_s} |" in guide for name, stage in stages.items())
    assert {name for name, stage in stages.items() if stage.without_gpu is None} == {"tests"}
    assert "trainer.default_local_dir=/out/check_gpu_runs/v05/checkpoints" in stages["resume"].command[-1]
    assert stages["big"].without_gpu is not None and "--config-only && DRY_RUN=1 " in stages["big"].without_gpu[-1]


@pytest.fixture
def metrics(tmp_path: Path) -> Callable[..., Path]:
    """Writer of what verl logs, a step a line."""

    def write(*steps: dict[str, float], first: int = 1) -> Path:
        rows = [{"step": first + i, "data": {"actor/grad_norm": 1.0, **data}} for i, data in enumerate(steps)]
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_phases_are_means_of_the_steps_after_the_first(metrics: Callable[..., Path]) -> None:
    timed = [{"timing_s/step": s, "timing_s/gen": s / 2, "perf/throughput": 10 * s} for s in (100.0, 4.0, 6.0)]
    facts = training_results(metrics(*timed), first=1)
    assert facts == {"steps": 3, "first_step_s": 100.0, "phases_s": {"step": 5.0, "gen": 2.5}, "tokens_per_s": 50.0}


@pytest.mark.parametrize(
    ("steps", "first", "message"),
    [
        ([], 1, "first step trained must be 1: .* has none"),
        ([{}], 5, r"first step trained must be 5: .* has \[1\]"),
        ([{}, {"actor/grad_norm": float("nan")}], 1, "step 2: the gradient's norm is nan"),
        ([{"v05/prior/failures": 2.0}], 1, "step 1: 2 calls of the prior failed"),
        ([{"training/rollout_probs_diff_mean": 0.3}], 1, "sglang's probabilities differ from the trainer's by 0.300"),
    ],
)
def test_a_training_that_went_wrong_is_told(
    steps: list[dict[str, float]], first: int, message: str, metrics: Callable[..., Path]
) -> None:
    with pytest.raises(StageError, match=message):
        training_results(metrics(*steps), first)
    with pytest.raises(StageError, match="has none"):
        training_results(Path("/nowhere"), 1)


def test_a_cell_cannot_break_the_table() -> None:
    result = {"name": "a|b", "what": "", "status": "ok", "seconds": 0.0, "limit_s": 1, "detail": "", "facts": {}}
    result |= {"memory_mib": {}, "first_errors": [], "last_lines": []}
    assert "| a\\|b |" in page({"machine": {"gpus": []}, "stages": [result]})
