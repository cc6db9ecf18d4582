"""The plugin and the verl it is installed beside."""

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import get_trainer_cls

from tests.faults.statement import fault
from verl_v05.compat import contract
from verl_v05.compat import verl_0_9_1 as pins
from verl_v05.compat.contract import ContractError, check_contract, check_cpu_engine, check_version
from verl_v05.compat.fingerprint import check_same, fingerprint


def test_installed_verl_is_the_one_we_know() -> None:
    check_contract.__wrapped__()
    check_cpu_engine()


def test_entry_point_is_installed_and_registers_trainer_and_estimator() -> None:
    assert "verl_v05.plugin" in {e.value for e in entry_points(group="verl.plugins")}
    assert get_trainer_cls("v05").__name__ == "V05Trainer"
    assert core_algos.get_adv_estimator_fn("v05").__name__ == "compute_v05_outcome_advantage"


def test_unsupported_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "version", lambda _: "0.10.0")
    with pytest.raises(ContractError, match=r"supports verl 0\.9\.1, found 0\.10\.0"):
        check_version()


@pytest.mark.parametrize("path", pins.SIGNATURES)
def test_changed_signature_is_refused_by_name(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pins.SIGNATURES, path, "(self, something_new)")
    with pytest.raises(ContractError, match=path.split(":")[1].split(".")[-1]):
        check_contract.__wrapped__()


@pytest.mark.parametrize("path", pins.SOURCES)
def test_changed_body_is_refused_by_name(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pins.SOURCES, path, "0" * 16)
    with pytest.raises(ContractError, match=path.split(":")[1].split(".")[-1]):
        check_contract.__wrapped__()


@pytest.mark.parametrize("path", pins.CPU_ENGINE_SIGNATURES)
def test_changed_engine_is_refused_by_name(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pins.CPU_ENGINE_SIGNATURES, path, "(self, something_new)")
    with pytest.raises(ContractError, match=path.split(".")[-1]):
        check_cpu_engine()


def test_missing_method_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pins.SIGNATURES, "verl.trainer.ppo.v1.trainer_base:PPOTrainer.gone", "(self)")
    with pytest.raises(ContractError, match="gone: expected .*, found absent"):
        check_contract.__wrapped__()


@fault(
    "a worker has other code than the driver",
    happens="the run stops before its first step, with what differs",
    do="install the same on every node",
)
def test_other_build_on_a_worker_is_refused() -> None:
    check_same("worker", fingerprint())
    with pytest.raises(RuntimeError, match="worker 3 runs another build"):
        check_same("worker 3", "0123456789abcdef")


def test_a_plugin_that_cannot_load_says_so_although_verl_hides_it(tmp_path: Path) -> None:
    # A module of ours that fails, in front of the real one; verl drops the exception of its entry point.
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import sys; sys.modules['verl_v05.platform.cpu'] = None\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", "import verl"], env=env, capture_output=True, text=True)
    assert "verl-v05: the plugin cannot be loaded: ModuleNotFoundError" in found.stderr


def test_a_run_that_a_shell_put_into_the_background_still_heeds_its_engine() -> None:
    def as_a_shell_does() -> None:
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)

    code = "import signal, verl; print(signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL)"
    found = subprocess.run([sys.executable, "-c", code], preexec_fn=as_a_shell_does, capture_output=True, text=True)
    assert found.stdout.split()[-1] == "True"


def test_a_trainer_that_cannot_load_on_another_verl_names_the_version(tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import sys; sys.modules['verl_v05.trainer.v05'] = None\n"
        "import importlib.metadata as m; real = m.version\n"
        "m.version = lambda name: '0.10.0' if name == 'verl' else real(name)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", "import verl.trainer.ppo.v1"], env=env, capture_output=True, text=True
    )
    assert "verl-v05 supports verl 0.9.1, found 0.10.0" in found.stderr
