"""Replicas of the value model beside the policy's ranks: four nodes of eight logical GPUs, in one Ray cluster here."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table
from verl.single_controller.ray.base import RayResourcePool, ResourcePoolManager

from value_model.serving.placement import replica_options

NODES, GPUS = 4, 8
COLOCATED = ResourcePoolManager.__dataclass_fields__["max_colocate_count"].default  # verl's share of a GPU is 1/3


def node(ranks: int, resource: str = "GPU") -> SimpleNamespace:
    return SimpleNamespace(bundle_count=ranks, bundle_specs=[{"CPU": 3.0, resource: 1.0}] * ranks)


def bundles(options: list[dict]) -> list[int]:
    return [o["scheduling_strategy"].placement_group_bundle_index for o in options]


def test_one_replica_a_node_sits_with_the_last_rank() -> None:
    options = replica_options([node(8), node(8)], per_node=1, gpu_fraction=0.1)
    assert bundles(options) == [7, 7]
    assert all(o["num_gpus"] == 0.1 and o["num_cpus"] == 0 for o in options)


@pytest.mark.parametrize("per_node, expected", [(2, [7, 3]), (3, [7, 5, 2]), (8, [7, 6, 5, 4, 3, 2, 1, 0])])
def test_more_replicas_spread_over_a_nodes_ranks(per_node: int, expected: list[int]) -> None:
    assert bundles(replica_options([node(8)], per_node, 0.1)) == expected


def test_more_replicas_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"replicas_per_node=3 is not allowed: a node has 2 ranks"):
        replica_options([node(2)], per_node=3, gpu_fraction=0.1)


def test_other_accelerators_are_booked_by_their_name() -> None:
    assert replica_options([node(8, "NPU")], 1, 0.25)[0]["resources"] == {"NPU": 0.25}


def test_without_placement_groups_a_replica_is_an_ordinary_process() -> None:
    assert replica_options([], per_node=2, gpu_fraction=0.1) == [{"num_cpus": 0}] * 2


@ray.remote
class Resident:
    """Whatever lives on a GPU; says where that is."""

    def where(self) -> tuple[str, str]:
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"][0]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    # The cluster's address is written there: in the machine's folder it would draw trainings that run meanwhile.
    folder = tempfile.mkdtemp(prefix="ray")  # tmp_path is too long for Ray's sockets
    monkeypatch.setenv("RAY_TMPDIR", folder)
    cluster = Cluster()
    for _ in range(NODES):
        cluster.add_node(num_cpus=GPUS * COLOCATED, num_gpus=GPUS, object_store_memory=80_000_000)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_thirty_two_ranks_and_four_value_models_share_the_gpus_without_oversubscription(cluster: Cluster) -> None:
    pool = RayResourcePool([GPUS] * NODES, max_colocate_count=COLOCATED)
    groups = pool.get_placement_groups(device_name="cpu")
    # As verl places the policy's workers: a third of a bundle's GPU each, bundle by bundle.
    policy = [
        Resident.options(
            num_gpus=1 / COLOCATED,
            scheduling_strategy=ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, bundle),
        ).remote()
        for group in groups
        for bundle in range(GPUS)
    ]
    options = replica_options(groups, per_node=1, gpu_fraction=0.1)
    value_models = [Resident.options(**o).remote() for o in options]
    ranks = ray.get([p.where.remote() for p in policy])
    replicas = ray.get([v.where.remote() for v in value_models])

    show(ranks, replicas)
    assert len(set(ranks)) == NODES * GPUS, "every rank has a GPU of its own"
    assert len({where for where, _ in replicas}) == NODES, "every node has a value model"
    assert [ranks.index(r) % GPUS for r in replicas] == [GPUS - 1] * NODES, "it lives with the node's last rank"
    booked = Counter({gpu: 1 / COLOCATED for gpu in ranks})
    for gpu in replicas:
        booked[gpu] += 0.1
    assert max(booked.values()) <= 1
    assert_rest_is_free(booked)


def assert_rest_is_free(booked: Counter) -> None:
    total = ray.cluster_resources()["GPU"]
    assert total == NODES * GPUS
    # Bundles reserve whole GPUs; within them, what is booked is what was asked for.
    free = sum(v for k, v in ray.available_resources().items() if k.startswith("GPU_group_") and k.count("_") == 2)
    # Ray books in ten-thousandths of a GPU.
    assert free == pytest.approx(total - sum(booked.values()), abs=1e-4 * len(booked))


def show(ranks: list[tuple[str, str]], replicas: list[tuple[str, str]]) -> None:
    names = {where: f"node {i}" for i, where in enumerate(dict.fromkeys(where for where, _ in ranks))}
    residents = defaultdict(list)
    for rank, gpu in enumerate(ranks):
        residents[gpu].append(f"policy {rank}")
    for number, gpu in enumerate(replicas):
        residents[gpu].append(f"V0 {number}")
    table = Table("", *(f"bundle {i}" for i in range(GPUS)), title="which GPU has which model")
    for where, name in names.items():
        gpus = [gpu for gpu in ranks if gpu[0] == where]
        table.add_row(name, *(" + ".join(residents[gpu]) for gpu in gpus))
    Console(width=180).print(table)
