"""The option --quick, and the table of ratios at the end of `pytest bench/peers`."""

import io

import pytest

from fastce._cli._cases import cases
from fastce._cli._measure import machine
from fastce._cli.peers import PEERS, installed

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
        metafunc.parametrize("library", list(PEERS))
        metafunc.parametrize("case", cases(metafunc.config.getoption("quick")), ids=str)


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter, config):
    results = list(config.stash[RESULTS].values())
    if not results:
        return
    from rich.console import Console

    from fastce._cli._report import show

    text = io.StringIO()
    console = Console(file=text, width=130, force_terminal=terminalreporter.hasmarkup)
    show(console, machine(installed(list(PEERS))[0]), results)
    terminalreporter.section("time of each library / time of fastce")
    terminalreporter.write(text.getvalue())
