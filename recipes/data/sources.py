"""Where the training set and the benchmarks come from, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass

DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


@dataclass(frozen=True)
class Source:
    """One data set on the hub.

    Attributes:
        name: `data_source` of its rows.
        split: "train" or "test".
        repository, revision, file: on the hub; the revision is pinned, so that a run next year reads the same bytes.
        problem, answer, id: columns of that file, `a.b` for a field of a column; an empty `id` numbers the rows.
        counts: rows of the published copies, the one on the hub first.
        licence: as its publisher states it.
        aliases: other names of local files; case and punctuation do not count.
        before, after: what the publisher wrote around every problem, which is taken off with the whitespace next to it.
        context: column with text that belongs before the problem, where there is one.
    """

    name: str
    split: str
    repository: str
    revision: str
    file: str
    problem: str
    answer: str
    id: str
    counts: tuple[int, ...]
    licence: str
    aliases: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    context: str = ""

    @property
    def homepage(self) -> str:
        """Its page on the hub."""
        return f"https://huggingface.co/datasets/{self.repository}"


SOURCES = (
    Source(
        name="dapo_math_17k",
        split="train",
        repository="BytedTsinghua-SIA/DAPO-Math-17k",
        revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",
        file="data/dapo-math-17k.parquet",
        problem="prompt.0.content",
        answer="reward_model.ground_truth",
        id="extra_info.index",
        counts=(1_791_700, 17_917),  # each row is on the hub 100 times
        licence="Apache-2.0",
        before=DAPO_BEFORE,
        after=DAPO_AFTER,
    ),
    Source(
        name="aime24",
        split="test",
        repository="math-ai/aime24",
        revision="83a7f387baaa524a8bda0022eac0541582297103",
        file="test-00000-of-00001.parquet",
        problem="problem",
        answer="solution",
        id="id",
        counts=(30,),
        licence="Apache-2.0 for the collection; the problems are the MAA's",
        aliases=("aime2024",),
    ),
    Source(
        name="aime25",
        split="test",
        repository="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        file="test.jsonl",
        problem="problem",
        answer="answer",
        id="id",
        counts=(30,),
        licence="Apache-2.0 for the collection; the problems are the MAA's",
        aliases=("aime2025",),
    ),
    Source(
        name="amc23",
        split="test",
        repository="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        file="test-00000-of-00001.parquet",
        problem="question",
        answer="answer",
        id="id",
        counts=(40,),
        licence="Apache-2.0 for the collection; the problems are the MAA's",
        aliases=("amc2023",),
    ),
    Source(
        name="math500",
        split="test",
        repository="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        file="test.jsonl",
        problem="problem",
        answer="answer",
        id="unique_id",
        counts=(500,),
        licence="MIT (MATH, PRM800K)",
    ),
    Source(
        name="minerva_math",
        split="test",
        repository="math-ai/minervamath",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        file="test.jsonl",
        problem="question",
        answer="answer",
        id="",
        counts=(272,),
        licence="not stated; the problems are from MIT OpenCourseWare",
        aliases=("minerva",),
    ),
    Source(
        name="olympiadbench",
        split="test",
        repository="Hothan/OlympiadBench",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        file="OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
        problem="question",
        answer="final_answer",
        id="id",
        counts=(674, 675),  # 675 in the authors' repository
        licence="Apache-2.0 on the hub, MIT in the authors' repository",
        context="context",
    ),
)
TRAIN = next(source for source in SOURCES if source.split == "train")
TESTS = tuple(source for source in SOURCES if source.split == "test")
