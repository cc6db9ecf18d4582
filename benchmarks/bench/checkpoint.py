"""Find a model: a folder in Hugging Face's format, verl's checkpoint, or a hub id."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from benchmarks.bench import BenchError
from value_model.files import lfs_pointer_problem, read_json

# What decides a model's responses.
PATTERNS = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = (".safetensors", ".bin")  # the first of which there are files is read
# Of a model's training, or on top of a model: an engine that takes them for weights starts with random ones.
NO_WEIGHTS = re.compile(r"^(adapter_model|optimizer|scheduler|training_args|rng_state|random_states|scaler)")
ADAPTER = "adapter_config.json"
SHARD = re.compile(r"^(?P<name>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.\w+)$")


def find_model(model: str, revision: str | None = None) -> Path:
    """The folder of a model, downloaded if it is a hub id.

    Raises:
        BenchError: there is none, parts of it are missing, or it is a training checkpoint or an adapter that has to be
            merged first.
    """
    folder = Path(model)
    if not folder.is_dir():
        return _complete(_download(model, revision), model)
    for candidate in (folder, folder / "huggingface", folder / "actor" / "huggingface"):
        if (candidate / "config.json").is_file() and (_weights(candidate) or _indices(candidate)):
            return _complete(candidate, model)
    for shards in (folder, folder / "actor"):
        if any(shards.glob("model_world_size_*_rank_*.pt")):
            raise BenchError(
                f"{model}: a checkpoint of verl's FSDP in shards; merge it first:\n"
                f"  python -m verl.model_merger merge --backend fsdp --local_dir {shards} "
                f"--target_dir {folder}/merged\n"
                f"and measure {folder}/merged"
            )
    _refuse_adapter(folder, model)
    raise BenchError(
        f"{model}: neither a model (config.json with *.safetensors or *.bin) nor a checkpoint of verl (global_step_N); "
        f"there: {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
    )


def _weights(folder: Path) -> list[Path]:
    """Files of a model's weights, of the kind that is read."""
    for suffix in WEIGHTS:
        if found := sorted(path for path in folder.glob(f"*{suffix}") if not NO_WEIGHTS.match(path.name)):
            return found
    return []


def _indices(folder: Path) -> list[Path]:
    return [path for suffix in WEIGHTS for path in sorted(folder.glob(f"*{suffix}.index.json"))]


def _complete(folder: Path, model: str) -> Path:
    """The folder, if all files of its weights are there and are what their names say.

    Raises:
        BenchError: it has an adapter or a training state alone, or files are missing or pointers of Git LFS.
    """
    for path in sorted({path for pattern in PATTERNS for path in folder.glob(pattern)}):
        if problem := lfs_pointer_problem(path):
            raise BenchError(f"{model}: {problem}")
    weights = _weights(folder)
    if not weights and not _indices(folder):
        _refuse_adapter(folder, model)
        raise BenchError(f"{model}: no weights in {folder}, which needs *.safetensors or *.bin of a whole model")
    if missing := sorted(_expected(folder, weights) - {path.name for path in weights}):
        raise BenchError(
            f"{model}: {len(missing)} files of the weights are missing in {folder}: {', '.join(missing[:4])}; "
            "copy or download the whole model"
        )
    return folder


def _refuse_adapter(folder: Path, model: str) -> None:
    if (folder / ADAPTER).is_file():
        raise BenchError(
            f"{model}: a LoRA adapter without its base model; merge it first (peft's merge_and_unload(), then "
            "save_pretrained of model and tokenizer) and measure the merged model"
        )


def _expected(folder: Path, weights: list[Path]) -> set[str]:
    """Names of the files that the index, or the numbers in the names, call for."""
    suffixes = {path.suffix for path in weights} or set(WEIGHTS)
    names: set[str] = set()
    for index in _indices(folder):
        if any(index.name.endswith(f"{suffix}.index.json") for suffix in suffixes):
            try:
                names |= set(read_json(index)["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BenchError(f"{index} is damaged ({error!r}); copy or download it again") from error
    for shard in filter(None, (SHARD.match(path.name) for path in weights)):
        digits = len(shard["number"])
        count = int(shard["count"])
        names |= {f"{shard['name']}-{n:0{digits}}-of-{shard['count']}{shard['suffix']}" for n in range(1, count + 1)}
    return names


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    kinds = [pattern for pattern in PATTERNS if pattern != "*.bin"]
    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=kinds))
        if not _weights(folder):
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
