"""The benchmarks themselves: every library does the same work, and every figure comes out."""

import gc
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

import fastce
from bench.benchmarks._cases import ITEMSIZE, Case, make_call, make_data, traffic
from bench.peers import __main__ as command
from bench.peers import classes, measure
from bench.peers.cases import cases
from bench.peers.measure import PACKAGES, Call, call_of, disagreement, installed, sample
from fastce._cli import bench, main
from fastce._cli._results import check_memory, times
from fastce._cli._timing import MIN_ROUNDS, SLOW_ROUNDS, Timing, alternate, limit_call

BENCH = Path(__file__).parents[2] / "bench"
TINY = list(dict.fromkeys(case.tiny() for case in cases() + cases(quick=True)))
OPTIONS = {"available_backends", "get_num_threads", "set_num_threads", "set_validation"}
OPTIONS |= {"BackendError", "__version__", "set_allow_tf32", "show_config", "use_backend"}
OPTIONS |= {"attention_varlen", "attention_varlen_backward"}  # the same kernels


@pytest.mark.parametrize("quick", [False, True])
def test_cases_are_well_formed(quick):
    chosen = cases(quick)
    assert len({str(case) for case in chosen}) == len(chosen)
    for case in chosen:
        assert callable(attrgetter(case.op)(fastce))
        assert case.dtype in ITEMSIZE
        assert case.into in ("fresh", "out", "in place")
        assert case.target in ("index", "probabilities")
        assert case.rows * case.classes == math.prod(case.shape)
        assert bool(case.keys) == ("attention" in case.op)
        assert case.into == "fresh" or case.writes, "only large results have a place to go to"


@pytest.mark.parametrize("chosen", [cases(), bench._cases(quick=False)], ids=["peers", "fastce"])
def test_every_op_has_a_case(chosen):
    assert {case.op.partition(".")[0] for case in chosen} == set(fastce.__all__) - OPTIONS


def test_tiny_cases_are_small_and_the_same_otherwise():
    case = Case("log_softmax", (64, 1000, 32, 32), "float16", "out", axis=1)
    assert case.tiny() == case._replace(shape=(3, 40, 3, 3))
    case = Case("scaled_dot_product_attention", (1, 32, 1, 128), keys=4096)
    assert case.tiny() == case._replace(shape=(1, 3, 1, 40), keys=9)
    assert max(math.prod(case.shape) for case in TINY) <= 3**3 * 40


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("log_softmax", (10, 100)), 2 * 4000),
        (Case("cross_entropy", (10, 100)), 4000 + 80),
        (Case("cross_entropy_with_grad", (10, 100), "bfloat16"), 2 * 2000 + 80),
        (Case("cross_entropy", (10, 100), target="probabilities"), 2 * 4000),
        (Case("binary_cross_entropy_with_logits_with_grad", (1000,)), 3 * 4000),
        (Case("nll_loss", (10, 100)), 80),
        (Case("softmax_backward", (10, 100)), 3 * 4000),
        (Case("scaled_dot_product_attention", (1, 2, 1, 8), keys=10), 2 * 8 * 21 * 4),
        (Case("linear_cross_entropy", (10, 100), width=5), 0),
    ],
    ids=str,
)
def test_traffic(case, expected):
    assert traffic(case, make_data(case)) == expected


def test_limits_of_fastce_bench_are_those_of_the_peers(monkeypatch):
    """It has a table of its own, since the wheel holds nothing of bench/."""
    monkeypatch.setattr(bench, "TINY", True)
    for ours in bench._cases(quick=False):
        inner = {"keys" if "attention" in ours.op else "width": ours.inner} if ours.inner else {}
        case = Case(ours.op, ours.shape, ours.dtype, axis=ours.axis, **inner)
        read, written, flops = bench._limits(ours, bench._inputs(ours))
        nbytes = traffic(case, make_data(case))
        assert read + written == nbytes, ours.op
        assert bool(written) == case.writes
        assert flops == (case.flops if case.is_products and not nbytes else 0), ours.op


@pytest.mark.parametrize("library", [name for name in PACKAGES if name != "fastce"])
def test_library_agrees_with_fastce(library):
    """Called three times: a case in place continues from its own results."""
    pytest.importorskip("ml_dtypes")
    _, missing = installed([library])
    if missing:
        pytest.skip(missing[library])
    offered = 0
    for case in TINY:
        data = make_data(case)
        expected = sample(make_call(case._replace(into="fresh"), data)())
        call = call_of(library, case, data)
        if call is None:
            continue
        offered += 1
        with call.context():
            problem = disagreement(case, call.finish(call.run()), expected)
            assert problem is None, f"{case}: {problem}"
            call.run()
            again = call.finish(call.run())
        assert all(np.isfinite(part).all() for part in sample(again)), str(case)
    assert offered >= 3
    if library in ("reference", "torch"):
        assert offered == len(TINY)


def test_formulas_of_numpy_agree_with_fastce(monkeypatch):
    """Those of `fastce bench`."""
    monkeypatch.setattr(bench, "TINY", True)
    compared = set()
    for case in bench._cases(quick=False):
        inputs = bench._inputs(case)
        if formula := bench._numpy_call(case, inputs):
            ours, theirs = bench._call(case, inputs).run(), formula.run()
            for a, b in zip(sample(ours), sample(theirs), strict=False):  # there is no bias
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5, err_msg=str(case))
            compared.add(case.op)
    assert len(compared) > 15


def test_disagreement_finds_what_is_wrong():
    case = Case("cross_entropy_with_grad", (4, 1000))
    data = make_data(case)
    loss, grad = fastce.cross_entropy_with_grad(data.x, data.target)
    expected = sample((loss, grad))
    assert disagreement(case, (loss, grad), expected) is None
    assert disagreement(case, (loss, grad * np.float32(1 + 1e-5)), expected) is None
    swapped = grad.copy()
    swapped[:, [3, 4]] = grad[:, [4, 3]]
    for wrong in (
        (loss * 1.01, grad),
        (loss, grad * 4),
        (loss, swapped),
        (loss, np.where(grad < 0, grad, 0)),
        (loss, np.full_like(grad, np.nan)),
        (loss, grad[:-1]),
    ):
        assert disagreement(case, wrong, expected)


def test_sample_reaches_every_column():
    x = np.arange(4000 * 1000, dtype=np.float32).reshape(4000, 1000)
    (taken,) = sample(x)
    assert 500_000 < taken.size < 2_000_000
    assert len(np.unique(taken % 1000)) == 1000


def test_missing_library_is_reported(monkeypatch):
    monkeypatch.setitem(PACKAGES, "jax", "no_such_module")
    versions, missing = installed(["fastce", "jax"])
    assert versions == {"fastce": fastce.__version__}
    assert "no_such_module" in missing["jax"]


def test_failing_library_is_left_out(monkeypatch):
    def fails(case, data):
        raise MemoryError("too big")

    monkeypatch.setattr(measure, "TINY", True)
    monkeypatch.setitem(classes.LIBRARIES, "jax", fails)
    monkeypatch.setitem(classes.LIBRARIES, "torch", lambda case, data: Call(lambda: data.x))
    result = measure.measure(["fastce", "jax", "torch"], Case("softmax", (3, 5)), quick=True)
    assert list(result.timings) == ["fastce"]
    assert result.notes[0] == "jax left out: MemoryError: too big"
    assert result.notes[1].startswith("torch left out: ")
    assert "where fastce has" in result.notes[1]


def test_case_that_does_not_fit_memory_is_skipped():
    with pytest.raises(MemoryError, match=r"needs 1000000\.0 GB, and .* GB are free"):
        check_memory(1e15)
    result = measure.measure(["fastce"], Case("softmax", (2**30, 2**20)), quick=True)
    assert not result.timings
    assert result.notes[0].startswith("skipped: needs ")
    result = bench._measure(bench.Case("softmax", (2**30, 2**20)), quick=True)
    assert result.notes[0].startswith("skipped: needs ")


def test_calls_alternate(monkeypatch):
    """On a clock that only the calls move on: "slow" takes 100 times as long as "quick"."""
    now, order = 0.0, []

    def make(name, seconds):
        def run():
            nonlocal now
            now += seconds
            order.append(name)

        return Call(run)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = {"quick": make("quick", 0.02), "slow": make("slow", 2.0)}
    times = alternate(calls, budget=5.0)
    assert gc.isenabled()
    assert times["quick"].median == pytest.approx(0.02)
    assert times["slow"].median == pytest.approx(2.0)
    assert len(times["quick"].rounds) == MIN_ROUNDS
    assert len(times["slow"].rounds) == SLOW_ROUNDS
    series = [name for name, _ in itertools.groupby(order)]
    assert series[-4:] == ["quick", "slow", "quick", "slow"] or len(series) >= 2 * SLOW_ROUNDS


def test_short_calls_are_repeated_in_a_series(monkeypatch):
    now = count = 0

    def run():
        nonlocal now, count
        now += 1e-5
        count += 1

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    timing = alternate({"tiny": Call(run)}, budget=0.0)["tiny"]
    assert timing.median == pytest.approx(1e-5)
    assert count > 500 * MIN_ROUNDS


def test_nothing_to_time():
    assert alternate({}, budget=1.0) == {}


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [(0.123, "0.12x"), (1, "1.00x"), (9.994, "9.99x"), (9.996, "10.0x"), (99.96, "100x")],
)
def test_ratios_are_shown_with_three_digits(ratio, shown):
    assert times(ratio) == shown


def test_timing_quartiles():
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 5.0])[:3] == (3.0, 2.0, 4.0)


@pytest.mark.parametrize("writes", [False, True])
def test_limit_of_memory_moves_as_many_bytes(writes):
    assert len(limit_call(32_000_000, writes, 0, threads=3).run()) == 3


def test_what_says_nothing_has_no_limit():
    assert limit_call(31_000_000, True, 4e8, threads=1) is None
    assert limit_call(0, False, 6e8, threads=1).run() is None


def check_json(saved, libraries):
    assert saved["machine"]["threads"] == 1
    for result in saved["results"]:
        assert libraries <= set(result["seconds"])
        for name, (median, q1, q3) in result["seconds"].items():
            assert q1 <= median <= q3
            ratio = median / result["seconds"]["fastce"][0]
            assert result["ratio"][name] == pytest.approx(ratio)


def test_fastce_bench(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "TINY", True)
    figures, before = tmp_path / "speed.json", fastce.get_num_threads()
    options = ["--quick", "--threads", "1", "--op", "cross_entropy", "log_softmax"]
    assert main(["bench", *options, "--json", str(figures)]) == 0
    assert fastce.get_num_threads() == before
    shown = capsys.readouterr().out
    for expected in ("cross_entropy\n", "numpy", "(32, 1000)", "out=", "1 thread,", "of limit"):
        assert expected in shown
    assert "softmax_backward" not in shown
    saved = json.loads(figures.read_text())
    check_json(saved, {"fastce"})
    assert len(saved["results"]) == 6


def test_fastce_bench_prints_only_json_for_a_dash(monkeypatch, capsys):
    monkeypatch.setattr(bench, "TINY", True)
    assert main(["bench", "--op", "nll_loss", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert [result["name"] for result in json.loads(out)["results"]] == ["nll_loss (32, 1000)"]
    assert "nll_loss" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "1 to 4096, got 0"),
        (["--json", "/no/such/folder/x.json"], "No such file or directory"),
        (["--peer", "torch"], "--peer: other libraries are measured"),
        (["--plot", "x.png"], "python -m bench.peers, with the same options"),
    ],
)
def test_fastce_bench_refuses_before_measuring(options, message, capsys):
    assert main(["bench", "--quick", *options]) == 1
    assert message in capsys.readouterr().err


def test_peers_give_a_table_a_picture_and_figures(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(measure, "TINY", True)
    monkeypatch.setattr("bench.peers.cases.TINY", True)
    monkeypatch.setitem(PACKAGES, "jax", "no_such_module")
    picture, figures = tmp_path / "speed.png", tmp_path / "speed.json"
    options = ["--quick", "--threads", "1", "--peer", "reference", "numpy", "jax"]
    # Beside another busy process, BLAS makes each case take seconds.
    options += ["--op", "cross_entropy_with_grad", "log_softmax", "linear_cross_entropy_with_grad"]
    options += ["--plot", str(picture), "--json", str(figures)]
    assert command.main(options) == 0
    shown = capsys.readouterr()
    assert "jax is not installed: " in shown.err
    for expected in ("cross_entropy_with_grad\n", "reference", "in place"):
        assert expected in shown.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    check_json(json.loads(figures.read_text()), {"fastce", "reference"})


def test_a_picture_that_cannot_be_written(capsys):
    assert command.main(["--plot", "/no/such/folder/x.png"]) == 1
    assert "No such file or directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--plot", "x.xyz"])
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err


def test_peers_under_pytest_benchmark(tmp_path):
    pytest.importorskip("pytest_benchmark")
    saved = tmp_path / "peers.json"
    command = ["-m", "pytest", "bench/peers", "--quick", "-k", "numpy and logsumexp"]
    command = [sys.executable, *command, f"--benchmark-json={saved}"]
    # Under pytest-xdist nothing is measured, which it tells from its variables.
    tiny = {k: v for k, v in os.environ.items() if "XDIST" not in k} | {"FASTCE_BENCH_TINY": "1"}
    done = subprocess.run(command, cwd=BENCH.parent, env=tiny, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "time of each library / time of fastce" in done.stdout
    (result,) = json.loads(saved.read_text())["benchmarks"]
    assert (result["group"], result["name"]) == ("logsumexp (3, 40)", "numpy")
    assert 0 < result["stats"]["median"] < 10
    assert result["extra_info"]["time_over_fastce"] > 0


@pytest.mark.parametrize("module", ["log_softmax", "cross_entropy", "information", "attention"])
def test_asv_suite_runs(module, monkeypatch):
    """At its smallest sizes, imported as asv does."""
    monkeypatch.setenv("FASTCE_BENCH_TINY", "1")
    monkeypatch.syspath_prepend(str(BENCH))
    try:
        suite = importlib.import_module(f"benchmarks.{module}")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]
    (benchmark,) = [v() for k, v in vars(suite).items() if k[0] != "_" and hasattr(v, "time_op")]
    ran = set()
    for params in itertools.product(*benchmark.params):
        before = fastce.get_num_threads()
        try:
            benchmark.setup(*params)
        except NotImplementedError:
            assert fastce.get_num_threads() == before
            continue
        try:
            benchmark.time_op(*params)
            benchmark.peakmem_op(*params)
            ratio = benchmark.track_ratio_to_reference(*params)
            assert math.isnan(ratio) if params[2] == "reference" else ratio > 0
            share = benchmark.track_fraction_of_copy_bandwidth(*params)
            assert math.isnan(share) or share >= 0
        finally:
            benchmark.teardown(*params)
        assert fastce.get_num_threads() == before
        ran.add(params[0])
    assert ran == set(benchmark.params[0])


def test_asv_configuration():
    config = json.loads((BENCH / "asv.conf.json").read_text())
    assert (BENCH / config["benchmark_dir"] / "__init__.py").is_file()
    assert (BENCH / config["repo"] / "setup.py").is_file()
