"""Packaging of verl-v05."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="verl-v05",
    version="0.2.0",
    description="V0.5 for verl: a generalist value model as a prior for sparse RL rollouts",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # recipes and benchmarks are not installed: top-level names this common collide with other projects' packages.
    packages=find_packages(include=["verl_v05*", "value_model*"]),
    package_data={
        "verl_v05.config": ["**/*.yaml"],
        "verl_v05.dry_run": ["*.yaml"],
        "value_model": ["pretrained/**/*", "training/*.md"],
    },
    install_requires=[
        "verl==0.9.1",
        "array-api-compat",
        "cachetools",  # which verl imports and does not ask for
        "hydra-core",
        "math-verify",
        "numpy",
        "nvtx",  # the same, on GPUs
        "omegaconf",
        "packaging",
        "pandas",
        "psutil",
        "pyarrow",
        "ray",
        "rich",
        "scipy",
        "torch",
        "TransferQueue>=0.1.10",
    ],
    extras_require={
        "sglang": ["sglang==0.5.14"],
        # Built from source, after torch: docs/gpu.md. The version that verl pins.
        "flash-attn": ["flash-attn==2.8.3"],
        # prior.provider=v0
        "v0": [
            "huggingface_hub",
            "safetensors",
            "scikit-learn",
            "scipy",
            "sentence-transformers==6.2.0",
            "tabpfn==9.2.0",
            "tokenizers",
            "transformers",
        ],
        # prior.provider=http, and the endpoint it asks
        "http": ["fastapi>=0.165", "httpx", "prometheus-client", "pydantic", "uvicorn"],
        "wandb": ["wandb", "wandb-workspaces"],
        # of a checkout: recipes/demo, recipes/data and the tests
        "agent": ["gymnasium==1.4.0"],  # recipes/agent
        "demo": ["matplotlib", "tabulate"],
        "data": ["huggingface_hub", "tabulate"],
        "test": ["mypy", "pytest", "ruff"],
    },
    entry_points={"verl.plugins": ["v05 = verl_v05.plugin"]},
)
