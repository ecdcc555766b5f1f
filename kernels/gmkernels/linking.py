"""Kernels are compiled whole: what only other compiled code calls is linked, and becomes machine code with its caller.

Numba makes a library of every function that a kernel calls, and of each one machine code that nobody runs, and it finds
the types of every `a + b` anew, by asking some thirty templates. That is a sixth of the time to compile a kernel.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from numba.core import codegen, types
from numba.core.registry import cpu_target

_C_FUNCTION = "cfunc."
"""How the name of what is called from outside begins (`FunctionDescriptor.llvm_cfunc_wrapper_name`)."""
_signatures: dict[Any, Any] = {}
"""Signature by function and types of arguments, where Numba has an instruction, as it has for most operators."""


class _Library(codegen.JITCodeLibrary):
    """Becomes machine code when somebody asks for an address in it, and not when it is linked into another.

    It is optimised as Numba does it, though most will be again after linking: without, loops are not unrolled in time
    for the loops around their callers to become vector code (words of the random stream in three times the time).
    """

    _emitted = False

    def _optimize_functions(self, module: Any) -> None:
        """Numba's function passes, over what the module defines.

        Numba runs them over declarations too, six in seven of its functions, and sets up the passes anew for each.
        """
        module.data_layout = self._codegen._data_layout
        for function in module.functions:
            if not function.is_declaration:
                manager, builder = self._codegen._function_pass_manager()
                manager.run(function, builder)

    def _finalize_final_module(self) -> None:
        """The last that Numba does to make a library."""
        self._finalized = True

    def _emit(self) -> None:
        self._ensure_finalized()
        if not self._emitted:
            self._emitted = True
            super()._finalize_final_module()

    def close(self) -> None:
        """Keep the names of what is linked here to itself, but those of C functions; no other library can link it then.

        Machine code is linked by names, and Numba's are unique in one process only: of two functions that two processes
        have compiled and kept under one name, a third process would call one in the place of the other.
        """
        self._ensure_finalized()
        for function in self._final_module.functions:
            if not function.is_declaration and not function.name.startswith(_C_FUNCTION):
                function.linkage = "internal"

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        if any(function.name == name for function in self.get_defined_functions()):
            self._emit()
        return super().get_pointer_to_function(name)

    @property
    def has_dynamic_globals(self) -> bool:
        """What Numba's cache asks first of a library that it is to keep."""
        self._emit()
        return bool(super().has_dynamic_globals)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Context in which the thread that holds Numba's compiler lock compiles a kernel as this module says."""
    generator, typing = cpu_target.target_context.codegen(), cpu_target.typing_context
    changes = {
        (generator, "_library_class"): _Library,
        (generator, "set_env"): functools.partial(_set_env, generator),
        (typing, "resolve_function_type"): functools.partial(_resolve, typing, typing.resolve_function_type),
    }
    for (changed, name), value in changes.items():
        setattr(changed, name, value)
    try:
        yield
    finally:
        for changed, name in changes:
            delattr(changed, name)  # the class's shows again


def _set_env(generator: Any, name: str, environment: Any) -> None:
    """Machine code has a variable for the Python objects of its function. What is linked needs none."""
    if generator._engine.is_symbol_defined(name):
        type(generator).set_env(generator, name, environment)


def _resolve(typing: Any, resolve: Callable[..., Any], function: Any, args: Any, kws: Any) -> Any:
    """The signature of a call; the second time of an instruction's from the table."""
    if kws or isinstance(function, types.Type) or not all(isinstance(arg, types.Type) for arg in args):
        return resolve(function, args, kws)
    known = typing._lookup_global(function)  # another one when somebody has added a meaning to the function
    key = known, args
    if key not in _signatures:
        signature = resolve(function, args, kws)
        # What is no instruction was made by compiling something, under the options of the caller.
        if signature is None or known is None or known._impl_keys.get(signature.args) is not function:
            return signature
        _signatures[key] = signature
    return _signatures[key]
