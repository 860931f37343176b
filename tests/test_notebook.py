"""The notebook of the tour: a file of its own, so that pytest-xdist runs it beside others."""

import pytest
from launching import ROOT, environment


@pytest.mark.runs
def test_the_notebook_runs_and_keeps_its_pictures(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    kept = nbformat.read(ROOT / "jobs" / "tour.ipynb", 4)
    pictures = [
        output for cell in kept.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    client = nbclient.NotebookClient(kept, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager()
    with client.setup_kernel(env=environment()):
        for index, cell in enumerate(kept.cells):
            client.execute_cell(cell, index)
    again = [
        output for cell in kept.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(again) == 3
