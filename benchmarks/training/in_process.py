"""Training on the demo's tasks in this process: same policy, problems, rewards and method; no Ray, verl or sglang.

A run takes seconds instead of a minute, so ablations can have many seeds. Beliefs, draws, schedules and advantages are
those of :mod:`verl_v05`; sampling and the update are a dozen lines here: one on-policy AdamW step a batch, mean over
responses of the mean over tokens. ``python -m benchmarks.training.compare_sparse`` runs it, and its page compares it
with runs of the real trainer. Accuracy is exact: the probability of the true response, over all validation prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.demo.make import MODULES, RECORD, Settings
from recipes.demo.policy import sample_responses, success_probabilities
from recipes.demo.reward import compute_score
from value_model.conversions import value_of_probability
from value_model.model import ValueModel
from verl_v05.method import Method
from verl_v05.prior import NoPrior, Outcome, Prior, Query
from verl_v05.prior.history import HistoryPrior
from verl_v05.prior.support_buffer import SupportBuffer
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import match_rows
from verl_v05.rollout.step_inputs import StepInputs
from verl_v05.settings import V05Settings

LEARNING_RATE, WEIGHT_DECAY, CLIP = 3e-4, 0.01, 1.0  # of config/setting/cpu.yaml and verl's optimizer
CONTEXT = (256, 128)  # capacity and sample of the support buffer
MOST_TOKENS = 64
MOST_REFILLS = 3  # batches of prompts that GRPO with DAPO's filter may draw for one step


@dataclass(frozen=True)
class Line:
    """One line of a comparison: a method at ``rollouts`` a step."""

    rollouts: int = 128
    group: int = 0  # GRPO's group size; 0: V0.5, as ``overrides`` say
    filtered: bool = False  # GRPO: groups of equal rewards are replaced, as DAPO does
    pool: int = 128  # V0.5: prompts a step
    prior: str = "v0"  # v0, history, none, or with oracle, shuffled or constant in their place
    overrides: dict[str, Any] = field(default_factory=dict)  # of algorithm.v05


class Measured(NamedTuple):
    """A run so far."""

    step: int
    rollouts: int  # generated, discarded ones included
    tokens: int
    accuracy: float


class Task:
    """Problems and policy of a folder that :mod:`recipes.demo.make` made."""

    def __init__(self, folder: Path):
        settings = Settings(**json.loads((folder / RECORD).read_text())["settings"])
        module, rng = import_module(MODULES[settings.task]), np.random.default_rng(settings.seed)
        module.draw_competences(rng)  # drawn before the problems, from the same generator
        self.train, self.val = module.split_problems(rng, settings.train_size, settings.val_size)
        self.policy_folder = folder / "policy"


class Policy:
    """The demo's policy with its optimizer."""

    def __init__(self, folder: Path, seed: int, learning_rate: float = LEARNING_RATE):
        torch.manual_seed(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).float()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)

    def sample(self, prompts: Sequence[str]) -> list[list[int]]:
        """A response's tokens for each prompt at temperature 1, ended by EOS or by ``MOST_TOKENS``."""
        eos = self.tokenizer.eos_token_id
        responses = sample_responses(self.model, self.tokenizer, prompts, MOST_TOKENS).tolist()
        return [row[: row.index(eos) + 1] if eos in row else row for row in responses]

    def update(self, prompts: Sequence[str], responses: Sequence[list[int]], advantage: np.ndarray) -> None:
        """One step along the mean over responses of advantage x the mean log-probability of its tokens."""
        heads = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        length = max(len(h) + len(r) for h, r in zip(heads, responses, strict=True))
        ids = torch.full((len(heads), length), self.tokenizer.pad_token_id)
        mask, ours = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (head, response) in enumerate(zip(heads, responses, strict=True)):
            end = len(head) + len(response)
            ids[row, :end], mask[row, :end], ours[row, len(head) : end] = torch.tensor(head + response), 1, True
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        log_probs = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        per_response = (log_probs * ours[:, 1:]).sum(-1) / ours.sum(-1)
        loss = -(torch.tensor(advantage, dtype=torch.float32) * per_response).mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self._optimizer.step()


class ValuePrior(Prior):
    """The value model, asked in this process."""

    def __init__(self, model: str | None = None):
        self._model = ValueModel.from_pretrained(model)

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        if context is None:
            return np.full(len(queries), np.nan)
        scores = [value_of_probability(o.success) for o in context]
        return self._model.predict([o.query.text for o in context], scores, [q.text for q in queries])


class Shuffled(Prior):
    """Another prior's predictions, each given to another prompt: as confident, and useless."""

    def __init__(self, prior: Prior, seed: int):
        self._prior, self._seed = prior, seed

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        found = self._prior.predict(queries, context, step)
        return np.random.default_rng([self._seed, step]).permutation(found)


class Constant(Prior):
    """The same for every prompt."""

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        return np.full(len(queries), 0.5)


class Batch(NamedTuple):
    """What a step generated, R rollouts."""

    prompts: list[str]
    responses: list[list[int]]
    advantage: np.ndarray
    rollouts: int  # discarded ones included


class Run:
    """One training run.

    Args:
        task: where.
        line: what.
        seed: of the order of the data, of sampling and of the draws.
        value_model: folder of the value model; the package's own if None.
    """

    def __init__(self, task: Task, line: Line, seed: int, value_model: str | None = None):
        self.task, self.line, self.seed = task, line, seed
        self.policy = Policy(task.policy_folder, seed)
        self._data = self._epochs(np.random.default_rng(seed))
        self._step = 0
        if line.group == 0:
            values = {"max_rollouts_per_step": line.rollouts, "sparse": {"seed": seed}} if self._sparse else {}
            settings = OmegaConf.merge(OmegaConf.structured(V05Settings), line.overrides, values)
            self.method = Method.from_settings(OmegaConf.to_object(settings))
            self.support = SupportBuffer(*CONTEXT, seed)
            self.prior = self._make_prior(line.prior, value_model)

    def train(self, steps: int, every: int) -> Iterator[Measured]:
        """Train, measuring before the first step and after each ``every``-th."""
        rollouts = tokens = 0
        yield Measured(0, 0, 0, self.accuracy())
        for self._step in range(1, steps + 1):
            batch = self._grpo() if self.line.group else self._v05()
            self.policy.update(batch.prompts, batch.responses, batch.advantage)
            kept = sum(map(len, batch.responses))
            rollouts += batch.rollouts
            tokens += round(kept * batch.rollouts / len(batch.responses))
            if self._step % every == 0:
                yield Measured(self._step, rollouts, tokens, self.accuracy())

    def accuracy(self) -> float:
        """Expected validation accuracy."""
        return float(success_probabilities(self.policy.model, self.policy.tokenizer, self.task.val).mean())

    @property
    def _sparse(self) -> bool:
        return self.line.overrides.get("schedule") == "sparse"

    def _make_prior(self, name: str, value_model: str | None) -> Prior:
        if name == "oracle":
            return Oracle(self)
        if name == "shuffled":
            return Shuffled(ValuePrior(value_model), self.seed)
        made = {"history": HistoryPrior, "none": NoPrior, "constant": Constant}
        return made[name]() if name in made else ValuePrior(value_model)

    def _epochs(self, rng: np.random.Generator) -> Iterator[int]:
        while True:
            yield from rng.permutation(len(self.task.train)).tolist()

    def _next(self, prompts: int) -> list[Any]:
        return [self.task.train[next(self._data)] for _ in range(prompts)]

    def _roll(self, problems: Sequence[Any]) -> tuple[list[list[int]], np.ndarray]:
        """A response of each problem and its score, 0 or 1."""
        responses = self.policy.sample([p.prompt for p in problems])
        texts = self.policy.tokenizer.batch_decode(responses, skip_special_tokens=True)
        scored = (compute_score(p.data_source, t, str(p.answer)) for p, t in zip(problems, texts, strict=True))
        return responses, np.array([found["score"] for found in scored])

    def _grpo(self) -> Batch:
        """Normalised by the group's mean and standard deviation; groups without a spread count as 0."""
        size, wanted, drawn, spent = self.line.group, self.line.rollouts // self.line.group, [], 0
        for _ in range(MOST_REFILLS if self.line.filtered else 1):
            problems = [p for p in self._next(wanted) for _ in range(size)]
            responses, scores = self._roll(problems)
            spent += len(problems)
            for start in range(0, len(problems), size):
                group = slice(start, start + size)
                drawn.append((problems[group], responses[group], scores[group]))
            kept = [group for group in drawn if not self.line.filtered or group[2].std() > 0]
            if len(kept) >= wanted:
                break
        kept = kept[:wanted] or drawn[:wanted]  # without a group that teaches the step changes nothing
        scores = np.stack([s for _, _, s in kept])
        spread = scores.std(axis=1, ddof=1, keepdims=True)
        advantage = (scores - scores.mean(axis=1, keepdims=True)) / (spread + 1e-6)
        prompts = [p.prompt for problems, _, _ in kept for p in problems]
        return Batch(prompts, [r for _, responses, _ in kept for r in responses], advantage.ravel(), spent)

    def _v05(self) -> Batch:
        """As the allocator, the workers and the estimator do together."""
        settings, problems = self.method.settings, self._next(self.line.pool)
        groups = [
            Group(str(i), Query(p.prompt, p.prompt, p.data_source), settings.k_init, first=settings.k_init)
            for i, p in enumerate(problems)
        ]
        asked = self.prior.predict([g.query for g in groups], self.support.sample(self._step, 0), self._step)
        for group, probability in zip(groups, asked, strict=True):
            group.probability = float(probability)
        self.method.believe(groups)
        schedule = self.method.open(groups, None, self._step)
        starting = schedule.open() if settings.k_init == 0 else {g.uid: settings.k_init for g in groups}
        rows, responses = [], []
        while starting := {uid: count for uid, count in starting.items() if count}:
            uids = [int(uid) for uid, count in starting.items() for _ in range(count)]
            new, scores = self._roll([problems[i] for i in uids])
            for i, score in zip(uids, scores, strict=True):
                rewards = groups[i].rewards
                rewards[len(rewards)] = value_of_probability(float(score))
                rows.append((i, len(rewards) - 1))
            responses += new
            answered = [answer for uid in starting for answer in schedule.settled(uid).items()]
            starting = dict(answered)
        record = StepRecord(self._step, groups)
        self.method.learn(groups)
        self.support.add(record.outcomes())
        self.prior.update(record.outcomes(), self._step)
        matched = match_rows([f"{i}_{session}_0" for i, session in rows], [False] * len(rows), record)
        found = StepInputs(matched, 0.0, settings, self.method.fusion).compute()
        return Batch([problems[i].prompt for i, _ in rows], responses, matched.spread(found.advantage), len(rows))


class Oracle(Prior):
    """The policy's true success probabilities."""

    def __init__(self, run: Run):
        self._run = run
        self._problems = {p.prompt: p for p in run.task.train}

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        policy = self._run.policy
        return success_probabilities(policy.model, policy.tokenizer, [self._problems[q.text] for q in queries])
