import ast
import subprocess
import sys

from draw_architecture import FLOOR, draw, imports, modules, room_of
from launching import ROOT, environment

MODULES = modules()


def rooms_that_import(*packages):
    return {
        room_of(module) for module, path in MODULES.items() for name in imports(path) if name.split(".")[0] in packages
    }


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in MODULES} - {"engine"} == set(FLOOR)


def test_imports_point_down():
    for module, path in MODULES.items():
        here = room_of(module)
        for imported in imports(path):
            there = room_of(imported)
            if there in FLOOR and here in FLOOR and there != here:
                assert FLOOR[there] < FLOOR[here], f"{module} imports {imported}"


def test_the_drawing_of_the_architecture_is_current():
    assert (ROOT / "docs" / "architecture.svg").read_text() == draw(), "run python docs/draw_architecture.py"


def test_mpi_zarr_and_h5py_are_imported_in_one_room_each():
    assert rooms_that_import("mpi4py") == {"engine.distributed"}
    assert rooms_that_import("zarr", "h5py", "numcodecs") == {"engine.storage"}


def test_planning_is_integers_and_kernels_know_nothing_of_the_engine():
    assert "engine.planning" not in rooms_that_import("torch", "mpi4py", "zarr", "h5py")
    assert "kernels" not in rooms_that_import("engine")


def test_a_folder_has_a_charter_and_no_code():
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "engine":
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, f"{path} is more than a docstring"
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_planning_and_wrong_arguments_do_not_wait_for_torch():
    code = "import sys, engine.sample, engine.pipeline.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT).returncode == 0


def test_a_run_does_not_wait_for_torchs_compiler(tiny_model, tmp_path):
    """It was imported to fill weights that have no memory: 2 seconds of every start."""
    arguments = ("--model", tiny_model, "--size", 128, "--label", 1, "--steps", 1, "--out", tmp_path / "o.zarr")
    code = f"""import sys
from engine.sample import main
assert main({[str(argument) for argument in arguments]}) == 0
sys.exit("torch._dynamo" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
