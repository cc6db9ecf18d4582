"""`python -m benchmarks.bench` from the command line to its result, with a scripted engine and with sglang."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.bench import __main__ as bench
from benchmarks.bench.engine import Completion, Sampling
from recipes.demo.policy import build_tokenizer
from recipes.demo.task import LEVELS, problems_of
from tests.faults.statement import fault

ROOT = Path(__file__).parents[1]


def write_benchmark(path: Path, prompts: Sequence[str], golds: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"id": f"{path.stem}-{n}", "contaminated": n == 0},
        }
        for n, (prompt, gold) in enumerate(zip(prompts, golds, strict=True))
    ]
    pd.DataFrame(rows).to_parquet(path)


class ScriptedEngine:
    """In the place of sglang: boxes the prompt's first digit, and dies when its patience is over."""

    patience = 1000
    asked = 0

    def __init__(self, model: Path, sampling: Sampling, engine_seed: int, arguments: dict[str, Any]):
        self.capacity, self.longest, self.tokenizer = 2, 500, build_tokenizer()

    def __enter__(self) -> ScriptedEngine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)

    async def generate(self, ids: Sequence[int], seed: int) -> Completion:
        await asyncio.sleep(0)
        if type(self).asked == self.patience:
            raise OSError("died")
        type(self).asked += 1
        return Completion(rf"\boxed{{{self.tokenizer.decode(ids[:1])}}}", tokens=3, finish="stop")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedEngine]:
    own = type("OwnEngine", (ScriptedEngine,), {})
    monkeypatch.setattr(bench, "SglangEngine", own)
    monkeypatch.setattr(bench.torch.cuda, "device_count", lambda: 0)
    return own


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Two benchmarks of five and three problems, of which the first two and all are answered rightly."""
    model = tmp_path / "model"
    build_tokenizer().save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    (model / "model.safetensors").write_bytes(b"w")
    write_benchmark(tmp_path / "data" / "a.parquet", ["1?", "2?", "3?", "4?", "5?"], ["1", "2", "9", "9", "9"])
    write_benchmark(tmp_path / "data" / "b.parquet", ["1?", "2?", "3?"], ["1", "2", "3"])
    flags = {"data": tmp_path / "data", "out": tmp_path / "out", "sample": 10, "samples": 2, "max-tokens": 8}
    return [str(model), "--benchmarks", "a", "b", *(str(x) for k, v in flags.items() for x in (f"--{k}", v))]


def test_a_run_ends_with_figures_of_every_benchmark(
    tmp_path: Path, engine: type[ScriptedEngine], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(command)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    accuracy = {name: row["accuracy"] for name, row in result["benchmarks"].items()}
    assert accuracy == pytest.approx({"a": 0.4, "b": 1.0, "mean of benchmarks": 0.7})
    assert (result["benchmarks"]["a"]["accuracy_contaminated"], result["benchmarks"]["a"]["accuracy_clean"]) == (
        1,
        0.25,
    )
    assert not result["sample"]
    printed = capsys.readouterr().out
    assert "No GPU: a sample on the CPU" in printed and "2 a problem, of at most 8 tokens" in printed


@fault(
    "bench is given a model without a tokenizer",
    happens="refused before its weights are read",
    do="copy the whole folder",
)
def test_a_model_without_its_tokenizer_is_refused_before_its_weights_are_read(
    tmp_path: Path, engine: type[ScriptedEngine], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "fingerprint", lambda folder: pytest.fail("the weights were read"))
    monkeypatch.setattr(engine, "__init__", lambda *_: pytest.fail("the engine was started"))
    for path in (tmp_path / "model").glob("*token*"):
        path.unlink()
    with pytest.raises(SystemExit, match=r"bench: .*model: there is no tokenizer in the folder .*copy the tokenizer's"):
        bench.main(command)
    assert not (tmp_path / "out").exists()


def test_a_run_that_broke_off_asks_only_for_what_is_missing(
    tmp_path: Path, engine: type[ScriptedEngine], command: list[str]
) -> None:
    engine.patience = 7
    with pytest.raises(OSError, match="died"):
        bench.main(command)
    kept = sum(len(p.read_text().splitlines()) for p in (tmp_path / "out" / "samples").iterdir())
    assert kept == 7
    engine.patience, engine.asked = 1000, 0
    bench.main(command)
    assert engine.asked == 16 - 7
    assert json.loads((tmp_path / "out" / "result.json").read_text())["run"]["sessions"] == 2
    engine.asked = 0
    bench.main([*command, "--samples", "3"])
    assert engine.asked == 8


def test_a_sample_of_the_problems_is_called_one(
    tmp_path: Path, engine: type[ScriptedEngine], command: list[str]
) -> None:
    bench.main([*command, "--sample", "2"])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["sample"]
    assert (result["drawn"], engine.asked) == ({"a": "2 of 5", "b": "2 of 3"}, 8)
    assert (tmp_path / "out" / "result.md").read_text().startswith("# SAMPLE, not a benchmark result")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--top-p", "0.9"], r"sampling\.top_p: 0\.7 there, 0\.9 now"),
        (["--max-tokens", "9"], r"sampling\.max_tokens: 8 there, 9 now"),
        (["--samples", "0"], "--samples=0 must be at least 1"),
        (["--max-tokens", "600"], "sampling.max_tokens"),
    ],
)
def test_a_folder_keeps_to_one_measurement(
    engine: type[ScriptedEngine], command: list[str], change: list[str], named: str
) -> None:
    bench.main(command)
    with pytest.raises(SystemExit, match=named):
        bench.main([*command, *change])


@pytest.mark.parametrize("changed", ["prompts", "golds"])
def test_changed_data_and_models_are_named(
    tmp_path: Path, engine: type[ScriptedEngine], command: list[str], changed: str
) -> None:
    bench.main(command)
    prompts, golds = (
        (["1?", "2?", "4?"], ["1", "2", "3"]) if changed == "prompts" else (["1?", "2?", "3?"], list("124"))
    )
    write_benchmark(tmp_path / "data" / "b.parquet", prompts, golds)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"v")
    with pytest.raises(SystemExit) as refused:
        bench.main(command)
    message = str(refused.value)
    assert f"data.b.{changed}" in message and "model: " in message
    assert message.count(" there, ") == 2


def lines(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines(keepends=True)]


@fault(
    "sglang is killed in the middle of bench",
    happens="it is started again, and asked for the samples that are missing",
    do="nothing",
    within_s=600,
)
@pytest.mark.slow
def test_sglang_killed_midway_goes_on_to_the_exact_count(task: Path, tmp_path: Path) -> None:
    levels = {level.name: [p for _, p in zip(range(4), problems_of(level), strict=False)] for level in LEVELS[:2]}
    for name, chosen in levels.items():
        write_benchmark(
            tmp_path / "data" / f"{name}.parquet", [p.prompt for p in chosen], [str(p.answer) for p in chosen]
        )
    flags = {"data": tmp_path / "data", "out": tmp_path / "out", "samples": 24, "max-tokens": 16, "in-flight": 1}
    flags |= {"temperature": 0, "graders": 1}
    words = [str(x) for key, value in flags.items() for x in (f"--{key}", value)]
    command = [sys.executable, "-m", "benchmarks.bench", str(task / "policy"), "--benchmarks", *levels, *words]
    folder = tmp_path / "out" / "samples"

    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    while len(lines(folder)) < 10:
        assert first.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = [line for line in lines(folder) if line.endswith("\n")]
    assert 10 <= len(before) < 192

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = [json.loads(line) for line in lines(folder)]
    assert len(samples) == len({(s["benchmark"], s["id"], s["sample"]) for s in samples}) == 2 * 4 * 24
    assert set(before) <= set(lines(folder))
    assert sum(s["session"] == 1 for s in samples) == len(before)
    # Greedy: the resumed engine says the same, one or two digits and the end.
    responses = {(s["id"], s["response"], s["finish"], s["tokens"] - len(s["response"])) for s in samples}
    assert len(responses) == 8
    assert all(finish == "stop" and response.isdigit() and ends == 1 for _, response, finish, ends in responses)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["run"]["sessions"] == 2
