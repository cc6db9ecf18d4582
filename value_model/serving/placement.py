"""Placement of replicas: in bundles of the trainer's own placement groups, next to the policy's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ACCELERATORS = ("GPU", "NPU")


def replica_options(
    placement_groups: Sequence[PlacementGroup], per_node: int, gpu_fraction: float
) -> list[dict[str, Any]]:
    """Ray actor options, one entry per replica.

    Args:
        placement_groups: the trainer's, one per node; without any, replicas are placed by Ray and get no accelerator.
        per_node: replicas in each group.
        gpu_fraction: share of a bundle's accelerator that Ray reserves for a replica.

    Raises:
        ValueError: a node has fewer bundles than ``per_node``.
    """
    if not placement_groups:
        return [{"num_cpus": 0} for _ in range(per_node)]
    return [
        {
            "num_cpus": 0,
            **_accelerator_share(group.bundle_specs[bundle], gpu_fraction),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
        }
        for group in placement_groups
        for bundle in _bundle_indices(group.bundle_count, per_node)
    ]


def _bundle_indices(count: int, per_node: int) -> list[int]:
    """Evenly spaced bundles, from the last one, because a node's first rank has the highest load."""
    if per_node > count:
        raise ValueError(
            f"algorithm.v05.prior.kwargs.replicas_per_node={per_node} is not allowed: a node has {count} ranks"
        )
    return [count - 1 - replica * count // per_node for replica in range(per_node)]


def _accelerator_share(bundle: dict[str, float], fraction: float) -> dict[str, Any]:
    name = next((name for name in ACCELERATORS if bundle.get(name)), None)
    if name is None:
        return {}
    return {"num_gpus": fraction} if name == "GPU" else {"resources": {name: fraction}}
