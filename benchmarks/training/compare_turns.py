"""Turn credit against outcome credit and the related work, on FrozenLake with a map a prompt.

`python -m benchmarks.training.compare_turns --out DIR` trains every line with every seed in this process
(:mod:`benchmarks.training.lake`: a small network, exact success rates), keeps what is done in ``runs.csv`` and writes
``page.md``. Beliefs, state values, credit and advantages are those of :mod:`verl_v05`; an update is one Adam step on
the mean over sessions of the mean over turns. Every line has ``ROLLOUTS`` sessions a step and the same first policy;
a seed is the order of the maps and the sampling.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from rich.console import Console

from benchmarks.training.compare_sparse import SPARSE, table
from benchmarks.training.in_process import ValuePrior
from benchmarks.training.lake import TOKENS, LakeTask, Policy, Sessions
from value_model.conversions import probability_of_value
from value_model.files import write_text
from verl_v05.estimators.gigpo import GiGPO
from verl_v05.method import Method
from verl_v05.prior import Outcome, Prior, Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import match_rows
from verl_v05.rollout.state_values import StateValues
from verl_v05.rollout.step_inputs import StepInputs
from verl_v05.rollout.turns import TurnBatch, TurnRecords
from verl_v05.settings import V05Settings

ROLLOUTS, LEARNING_RATE, CLIP = 128, 1e-3, 1.0
REFERENCE, TARGET = "V0.5, outcome credit", "GiGPO-8"
V05: dict[str, Any] = {"schedule": "fixed", "k_init": 1, "fusion": "empirical_bayes", "baseline": "leave_one_out"}


@dataclass(frozen=True)
class Line:
    """A method."""

    group: int  # sessions a map, where they are given
    make: Callable[..., Any]  # (run, seed, **arguments) -> Learner
    arguments: dict[str, Any] = field(default_factory=dict)
    maps: int | None = None  # looked at in a step; None is ``ROLLOUTS`` over the group


class Learner:
    """Plans a step's sessions, and makes advantages of them. One instance a run."""

    def __init__(self, run: Run, seed: int, **arguments: Any):
        self.run, self.seed = run, seed

    def plan(self, maps: np.ndarray, step: int) -> np.ndarray:
        """Sessions of each map, (M,)."""
        return np.full(len(maps), self.run.line.group)

    def advantages(self, sessions: Sessions, step: int) -> np.ndarray | None:
        """Of each turn, (N,); None for a step that does not update the policy."""
        raise NotImplementedError


class Grpo(Learner):
    """The session's outcome against its group's, over the group's standard deviation."""

    def advantages(self, sessions: Sessions, step: int) -> np.ndarray | None:
        return self.outcome(sessions)[sessions.session]

    def outcome(self, sessions: Sessions) -> np.ndarray:
        """(S,)"""
        reward = sessions.reward.reshape(-1, self.run.line.group)
        spread = reward.std(axis=1, ddof=1, keepdims=True) + 1e-6
        return ((reward - reward.mean(axis=1, keepdims=True)) / spread).ravel()


class GroupInGroup(Learner):
    """GiGPO's, of :mod:`verl_v05.estimators.gigpo`."""

    def advantages(self, sessions: Sessions, step: int) -> np.ndarray | None:
        zeros = np.zeros_like(sessions.session)
        reward = np.where(sessions.last, probability_of_value(sessions.reward)[sessions.session], 0.0)
        group = np.arange(len(sessions.lake)) // self.run.line.group
        turns = TurnBatch(sessions.session, sessions.session, zeros, zeros + 1)
        return GiGPO().turn_advantages(TurnRecords(turns, sessions.state, reward, sessions.reward, group))


class ActorCritic(Learner):
    """Advantages over turns from a critic's values, as Turn-PPO, or as VAPO with its length-adaptive lambda.

    Turn-PPO: gamma 0.99, lambda 0.9. VAPO: gamma 1, lambda 1 - 1 / (0.05 tokens of the session), its critic is taught
    with the outcomes (lambda 1), and alone in the first ``warm_up`` steps, whose rollouts count.
    """

    def __init__(self, run: Run, seed: int, vapo: bool = False):
        super().__init__(run, seed)
        self._vapo, self._warm_up = vapo, 4 if vapo else 0
        self._critic = Policy(outputs=1)
        self._optimizer = torch.optim.Adam(self._critic.parameters(), 2e-3)
        self._rng = np.random.default_rng(seed)

    def advantages(self, sessions: Sessions, step: int) -> np.ndarray | None:
        session, last, turns = sessions.session, sessions.last, sessions.turns[sessions.session]
        features = self.run.task.lakes.features(sessions.lake[session], sessions.state)
        with torch.no_grad():
            values = self._critic(features)[:, 0].double().numpy()
        gamma = 1.0 if self._vapo else 0.99
        decay = np.clip(1 - 1 / (0.05 * TOKENS * turns), 0, 1) if self._vapo else np.full(len(session), 0.9)
        outcome = sessions.reward[session]
        following = np.where(last, 0.0, np.append(values[1:], 0.0))
        change = np.where(last, outcome, 0.0) + gamma * following - values
        advantage, ahead = np.zeros(len(session)), 0.0
        for turn in reversed(range(len(session))):
            ahead = change[turn] + (0.0 if last[turn] else gamma * decay[turn] * ahead)
            advantage[turn] = ahead
        self._teach(features, outcome if self._vapo else advantage + values)
        return None if step <= self._warm_up else (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    def _teach(self, features: torch.Tensor, target: np.ndarray) -> None:
        wanted = torch.from_numpy(target.astype(np.float32))
        for _ in range(8):
            for part in np.array_split(self._rng.permutation(len(wanted)), 4):
                loss = ((self._critic(features[part])[:, 0] - wanted[part]) ** 2).mean()
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()


class V05Learner(Learner):
    """As the allocator, the workers and the estimator do together.

    Args:
        values: whose values turn credit goes by, as :func:`make_prior` takes it; None: outcome credit.
        overrides: of ``algorithm.v05``.
    """

    def __init__(self, run: Run, seed: int, values: str | None = None, **overrides: Any):
        super().__init__(run, seed)
        credit = "outcome" if values is None else "turn"
        settings = OmegaConf.merge(OmegaConf.structured(V05Settings), V05, overrides, {"credit": credit})
        self.settings: V05Settings = OmegaConf.to_object(settings)  # type: ignore[assignment]
        self.method = Method.from_settings(self.settings)
        self.states = None if values is None else StateValues(self.settings)
        if self.states is not None and values not in (None, "none"):
            self.states.prior = make_prior(values, run)
        self._groups: list[Group] = []

    def plan(self, maps: np.ndarray, step: int) -> np.ndarray:
        k, texts = self.settings.k_init, self.run.task.lakes.text
        self._groups = [Group(str(i), Query(texts[m], texts[m], "lake"), k, first=k) for i, m in enumerate(maps)]
        self.method.believe(self._groups)
        if k > 0:
            return np.full(len(maps), k)
        counts = self.method.open(self._groups, None, step).open()
        return np.array([counts[group.uid] for group in self._groups])

    def advantages(self, sessions: Sessions, step: int) -> np.ndarray | None:
        lakes, turns, end = self.run.task.lakes, sessions.turns, np.cumsum(sessions.turns)
        owner = np.repeat(np.arange(len(self._groups)), [group.spent for group in self._groups])
        number = np.arange(len(owner)) - np.searchsorted(owner, owner)
        record = StepRecord(step, self._groups)
        for group, session, reward in zip(owner, number, sessions.reward, strict=True):
            self._groups[group].rewards[int(session)] = float(reward)
        if self.states is not None:
            where = zip(sessions.lake[sessions.session], sessions.state, strict=True)
            texts = [lakes.state_text(m, s) for m, s in where]
            states = [texts[last - count : last] for last, count in zip(end, turns, strict=True)]
            asyncio.run(self._close(record, owner, number, states))
        self.method.learn(self._groups)
        keys = [f"{group}_{session}_0" for group, session in zip(owner, number, strict=True)]
        rows = match_rows(keys, [False] * len(keys), record)
        inputs = StepInputs(rows, 0.0, self.settings, self.method.fusion, record.turn_weight)
        position = 2 * (np.arange(len(sessions.session)) - (end - turns)[sessions.session])
        mask = np.zeros((len(turns), 2 * turns.max()))
        mask[sessions.session, position] = 1  # a token a turn, and the environment's answer
        return inputs.token_advantages(mask)[sessions.session, position]

    async def _close(
        self, record: StepRecord, owner: np.ndarray, number: np.ndarray, states: Sequence[list[str]]
    ) -> None:
        assert self.states is not None
        for group, session, texts in zip(owner, number, states, strict=True):
            self.states.add(record.groups[group], {int(session): texts}, record.step)
        await self.states.close_step(record)


class ExactValues(Prior):
    """The policy's true values: what a perfect value model could give."""

    def __init__(self, run: Run):
        self._run = run
        lakes = run.task.lakes
        self._where = {
            lakes.state_text(m, s): (m, s) for m in range(run.task.train) for s in np.flatnonzero(~lakes.ends[m])
        }

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        lake, state = np.array([self._where[q.text] for q in queries]).T
        chosen, at = np.unique(lake, return_inverse=True)
        values, _ = self._run.task.lakes.values(self._run.policy, chosen)
        return np.clip(probability_of_value(values[at, state]), 0, 1)


class CriticValues(Prior):
    """A critic, taught with each step's states after it: what a run has without a value model."""

    def __init__(self, run: Run):
        lakes = run.task.lakes
        self._features: dict[str, np.ndarray] = {}
        for m in range(run.task.train):
            states = np.flatnonzero(~lakes.ends[m])
            for s, row in zip(states, lakes.features(np.full(len(states), m), states).numpy(), strict=True):
                self._features[lakes.state_text(m, s)] = row
        self._net = Policy(outputs=1)
        self._optimizer = torch.optim.Adam(self._net.parameters(), 2e-3)
        self._rng = np.random.default_rng(0)

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        with torch.no_grad():
            return torch.sigmoid(self._net(self._rows(queries))[:, 0]).double().numpy()

    def update(self, outcomes: Sequence[Outcome], step: int) -> None:
        rows = self._rows([o.query for o in outcomes])
        success, k = (torch.tensor([getattr(o, n) for o in outcomes], dtype=torch.float32) for n in ("success", "k"))
        for _ in range(8):
            for part in np.array_split(self._rng.permutation(len(rows)), 4):
                found = self._net(rows[part])[:, 0]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(found, success[part], weight=k[part])
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()

    def _rows(self, queries: Sequence[Query]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._features[q.text] for q in queries]))


def make_prior(name: str, run: Run) -> Prior:
    """Values of states by name, or by the folder of a value model."""
    made = {"exact": ExactValues, "critic": CriticValues}
    return made[name](run) if name in made else ValuePrior(name)


def lines(value_model: str | None) -> dict[str, Line]:
    """The comparison's lines by name; the value model's only with one."""
    priors = {"states' history": "none", "critic": "critic", "exact values": "exact"}
    if value_model is not None:
        priors["value model"] = value_model
    sparse, pool = {**SPARSE, "max_rollouts_per_step": ROLLOUTS}, 2 * ROLLOUTS
    return {
        REFERENCE: Line(1, V05Learner),
        **{f"V0.5, turn credit, {name}": Line(1, V05Learner, {"values": prior}) for name, prior in priors.items()},
        "sparse V0.5, outcome credit": Line(0, V05Learner, sparse, pool),
        **{
            f"sparse V0.5, turn credit, {name}": Line(0, V05Learner, {"values": prior, **sparse}, pool)
            for name, prior in priors.items()
        },
        "GRPO-8": Line(8, Grpo),
        TARGET: Line(8, GroupInGroup),
        "Turn-PPO": Line(8, ActorCritic),
        "VAPO": Line(8, ActorCritic, {"vapo": True}),
    }


class Measured(NamedTuple):
    """A run so far."""

    step: int
    rollouts: int
    tokens: int
    accuracy: float


class Run:
    """One training run."""

    def __init__(self, task: LakeTask, line: Line, seed: int):
        torch.manual_seed(seed)
        self.task, self.line = task, line
        self.policy = Policy()
        self.policy.load_state_dict(task.start.state_dict())
        self._optimizer = torch.optim.Adam(self.policy.parameters(), LEARNING_RATE)
        self._rng = np.random.default_rng(seed)
        self._order = self._maps()
        self.learner = line.make(self, seed, **line.arguments)

    def train(self, steps: int, every: int) -> list[Measured]:
        """Train, measuring before the first step and after each ``every``-th."""
        found, rollouts, tokens = [Measured(0, 0, 0, self.task.success(self.policy))], 0, 0
        for step in range(1, steps + 1):
            rollouts, tokens = rollouts + ROLLOUTS, tokens + TOKENS * self.step(step)
            if step % every == 0:
                found.append(Measured(step, rollouts, tokens, self.task.success(self.policy)))
        return found

    def step(self, step: int) -> int:
        """One training step; returns its turns."""
        looked_at = self.line.maps or ROLLOUTS // self.line.group
        maps = np.array([next(self._order) for _ in range(looked_at)])
        played = np.repeat(maps, self.learner.plan(maps, step))
        sessions = self.policy.play(self.task.lakes, played, self._rng)
        advantage = self.learner.advantages(sessions, step)
        if advantage is not None:
            self._update(sessions, advantage)
        return len(sessions.session)

    def _maps(self) -> Any:
        while True:
            yield from self._rng.permutation(self.task.train)

    def _update(self, sessions: Sessions, advantage: np.ndarray) -> None:
        features = self.task.lakes.features(sessions.lake[sessions.session], sessions.state)
        log_probs = torch.log_softmax(self.policy(features), -1)[range(len(features)), sessions.action]
        weight = advantage / sessions.turns[sessions.session] / len(sessions.lake)
        loss = -(torch.from_numpy(weight.astype(np.float32)) * log_probs).sum()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
        self._optimizer.step()


class Job(NamedTuple):
    """One run."""

    name: str
    seed: int
    steps: int
    value_model: str | None


def train(job: Job) -> list[dict[str, Any]]:
    """One run; a row for each time that it was measured."""
    torch.set_num_threads(1)
    run = Run(LakeTask(), lines(job.value_model)[job.name], job.seed)
    every = max(1, job.steps // 24)
    return [{"line": job.name, "seed": job.seed, **found._asdict()} for found in run.train(job.steps, every)]


def collect(jobs: Sequence[Job], path: Path, processes: int, console: Console) -> pd.DataFrame:
    """All rows; runs that are in the file already are not repeated."""
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["line", "seed"])
    finished = set(done[["line", "seed"]].itertuples(index=False, name=None))
    left = [job for job in jobs if (job.name, job.seed) not in finished]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for count, rows in enumerate(pool.map(train, left), 1):
            done = pd.concat([done, pd.DataFrame(rows)], ignore_index=True)
            write_text(path, done.to_csv(index=False))
            console.print(
                f"{count}/{len(left)} {rows[-1]['line']}, seed {rows[-1]['seed']}: {rows[-1]['accuracy']:.3f}"
            )
    return done


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--value-model", help="folder of one that knows this kind of state")
    parser.add_argument("--lines", nargs="+", help="some of them only")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.lines or list(lines(args.value_model))
    jobs = [Job(name, seed, args.steps, args.value_model) for seed in args.seeds for name in names]
    data = collect(jobs, args.out / "runs.csv", args.processes, Console())
    present = [name for name in lines("any") if name in set(data["line"])]
    found = table(data, present, args.steps * ROLLOUTS, REFERENCE, TARGET)
    write_text(args.out / "page.md", found.to_markdown(index=False) + "\n")
    print(found.to_markdown(index=False))


if __name__ == "__main__":
    main()
