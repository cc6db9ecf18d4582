"""Faults of a Ray of two nodes: the network between them is cut."""

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


@fault(
    "the network between the driver and a worker's node is cut",
    within_s=120,
    do="repair the network and start it again: it resumes from its last checkpoint",
)
def test_a_cut_network_ends_the_run_by_name(namespaces: tuple[str, str], tmp_path: Path, limit: Limit) -> None:
    near, far = namespaces
    address = "10.77.0.1:6379"
    with ExitStack() as stack:
        head = start_node(address, [*HEAD, "--port=6379", "--node-ip-address=10.77.0.1", "--num-cpus=2"], near)
        stack.callback(end, head)
        options = ["--node-ip-address=10.77.0.2", "--num-cpus=2", '--resources={"far": 1}']
        stack.callback(end, start_node(address, options, far))
        driver = subprocess.Popen(
            ["ip", "netns", "exec", near, sys.executable, "-c", DRIVER, address, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "driver.log").open("w"),
            text=True,
            env={**os.environ, "RAY_ADDRESS": address},
        )
        stack.callback(end, driver)
        assert driver.stdout is not None and driver.stdout.readline() == "waiting\n"
        subprocess.run(["ip", "-n", near, "link", "set", f"{near[3:]}e", "down"], check=True)
        with limit:
            assert driver.wait(limit.within_s) != 0
    words = (tmp_path / LAST_WORDS).read_text()
    assert "Worker agent_loop_worker" in words and "on 10.77.0.2" in words and "in step 7" in words
    assert "RunLostError" in (tmp_path / "driver.log").read_text()
