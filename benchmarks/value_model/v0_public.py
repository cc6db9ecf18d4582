"""The query-performance data of the authors' V0 repository as a trajectory table.

`python -m benchmarks.value_model.v0_public FOLDER trajectories.parquet` reads `data/` of a clone of Now-Join-Us/V0;
`python -m value_model.trajectories trajectories.parquet --out DIR` then splits it by prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from value_model.trajectories import check, write_trajectories

PARTS = ("context", "train", "validity")
ROLLOUTS = 10  # not stored: the scores are multiples of 0.2


def load(folder: Path, parts: Sequence[str] = PARTS) -> pd.DataFrame:
    """Trajectories of the named parts.

    Args:
        folder: holds ``prompt_dict.json`` and ``<part>.jsonl``.
        parts: "context" is 512 prompts for each of 6 (model, step) groups; "train" and "validity" are pairs of
            prompts chosen by the authors, so their success rates are no fair sample.

    Raises:
        FileNotFoundError: a file is missing.
        value_model.trajectories.TrajectoryError: a prompt or a score is not what it should be.
    """
    prompts = json.loads((folder / "prompt_dict.json").read_text())
    rows = pd.concat([pd.read_json(folder / f"{part}.jsonl", lines=True) for part in parts], ignore_index=True)
    prompt_id = rows["dataset"] + "_" + rows["id"].astype(str)
    table = rows.assign(prompt_id=prompt_id, prompt=prompt_id.map(prompts), data_source=rows["dataset"], n=ROLLOUTS)
    return check(table, str(folder))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds context.jsonl, train.jsonl, validity.jsonl, prompt_dict.json")
    parser.add_argument("out", type=Path, help="parquet file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    table = load(args.folder, args.parts)
    write_trajectories(table, args.out)
    print(f"{len(table)} rows written to {args.out}")


if __name__ == "__main__":
    main()
