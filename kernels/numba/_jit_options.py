"""The options with which functions are compiled; `internal` is for those that only other compiled
functions call.

Numba optimises each function and makes machine code of it, together with all that is linked into
it: a function ten calls deep is optimised ten times. Only the kernels, which are called from
outside, need that. Of an internal function the LLVM code is kept as Numba wrote it, to be linked.
This halves the time to compile (cross_entropy: 28 to 14 s), and the kernels are as fast.
"""

import functools

import numba
from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

# Division by zero gives infinity or NaN, as in NumPy: the check that raises instead keeps loops
# from being vectorised (log1p took 10 times as long).
# Not to be inherited from the code that calls: fastmath would make NaN, infinity and compensated
# sums wrong, and the result would stay in the cache for all callers; forceinline contradicts
# `no_inline`.
OPTIONS = {"error_model": "numpy", "nogil": True, "fastmath": False, "forceinline": False}
# The classes below use private interfaces of Numba, and may crash with another version (0.62 does):
# there, internal functions are compiled like all others, in twice the time.
TESTED = ((0, 68),)


class _Library(JITCodeLibrary):
    """LLVM code that is not optimised, and not made machine code of."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


def _without_address(library, function, environment):
    """The object by which Numba finds what to link. Python that calls it crashes: it is empty."""
    owner = function.lookup_module()
    return _dynfunc.make_function(owner, function.qualname, "", 0, environment, (library,))


class _Compiler(Compiler):
    def __init__(self, typing_context, target, library, *others):
        if library is None:
            library = _Library(target.codegen(), "internal")
        super().__init__(typing_context, target, library, *others)
        self.state.targetctx.get_executable = _without_address  # of a copy that is only its own


# Without the two wrappers through which Python and C would call it. What Python calls, too, is
# register_jitable. None raises an exception with numbers in its text: Numba formats that with the
# help of an environment, which _without_address does not register.
INTERNAL = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
if numba.version_info[:2] in TESTED:
    INTERNAL["pipeline_class"] = _Compiler
internal = functools.partial(numba.njit, **INTERNAL)
