"""Slidefield: images of any size from patch diffusion models, on any number of MPI ranks."""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


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
