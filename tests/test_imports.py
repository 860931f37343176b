import ast
import subprocess
import sys

from launching import ROOT, environment

# Rooms from the bottom up: a module imports its own room and rooms on lower floors.
FLOORS = (
    ("kernels", "engine.planning", "engine.command_line", "engine.settings"),
    ("engine.diffusion", "engine.storage"),
    ("engine.models", "engine.distributed"),
    ("engine.job", "engine.training"),
    ("engine.options", "engine.inputs"),
    ("engine.pipeline",),
    ("engine.sample", "engine.train", "engine.verify", "engine.export"),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("engine", "kernels")
    for path in (ROOT / folder).rglob("*.py")
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    parts = module.split(".")
    return parts[0] if parts[0] == "kernels" else ".".join(parts[:2])


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
