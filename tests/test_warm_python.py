"""The start-up server: a fork behaves as a regular Python does, and no process or file stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recipes.demo import warm_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

LAUNCHER = """
import sys
from recipes.demo.warm_python import start_server
print(start_server(*sys.argv[1:3], float(sys.argv[3])), flush=True)
sys.stdin.read()
"""


@contextmanager
def launched(
    preload: str = "json,decimal", with_ray: str = "colorsys", ready_timeout_s: float = 20
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that started a server, and the executable to use as python."""
    command = [sys.executable, "-c", LAUNCHER, preload, with_ray, str(ready_timeout_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        executable = launcher.stdout.readline().strip()
        try:
            yield launcher, executable
        finally:
            launcher.kill()
    wait_until(lambda: not Path(executable).parent.exists())


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    with launched() as (_, executable):
        yield executable


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ask(python: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *args], capture_output=True, text=True, timeout=60, **options)


def is_fork(python: str, **options: Any) -> bool:
    return ask(python, "-c", "import sys; print('decimal' in sys.modules)", **options).stdout == "True\n"


@contextmanager
def running(python: str, code: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A client and the pid of its fork, once the code has run."""
    command = [python, "-c", f"import os, signal, time\n{code}\nprint(os.getpid(), flush=True)\ntime.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        yield client, int(client.stdout.readline())


@pytest.mark.parametrize("form", ["-c", "-m", "script"])
def test_runs_as_a_python_does(form: str, python: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, sys\n"
        "print(__name__, sys.argv, sys.path[:2], os.getcwd(), dict(os.environ), sys.stdin.read())\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:3], sys.flags.ignore_environment, file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    arguments = {
        "-c": ["-c", (tmp_path / "program.py").read_text()],
        "-m": ["-m", "program"],
        "script": [str(tmp_path / "program.py")],
    }[form]
    options = {
        "cwd": tmp_path,
        "env": {"A": "\udcff", "PWD": str(tmp_path), "PYTHONPATH": "/elsewhere"},
        "input": "to stdin",
    }
    warm, cold = (ask(executable, "-u", *arguments, "x", "-y", **options) for executable in (python, sys.executable))
    assert is_fork(python)
    assert warm.returncode == cold.returncode == 7
    if form != "script":  # Python itself makes argv[0] of a module absolute
        assert warm.stdout == cold.stdout
    assert warm.stderr == cold.stderr


def test_traceback_and_exit_code_of_an_error(python: str) -> None:
    done = ask(python, "-c", "raise ValueError('so it is')")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: so it is\n")


def test_descriptors_are_the_clients(python: str) -> None:
    read, write = os.pipe()
    listing = "[fd for fd in range(3, 99) if os.path.exists(f'/dev/fd/{fd}')]"
    code = f"import os; os.write({write}, b'here'); print({listing})"
    done = ask(python, "-c", code, pass_fds=[write])
    os.close(write)
    with open(read) as file:
        assert file.read() == "here"
    assert done.stdout == f"[{write}]\n"


def test_pipe_that_the_fork_closes_is_closed(python: str) -> None:
    with subprocess.Popen(
        [python, "-c", "import os, time; os.close(1); time.sleep(60)"], stdout=subprocess.PIPE
    ) as client:
        assert client.stdout.read() == b""
        assert client.poll() is None
        client.terminate()


def test_death_by_signal_is_reported(python: str) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        assert ask(python, "-c", f"import os; os.kill(os.getpid(), {int(number)})").returncode == -number


def test_signals_are_passed_on(python: str) -> None:
    with running(python, "signal.signal(signal.SIGUSR1, lambda *_: exit(5))") as (client, _):
        client.send_signal(signal.SIGUSR1)
        assert client.wait(20) == 5
    with running(python, "") as (client, _):
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == -signal.SIGINT
        assert client.stderr.read().endswith("KeyboardInterrupt\n")


def test_blocked_and_ignored_signals_are_inherited(python: str) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    code = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGHUP))"
    done = ask(python, "-c", code, preexec_fn=block)
    assert done.stdout == f"{ {signal.SIGINT} } {signal.SIG_IGN}\n"


def test_fork_dies_with_its_client(python: str) -> None:
    with running(python, "") as (client, fork):
        client.kill()
        wait_until(lambda: not alive(fork))


@pytest.mark.parametrize("options", [["-I"], ["-X", "dev"], ["-W", "error"]])
def test_other_interpreter_options_get_a_real_python(options: list[str], python: str) -> None:
    done = ask(python, *options, "-c", "import sys; print('decimal' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_twenty_at_once(python: str) -> None:
    code = "import random, sys; print(random.random(), sys.argv[1])"
    clients = [subprocess.Popen([python, "-c", code, str(i)], stdout=subprocess.PIPE, text=True) for i in range(20)]
    outputs = [client.communicate(timeout=60)[0].split() for client in clients]
    assert [i for _, i in outputs] == [str(i) for i in range(20)]
    assert len({number for number, _ in outputs}) == 20
    assert all(client.returncode == 0 for client in clients)


def test_random_states_differ() -> None:
    with launched(preload="decimal,numpy") as (_, python):
        code = "import random, numpy; print(random.random(), numpy.random.random())"
        first, second = (ask(python, "-c", code).stdout.split() for _ in range(2))
    assert first[0] != second[0] and first[1] != second[1]


def test_multiprocessing_spawn_forks_too(python: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import multiprocessing, sys\n"
        "preloaded = 'decimal' in sys.modules\n"
        "def double(n): return 2 * n, preloaded\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool: print(pool.map(double, range(3)))\n"
    )
    done = ask(python, str(tmp_path / "program.py"))
    assert (done.stdout, done.stderr) == ("[(0, True), (2, True), (4, True)]\n", "")


def test_ray_modules_are_imported_in_the_environment_of_the_first_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "keeps.py").write_text("import os; job = os.environ['RAY_JOB_ID']")
    code = "import sys; print('keeps' in sys.modules, getattr(sys.modules.get('keeps'), 'job', None))"
    with launched(with_ray="keeps") as (_, python):
        assert ask(python, "-c", code).stdout == "False None\n"
        first = ask(python, "-c", code, env={"RAY_JOB_ID": "01"})
        assert first.stdout == "True 01\n"
        other = ask(python, "-c", code, env={"RAY_JOB_ID": "02"})
        assert other.stdout == "False None\n"
        assert "starting a cold python" in other.stderr


def test_server_that_is_gone_is_replaced_by_a_real_python() -> None:
    with launched() as (_, python):
        server = int(ask(python, "-c", "import os; print(os.getppid())").stdout)
        with running(python, "") as (client, fork):
            os.kill(server, signal.SIGKILL)
            assert client.wait(20) == 1
            assert "the server is gone" in client.stderr.read()
            wait_until(lambda: not alive(fork))
        done = ask(python, "-c", "print('it runs')")
        assert done.stdout == "it runs\n"
        assert "starting a cold python" in done.stderr
        for path in sorted(Path(python).parent.iterdir()):
            path.unlink()
        Path(python).parent.rmdir()


def test_server_that_is_not_ready_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with launched(preload="slow", ready_timeout_s=0.2) as (_, python):
        done = ask(python, "-c", "print('it runs')")
    assert done.stdout == "it runs\n"
    assert "timed out; starting a cold python" in done.stderr


def test_module_that_starts_a_thread_stops_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=[60], daemon=True).start()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with launched(preload="threaded") as (_, python):
        wait_until(lambda: not Path(python).exists())


def test_nothing_stays_when_the_launcher_is_killed() -> None:
    with launched() as (launcher, python):
        server = int(ask(python, "-c", "import os; print(os.getppid())").stdout)
        with running(python, "") as (_, fork):
            assert os.stat(Path(python).parent).st_mode & 0o777 == 0o700
            launcher.kill()
            wait_until(lambda: not alive(server) and not alive(fork))
    assert not Path(python).parent.exists()


def test_client_imports_no_package_and_nothing_slow() -> None:
    code = (
        "import importlib.util as u, sys\n"
        f"spec = u.spec_from_file_location('warm_python', {warm_python.__file__!r})\n"
        "sys.modules['warm_python'] = module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)\n"
        "print(*{'asyncio', 'ctypes', 'multiprocessing', 'subprocess'} & sys.modules.keys())\n"
    )
    done = ask(sys.executable, "-IS", "-c", code)
    other, slow = done.stdout.splitlines()
    assert (set(other.split()) - {"__main__", "warm_python"}, slow) == (set(), "")


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return ask(sys.executable, warm_python.__file__, "run", "--", *command, env={**os.environ, **env})


SHOW = ("sh", "-c", 'echo "$@"; exit 3', "sh")


def test_run_appends_the_executable_and_is_the_command() -> None:
    done = run(*SHOW, "key=value", VERL_PLATFORM="cpu")
    assert done.returncode == 3
    shown = done.stdout.split()
    assert shown[0] == "key=value"
    key, executable = shown[1].split("=")
    assert key == warm_python.EXECUTABLE_KEY
    wait_until(lambda: not Path(executable).parent.exists())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_run_leaves_nothing_when_it_is_ended(number: signal.Signals) -> None:
    command = [sys.executable, warm_python.__file__, "run", "--"]
    command += [sys.executable, "-c", "import sys, time; print(sys.argv[1], flush=True); time.sleep(60)"]
    env = {**os.environ, "VERL_PLATFORM": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as process:
        executable = Path(process.stdout.readline().strip().split("=")[1])
        assert executable.exists()
        process.send_signal(number)
        assert process.wait(20) == -number
    wait_until(lambda: not executable.parent.exists())


@pytest.mark.parametrize(
    ("argument", "env"),
    [
        ("a=b", {"VERL_PLATFORM": "nvidia"}),
        ("a=b", {"VERL_PLATFORM": "cpu", "RAY_ADDRESS": "10.0.0.1:6379"}),
        (f"{warm_python.EXECUTABLE_KEY}=mine", {"VERL_PLATFORM": "cpu"}),
    ],
)
def test_run_leaves_other_commands_alone(argument: str, env: dict[str, str]) -> None:
    done = run(*SHOW, argument, **env)
    assert (done.stdout, done.returncode) == (f"{argument}\n", 3)


def test_an_address_that_means_a_ray_of_its_own_is_no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    for address, own in {"": True, "local": True, "auto": False, "10.0.0.1:6379": False}.items():
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert warm_python.should_start_server(["python"]) == own


def test_run_names_a_command_that_cannot_be_executed() -> None:
    done = run("/no/such/program", VERL_PLATFORM="cpu")
    assert done.returncode == 1
    assert "cannot run /no/such/program" in done.stderr


def test_accelerator_is_found_by_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert warm_python.has_accelerator()
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert not warm_python.has_accelerator()
