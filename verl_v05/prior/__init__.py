"""Priors: predictions of a prompt's success probability made before its rollouts are scored.

To add one, write a :class:`Prior` and name its class path in ``algorithm.v05.prior.provider`` (docs/extending.md).
"""

from __future__ import annotations

from verl_v05.prior.base import NoPrior, Prior
from verl_v05.prior.history import HistoryPrior
from verl_v05.prior.query import Outcome, Query
from verl_v05.registry import Registry, SettingsError
from verl_v05.settings import PriorSettings

__all__ = ["PROVIDERS", "HistoryPrior", "NoPrior", "Outcome", "Prior", "Query", "make_prior"]

PROVIDERS = Registry(
    key="algorithm.v05.prior.provider",
    base="verl_v05.prior.Prior",
    names={
        "history": "verl_v05.prior.history.HistoryPrior",
        "none": "verl_v05.prior.base.NoPrior",
        "v0": "verl_v05.prior.value_model.ValueModelPrior",
        "http": "verl_v05.prior.http.HttpPrior",
    },
)


def make_prior(settings: PriorSettings) -> Prior:
    """Build the configured provider.

    Raises:
        SettingsError: the provider is unknown, cannot be imported, is no :class:`Prior`, or refuses its kwargs.
    """
    provider = PROVIDERS.resolve(settings.provider)
    try:
        return provider(**settings.kwargs)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"algorithm.v05.prior.kwargs={settings.kwargs!r} for {provider.__name__}: {error}"
        ) from error
