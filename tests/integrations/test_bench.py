"""The benchmarks themselves: every library does the same work, and every figure comes out."""

import gc
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

import fastce
from fastce._cli import _measure, main, peers
from fastce._cli._cases import ITEMSIZE, TRAFFIC, Case, cases, make_data
from fastce._cli._timing import MIN_ROUNDS, SLOW_ROUNDS, Timing, alternate, memory_call
from fastce._cli.peers import PEERS, Call, disagreement, installed, make_inputs, sample

BENCH = Path(__file__).parents[2] / "bench"
LIBRARIES = [name for name in PEERS if name != "fastce"]
TINY = list(dict.fromkeys(case.tiny() for case in cases() + cases(quick=True)))


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
        if case.into != "fresh":
            assert TRAFFIC[case.op][1], "only big results have a place to go to"


def test_every_op_has_a_case():
    options = {"available_backends", "get_num_threads", "set_num_threads", "set_validation"}
    options |= {"BackendError", "__version__", "set_allow_tf32", "show_config", "use_backend"}
    options |= {"attention_varlen", "attention_varlen_backward"}  # the same kernels
    ops = {case.op for case in cases()}
    assert ops == set(TRAFFIC)
    assert {op.partition(".")[0] for op in ops} == set(fastce.__all__) - options


def test_tiny_cases_are_small_and_the_same_otherwise():
    case = Case("log_softmax", (64, 1000, 32, 32), "float16", "out", axis=1)
    assert case.tiny() == replace(case, shape=(3, 40, 3, 3))
    case = Case("scaled_dot_product_attention", (1, 32, 1, 128), keys=4096)
    assert case.tiny() == replace(case, shape=(1, 7, 1, 7), keys=9)
    assert max(math.prod(case.shape) for case in TINY) <= 7**4


def test_traffic():
    assert Case("log_softmax", (10, 100)).traffic == 2 * 4000
    assert Case("cross_entropy", (10, 100)).traffic == 4000 + 80
    assert Case("cross_entropy_with_grad", (10, 100), "bfloat16").traffic == 2 * 2000 + 80
    assert Case("cross_entropy", (10, 100), target="probabilities").traffic == 2 * 4000 + 80
    assert Case("binary_cross_entropy_with_logits_with_grad", (1000,)).traffic == 3 * 4000


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_agrees_with_fastce(library):
    """Called three times: a case in place goes on from its own results."""
    pytest.importorskip("ml_dtypes")
    _, missing = installed([library])
    if missing:
        pytest.skip(missing[library])
    offered = 0
    for case in TINY:
        data = make_inputs(case)
        expected = sample(PEERS["fastce"].call("fastce", replace(case, into="fresh"), data).run())
        call = PEERS[library].call(library, case, data)
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
    monkeypatch.setitem(PEERS, "jax", peers.Peer("no_such_module", PEERS["jax"].make))
    versions, missing = installed(["fastce", "jax"])
    assert versions == {"fastce": fastce.__version__}
    assert "no_such_module" in missing["jax"]


def test_failing_library_is_left_out(monkeypatch):
    def fails(case, data):
        raise MemoryError("too big")

    monkeypatch.setenv("FASTCE_BENCH_TINY", "1")
    monkeypatch.setitem(PEERS, "jax", peers.Peer("numpy", fails))
    wrong = peers.Peer("numpy", lambda case, data: Call(lambda: data.x))
    monkeypatch.setitem(PEERS, "torch", wrong)
    result = _measure.measure(Case("softmax", (3, 5)), ["fastce", "jax", "torch"], quick=True)
    assert list(result.timings) == ["fastce"]
    assert result.problems["jax"] == "MemoryError: too big"
    assert "where fastce has" in result.problems["torch"]


def test_case_that_does_not_fit_memory_is_skipped():
    result = _measure.measure(Case("softmax", (2**30, 2**20)), ["fastce"], quick=True)
    assert not result.timings
    assert "GB of free memory" in result.skipped


def test_calls_take_turns(monkeypatch):
    """On a clock that only the calls move on: "slow" takes 100 times as long as "quick"."""
    now, turns = 0.0, []

    def make(name, seconds):
        def run():
            nonlocal now
            now += seconds
            turns.append(name)

        return Call(run)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = {"quick": make("quick", 0.02), "slow": make("slow", 2.0)}
    ticks = []
    times = alternate(calls, budget=5.0, tick=ticks.append)
    assert gc.isenabled()
    assert times["quick"].median == pytest.approx(0.02)
    assert times["slow"].median == pytest.approx(2.0)
    assert len(times["quick"].rounds) == MIN_ROUNDS
    assert len(times["slow"].rounds) == SLOW_ROUNDS
    assert ticks[:4] == ["quick", "slow", "slow", "quick"]
    assert len([name for name, _ in itertools.groupby(turns)]) >= 2 * SLOW_ROUNDS


def test_short_calls_are_repeated_in_a_turn(monkeypatch):
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
    pytest.importorskip("rich")
    from fastce._cli._report import times

    assert times(ratio) == shown


def test_timing_quartiles():
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 5.0])[:3] == (3.0, 2.0, 4.0)


@pytest.mark.parametrize("writes", [False, True])
def test_memory_call_moves_as_many_bytes(writes):
    done = memory_call(1_000_000, writes, threads=3).run()
    assert len(done) == 3


def test_command_prints_a_table_and_saves_picture_and_figures(monkeypatch, tmp_path, capsys):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("FASTCE_BENCH_TINY", "1")
    monkeypatch.setitem(PEERS, "jax", peers.Peer("no_such_module", PEERS["jax"].make))
    picture, figures = tmp_path / "speed.png", tmp_path / "speed.json"
    before = fastce.get_num_threads()
    command = ["bench", "--quick", "--threads", "1", "--peer", "reference", "numpy", "jax"]
    # Beside another busy process, BLAS makes each case take seconds.
    command += ["--op", "cross_entropy_with_grad", "log_softmax", "linear_cross_entropy_with_grad"]
    assert main([*command, "--plot", str(picture), "--json", str(figures)]) == 0
    assert fastce.get_num_threads() == before
    shown = capsys.readouterr().out
    for expected in (
        "cross_entropy_with_grad",
        "numpy",
        "jax is not here",
        "in place",
        "1 thread,",
    ):
        assert expected in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(figures.read_text())
    assert saved["machine"]["threads"] == 1
    for result in saved["results"]:
        seconds = result["seconds"]
        assert {"fastce", "reference"} <= set(seconds)
        for name, timing in seconds.items():
            assert timing["q1"] <= timing["median"] <= timing["q3"]
            ratio = timing["median"] / seconds["fastce"]["median"]
            assert result["ratio"][name] == pytest.approx(ratio)


def test_command_prints_only_json_for_a_dash(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setenv("FASTCE_BENCH_TINY", "1")
    assert main(["bench", "--op", "nll_loss", "--peer", "numpy", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert [result["case"]["op"] for result in json.loads(out)["results"]] == ["nll_loss"]
    assert "nll_loss" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "1 to 4096, got 0"),
        (["--plot", "/no/such/folder/x.png"], "No such file or directory"),
        (["--plot", "x.xyz"], "cannot write x.xyz: known endings: "),
        (["--json", "/no/such/folder/x.json"], "No such file or directory"),
    ],
)
def test_command_refuses_before_measuring(options, message, capsys):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    assert main(["bench", "--quick", *options]) == 1
    assert message in capsys.readouterr().err


def test_peers_under_pytest_benchmark(tmp_path):
    pytest.importorskip("pytest_benchmark")
    pytest.importorskip("rich")
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


@pytest.fixture
def suite(monkeypatch):
    """Imports a module of the asv suite at its smallest sizes."""
    monkeypatch.setenv("FASTCE_BENCH_TINY", "1")
    monkeypatch.syspath_prepend(str(BENCH))
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("log_softmax", "LogSoftmax"),
        ("cross_entropy", "CrossEntropy"),
        ("robust_losses", "RobustLosses"),
        ("binary_cross_entropy", "BinaryCrossEntropy"),
        ("attention", "Attention"),
    ],
)
def test_asv_suite_runs(suite, module, name):
    benchmark = getattr(suite(module), name)()
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
            assert math.isnan(ratio) if params[3] == "reference" else ratio > 0
            assert benchmark.track_fraction_of_copy_bandwidth(*params) >= 0
        finally:
            benchmark.teardown(*params)
        assert fastce.get_num_threads() == before
        ran.add((params[0], params[3]))
    assert {op for op, _ in ran} == set(benchmark.params[0])


def test_asv_configuration():
    config = json.loads((BENCH / "asv.conf.json").read_text())
    assert (BENCH / config["benchmark_dir"] / "__init__.py").is_file()
    assert (BENCH / config["repo"] / "setup.py").is_file()
