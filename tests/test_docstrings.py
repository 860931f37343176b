"""What docstrings show is true: every example in every module."""

import doctest
import importlib

import pytest
from draw_architecture import modules

WITH_EXAMPLES = [name for name, path in modules().items() if ">>>" in path.read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_are_true(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried, "no docstring of a definition holds the example"
    assert not failed
