"""What is installed: one list of requirements, said in two files, and one name for all commands."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, requires

import pytest
import yaml
from launching import ROOT, environment

from engine.__main__ import COMMANDS, main


def test_environment_yaml_asks_for_the_ranges_of_setup_py():
    """conda's name of torch is pytorch; what the README's commands need beyond setup.py may stand there too."""
    asked = yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"]
    conda = dict(re.match(r"([\w-]+)(.*)", line).groups() for line in asked if isinstance(line, str))
    conda["torch"] = conda.pop("pytorch")
    required = dict(re.match(r"([\w-]+)\s*([^;]*)", line).groups() for line in requires("slidefield"))
    for name in [name for name in required if "extra" not in name]:
        if name in conda:
            ours, theirs = (set(text.replace(" ", "").split(",")) for text in (required[name], conda[name]))
            assert ours == theirs or theirs == {""}, name
    own = [line for line in requires("slidefield") if "extra" not in line]
    assert len(own) > 10
    assert not {re.match(r"[\w-]+", line)[0] for line in own} - set(conda)


def test_containers_install_what_make_installs():
    """Neither was built where it was written; what can be known without: the same pip, and all the files it reads."""
    (ours,) = re.findall(r"pip install .*(-c constraints.txt -e '.*\[mpich\]')", (ROOT / "Makefile").read_text())
    docker, apptainer = ((ROOT / "jobs" / name).read_text() for name in ("Dockerfile", "apptainer.def"))
    lines = [re.findall(r"pip install .*", text) for text in (docker, apptainer)]
    assert lines == [[f"pip install --no-cache-dir {ours.replace('-e ', '')}"]] * 2
    copied = " ".join(re.findall(r"^COPY (.*) /opt/slidefield/\S*$", docker, re.MULTILINE)).split()
    assert copied == re.findall(r"^    (\S+) /opt/slidefield/\S+$", apptainer, re.MULTILINE)
    assert re.findall(r"python:[\d.]+", docker) == re.findall(r"python:[\d.]+", apptainer) == ["python:3.11"]
    assert all("Not built where this was written" in text for text in (docker, apptainer))


def test_what_containers_copy_is_all_that_the_package_is_made_of(tmp_path):
    docker = (ROOT / "jobs" / "Dockerfile").read_text()
    for name in " ".join(re.findall(r"^COPY (.*) /opt/slidefield/\S*$", docker, re.MULTILINE)).split():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    line = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", "made"]
    made = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / "made").glob("slidefield-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "engine", "kernels"], cwd=ROOT, capture_output=True, text=True)
    assert len(tracked.stdout.split()) > 100
    assert set(tracked.stdout.split()) <= names


def test_slidefield_is_installed_and_is_python_m_engine():
    (script,) = entry_points(group="console_scripts", name="slidefield")
    assert script.load() is main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help_and_its_status(name, capsys):
    try:
        status = main([name, "--help"])
    except SystemExit as left:  # argparse's, of commands that are not for mpiexec
        status = left.code
    assert status == 0
    assert f"engine.{'models.convert' if name == 'convert' else name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 0, "slidefield sample"),
        (["--version"], 0, "slidefield 0."),
        (["smaple"], 1, "smaple is no command; did you mean 'sample'?"),
        (["qqq"], 1, "qqq is no command; known: sample, train"),
        (["verify", "nowhere.zarr"], 1, "nowhere.zarr is not there"),
    ],
)
def test_the_commands_are_named_and_their_status_is_that_of_the_process(arguments, status, said):
    command = [sys.executable, "-m", "engine", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert ran.returncode == status
    assert said in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
