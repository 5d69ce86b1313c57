"""pytest-benchmark's statistics of every case in every library, grouped by case.

pytest-benchmark runs one function after another, but ratios need alternating calls. So the first
test of a case measures it in all libraries, and each test then gives its library's rounds to
pytest-benchmark, by a clock that only they move.
"""

import pytest

from .measure import PACKAGES, installed, measure

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
    return list(installed([name for name in PACKAGES if name in chosen])[0])


@pytest.mark.benchmark(timer=clock)
def test_peer(case, library, results, benchmark, request):
    if case not in results:
        quick = request.config.getoption("quick")
        results[case] = measure(libraries(request, case), case, quick)
    result = results[case]
    assert not any(note.startswith(f"{library} left out") for note in result.notes), result.notes
    if library not in result.timings:
        pytest.skip("; ".join(result.notes) or "the library has no such op, or is not installed")
    timing = result.timings[library]
    benchmark.group, benchmark.name = str(case), library
    benchmark.extra_info["time_over_fastce"] = result.ratio(library)
    rounds = iter(timing.rounds)
    benchmark.pedantic(advance, setup=lambda: ((next(rounds),), {}), rounds=len(timing.rounds))
