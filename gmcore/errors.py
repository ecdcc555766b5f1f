"""The errors of gmcore.

Everything that bad input can cause derives from `GmcoreError`, so a program that embeds the engine can catch
one class, and the command line can turn it into one line and exit status 2. Each class also derives from the
built-in exception a NumPy user would expect.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

_PACKAGE = str(Path(__file__).parent) + os.sep


class GmcoreError(Exception):
    """Base of every error that bad input or bad use causes."""


class ShapeError(GmcoreError, ValueError):
    """Array shapes that do not fit each other or the operation."""


class DtypeError(GmcoreError, TypeError):
    """An array of a dtype that the operation does not take."""


class ArgumentError(GmcoreError, ValueError):
    """A value outside the range, or not among the options, that the argument allows."""


class GraphError(GmcoreError, RuntimeError):
    """The gradient asked for cannot be had: the tape is freed, changed, absent or not differentiable."""


class CaptureError(GmcoreError, RuntimeError):
    """A step that `gmcore.capture` cannot repeat; the message says what in it, and what to do."""


class AnomalyError(GmcoreError, FloatingPointError):
    """A NaN or an infinity, found by `gmcore.detect_anomaly`."""


class DeviceError(GmcoreError, RuntimeError):
    """A device that cannot be had, tensors on several devices, or numbers asked of the CPU that are on a GPU."""


class DeviceMemoryError(GmcoreError, MemoryError):
    """A GPU has no room: the message says for what, how much is free, and what to do. Nothing of it stays allocated."""


class DataError(GmcoreError, ValueError):
    """A data set that is missing, truncated, malformed, empty or outside what the model supports."""


class CheckpointError(GmcoreError, ValueError):
    """A checkpoint that is missing, corrupt, of another format version or of another model."""


class MissingPackageError(GmcoreError, ImportError):
    """An optional package that is not installed; the message holds the command that installs it."""


class UnknownNameError(GmcoreError, LookupError):
    """A model, data set, option or kernel that does not exist."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for an unknown `name` of some `kind`, with the nearest known name as a suggestion.

    What is known is listed as well, as far as it fits a line.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    listed = ", ".join(known) if len(known) <= 30 else f"{len(known)} names"
    return UnknownNameError(f"unknown {kind} {name!r}{hint} Known: {listed}")


def shown(value: Any) -> str:
    """An argument in an error message: dtype and shape of a tensor or array, also inside a tuple."""
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))}{',' * (len(value) == 1)})"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") and hasattr(value, "shape") else repr(value)


def user_line(models: bool = False, since: FrameType | None = None) -> str:
    """``file:line`` of the innermost frame outside this package, for error messages.

    `models`: the package's own models count as user code. `since`: a frame to begin at, in place of the caller's.
    """
    frame = since or sys._getframe(1)
    while frame is not None and (name := frame.f_code.co_filename).startswith(_PACKAGE):
        if models and name.startswith(_PACKAGE + "models"):
            break
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"


def user_function() -> str:
    """Name of the function of this package that the line of `user_line` called, for error messages."""
    name = "?"
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        name = frame.f_code.co_qualname
        frame = frame.f_back  # type: ignore[assignment]
    return name.removesuffix(".__init__")
