"""The demo's policy: a character tokenizer and a tiny Qwen3, warmed up to be partly right."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from recipes.demo.task import LEVELS, Problem, problems_of

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"

# The task needs only digits and operators. The letters let any plain text be encoded, which an
# inference server does when it warms itself up.
_CHARACTERS = "0123456789+-*=? \nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:#<>|_/()[]{}\\"

_WIDTH = 128
_IGNORED = -100  # the label that cross-entropy leaves out


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, whose chat template only joins contents."""
    tokens = [PAD, EOS, BOS, "<|im_start|>", "<|im_end|>", *_CHARACTERS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, bos_token=BOS)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return a randomly initialised fp32 Qwen3 of about 0.3 million parameters.

    The random state is torch's global one. The head size and the even head counts are ones that
    inference servers have kernels for. Weights start at a standard deviation of 1 / sqrt(width),
    because the usual 0.02 is meant for wide models and makes the warm-up of this one far slower.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=_WIDTH**-0.5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return Qwen3ForCausalLM(config).float()


def _encode(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encode `prompt answer <eos>` rows, right-padded to the longest.

    Returns ids, attention mask and labels, each int64 of shape (rows, length); the labels are the
    ids on the answer and its <eos>, and the ignored label elsewhere.
    """
    encoded_prompts = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    encoded_answers = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    length = 1 + max(len(p) + len(a) for p, a in zip(encoded_prompts, encoded_answers, strict=True))
    shape = (len(encoded_prompts), length)
    ids = torch.full(shape, tokenizer.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, _IGNORED)
    for row, (prompt, answer) in enumerate(zip(encoded_prompts, encoded_answers, strict=True)):
        sequence = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
        labels[row, len(prompt) : len(sequence)] = sequence[len(prompt) :]
    return ids, mask, labels


def _answer_log_probs(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    answers: Sequence[str],
) -> torch.Tensor:
    """Return log P(answer <eos> | prompt) at temperature 1, in nats, of shape (rows,)."""
    ids, mask, labels = _encode(tokenizer, prompts, answers)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=_IGNORED, reduction="none"
    )
    return -losses.sum(-1)


@torch.no_grad()
def success_probabilities(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]
) -> np.ndarray:
    """Return the exact probability, in [0, 1], of sampling each true answer at temperature 1.

    Teacher forcing gives it, so no sampling noise enters. The result has shape (len(problems),).
    """
    log_probs = _answer_log_probs(model, tokenizer, [p.prompt for p in problems], [str(p.answer) for p in problems])
    return log_probs.exp().double().numpy()


def warm_up(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    competences: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    *,
    steps: int,
    problems_per_step: int,
    peak_lr: float,
    on_step: Callable[[float], None],
) -> None:
    """Train `model` in place until it mixes true answers and slips as `competences` asks.

    A step draws problems from the whole problem space, evenly over levels and then evenly within
    the level: the validation prompts are held out from reinforcement learning, not from the
    warm-up. Each problem appears with its true answer, weighted by its competence, and with its
    slip, weighted by the rest; weighing both teaches the mixture faster than sampling one label.
    An answer that would weigh nothing is left out, so competences of one train on the truth alone.
    The learning rate rises over the first twentieth of the steps, then falls to zero along a
    cosine; `steps` must exceed 20 for that. `on_step` gets each step's loss, in nats per problem.
    """
    pools = [list(problems_of(level)) for level in LEVELS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak_lr, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    model.train()
    for _ in range(steps):
        drawn = [pools[index] for index in rng.integers(len(pools), size=problems_per_step)]
        problems = [pool[rng.integers(len(pool))] for pool in drawn]
        prompts, answers, weights = _weighted_labels(problems, competences)
        losses = -_answer_log_probs(model, tokenizer, prompts, answers)
        loss = (losses * torch.tensor(weights)).sum() / problems_per_step
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(loss.item())
    model.eval()


def _weighted_labels(
    problems: Sequence[Problem], competences: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str], list[float]]:
    """List each problem's prompt with its true answer and its slip, and their positive weights."""
    rows = []
    for problem in problems:
        competence = float(competences[problem.level][problem.skill_digit])
        rows.append((problem.prompt, str(problem.answer), competence))
        rows.append((problem.prompt, str(problem.slip), 1.0 - competence))
    prompts, answers, weights = zip(*(row for row in rows if row[2] > 0.0), strict=True)
    return list(prompts), list(answers), list(weights)
