"""Find a model: a folder in Hugging Face's format, verl's checkpoint, or a hub id."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.bench import BenchError

# What decides a model's responses.
PATTERNS = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja")


def find_model(model: str, revision: str | None = None) -> Path:
    """The folder of a model, downloaded if it is a hub id.

    Raises:
        BenchError: there is none, or it is a training checkpoint that has to be merged first.
    """
    folder = Path(model)
    if not folder.is_dir():
        return _download(model, revision)
    for candidate in (folder, folder / "huggingface", folder / "actor" / "huggingface"):
        if (candidate / "config.json").is_file() and _has_weights(candidate):
            return candidate
    for shards in (folder, folder / "actor"):
        if any(shards.glob("model_world_size_*_rank_*.pt")):
            raise BenchError(
                f"{model}: a checkpoint of verl's FSDP in shards; merge it first:\n"
                f"  python -m verl.model_merger merge --backend fsdp --local_dir {shards} "
                f"--target_dir {folder}/merged\n"
                f"and measure {folder}/merged"
            )
    raise BenchError(
        f"{model}: neither a model (config.json with *.safetensors or *.bin) nor a checkpoint of verl (global_step_N)"
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    kinds = [pattern for pattern in PATTERNS if pattern != "*.bin"]
    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=kinds))
        if not _has_weights(folder):
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(PATTERNS)))
    except HFValidationError as error:
        raise BenchError(f"{model}: no such folder, and not a hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BenchError(
            f"{model}: no such folder, and not to be had from the hub ({type(error).__name__}: {error}). "
            "Download it where there is a connection (hf download ID --local-dir DIR) and pass the folder"
        ) from error
    return folder


def fingerprint(folder: Path) -> str:
    """Hash of a model's weights, configuration and tokenizer, whatever the folder is called."""
    total = hashlib.sha256()
    for path in sorted({p for pattern in PATTERNS for p in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
