"""In-context head: gradients, tabpfn's own answer, and files that are not what they should be."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tabpfn import TabPFNClassifier
from tabpfn.checkpoint import save_as_safetensors
from torch import Tensor

from tests.tiny_value_model import build_head
from value_model.config import HeadConfig
from value_model.head import HeadError, InContextHead, load_network, save_network

FEATURES = 7
NAME = "tabpfn-v2.5-classifier-own"  # tabpfn reads the version from the file's name


def task(context: int = 24, queries: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(context + queries, FEATURES, generator=generator)
    labels = x[:context, 0] + 0.3 * torch.randn(context, generator=generator) > 0
    labels[:2] = torch.tensor([True, False])
    return x[:context], labels, x[context:]


def checkpoint(head: InContextHead, **values: Any) -> dict[str, Any]:
    state, architecture = head.network.state_dict(), head.architecture
    return {"state_dict": state, "config": architecture, "architecture_name": "tabpfn_v2_5", **values}


def refusal(path: Path) -> str:
    with pytest.raises(HeadError) as error:
        load_network(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def head() -> InContextHead:
    return build_head()


def test_logits_are_two_a_query(head: InContextHead) -> None:
    for queries in (1, 2, 9):
        logits = head(*task(queries=queries))
        assert logits.shape == (queries, 2) and logits.dtype == torch.float32 and logits.isfinite().all()


def test_logits_depend_on_context_labels_and_queries(head: InContextHead) -> None:
    context, labels, queries = task()
    logits = head(context, labels, queries)
    assert logits.std(dim=0).min() > 1e-4
    for other in (head(context + torch.randn_like(context), labels, queries), head(context, ~labels, queries)):
        assert (other - logits).abs().max() > 1e-4


def test_the_gradient_reaches_every_context_row_and_every_query(head: InContextHead) -> None:
    context, labels, queries = task()
    context.requires_grad_(), queries.requires_grad_()
    head(context, labels, queries)[:, 1].sum().backward()
    for features in (context, queries):
        assert features.grad.isfinite().all()
        assert features.grad.abs().sum(1).gt(0).all() and features.grad.abs().sum(0).gt(0).all()


@pytest.fixture(scope="module")
def plain_head() -> InContextHead:
    """Without the column that tabpfn adds to tell equal rows apart.

    It is a hash of each row, after a normalisation by float32 sums over the context. So it changes wholly with the
    last bit of a feature or of a sum: without it, answers do not depend on the context's order, and have slopes.
    """
    return build_head(HeadConfig(estimators=2, fingerprint=False))


def test_the_gradient_is_the_slope(plain_head: InContextHead) -> None:
    head = plain_head
    context, labels, queries = task(queries=1)
    for features, other in (
        (queries, lambda q: head(context, labels, q)),
        (context, lambda c: head(c, labels, queries)),
    ):
        point = features.clone().requires_grad_()
        other(point)[0, 1].backward()
        step = 3e-2 * point.grad / point.grad.norm()
        with torch.no_grad():
            rise = (other(features + step)[0, 1] - other(features - step)[0, 1]) / 2
        assert rise.item() == pytest.approx((point.grad * step).sum().item(), rel=0.1)


def test_the_gradient_reaches_the_networks_weights() -> None:
    head = build_head()
    head(*task()).square().sum().backward()
    missing = [name for name, p in head.network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_tabpfn_gives_the_same_logits_from_the_saved_file(tmp_path: Path, suffix: str) -> None:
    config = HeadConfig(estimators=3, softmax_temperature=0.7, seed=5)
    head = build_head(config)
    path = tmp_path / f"{NAME}{suffix}"
    head.save(path) if suffix == ".safetensors" else torch.save(checkpoint(head), path)
    classifier = TabPFNClassifier(
        model_path=str(path),
        n_estimators=3,
        softmax_temperature=0.7,
        random_state=5,
        device="cpu",
        fit_mode="fit_preprocessors",
        differentiable_input=True,
        inference_precision=torch.float32,
        ignore_pretraining_limits=True,
    )
    context, labels, queries = task()
    classifier.fit_with_differentiable_input(context, labels.long())
    theirs = classifier.forward(queries, use_inference_mode=True, return_logits=True)
    torch.testing.assert_close(head(context, labels, queries), theirs, rtol=1e-6, atol=1e-6)


def test_the_ensemble_is_part_of_the_config() -> None:
    context, labels, queries = task()
    one, four = (build_head(HeadConfig(estimators=n))(context, labels, queries) for n in (1, 4))
    assert not torch.allclose(one, four, atol=1e-6)
    warm = build_head(HeadConfig(estimators=1, softmax_temperature=1.8))(context, labels, queries)
    torch.testing.assert_close(warm * 2, one, rtol=1e-5, atol=1e-5)


def test_two_heads_of_one_config_agree_whatever_the_global_generators_do(head: InContextHead) -> None:
    first = build_head()(*task())
    torch.manual_seed(123)
    assert torch.equal(build_head()(*task()), first)
    assert torch.equal(head(*task()), first)


def test_what_was_asked_before_does_not_change_an_answer(head: InContextHead) -> None:
    first = build_head()(*task())
    other = build_head()
    for context, seed in ((5, 1), (40, 2), (3, 3)):
        other(*task(context, seed=seed))
    context, labels, queries = task()
    other(context[:, :4], labels, queries[:, :4])  # fewer features
    other(context, ~labels, queries)
    assert torch.equal(other(context, labels, queries), first)


def test_a_query_is_answered_alone_as_among_others(head: InContextHead) -> None:
    context, labels, queries = task(queries=5)
    together = head(context, labels, queries)
    batches = build_head(HeadConfig(estimators=2, query_batch=2))(context, labels, queries)
    torch.testing.assert_close(batches, together, rtol=1e-5, atol=1e-5)
    alone = torch.cat([head(context, labels, query[None]) for query in queries])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def permutation_effect(head: InContextHead) -> float:
    context, labels, queries = task(queries=20)
    order = torch.randperm(len(context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        permuted = head(context[order], labels[order], queries).softmax(-1)
        return (permuted - head(context, labels, queries).softmax(-1)).abs().max().item()


def test_the_order_of_the_context_matters_through_tabpfns_fingerprint_alone(
    head: InContextHead, plain_head: InContextHead
) -> None:
    assert 1e-5 < permutation_effect(head) < 0.05
    assert permutation_effect(plain_head) < 1e-5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_work_after_a_call_without(mode: Callable[[], Any]) -> None:
    head = build_head()
    context, labels, queries = task()
    with mode():
        expected = head(context, labels, queries).clone()
    context.requires_grad_()
    logits = head(context, labels, queries)
    torch.testing.assert_close(logits.detach(), expected)
    logits.sum().backward()
    assert context.grad.any()


@pytest.mark.parametrize("kind", ["constant", "huge", "tiny"])
def test_unusual_features_give_finite_logits(head: InContextHead, kind: str) -> None:
    context, labels, queries = task()
    if kind == "constant":
        context[:, 0], queries[:, 0] = 1.0, 1.0
    else:
        scale = 1e6 if kind == "huge" else 1e-6
        context, queries = context * scale, queries * scale
    assert head(context, labels, queries).isfinite().all()


@pytest.mark.parametrize("features", [1, 2, 3, 10])
@pytest.mark.parametrize("context", [2, 3])
def test_the_smallest_contexts_are_answered(head: InContextHead, features: int, context: int) -> None:
    x = torch.randn(context + 2, features, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([True, False, False][:context])
    assert head(x[:context], labels, x[context:]).isfinite().all()


def test_save_and_load_give_the_same_head(head: InContextHead, tmp_path: Path) -> None:
    head.save(tmp_path / "head.safetensors")
    network, architecture = load_network(tmp_path / "head.safetensors")
    assert architecture == head.architecture
    assert torch.equal(InContextHead(network, architecture, head.config).eval()(*task()), head(*task()))


@pytest.mark.parametrize("name", ["tabpfn_v2_5", "base"])
def test_tabpfns_own_files_are_read(head: InContextHead, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{NAME}.ckpt"
    torch.save(checkpoint(head, architecture_name=name), path)
    network, architecture = load_network(path)
    assert torch.equal(InContextHead(network, architecture, head.config).eval()(*task()), head(*task()))


def test_a_missing_file_says_where_the_weights_are(tmp_path: Path) -> None:
    message = refusal(tmp_path / "head.ckpt")
    assert "licen" in message and "https://huggingface.co/Prior-Labs/tabpfn_2_5" in message
    assert "python -m value_model.pretrain_head" in message


def test_a_folder_is_no_head(tmp_path: Path) -> None:
    refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.99])
def test_a_truncated_file_is_refused(head: InContextHead, tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"head{suffix}"
    head.save(path) if suffix == ".safetensors" else torch.save(checkpoint(head), path)
    os.truncate(path, int(path.stat().st_size * kept))
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("content", [b"<html>not found</html>", b"version https://git-lfs", b"\x00" * 64, b"\x80\x02."])
def test_a_file_of_something_else_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"head{suffix}"
    path.write_bytes(content)
    assert "damaged" in refusal(path)


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self) -> tuple[Callable, tuple]:
        return shutil.rmtree, (str(self.victim),)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(head: InContextHead, tmp_path: Path, write: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    path = tmp_path / "head.ckpt"
    values = checkpoint(head, extra=Malicious(victim))
    torch.save(values, path) if write == "torch" else path.write_bytes(pickle.dumps(values))
    refusal(path)
    assert victim.is_dir()
    torch.load(path, weights_only=False) if write == "torch" else pickle.loads(path.read_bytes())
    assert not victim.exists()  # the file did hold what was refused


@pytest.mark.parametrize("name", ["tabpfn_v2", "tabpfn_v3", "resnet", None])
def test_another_architecture_is_refused(head: InContextHead, tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "head.ckpt"
    values = checkpoint(head, architecture_name=name)
    torch.save({key: value for key, value in values.items() if value is not None}, path)
    message = refusal(path)
    assert repr(name or "tabpfn_v2") in message and "tabpfn_v2_5" in message


def test_weights_of_another_shape_are_refused(head: InContextHead, tmp_path: Path) -> None:
    path = tmp_path / "head.ckpt"
    torch.save(checkpoint(head, config={**head.architecture, "emsize": 64}), path)
    assert "do not fit" in refusal(path)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_missing_or_too_many_are_refused(head: InContextHead, tmp_path: Path, change: str) -> None:
    state = dict(head.network.state_dict())
    name = next(iter(state))
    if change == "missing":
        del state[name]
    else:
        state[name := "stranger"] = torch.zeros(1)
    save_as_safetensors(checkpoint(head, state_dict=state), tmp_path / "head.safetensors")
    assert name in refusal(tmp_path / "head.safetensors")


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}, "architecture_name": "tabpfn_v2_5"}, {"config": {}, "architecture_name": "base"}, [1, 2]],
    ids=["empty", "no config", "no weights", "a list"],
)
def test_a_checkpoint_of_other_contents_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "head.ckpt")
    refusal(tmp_path / "head.ckpt")


@pytest.mark.parametrize("config", [{"emsize": "wide"}, {"emsize": 33, "nhead": 2}, None])
def test_an_impossible_architecture_is_refused(head: InContextHead, tmp_path: Path, config: dict | None) -> None:
    torch.save(checkpoint(head, config={**head.architecture, **config} if config else None), tmp_path / "head.ckpt")
    refusal(tmp_path / "head.ckpt")


@pytest.mark.parametrize(("key", "value"), [("emsize", 10**6), ("nlayers", 10**9), ("num_thinking_rows", 1e12)])
def test_an_architecture_that_is_huge_is_refused_before_it_is_built(tmp_path: Path, key: str, value: float) -> None:
    head = build_head()
    save_network(head.network, {**head.architecture, key: value}, tmp_path / "head.safetensors")
    with pytest.raises(HeadError, match=rf"head.safetensors: {key}=.* is not allowed: it must be at most "):
        load_network(tmp_path / "head.safetensors")
