"""What a launch finds in the folders of a run: no way to write there, another process, a checkpoint that does not fit.

verl would notice after the first step's rollouts, or never: a tracker that names a missing folder starts a run anew.
Nothing is written here but the lock.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from value_model.files import FolderInUseError, lock_folder
from verl_v05.compat.config import loggers
from verl_v05.registry import SettingsError
from verl_v05.settings import KEY
from verl_v05.trainer.checkpoint import (
    ALLOCATOR,
    KEYS,
    TRACKER,
    allocator_state,
    check_parts,
    load_state,
    tracked_folder,
)
from verl_v05.trainer.log_parts import log_path

logger = logging.getLogger(__name__)

RUN = "trainer.default_local_dir"
TRAJECTORIES, STATES = "trajectories", "state_trajectories"  # below it


def check_run_folder(config: DictConfig) -> None:
    """Check the folders of a run, and the checkpoint that it would resume.

    Raises:
        SettingsError: with all that is wrong.
    """
    if faults := [*unwritable(config), *unresumable(config)]:
        raise SettingsError("\n".join(faults))


def claim_run_folder(config: DictConfig) -> None:
    """Keep other launches out of the run's folder until this process ends.

    Raises:
        SettingsError: another process has it.
    """
    try:
        lock_folder(config.trainer.default_local_dir)
    except FolderInUseError as error:
        raise SettingsError(f"{RUN}: {error}") from error


def unwritable(config: DictConfig) -> Iterator[str]:
    """Folders that this package's part of the run could not write to."""
    tried = set()
    for key, folder in _folders(config):
        # Of the nearest that is there: the others are made by the run.
        place = next(place for place in (folder, *folder.absolute().parents) if _is_there(place))
        if (key, place) in tried:
            continue
        tried.add((key, place))
        try:
            # Not os.access, which knows neither read-only file systems nor, for root, anything else.
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            yield f"{key}={str(folder)!r} must be a folder that can be written to ({place}: {error.strerror})"


def unresumable(config: DictConfig) -> Iterator[str]:
    """Why the checkpoint that the run would resume cannot be; empty for one that starts anew."""
    try:
        folder = resumed_folder(config)
        if folder is None:
            return
        if not folder.is_dir():
            yield _missing(config, folder)
            return
        parts = load_state(folder)
        check_parts(folder, parts, KEYS)
        if _is_v05(config):
            allocator_state(folder, parts, bool(OmegaConf.select(config, f"{KEY}.allow_missing_state")))
    except (ValueError, OSError) as error:
        yield str(error)


def warn_of_dropped_state(config: DictConfig) -> None:
    """Log what a run of another algorithm leaves out of a checkpoint of V0.5, which :func:`check_run_folder` passed."""
    folder = resumed_folder(config)
    if folder is not None and not _is_v05(config) and ALLOCATOR in load_state(folder):
        logger.warning(
            "%s is resumed with algorithm.adv_estimator=%s: V0.5's state in it (prior, fusion, support buffer) is LEFT "
            "OUT, and the checkpoints of this run will be without it",
            folder,
            config.algorithm.adv_estimator,
        )


def resumed_folder(config: DictConfig) -> Path | None:
    """The checkpoint that verl resumes from, there or not; None where it begins anew.

    Raises:
        ValueError: verl's tracker is damaged.
    """
    trainer, mode = config.trainer, OmegaConf.select(config, "trainer.resume_mode")
    if mode == "resume_path":
        return Path(trainer.resume_from_path)
    return tracked_folder(trainer.default_local_dir) if mode == "auto" else None


def _missing(config: DictConfig, folder: Path) -> str:
    whole = sorted(path.name for path in folder.parent.glob("global_step_*") if path.is_dir())
    there = f"there: {', '.join(whole)}" if whole else "there are no others"
    if config.trainer.resume_mode == "resume_path":
        return f"trainer.resume_from_path={str(folder)!r} is missing ({there})"
    return (
        f"{folder.parent / TRACKER} names {folder.name}, which is missing ({there}): put it back, write the number of "
        "another into the file, or delete the file to train from scratch"
    )


def _folders(config: DictConfig) -> Iterator[tuple[str, Path]]:
    trainer = config.trainer
    yield RUN, (run := Path(trainer.default_local_dir))
    yield RUN, run / TRAJECTORIES
    yield RUN, run / STATES
    if record := OmegaConf.select(config, f"{KEY}.record_dir"):
        yield f"{KEY}.record_dir", Path(record)
    cache = f"{KEY}.prior.kwargs.cache_path"
    if path := OmegaConf.select(config, cache):
        yield f"folder of {cache}", Path(path).parent
    if "file" in loggers(config):
        path = log_path(trainer.project_name, trainer.experiment_name)
        yield "folder of VERL_FILE_LOGGER_PATH (or _ROOT)", path.parent


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that cannot be entered
        return False


def _is_v05(config: DictConfig) -> bool:
    return OmegaConf.select(config, "trainer.v1.trainer_mode") == "v05"
