"""Faults of a Ray of two nodes: one is lost, or the network between them is cut."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.faults.statement import Limit, fault
from verl_v05.trainer.watch import LAST_WORDS

pytestmark = [pytest.mark.slow, pytest.mark.faults]

RAY = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory=200000000"]
HEAD = ["--head", "--include-dashboard=false"]

# In the place of a training: a worker on the other node has a prompt, the driver waits for it under the watch.
DRIVER = """
import asyncio, sys
import ray
from verl_v05.trainer.watch import Watch

@ray.remote(num_cpus=0, resources={"far": 1})
class Worker:
    async def ready(self): ...
    async def prompt(self): await asyncio.sleep(3600)

address, folder = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
worker = Worker.options(name="agent_loop_worker").remote()
ray.get(worker.ready.remote())
with Watch(folder, 300, lambda: "in step 7"):
    prompt = worker.prompt.remote()
    print("waiting", flush=True)
    ray.get(prompt)
"""


def end(process: subprocess.Popen) -> list[int]:
    """Kill a process and all that it has started, at once; their pids."""
    if process.poll() is not None:
        return []
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    for member in family:
        member.kill()
    process.wait()
    return [member.pid for member in family]


def start_node(address: str, options: Sequence[str], namespace: str | None = None) -> subprocess.Popen:
    """Start a node of the Ray at the address, its head or another one, which waits for the head."""
    prefix = ["ip", "netns", "exec", namespace] if namespace else []
    host, _, port = address.partition(":")
    if "--head" not in options:
        answers = f"until (exec 3<>/dev/tcp/{host}/{port}) 2>/dev/null; do sleep 0.2; done"
        subprocess.run([*prefix, "timeout", "60", "bash", "-c", answers], check=True)
        options = [f"--address={address}", *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*prefix, *RAY, *options], start_new_session=True, **quiet)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these Rays; without one of its own, `ray start` takes that of the user's home, and drivers take none."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture
def namespaces(token: None) -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them: 10.77.0.1 and 10.77.0.2."""
    names = [f"v05{uuid.uuid4().hex[:8]}" for _ in range(2)]
    ends = [f"{name[3:]}e" for name in names]
    with ExitStack() as stack:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
        peers = ["type", "veth", "peer", "name", ends[1], "netns", names[1]]
        subprocess.run(["ip", "link", "add", ends[0], "netns", names[0], *peers], check=True)
        for number, (name, device) in enumerate(zip(names, ends, strict=True), 1):
            for command in (
                ["addr", "add", f"10.77.0.{number}/24", "dev", device],
                ["link", "set", device, "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *command], check=True)
        yield names[0], names[1]


class TwoNodes:
    """A driver on one node whose worker on the other one has a prompt; the networks' cable is between them."""

    def __init__(self, namespaces: tuple[str, str], folder: Path, stack: ExitStack):
        self.near, far = namespaces
        self.folder, address = folder, "10.77.0.1:6379"
        head = [*HEAD, "--port=6379", "--node-ip-address=10.77.0.1", "--num-cpus=2"]
        stack.callback(end, start_node(address, head, self.near))
        options = ["--node-ip-address=10.77.0.2", "--num-cpus=2", '--resources={"far": 1}']
        self.far_node = start_node(address, options, far)
        stack.callback(end, self.far_node)
        self.driver = subprocess.Popen(
            ["ip", "netns", "exec", self.near, sys.executable, "-c", DRIVER, address, str(folder)],
            stdout=subprocess.PIPE,
            stderr=(folder / "driver.log").open("w"),
            text=True,
            env={**os.environ, "RAY_ADDRESS": address},
        )
        stack.callback(end, self.driver)
        assert self.driver.stdout is not None and self.driver.stdout.readline() == "waiting\n"

    def assert_ended_by_name(self, within_s: float) -> None:
        assert self.driver.wait(within_s) != 0
        words = (self.folder / LAST_WORDS).read_text()
        assert "Worker agent_loop_worker" in words and "on 10.77.0.2" in words and "in step 7" in words
        assert "RunLostError" in (self.folder / "driver.log").read_text()


@pytest.fixture
def two_nodes(namespaces: tuple[str, str], tmp_path: Path) -> Iterator[TwoNodes]:
    with ExitStack() as stack:
        yield TwoNodes(namespaces, tmp_path, stack)


@fault(
    "the network between the driver and a worker's node is cut",
    within_s=120,
    do="repair the network and start it again: it resumes from its last checkpoint",
)
def test_a_cut_network_ends_the_run_by_name(two_nodes: TwoNodes, limit: Limit) -> None:
    subprocess.run(["ip", "-n", two_nodes.near, "link", "set", f"{two_nodes.near[3:]}e", "down"], check=True)
    with limit:
        two_nodes.assert_ended_by_name(limit.within_s)


@fault("a worker's node is lost: all of its processes are killed at once", within_s=120)
def test_a_lost_node_ends_the_run_by_name(two_nodes: TwoNodes, limit: Limit) -> None:
    assert len(end(two_nodes.far_node)) > 2
    with limit:
        two_nodes.assert_ended_by_name(limit.within_s)
