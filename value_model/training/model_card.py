"""The model card that a training run writes next to its model."""

from __future__ import annotations

from dataclasses import asdict
from string import Template
from typing import Any

import yaml

from value_model.training.settings import TrainSettings

_TEMPLATE = Template("""\
---
library_name: value_model
tags: [value-model, reinforcement-learning, in-context-learning]
---

# Value model

Predicts the probability that a policy solves a prompt, from the outcomes of other prompts (the context).

```python
from value_model import ValueModel

model = ValueModel.from_pretrained("PATH")
p = model.predict(context_prompts, context_scores, prompts)  # scores in [-1, 1], p in [0, 1]
```

## Data

$pairs measured prompts ($prompts distinct) of $models policies, from $sources.
$tasks meta-tasks an epoch; $skipped (policy, step) groups were skipped for want of context or of a class.
$heldout

## Validation

$validation

## Settings

```yaml
$settings
```
""")


def model_card(settings: TrainSettings, data: dict[str, Any], best: dict[str, float]) -> str:
    """Text of the card.

    Args:
        settings: of the training run.
        data: counts of what was trained on: pairs, prompts, models, sources, tasks, skipped.
        best: validation metrics of the model, and the step it is from; empty without validation.
    """
    kept = {key: value for key, value in asdict(settings).items() if key not in ("out", "device", "wandb_project")}
    return _TEMPLATE.substitute(
        {**data, "sources": ", ".join(data["sources"])},
        heldout=_held_out(settings),
        validation=_validation(settings, best),
        settings=yaml.safe_dump(kept, sort_keys=False).rstrip(),
    )


def _held_out(settings: TrainSettings) -> str:
    models = settings.data.heldout_models
    policies = f" and the policies {', '.join(models)}" if models else ""
    return f"Never trained on: {settings.data.heldout_prompts:.0%} of the prompts{policies}."


def _validation(settings: TrainSettings, best: dict[str, float]) -> str:
    if not best:
        return "None."
    table = "\n".join(f"| {key} | {value:.4f} |" for key, value in best.items() if key != "step")
    return (
        f"On held-out queries, after update {best['step']:.0f}, the best by {settings.validation.metric}:\n\n"
        f"| metric | value |\n|---|---|\n{table}"
    )
