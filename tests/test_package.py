"""What is installed: one list of requirements, said in two files."""

import re
from importlib.metadata import requires

import yaml
from launching import ROOT


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
