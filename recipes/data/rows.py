"""Rows as verl's RLHFDataset reads them."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
import pyarrow as pa

TEMPLATE = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
_SLOT = "{problem}"

SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(
            {
                "id": pa.string(),
                "index": pa.int64(),
                "split": pa.string(),
                "problem": pa.string(),
                "contaminated": pa.bool_(),
            }
        ),
    }
)


def check_template(template: str) -> str:
    """The template, if it has exactly one `{problem}`.

    Raises:
        ValueError: it has none or several.
    """
    if template.count(_SLOT) != 1:
        raise ValueError(f"--template {template!r} has {template.count(_SLOT)} times {_SLOT}; it needs it once")
    return template


def verl_rows(
    problems: pd.DataFrame, data_source: str, split: str, contaminated: Collection[str], template: str = TEMPLATE
) -> pa.Table:
    """One row a problem, in their order.

    Args:
        problems: id, problem, answer.
        data_source: what verl names its metrics after.
        split: "train" or "test".
        contaminated: ids of the problems that are in both the training set and a benchmark.
        template: the prompt, with `{problem}` in it; other braces stay as they are.
    """
    rows = [
        {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": template.replace(_SLOT, row.problem)}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": row.answer},
            "extra_info": {
                "id": row.id,
                "index": index,
                "split": split,
                "problem": row.problem,
                "contaminated": row.id in contaminated,
            },
        }
        for index, row in enumerate(problems.itertuples())
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
