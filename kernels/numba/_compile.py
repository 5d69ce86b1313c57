"""How functions are compiled, and how tasks are spread over threads.

Where a prange calls a function, LLVM goes over that function four times, and once more for the same
loop without threads. A task is therefore compiled once, for each type of its arguments, as a C
function that finds them in memory; one loop over threads calls all tasks by their addresses.
"""

import functools
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from types import FunctionType

import numba
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils, event
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from ._jit_options import OPTIONS, internal

compiled = functools.partial(numba.njit, **OPTIONS)

# Fewer elements than this run on one thread, as in kernels/cython/_threads.pxi.
SERIAL_BELOW = 1 << 16

_kernels = {}  # function as compiled by Numba: its name for users
_one_at_a_time = threading.Lock()


def _lost_threads() -> bool:
    """Whether this process was forked, maybe from one that had threads of libgomp or of Numba: see
    kernels/cython/_forks.py.
    """
    try:
        stat = Path("/proc/self/stat").read_bytes()
        if not int(stat.rpartition(b")")[2].split()[6]) & 0x40:  # PF_FORKNOEXEC
            return False
        if b"/libgomp" in Path("/proc/self/maps").read_bytes():
            return True
        numba.threading_layer()
    except (OSError, ValueError):  # not Linux; Numba has not started threads
        return False
    return True


# The process that may use threads, those of `threaded`.
_threads_of = 0 if _lost_threads() else os.getpid()


_FOLDER = Path(__file__).parent


def _fingerprint() -> str:
    """Of the sources in this folder and below. Numba compiles anew when a function's own file has
    changed, but not for a change in a file that this one imports.
    """
    stamps = [
        (str(path.relative_to(_FOLDER)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(_FOLDER.rglob("*.py"))
    ]
    return hashlib.sha1(repr(stamps).encode(), usedforsecurity=False).hexdigest()[:8]


_VERSION = _fingerprint()


def _cached(start, task):
    # Compiled code is cached under the qualified name, which therefore names the task's module and
    # the version. The task is a global name and not in a closure, of which Numba would keep a hash.
    function = task.py_func
    module = function.__module__.removeprefix(f"{__package__}.")
    copy = FunctionType(start.__code__, {**start.__globals__, "task": task}, function.__name__)
    copy.__qualname__ = f"{module}.{function.__qualname__}_{_VERSION}"
    copy.__module__ = function.__module__
    try:
        kernel = compiled(copy, cache=True)
    except RuntimeError as error:  # no folder in which anything can be written
        if "no locator" not in str(error):
            raise
        kernel = compiled(copy)
    op = module.partition(".")[0].strip("_")
    _kernels[kernel] = f"{op}: {function.__name__.removesuffix('_task')}"
    return kernel


class _Stopwatch(event.Listener):
    """Appends how long a kernel took to compile to a file beside the compiled code."""

    def on_start(self, compiling):
        kernel = compiling.data["dispatcher"]
        if kernel in _kernels:
            self.started = time.perf_counter()  # kernels do not nest, and Numba holds a lock

    def on_end(self, compiling):
        kernel = compiling.data["dispatcher"]
        folder = kernel.stats.cache_path if kernel in _kernels else None
        if folder is None:
            return
        entry = {
            "version": _VERSION,
            "kernel": _kernels[kernel],
            "dtype": _dtype(compiling.data["args"]),
            "seconds": round(time.perf_counter() - self.started, 2),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder, _TIMES), "a") as file:  # a short line is written at once, or not
            file.write(json.dumps(entry) + "\n")


_TIMES = "compile_times.jsonl"
event.register("numba:compile", _Stopwatch())


def _dtype(arguments):
    """What is computed with, by the types of arguments: that of the first array of floats."""
    names = {types.uint16: "float16", types.int16: "bfloat16"}
    names |= {dtype: str(dtype) for dtype in (types.float32, types.float64)}
    arrays = [a.dtype for a in _flat(arguments) if isinstance(a, types.Array)]
    return next((names[dtype] for dtype in arrays if dtype in names), str(arrays[0]))


def _flat(arguments):
    for argument in arguments:
        if isinstance(argument, types.BaseTuple):
            yield from _flat(argument)
        else:
            yield argument


def compile_times():
    """What the kernels of this version took to compile, as far as they are in Numba's cache.

    A list of dictionaries: kernel, dtype, seconds.
    """
    folders = {kernel.stats.cache_path for kernel in _kernels} - {None}
    files = [Path(folder, _TIMES) for folder in sorted(folders)]
    lines = (line for file in files if file.exists() for line in file.open())
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry.pop("version") == _VERSION]


# ---- tasks over threads ----------------------------------------------------------------------


@intrinsic
def _unowned(typingctx, value):
    """Arrays, also in tuples, without their reference counts, for which threads would wait for each
    other. The caller keeps the memory.
    """

    def generate(context, builder, signature, args):
        return impl_ret_borrowed(context, builder, value, strip(context, builder, value, args[0]))

    def strip(context, builder, kind, given):
        if isinstance(kind, types.BaseTuple):
            for i, part in enumerate(kind):
                stripped = strip(context, builder, part, builder.extract_value(given, i))
                given = builder.insert_value(given, stripped, i)
        elif isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, given)
            array.meminfo = array.meminfo.type(None)
            given = array._getvalue()
        return given

    return value(value), generate


@intrinsic
def _stored(typingctx, arguments):
    """The address of a tuple in memory, for as long as the function runs that calls this."""

    def generate(context, builder, signature, args):
        place = cgutils.alloca_once_value(builder, args[0])
        return builder.ptrtoint(place, context.get_value_type(types.intp))

    return types.intp(arguments), generate


@intrinsic
def _entry(typingctx, task, arguments):
    """The address of a function (place, number), which calls the task with the tuple that is stored
    at a place, and a number.
    """
    called = task.get_call_type(typingctx, (*arguments, types.int64), {})

    def generate(context, builder, signature, args):
        result = task.dispatcher.get_compile_result(called)
        whole, module = context.get_value_type(types.intp), builder.module
        kind = ir.FunctionType(ir.VoidType(), [whole, whole])
        entry = ir.Function(
            module, kind, module.get_unique_name(f"{result.fndesc.mangled_name}.entry")
        )
        entry.linkage = "internal"
        body = ir.IRBuilder(entry.append_basic_block())
        place = body.inttoptr(entry.args[0], context.get_value_type(arguments).as_pointer())
        values = cgutils.unpack_tuple(body, body.load(place))
        context.call_conv.call_function(
            body,
            context.declare_function(module, result.fndesc),
            result.fndesc.restype,
            result.fndesc.argtypes,
            [*values, entry.args[1]],
        )  # what it raised would be lost: a task raises nothing
        body.ret_void()
        context.active_code_library.add_linking_library(result.library)
        return builder.ptrtoint(entry, whole)

    return types.intp(task, arguments), generate


@intrinsic
def _call(typingctx, entry, place, number):
    def generate(context, builder, signature, args):
        whole = context.get_value_type(types.intp)
        kind = ir.FunctionType(ir.VoidType(), [whole, whole]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@internal(parallel=True)
def _over_threads(entry, place, count):
    for number in prange(count):
        _call(entry, place, number)


def _start(spread, count, *arguments):
    arguments = _unowned(arguments)
    entry, place = _entry(task, arguments), _stored(arguments)  # noqa: F821 (see _cached)
    if spread:
        _over_threads(entry, place, count)
    else:
        for number in range(count):
            _call(entry, place, number)


def threaded(task):
    """A function ``(threads, elements, count, *arguments)`` that calls ``task(*arguments, number)``
    for every number below `count`, over Numba's threads (`task` is compiled, see `inner`).

    On one thread for less work than `SERIAL_BELOW` elements, and for everything in a process that
    was forked after this module was loaded, or from one that may have had threads: OpenMP's do not
    survive a fork. A child that waits for them hangs, and Numba ends one that tries to use them.
    Numba's `workqueue` layer ends the process, too, when two threads of the user start parallel
    loops at once: there one call waits for the other.

    In compiled code, ``start(spread, count, *arguments)`` of that function does the same.
    """
    start = _cached(_start, task)

    def run(threads, elements, count, *arguments):
        if threads <= 1 or count <= 1 or elements < SERIAL_BELOW or os.getpid() != _threads_of:
            return start(False, count, *arguments)
        before = numba.get_num_threads()  # starts Numba's threads, so that the layer is known
        num_threads = min(threads, numba.config.NUMBA_NUM_THREADS)
        if numba.threading_layer() == "workqueue":
            with _one_at_a_time:
                return _on_threads(start, num_threads, before, count, arguments)
        return _on_threads(start, num_threads, before, count, arguments)

    run.start = start
    return run


def _on_threads(start, num_threads, before, count, arguments):
    if num_threads == before:
        return start(True, count, *arguments)
    numba.set_num_threads(num_threads)  # of this thread of the user only
    try:
        return start(True, count, *arguments)
    finally:
        numba.set_num_threads(before)


@intrinsic
def next_task(typingctx, counter):
    """The next number of counter[0], which all threads share: a thread that is free takes the next
    task. A prange would give each thread one range of tasks, however long these take.
    """

    def generate(context, builder, signature, args):
        counter = context.make_array(signature.args[0])(context, builder, args[0])
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", counter.data, one, "monotonic")

    return types.int64(counter), generate
