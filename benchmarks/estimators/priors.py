"""Predictions of real priors on held-out prompts of the authors' public data, kept in a parquet file.

The data are not redistributed here, so the file belongs under ``runs/`` and is made anew where it is missing.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.value_model.v0_public import load
from value_model.evaluation.baselines import Fitted, Logistic, remembered
from value_model.evaluation.predictions import VALUE_MODEL, ValueModelPredictor, predict_all
from value_model.evaluation.tasks import tasks_from
from value_model.files import replaced
from value_model.trajectories import KEY, split_by_prompt

CONTEXT = 256
# The split of benchmarks/value_model/train_public.sh: with another one the value model would be asked about prompts
# that it was trained on.
FRACTIONS = {"train": 0.8, "validation": 0.2}
SEED = 0
LOGISTIC = "logistic, fitted"
PRIORS = (VALUE_MODEL, LOGISTIC)


def predictions(public: Path, model: str, encoder: str, cache: Path) -> pd.DataFrame:
    """Held-out rows of the public data with a success probability of each prior.

    Args:
        public: ``data/`` of a clone of Now-Join-Us/V0.
        model: folder of a value model that ``benchmarks/value_model/train_public.sh`` trained.
        encoder: folder or hub id of its sentence encoder.
        cache: parquet file to read, or to write where there is none; delete it to ask another model.

    Returns:
        model, step, score, n, and a column in [0, 1] for each of ``PRIORS``.
    """
    if not cache.exists():
        with replaced(cache) as partial:
            _predict(public, model, encoder).to_parquet(partial, index=False)
    return pd.read_parquet(cache)


def _predict(public: Path, model: str, encoder: str) -> pd.DataFrame:
    from sentence_transformers import SentenceTransformer

    from value_model.model import ValueModel

    encode = SentenceTransformer(encoder).encode
    embed = remembered(lambda texts: encode(list(texts), batch_size=16, show_progress_bar=True))
    rows = load(public, ["context"]).sort_values(KEY, ignore_index=True)  # contexts depend on the order
    parts = split_by_prompt(rows, FRACTIONS, SEED)
    tasks = tasks_from(parts["train"], parts["validation"], CONTEXT, SEED)
    predictors = [
        ValueModelPredictor(ValueModel.from_pretrained(model, encoder)),
        Fitted(Logistic(embed), parts["train"]),
    ]
    found = predict_all(predictors, tasks)
    return pd.concat([found.queries[["model", "step", "score", "n"]], found.p], axis=1)
