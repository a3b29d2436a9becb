"""`import peftcls` loads names on demand and leaves the loggers of other libraries alone."""

import pkgutil
import subprocess
import sys

import pytest

import peftcls

PROGRAM = """
import logging
import peftcls.api

for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logger = logging.getLogger(name)
    assert logger.level == logging.NOTSET, name
    assert not logger.filters, name
assert not logging.getLogger().handlers
assert not logging.getLogger("peftcls").handlers
"""


def test_no_public_name_is_also_the_name_of_a_subpackage():
    subpackages = {module.name for module in pkgutil.iter_modules(peftcls.__path__)}
    assert {"training", "metrics"} <= subpackages
    assert subpackages.isdisjoint(vars(peftcls.api))


def test_completion_in_a_notebook_knows_the_public_names():
    assert {"Trainer", "load_predictor", "__version__"} <= set(dir(peftcls))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'peftcls' has no attribute 'Trainr'$"):
        _ = peftcls.Trainr


def test_the_import_prints_nothing_and_leaves_the_loggers_of_other_libraries_alone():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
