"""The Triton kernels against their oracles in plain torch: interpreted on the CPU, and compiled for a GPU unseen.

Interpreting is decided when triton is imported, so the comparisons run in a process of their own.
"""

import ast
import sys
from graphlib import TopologicalSorter

import pytest
from launching import ROOT, execute

from kernels.device import has_triton, use_triton

needs_triton = pytest.mark.skipif(
    not has_triton(), reason="triton is not installed (it has no wheels but for Linux): pip install triton==3.7.1"
)
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "kernels").rglob("*.py")}


def run(*arguments, **extra):
    done = execute(sys.executable, *arguments, **extra)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def imported_by(module):
    """The modules of kernels that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & MODULES.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & MODULES.keys()


def test_no_kernel_imports_itself_through_another():
    sorter = TopologicalSorter({module: set(imported_by(module)) for module in MODULES})
    order = list(sorter.static_order())  # raises CycleError and names the circle
    assert order.index("kernels.values") < order.index("kernels.triton.step") < order.index("kernels.step")


@needs_triton
@pytest.mark.runs
@pytest.mark.parametrize("part", ["step", "not step"])
def test_triton_interpreted_equals_the_oracles(part):
    text = run(
        "-m", "pytest", "-p", "no:cacheprovider", "tests/triton_interpreted.py", "-k", part, TRITON_INTERPRET="1"
    )
    assert " passed" in text
    assert "skipped" not in text


@needs_triton
def test_compiled_for_a_gpu_every_operation_is_rounded_by_itself():
    lines = run("tests/triton_compiled.py", TRITON_INTERPRET="0").split("\n")
    assert [line for line in lines if line] == [
        "draw_kernel: sqrt.rn.f32",
        "gather_kernel:",
        "fuse_kernel: div.rn.f32",
        "fuse_kernel: div.rn.f32",
        "step_kernel: sqrt.rn.f32",
        "step_kernel:",
    ]


@needs_triton
def test_tensors_on_the_cpu_never_import_triton():
    code = (
        "import sys, torch; from kernels import fuse, gather, step, values\n"
        "x, corners = torch.zeros(4, 8, 8), torch.zeros(1, 2, dtype=torch.int64)\n"
        "gather.gather(x, corners, 8, 1, torch.float32)\n"
        "fuse.fuse(x[None], corners, torch.tensor([[0, 0, 8, 8]]), (0, 0, 8, 8))\n"
        "step.level_step(x, x, None, values.Update((1, 0, 0, 1, 0), noise=values.Field(0, 'step', 0)))\n"
        "sys.exit(any(m.startswith('kernels.triton') for m in sys.modules))"
    )
    run("-c", code)
    assert not use_triton("cpu")
    assert use_triton("cuda")
