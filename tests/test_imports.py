import ast
import subprocess
import sys

from conftest import ROOT, environment


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def importers(package):
    return {
        path.relative_to(ROOT).as_posix()
        for folder in ("engine", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if any(name == package or name.startswith(package + ".") for name in imports(path))
    }


def test_mpi_zarr_and_h5py_have_one_importer_each():
    assert importers("mpi4py") == {"engine/comm.py"}
    assert importers("zarr") | importers("h5py") | importers("numcodecs") == {"engine/store.py"}


def test_kernels_import_nothing_of_the_engine():
    assert not {path for path in importers("engine") if path.startswith("kernels")}


def test_imports_point_down():
    order = [
        ["geometry", "schedule", "solvers", "timing", "comm"],
        ["cover", "models"],
        ["conditions", "plan", "store", "job", "progress", "nuclei", "labels", "accept"],
        ["inputs", "preview"],
        ["hierarchy"],
        ["messages", "denoiser", "prepare"],
        ["canvas", "planner"],
        ["sampler", "decode", "repaint"],
        ["keeper", "ballot", "outputs"],
        ["run"],
        ["sample", "verify", "export"],
    ]
    rank = {f"engine.{name}": height for height, names in enumerate(order) for name in names}
    for path in (ROOT / "engine").glob("*.py"):
        name = f"engine.{path.stem}"
        for imported in imports(path):
            below = ".".join(imported.split(".")[:2])
            if name in rank and below in rank:
                assert rank[below] <= rank[name], f"{name} imports {imported}"


def test_planning_and_wrong_arguments_do_not_wait_for_torch():
    code = "import sys, engine.sample, engine.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT).returncode == 0
