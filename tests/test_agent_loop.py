"""Sessions of turns: rows, masks and records of an agent loop with a scripted policy, and environments that fail."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.workers.rollout.replica import TokenOutput

from recipes.agent.frozen_lake import FrozenLake
from recipes.agent.lake import Lakes
from recipes.demo.policy import build_tokenizer
from verl_v05.agent.environment import Answer, Environment, EnvironmentFaultError, State
from verl_v05.agent.loop import EnvironmentLoop
from verl_v05.registry import SettingsError
from verl_v05.rollout.turns import TURNS, turn_starts

LAKE = ["SFFF", "FHFH", "FFFH", "HFFG"]
TOKENIZER = build_tokenizer()
WAY = "DDRDRR"  # to the goal


class Script:
    """verl's LLM client: answers a character a call, with its end, and keeps what it was asked with."""

    def __init__(self, answers: str):
        self._answers: Iterator[str] = iter(answers)
        self.read: list[str] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: Any, **_: Any) -> TokenOutput:
        self.read.append(TOKENIZER.decode(prompt_ids))
        tokens = [*TOKENIZER.encode(next(self._answers)), TOKENIZER.eos_token_id]
        step = len(self.read)
        return TokenOutput(
            token_ids=tokens,
            log_probs=[-0.5] * len(tokens),
            extra_fields={"min_global_steps": step, "max_global_steps": step},
        )


def play(
    answers: str, environment: str = "", desc: Any = None, length: int = 200, **settings: Any
) -> tuple[Any, Script]:
    """A session; returns its rows, and the policy."""
    rollout = {"prompt_length": 64, "response_length": length}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    policy = Script(answers)
    arguments = {} if environment else {"desc": desc or LAKE}

    async def scenario() -> Any:
        loop = EnvironmentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=policy,  # type: ignore[arg-type]
            tokenizer=TOKENIZER,
            processor=None,
            dataset_cls=None,  # type: ignore[arg-type]
            data_config=DictConfigWrap(config.data),
            environment=environment or "recipes.agent.frozen_lake.FrozenLake",
            **{"max_turns": 16, "turn_tokens": 2, **settings},
        )
        return await loop.run({"temperature": 1.0}, session_id=0, extra_info={"environment": arguments}, raw_prompt=[])

    return asyncio.run(asyncio.wait_for(scenario(), 20)), policy


def text_of(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens)


@pytest.mark.parametrize("turns_per_row", [0, 1, 4])
def test_rows_hold_whole_turns_and_only_the_policys_tokens_are_its_own(turns_per_row: int) -> None:
    rows, policy = play(WAY, turns_per_row=turns_per_row)
    assert [len(row.extra_fields[TURNS]) for row in rows] == {0: [6], 1: [1] * 6, 4: [4, 2]}[turns_per_row]
    assert all(row.reward_score == 1.0 and row.extra_fields["reward_extra_info"]["acc"] == 1.0 for row in rows)
    own = [token for row in rows for token, mask in zip(row.response_ids, row.response_mask, strict=True) if mask]
    assert text_of(own) == "".join(f"{action}<eos>" for action in WAY)
    for row in rows:
        assert len(row.response_ids) == len(row.response_mask) == len(row.response_logprobs)
        assert len(turn_starts(np.array(row.response_mask))) == len(row.extra_fields[TURNS])
        assert [p for p, mask in zip(row.response_logprobs, row.response_mask, strict=True) if mask] == [-0.5] * (
            2 * len(row.extra_fields[TURNS])
        )
    # What the policy reads last is the state, whatever history is before it.
    states = [turn["text"] for row in rows for turn in row.extra_fields[TURNS]]
    assert all(read.endswith(state) for read, state in zip(policy.read, states, strict=True))
    assert all(text_of(row.prompt_ids) == row.extra_fields[TURNS][0]["text"] for row in rows)


def test_turns_are_recorded_with_the_state_they_were_taken_in_and_their_reward() -> None:
    (row,), _ = play(WAY)
    turns = row.extra_fields[TURNS]
    assert [turn["state"] for turn in turns] == ["0", "4", "8", "9", "13", "14"]
    assert [turn["reward"] for turn in turns] == [0, 0, 0, 0, 0, 1]
    assert turns[1]["text"] == "SFFF\nAHFH\nFFFH\nHFFG"
    assert row.extra_fields["min_global_steps"] == 1 and row.extra_fields["max_global_steps"] == 6


def test_a_hole_ends_the_session_without_success() -> None:
    (row,), _ = play("RDL")
    assert row.reward_score == 0.0 and len(row.extra_fields[TURNS]) == 2


def test_a_text_that_is_no_action_leaves_the_state_as_it_is() -> None:
    (row,), _ = play("x" + WAY)
    assert [turn["state"] for turn in row.extra_fields[TURNS]][:2] == ["0", "0"] and row.reward_score == 1.0


def test_a_session_ends_at_its_limit_of_turns_and_where_a_row_is_full() -> None:
    (row,), _ = play("L" * 9, max_turns=3)
    assert len(row.extra_fields[TURNS]) == 3 and row.reward_score == 0.0
    (row,), _ = play("L" * 9, length=2 + 21 + 5)
    assert len(row.extra_fields[TURNS]) == 2 and len(row.response_ids) <= 28


class Broken(Environment):
    """Fails in its third turn."""

    def reset(self, session: int) -> State:
        return State("A", "a")

    def step(self, action: str) -> Answer:
        self.turns = getattr(self, "turns", 0) + 1
        return Answer(State("A", "a"), 0.0, done=False) if self.turns < 3 else self.fail()

    def fail(self) -> Answer:
        raise ValueError("the game crashed")


class Exits(Broken):
    def fail(self) -> Answer:
        sys.exit(3)


class Stops(Broken):
    def fail(self) -> Answer:
        raise StopIteration


class Hangs(Broken):
    def fail(self) -> Answer:
        time.sleep(3)
        return Answer(State("A", "a"), 0.0, done=True)


class Mumbles(Broken):
    def fail(self) -> Answer:
        return (1, 2)  # type: ignore[return-value]


class NotANumber(Broken):
    def fail(self) -> Answer:
        return Answer(State("A", "a"), float("nan"), done=True)


class NoText(Broken):
    def fail(self) -> Answer:
        return Answer(State(None, "a"), 0.0, done=False)  # type: ignore[arg-type]


class NeverStarts(Broken):
    def __init__(self) -> None:
        raise OSError("no such game")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Broken, r"raised ValueError\('the game crashed'\) in step 3"),
        (Exits, r"raised SystemExit\(3\) in step 3"),
        (Stops, r"raised StopIteration\(\) in step 3"),
        (Hangs, r"has not answered step 3 in step_s=0.3 s"),
        (Mumbles, r"answered \(1, 2\), no verl_v05.agent.environment.Answer"),
        (NotANumber, r"answered reward=nan, no finite number"),
        (NoText, r"gave State\(text=None.* for a state"),
        (NeverStarts, r"raised OSError\('no such game'\) in its start"),
    ],
)
def test_an_environment_that_fails_fails_its_session_by_name(environment: type, message: str) -> None:
    with pytest.raises(EnvironmentFaultError, match=message):
        play("LLLLL", environment=f"{__name__}.{environment.__name__}", step_s=0.3)


def test_an_environment_that_is_none_is_refused_by_the_key() -> None:
    with pytest.raises(SettingsError, match="agent loop: environment='tests.test_agent_loop.Script' is not a"):
        play("L", environment=f"{__name__}.Script")
    with pytest.raises(ValueError, match="agent loop: max_turns"):
        play("L", max_turns=0)


def test_the_text_environment_and_the_exact_arrays_follow_the_same_rules() -> None:
    lakes, rng = Lakes(4, seed=2), np.random.default_rng(0)
    for number, text in enumerate(lakes.text):
        env, state = FrozenLake(text.split("\n")), 0
        assert env.reset(0).text == lakes.state_text(number, 0)
        for _ in range(30):
            action = int(rng.integers(4))
            answer, state = env.step("LDRU"[action]), lakes.next[number, state, action]
            assert answer.done == lakes.ends[number, state] and answer.reward == lakes.goal[number, state]
            if answer.done:
                break
            assert answer.state.text == lakes.state_text(number, state)
