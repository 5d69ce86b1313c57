"""The option --quick, and the table of ratios at the end of `pytest bench/peers`."""

import pytest

from fastce._cli._results import heading, lines, machine

from .cases import cases
from .measure import PACKAGES, installed

RESULTS = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="peers: fewer and smaller cases")


def pytest_configure(config):
    config.stash[RESULTS] = {}


@pytest.fixture
def results(request):
    """Case -> Result, over the whole session."""
    return request.config.stash[RESULTS]


def pytest_generate_tests(metafunc):
    if {"case", "library"} <= set(metafunc.fixturenames):
        metafunc.parametrize("library", list(PACKAGES))
        metafunc.parametrize("case", cases(metafunc.config.getoption("quick")), ids=str)


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter, config):
    results = list(config.stash[RESULTS].values())
    if results:
        versions = installed(list(PACKAGES))[0]
        terminalreporter.section("time of each library / time of fastce")
        for line in heading(machine(versions), list(versions)[1:]):
            terminalreporter.write_line(line)
        for result in results:
            for line in [result.op, *lines(result, list(versions)[1:])]:
                terminalreporter.write_line(line)
