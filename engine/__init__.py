"""Slidefield: images of any size from patch diffusion models, on any number of MPI ranks."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# The Python API, imported when it is first used: ``--help`` must not wait for torch.
API = {
    "Pipeline": "engine.api.pipeline",
    "Plan": "engine.pipeline.dry_run",
    "Stopped": "engine.api.call",
    **dict.fromkeys(("Image", "Damaged", "open"), "engine.api.image"),
    **dict.fromkeys(("SampleJob", "RunOptions"), "engine.job"),
    "sample_latents": "engine.pipeline.in_memory",
    "Schedule": "engine.diffusion.schedule",
    **dict.fromkeys(
        ("Condition", "LabelMap", "ClassMap", "EmbeddingGrid", "SemanticMap"), "engine.diffusion.conditions"
    ),
    "standard_normal": "kernels.philox",
}
__all__ = [*API, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(API[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def check_kernels() -> None:
    """Refuse another package called ``kernels``, such as Hugging Face's, where Python finds it before ours.

    It is looked for and not imported: that costs a look into each folder of the path.

    Raises:
        ImportError: naming the folder of theirs and the way out. That it names ``engine`` too has ``python -m`` print
            it as one line.
    """
    ours = Path(__file__).resolve().parents[1] / "kernels" / "__init__.py"
    spec = find_spec("kernels")
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != ours:
        theirs = (
            "no package `kernels` is" if spec is None else f"another package `kernels` ({spec.origin or spec.name}) is"
        )
        raise ImportError(
            f"{theirs} found where slidefield's own should be; put {ours.parents[1]} first on PYTHONPATH, "
            "or install slidefield in an environment of its own",
            name="engine",
        )


check_kernels()
