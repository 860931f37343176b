"""The notebook of the tour: a file of its own, so that pytest-xdist runs it beside others."""

import pytest
from launching import ROOT, environment

SHORTER = {"steps=12": "steps=4", "(1, 3, 6, 12)": "(1, 2, 3, 4)", "steps=100": "steps=20", "(512, 768)": "(384, 768)"}
SHORTER |= {"mgrid[:512, :768]": "mgrid[:384, :768]", "(512, 512)": "(256, 256)"}


def shorter(source):
    """A cell with fewer levels and rows."""
    for ours, less in SHORTER.items():
        source = source.replace(ours, less)
    return source


@pytest.mark.runs
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["shorter", "whole"])
def test_the_notebook_runs_and_keeps_its_pictures(tmp_path, whole):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    kept = nbformat.read(ROOT / "jobs" / "tour.ipynb", 4)
    pictures = [
        output for cell in kept.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    if not whole:
        for cell in kept.cells:
            cell.source = shorter(cell.source)
    client = nbclient.NotebookClient(kept, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager()
    with client.setup_kernel(env=environment()):
        for index, cell in enumerate(kept.cells):
            client.execute_cell(cell, index)
    again = [
        output for cell in kept.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(again) == 3
