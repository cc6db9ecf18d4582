"""Priors: predictions of a prompt's success probability made before its rollouts are scored."""

from __future__ import annotations

from importlib import import_module

from verl_v05.prior.base import NoPrior, Outcome, Prior, Query
from verl_v05.prior.history import HistoryPrior
from verl_v05.settings import PriorSettings, SettingsError

__all__ = ["HistoryPrior", "NoPrior", "Outcome", "Prior", "Query", "make_prior"]

# By path: a run imports only the provider it uses.
PROVIDERS = {
    "history": "verl_v05.prior.history.HistoryPrior",
    "none": "verl_v05.prior.base.NoPrior",
    "v0": "verl_v05.prior.value_model.ValueModelPrior",
    "http": "verl_v05.prior.http.HttpPrior",
}


def make_prior(settings: PriorSettings) -> Prior:
    """Build the configured provider.

    Raises:
        SettingsError: the provider is unknown, cannot be imported, is no :class:`Prior`, or refuses its kwargs.
    """
    provider = _import_provider(settings.provider)
    try:
        return provider(**settings.kwargs)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"algorithm.v05.prior.kwargs={settings.kwargs!r} for {provider.__name__}: {error}"
        ) from error


def _import_provider(path: str) -> type[Prior]:
    allowed = f"one of {', '.join(PROVIDERS)}, or the path of a verl_v05.prior.Prior subclass"
    module, _, name = PROVIDERS.get(path, path).rpartition(".")
    try:
        provider = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"algorithm.v05.prior.provider={path!r} must be {allowed}: {error}") from error
    if not (isinstance(provider, type) and issubclass(provider, Prior)):
        raise SettingsError(f"algorithm.v05.prior.provider={path!r} is not a Prior subclass; it must be {allowed}")
    return provider
