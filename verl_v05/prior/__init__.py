"""Priors: predictions of a prompt's success probability made before its rollouts are scored.

To add one, write a :class:`Prior` and name its class path in ``algorithm.v05.prior.provider`` (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import replace

from verl_v05.prior.base import NoPrior, Prior
from verl_v05.prior.history import HistoryPrior
from verl_v05.prior.query import Outcome, Query
from verl_v05.registry import Registry, SettingsError
from verl_v05.settings import PRIOR, ProviderSettings

__all__ = ["PROVIDERS", "HistoryPrior", "NoPrior", "Outcome", "Prior", "Query", "make_prior"]

PROVIDERS = Registry(
    key=f"{PRIOR}.provider",
    base="verl_v05.prior.Prior",
    names={
        "history": "verl_v05.prior.history.HistoryPrior",
        "none": "verl_v05.prior.base.NoPrior",
        "v0": "verl_v05.prior.value_model.ValueModelPrior",
        "http": "verl_v05.prior.http.HttpPrior",
    },
)


def make_prior(settings: ProviderSettings, key: str = PRIOR) -> Prior:
    """Build the configured provider.

    Args:
        key: of the settings, for messages.

    Raises:
        SettingsError: the provider is unknown, cannot be imported, is no :class:`Prior`, or refuses its kwargs.
    """
    provider = replace(PROVIDERS, key=f"{key}.provider").resolve(settings.provider)
    try:
        return provider(**settings.kwargs)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{key}.kwargs={settings.kwargs!r} for {provider.__name__}: {error}") from error
