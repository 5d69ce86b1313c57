"""How functions are compiled, and how loops are spread over threads."""

import functools
import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType

import numba
from llvmlite import ir
from numba import types
from numba.core import event
from numba.extending import intrinsic

# Division by zero gives infinity or NaN, as in NumPy: the check that raises instead keeps loops
# from being vectorised (log1p took 10 times as long).
OPTIONS = {"error_model": "numpy", "nogil": True}
compiled = functools.partial(numba.njit, **OPTIONS)
# For what only compiled code calls: without the two functions around it through which others would.
# Where many small functions take a tuple of arrays, these were much of the time to compile.
inner = functools.partial(compiled, no_cpython_wrapper=True, no_cfunc_wrapper=True)

# Fewer elements than this run on one thread, as in kernels/cython/_threads.pxi.
SERIAL_BELOW = 1 << 16

_kernels = {}  # function as compiled by Numba: its name for users, how its loop runs
_loaded_by = os.getpid()
_turn = threading.Lock()


def _fingerprint() -> str:
    """Of the sources in this folder. Numba compiles anew when a function's own file has changed,
    but not for a change in a file that this one imports.
    """
    stamps = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(Path(__file__).parent.glob("*.py"))
    ]
    return hashlib.sha1(repr(stamps).encode(), usedforsecurity=False).hexdigest()[:8]


_VERSION = _fingerprint()


def _cached(loop, kind, **options):
    # Compiled code is cached under the qualified name, which therefore says all that matters.
    copy = FunctionType(loop.__code__, loop.__globals__, loop.__name__, loop.__defaults__)
    copy.__qualname__, copy.__module__ = f"{loop.__qualname__}_{kind}_{_VERSION}", loop.__module__
    copy.__doc__ = loop.__doc__
    try:
        kernel = compiled(copy, cache=True, **options)
    except RuntimeError as error:  # no folder in which anything can be written
        if "no locator" not in str(error):
            raise
        kernel = compiled(copy, **options)
    file, name = loop.__module__.rpartition(".")[2], loop.__name__
    _kernels[kernel] = f"{file.strip('_')}: {name.strip('_')}", kind
    return kernel


class _Stopwatch(event.Listener):
    """Writes down how long a kernel took to compile, in a file beside the compiled code."""

    def on_start(self, compiling):
        kernel = compiling.data["dispatcher"]
        if kernel in _kernels:
            self.started = time.perf_counter()  # one at a time, Numba holds a lock; none is in one

    def on_end(self, compiling):
        kernel = compiling.data["dispatcher"]
        folder = kernel.stats.cache_path if kernel in _kernels else None
        if folder is None:
            return
        name, kind = _kernels[kernel]
        entry = {
            "version": _VERSION,
            "kernel": name,
            "dtype": _dtype(compiling.data["args"]),
            "loop": kind,
            "seconds": round(time.perf_counter() - self.started, 2),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder, _TIMES), "a") as file:  # a short line is written at once, or not
            file.write(json.dumps(entry) + "\n")


_TIMES = "compile_times.jsonl"
event.register("numba:compile", _Stopwatch())


def _dtype(arguments):
    """That of the first array among types of arguments."""
    for argument in arguments:
        if isinstance(argument, types.Array):
            stored_as = {types.uint16: "float16", types.int16: "bfloat16"}
            return stored_as.get(argument.dtype, str(argument.dtype))
        if isinstance(argument, types.BaseTuple):
            return _dtype(argument)
    raise TypeError(f"no array in {arguments}")


def compile_times():
    """What the kernels of this version took to compile, as far as they are in Numba's cache.

    A list of dictionaries: kernel, dtype, loop (parallel or serial), seconds.
    """
    folders = {kernel.stats.cache_path for kernel in _kernels} - {None}
    files = [Path(folder, _TIMES) for folder in sorted(folders)]
    lines = (line for file in files if file.exists() for line in file.open())
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry.pop("version") == _VERSION]


def threaded(loop):
    """A function ``(threads, elements, *arguments)`` that runs ``loop(*arguments)`` compiled.

    The loop is a prange over tasks, and hands their number on as ``np.int64(task)``: Numba makes
    it unsigned in threads, for which everything below would be compiled once more.

    It is compiled twice: with its prange over Numba's threads, and as an ordinary loop, which runs
    less work than `SERIAL_BELOW` elements, and everything in a process that was forked after this
    module was loaded: OpenMP's threads do not survive a fork, and Numba ends the process that tries
    to use them. Numba's `workqueue` layer ends the process, too, when two threads of the user
    start parallel loops at once: there calls take turns.
    """
    serial = _cached(loop, "serial")
    parallel = _cached(loop, "parallel", parallel=True)

    def run(threads, elements, *arguments):
        if threads <= 1 or elements < SERIAL_BELOW or os.getpid() != _loaded_by:
            return serial(*arguments)
        before = numba.get_num_threads()  # starts Numba's threads, so that the layer is known
        wanted = min(threads, numba.config.NUMBA_NUM_THREADS)
        if numba.threading_layer() == "workqueue":
            with _turn:
                return _on_threads(parallel, wanted, before, arguments)
        return _on_threads(parallel, wanted, before, arguments)

    run.serial, run.parallel = serial, parallel
    return run


def _on_threads(parallel, wanted, before, arguments):
    if wanted == before:
        return parallel(*arguments)
    numba.set_num_threads(wanted)  # of this thread of the user only
    try:
        return parallel(*arguments)
    finally:
        numba.set_num_threads(before)


def shared(tasks):
    """A function ``(threads, elements, *arguments)``: as many threads call ``tasks(*arguments)``,
    compiled, which does tasks until none is left, see `take_turn`.

    For what takes long to compile: LLVM goes over everything that a prange calls four times, and
    over the ordinary loop once more. Here it is compiled once, and knows nothing of threads. These
    are Python's own, made anew for each call (0.1 ms), which a fork cannot harm.
    """
    run_alone = _cached(tasks, "shared")

    def run(threads, elements, *arguments):
        if threads <= 1 or elements < SERIAL_BELOW:
            return run_alone(*arguments)
        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(run_alone, *arguments) for _ in range(threads - 1)]
            run_alone(*arguments)
        for other in others:
            other.result()  # raises what was raised there

    run.serial = run_alone
    return run


@intrinsic
def take_turn(typingctx, turns):
    """The next number of a counter, turns[0], that threads share: who is free takes the next task.

    A prange is cut into one stretch for each thread, however long its parts take.
    """

    def generate(context, builder, signature, args):
        counter = context.make_array(signature.args[0])(context, builder, args[0])
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", counter.data, one, "monotonic")

    return types.int64(turns), generate
