"""The demo's policy: a character tokenizer and a tiny Qwen3, warmed up to be partly right."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from recipes.demo.reward import compute_score
from recipes.demo.task import SHAPE, Batch, TaskProblem

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"

# The tasks need only digits, operators and a comma. The letters let any plain text be encoded, which an
# inference server does when it warms itself up.
_CHARACTERS = "0123456789+-*=? \nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:#<>|_/()[]{}\\"

_ROWS = 256  # of one forward pass
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


def build_model(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, int] = SHAPE) -> Qwen3ForCausalLM:
    """Return a randomly initialised fp32 Qwen3 of a task's shape.

    The random state is torch's global one. The head size and the even head counts are ones that
    inference servers have kernels for. Weights start at a standard deviation of 1 / sqrt(width),
    because the usual 0.02 is meant for wide models and makes the warm-up of this one far slower.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=shape["hidden_size"] ** -0.5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **shape,
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
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: Sequence[TaskProblem]
) -> np.ndarray:
    """Return the exact probability, in [0, 1], of sampling each true response at temperature 1.

    Teacher forcing gives it, so no sampling noise enters. The result has shape (len(problems),). Of a calculation it is
    a lower bound of the probability of being right: other responses can have the right answer too.
    """
    # Rows of similar length share a pass, because passes are padded to their longest.
    order = np.argsort([len(p.prompt) + len(p.response) for p in problems], kind="stable")
    values = np.empty(len(problems))
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        chosen = [problems[row] for row in rows]
        log_probs = _answer_log_probs(model, tokenizer, [p.prompt for p in chosen], [p.response for p in chosen])
        values[rows] = log_probs.exp().double().numpy()
    return values


@torch.no_grad()
def sample_responses(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_tokens: int,
    samples: int = 1,
) -> torch.Tensor:
    """Sample responses at temperature 1 with torch's global random state.

    Returns their ids, padded behind their end, of shape (len(prompts) * samples, length), a prompt's rows together.
    """
    inputs = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=True,
        top_k=0,
        num_return_sequences=samples,
        max_new_tokens=max_tokens,
    )
    return ids[:, inputs["input_ids"].shape[1] :]


def sampled_success(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[TaskProblem],
    samples: int,
    max_tokens: int,
) -> np.ndarray:
    """Return each problem's share, in [0, 1], of rewarded responses among `samples` at temperature 1.

    The random state is torch's global one. The result has shape (len(problems),).
    """
    scores = []
    per_pass = max(1, _ROWS // samples)
    for start in range(0, len(problems), per_pass):
        chosen = problems[start : start + per_pass]
        ids = sample_responses(model, tokenizer, [p.prompt for p in chosen], max_tokens, samples)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for row, text in enumerate(texts):
            problem = chosen[row // samples]
            scores.append(compute_score(problem.data_source, text, str(problem.answer))["score"])
    return np.reshape(scores, (len(problems), samples)).mean(axis=1)


def warm_up(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterator[Batch],
    *,
    steps: int,
    problems_per_step: int,
    peak_lr: float,
    on_step: Callable[[float], None],
) -> None:
    """Train `model` in place on the next `steps` batches of a task's `warm_up_batches`.

    The learning rate rises over the first twentieth of the steps, then falls to zero along a
    cosine; `steps` must exceed 20 for that. `on_step` gets each step's loss, in nats per problem.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak_lr, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    model.train()
    for _ in range(steps):
        prompts, responses, weights = next(batches)
        losses = -_answer_log_probs(model, tokenizer, prompts, responses)
        loss = (losses * torch.tensor(weights)).sum() / problems_per_step
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(loss.item())
    model.eval()
