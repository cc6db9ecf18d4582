"""Text cache: the bound, what is dropped first, and the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from value_model.cache import TextCache


class Maker:
    """Turns a text into its length and first character; remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[Tensor]:
        self.calls.append(texts)
        return [torch.tensor([float(len(text)), float(ord(text[0]) if text else -1)]) for text in texts]

    @property
    def made(self) -> list[str]:
        return [text for call in self.calls for text in call]


def fill(capacity: int, *texts: str, identity: str = "") -> tuple[TextCache, Maker]:
    cache, make = TextCache(capacity, identity), Maker()
    for text in texts:
        cache.get([text], make)
    return cache, make


def held(cache: TextCache, *texts: str) -> list[str]:
    """Which of ``texts`` are held; asking for a held text makes it recent, so ask once."""
    make = Maker()
    frozen = TextCache(10_000)
    frozen._values = cache._values.copy()
    frozen.get(texts, make)
    return [text for text in texts if text not in make.made]


def test_values_come_in_the_order_of_the_texts() -> None:
    cache, make = fill(10, "b")
    texts = ["ccc", "b", "", "aa", "b", "ccc"]
    for _ in range(2):
        assert [value.tolist() for value in cache.get(texts, make)] == [v.tolist() for v in Maker()(texts)]


def test_each_text_is_made_once_in_one_call() -> None:
    cache, make = TextCache(10), Maker()
    cache.get(["a", "b", "a", "c", "b"], make)
    cache.get(["c", "d", "a", "d"], make)
    assert make.calls == [["a", "b", "c"], ["d"]]


def test_nothing_is_made_when_everything_is_held_or_asked_for() -> None:
    cache, make = fill(10, "a")
    assert cache.get([], make) == []
    cache.get(["a", "a"], make)
    assert make.calls == [["a"]]


def test_hits_and_misses_are_counted() -> None:
    cache, make = TextCache(10), Maker()
    cache.get(["a", "a", "b"], make)
    cache.get(["a", "c"], make)
    assert (cache.hits, cache.misses) == (2, 3)


def test_the_capacity_is_never_exceeded() -> None:
    cache, make = TextCache(3), Maker()
    for i in range(20):
        cache.get([str(i), str(i + 1)], make)
        assert len(cache) <= 3


def test_the_least_recently_used_text_is_dropped_first() -> None:
    cache, make = fill(3, "a", "b", "c")
    cache.get(["a"], make)  # now b is the oldest
    cache.get(["d"], make)
    assert held(cache, "a", "b", "c", "d") == ["a", "c", "d"]
    cache.get(["e"], make)
    assert held(cache, "a", "b", "c", "d", "e") == ["a", "d", "e"]


def test_a_batch_larger_than_the_capacity_is_answered_in_full() -> None:
    cache, make = fill(2, "x")
    texts = ["x", *"abcdef"]
    assert [value.tolist() for value in cache.get(texts, make)] == [v.tolist() for v in Maker()(texts)]
    assert len(cache) == 2
    assert held(cache, *texts) == ["e", "f"]
    assert make.made == texts


def test_clear_forgets_every_text() -> None:
    cache, make = fill(3, "a")
    cache.clear()
    assert len(cache) == 0
    cache.get(["a"], make)
    assert make.calls == [["a"], ["a"]]


def test_a_failing_maker_leaves_the_cache_as_it_was() -> None:
    cache, _ = fill(2, "a", "b")

    def fail(texts: list[str]) -> list[Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.get(["a", "c"], fail)
    with pytest.raises(ValueError):
        cache.get(["c", "d"], lambda texts: [torch.zeros(1)])  # one value for two texts
    assert held(cache, "a", "b", "c", "d") == ["a", "b"]
    assert (cache.hits, cache.misses) == (0, 2)


@pytest.mark.parametrize("text", ["", "héllo", "数学", "\x00", "a\nb", "\ud800", "x" * 100_000])
def test_any_text_is_a_key(text: str) -> None:
    cache, make = TextCache(10), Maker()
    first = cache.get([text, "other"], make)[0]
    assert torch.equal(cache.get([text], make)[0], first)
    assert make.calls == [[text, "other"]]


def test_texts_that_look_alike_are_told_apart() -> None:
    cache, make = TextCache(10), Maker()
    texts = ["a", "a ", "A", "a\n", "\u00e1", "a\u0301"]
    cache.get(texts, make)
    assert len(cache) == len(make.made) == len(texts)


def test_save_and_load_give_the_same_values(tmp_path: Path) -> None:
    cache, make = fill(10, "a", "bb", "", identity="model 1")
    cache.save(tmp_path / "deep" / "cache.safetensors")
    again = TextCache(10, "model 1")
    again.load(tmp_path / "deep" / "cache.safetensors")
    new = Maker()
    texts = ["", "bb", "a"]
    assert [v.tolist() for v in again.get(texts, new)] == [v.tolist() for v in cache.get(texts, make)]
    assert new.calls == []


def test_load_keeps_the_order_of_use(tmp_path: Path) -> None:
    texts = [str(i) for i in range(12)]  # two digits: written order must not be the order of strings
    cache, make = fill(12, *texts)
    cache.get(["0"], make)
    cache.save(tmp_path / "cache")
    again = TextCache(12)
    again.load(tmp_path / "cache")
    again.get(["new", "newer"], Maker())
    assert held(again, *texts) == ["0", *texts[3:]]


def test_load_into_a_smaller_cache_keeps_the_most_recent(tmp_path: Path) -> None:
    cache, _ = fill(5, *"abcde")
    cache.save(tmp_path / "cache")
    small = TextCache(2)
    small.load(tmp_path / "cache")
    assert held(small, *"abcde") == ["d", "e"]


def test_load_adds_to_what_is_held(tmp_path: Path) -> None:
    fill(5, "a", "b")[0].save(tmp_path / "cache")
    cache, _ = fill(5, "c")
    cache.load(tmp_path / "cache")
    assert held(cache, *"abc") == ["a", "b", "c"]


def test_an_empty_cache_can_be_saved_and_loaded(tmp_path: Path) -> None:
    TextCache(5, "m").save(tmp_path / "cache")
    cache = TextCache(5, "m")
    cache.load(tmp_path / "cache")
    assert len(cache) == 0


def test_rows_of_one_batch_can_be_saved(tmp_path: Path) -> None:
    cache = TextCache(5)
    cache.get(["a", "b"], lambda texts: torch.arange(6.0).reshape(2, 3).unbind())
    cache.save(tmp_path / "cache")
    again = TextCache(5)
    again.load(tmp_path / "cache")
    assert [v.tolist() for v in again.get(["b", "a"], Maker())] == [[3, 4, 5], [0, 1, 2]]


@pytest.mark.parametrize(("written", "read"), [("model 1", "model 2"), ("", "model 1"), ("model 1", "")])
def test_features_of_another_model_are_refused(tmp_path: Path, written: str, read: str) -> None:
    fill(5, "a", identity=written)[0].save(tmp_path / "cache")
    cache, _ = fill(5, "b", identity=read)
    with pytest.raises(ValueError) as error:
        cache.load(tmp_path / "cache")
    for part in (str(tmp_path / "cache"), repr(written), repr(read)):
        assert part in str(error.value)
    assert held(cache, "a", "b") == ["b"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache.safetensors"
    fill(5, "a")[0].save(path)
    before = path.read_bytes()

    def fail(tensors: dict, target: Path, metadata: dict) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("value_model.cache.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        fill(5, "a", "b")[0].save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").write_bytes(content)
    with pytest.raises(ValueError, match="cache is damaged or cannot be read.*delete it"):
        TextCache(5).load(tmp_path / "cache")
