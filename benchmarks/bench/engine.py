"""Generation by sglang in this process, on the GPUs of this machine or on its CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from benchmarks.bench import BenchError
from benchmarks.bench.problems import Problem

T = TypeVar("T")

# One of them is there wherever a tokenizer was saved, by transformers or before it.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")

# Options whose JSON sglang's command line parses; all others that hold JSON are text for sglang to parse later.
PARSED_OBJECTS = ("extra_metric_labels", "mm_process_config")
OWN_OPTIONS = {
    "model_path": "the model is the first argument of the bench",
    "random_seed": "the bench draws it from --seed, another one for each session",
}


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; ``seed`` also draws the problems of a sample.

    sglang obeys a seed for each request only with ``deterministic``, which costs throughput and needs a GPU.
    Otherwise the seed is that of the engine's random stream, and a response depends on what it was batched with.
    """

    temperature: float = 1.0
    top_p: float = 0.7
    max_tokens: int = 4096
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed, good in (
            ("temperature", self.temperature, "at least 0", self.temperature >= 0),
            ("top-p", self.top_p, "in (0, 1]", 0 < self.top_p <= 1),
            ("max-tokens", self.max_tokens, "at least 1", self.max_tokens >= 1),
            ("seed", self.seed, "at least 0", self.seed >= 0),
        ):
            if not good:
                raise BenchError(f"--{name}={value} must be {allowed}")


@dataclass(frozen=True)
class Completion:
    """A response without special tokens, its length, and "stop" or "length"."""

    text: str
    tokens: int
    finish: str


class Engine(Protocol):
    """Interface that the queue needs."""

    async def generate(self, ids: Sequence[int], seed: int) -> Completion: ...


class SglangEngine:
    """sglang's offline engine with its processes; a context manager.

    Args:
        model: folder.
        engine_seed: of the random stream. A resumed run must take another one, or it may draw again, for other
            samples of the same problems, the very numbers of before.
        arguments: sglang's own.

    Attributes:
        parameters: sglang's sampling parameters of every request.
        capacity: requests that it can run at a time.
        longest: tokens that a request can have, prompt and response.
    """

    def __init__(self, model: Path, sampling: Sampling, engine_seed: int, arguments: Mapping[str, Any]):
        if arguments.get("device") == "cpu":
            os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # read when sglang is imported
        import sglang

        self.parameters = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_tokens,
        }
        self.engine = sglang.Engine(model_path=str(model), random_seed=engine_seed, **arguments)
        info = self.engine.get_server_info()
        states = info["internal_states"]
        self.capacity = sum(state["effective_max_running_requests_per_dp"] for state in states)
        # The scheduler keeps two pages and two tokens back, and would silently cut a longer response.
        reserved = 2 * info["page_size"] + 2
        self.longest = min(self.engine.tokenizer_manager.context_len, info["max_total_num_tokens"]) - reserved

    async def generate(self, ids: Sequence[int], seed: int) -> Completion:
        """A response to the prompt of these token ids.

        Raises:
            BenchError: the engine gave the request up.
        """
        parameters = {**self.parameters, "sampling_seed": seed}
        out = await self.engine.async_generate(input_ids=list(ids), sampling_params=parameters)
        meta = out["meta_info"]
        finish = meta["finish_reason"]
        if finish["type"] not in ("stop", "length"):
            raise BenchError(f"sglang gave up a request: {finish}; start again to ask what is missing")
        return Completion(out["text"], meta["completion_tokens"], finish["type"])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop that the engine lives in."""
        return self.engine.loop.run_until_complete(work)

    def __enter__(self) -> SglangEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.shutdown()


def engine_arguments(deterministic: bool, tp: int, dp: int | None, gpus: int) -> dict[str, Any]:
    """sglang's arguments on a machine with ``gpus``; ``dp`` None is as many replicas as fit.

    Raises:
        BenchError: the machine cannot do what is asked.
    """
    if gpus == 0:
        if deterministic:
            raise BenchError("--deterministic: sglang has no deterministic attention on a CPU; leave it out")
        if tp > 1 or (dp or 1) > 1:
            raise BenchError(f"--tp={tp} --dp={dp or 1}: this machine has no GPU; leave them out")
        return cpu_arguments()
    dp = gpus // max(tp, 1) if dp is None else dp
    if tp < 1 or dp < 1 or tp * dp > gpus:
        raise BenchError(
            f"--tp={tp} --dp={dp}: {tp} GPUs for each of {dp} replicas, both at least 1; this machine has {gpus}"
        )
    return {"tp_size": tp, "dp_size": dp, "enable_deterministic_inference": deterministic}


def cpu_arguments() -> dict[str, Any]:
    """What verl is given on a CPU, so that a policy is measured as it is trained."""
    rollout = OmegaConf.load(str(files("verl_v05.config") / "platform" / "cpu.yaml")).actor_rollout_ref.rollout
    options = OmegaConf.to_container(rollout.engine_kwargs.sglang)
    return {**options, "dtype": rollout.dtype, "disable_cuda_graph": rollout.enforce_eager}


def engine_options(texts: Iterable[str]) -> dict[str, Any]:
    """sglang's arguments from ``KEY=VALUE`` of the command line; values are numbers, true, false, null, lists or text.

    A JSON object stays the text that it is, as on sglang's own command line, but for ``PARSED_OBJECTS``.

    Raises:
        BenchError: one is not of this form, or is an argument that the bench sets itself.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.isidentifier():
            raise BenchError(
                f"--engine {text!r} is not KEY=VALUE with KEY an argument of sglang's as Python spells it, "
                "for example mem_fraction_static=0.8 or disable_radix_cache=true"
            )
        if key in OWN_OPTIONS:
            raise BenchError(f"--engine {text!r}: {OWN_OPTIONS[key]}")
        options[key] = _option_value(text, key, value)
    return options


def _option_value(text: str, key: str, value: str) -> Any:
    try:
        if value.lstrip().startswith("{"):
            parsed = json.loads(value)
            return parsed if key in PARSED_OBJECTS else value
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    except (ValueError, OmegaConfBaseException, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(f"--engine {text!r}: the value is neither JSON nor YAML ({reason})") from error


def require_tokenizer(model: Path) -> None:
    """Raise BenchError if no tokenizer was saved with a model; transformers would make up one without a vocabulary."""
    if not any((model / name).is_file() for name in TOKENIZER_FILES):
        raise BenchError(
            f"{model}: there is no tokenizer in the folder (none of {', '.join(TOKENIZER_FILES)}); copy the "
            "tokenizer's files from the model that it was trained from"
        )


def tokenize(model: Path, problems: Iterable[Problem]) -> dict[Problem, list[int]]:
    """Token ids of each problem's chat in the model's template, up to where the assistant is to answer.

    Raises:
        BenchError: the tokenizer cannot be loaded or has no template, or the template refuses a chat or leaves out
            what it says.
    """
    require_tokenizer(model)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # transformers and its parsers share no base class of errors
        raise BenchError(f"{model}: its tokenizer cannot be loaded ({type(error).__name__}: {error})") from error
    if not tokenizer.chat_template:
        raise BenchError(
            f"{model}: the tokenizer has no chat template, and the prompts are chats; "
            "save it with the one that the model was trained with (tokenizer.chat_template = ...)"
        )

    def ids(problem: Problem) -> list[int]:
        chat = [{"role": role, "content": content} for role, content in problem.chat]
        try:
            return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # whatever the template's own code raises: for many, at a system turn
            # verl's validation would stop here as well, so the chat is not changed to one that the template takes.
            roles = ", ".join(role for role, _ in problem.chat) or "none"
            raise BenchError(
                f"{problem.benchmark}/{problem.id}: the chat template of {model} refuses its chat, with turns of "
                f"{roles} ({type(error).__name__}: {error}); put what a refused turn says into the user's turn"
            ) from error

    prompts = {problem: ids(problem) for problem in set(problems)}
    for problem, prompt in prompts.items():
        *before, (role, content) = problem.chat
        # A template that ignores the question gives the same prompt to another one.
        other = replace(problem, chat=(*before, (role, f"{content} 1")))
        if not prompt or prompt == ids(other):
            raise BenchError(
                f"{problem.benchmark}/{problem.id}: the chat template of {model} gives "
                f"{'an empty prompt' if not prompt else 'a prompt without what the chat says'}; "
                "save the tokenizer with the template that the model was trained with"
            )
    return prompts


def check_lengths(prompts: Mapping[Problem, Sequence[int]], max_tokens: int, longest: int) -> None:
    """Refuse what the engine would cut.

    Raises:
        BenchError: a prompt and a response of ``max_tokens`` exceed ``longest``, the engine's limit in tokens.
    """
    problem, ids = max(prompts.items(), key=lambda entry: len(entry[1]))
    if len(ids) + max_tokens > longest:
        raise BenchError(
            f"--max-tokens={max_tokens}: with the prompt of {problem.benchmark}/{problem.id} ({len(ids)} tokens) it "
            f"exceeds the {longest} tokens that a request can have with this model and memory; "
            f"choose at most {longest - len(ids)}"
        )
