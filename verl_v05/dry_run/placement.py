"""Which process sits on which GPU."""

from __future__ import annotations

from dataclasses import dataclass

from verl_v05.dry_run.checks import value_model_bundles
from verl_v05.dry_run.launch import Launch


@dataclass(frozen=True)
class Place:
    """One GPU, by verl's order: ranks count bundle by bundle, node by node.

    ``bundle`` is Ray's, which need not be the device's own number.
    """

    node: int
    bundle: int
    rank: int  # of the actor's shard, and of the reference policy's and critic's
    replica: int  # of the inference engine
    replica_rank: int
    value_model: bool


def place(launch: Launch) -> tuple[Place, ...]:
    """Every GPU of the trainer's nodes."""
    hosts: list[int] = []
    if launch.value_model is not None:
        hosts = value_model_bundles(launch.gpus_per_node, launch.value_model.per_node)
    return tuple(
        Place(
            node=rank // launch.gpus_per_node,
            bundle=(bundle := rank % launch.gpus_per_node),
            rank=rank,
            replica=rank // launch.rollout.gpus,
            replica_rank=rank % launch.rollout.gpus,
            value_model=bundle in hosts,
        )
        for rank in range(launch.gpus)
    )
