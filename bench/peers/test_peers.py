"""pytest-benchmark's statistics of every case in every library, grouped by case.

pytest-benchmark runs one function after another, whereas ratios need turns. So the first test
of a case measures it in all libraries by turns, and each test then hands its rounds over, on a
clock that stands still but for them.
"""

import pytest

from fastce._cli._measure import measure
from fastce._cli.peers import PEERS, installed

_now = 0.0


def clock():
    return _now


def advance(seconds):
    global _now
    _now += seconds


def libraries(request, case):
    """Those whose tests of this case were selected, as by -k, and fastce."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = {p["library"] for p in params if p.get("case") == case} | {"fastce"}
    return list(installed([name for name in PEERS if name in chosen])[0])


@pytest.mark.benchmark(timer=clock)
def test_peer(case, library, results, benchmark, request):
    if case not in results:
        quick = request.config.getoption("quick")
        results[case] = measure(case, libraries(request, case), quick)
    result = results[case]
    if result.skipped:
        pytest.skip(result.skipped)
    assert library not in result.problems, result.problems[library]
    if library not in result.timings:
        pytest.skip("the library has no such op, or is not installed")
    timing = result.timings[library]
    benchmark.group, benchmark.name = str(case), library
    benchmark.extra_info["time_over_fastce"] = result.ratio(library)
    rounds = iter(timing.rounds)
    benchmark.pedantic(advance, setup=lambda: ((next(rounds),), {}), rounds=len(timing.rounds))
