"""The random streams of a run.

Nothing random shares a stream: each use has a seed of its own, ``stream_seed(seed, use)``, derived from the seed
of the run. Adding a draw in one place therefore moves nothing elsewhere.
"""

from __future__ import annotations

import contextvars
import hashlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gmcore.errors import unknown_name
from gmcore.random import Generator, _default

STREAMS = {
    "init": "initial values of the parameters",
    "noise": "what the loss draws in training; its state is in the checkpoint",
    "order": "the order of the training images, by epoch",
    "binarize-train": "binarisation of the training images; by epoch if it is dynamic",
    "binarize-valid": "binarisation of the validation images",
    "binarize-test": "binarisation of the test images",
    "validation": "what the loss draws on the validation images, the same after each epoch",
    "evaluation": "the importance samples of a reported bound",
    "sampling": "samples, and the reconstructions of pictures",
}
"""What is random in a run."""

P = ParamSpec("P")
T = TypeVar("T")


def stream_seed(seed: int, use: str) -> int:
    """The 64-bit seed of a `use` in `STREAMS`, in a run with this `seed`: the first bytes of a SHA-256 digest."""
    if use not in STREAMS:
        raise unknown_name("random stream", use, STREAMS)
    return int.from_bytes(hashlib.sha256(f"{use} {seed}".encode()).digest()[:8], "little")


def drawing_from(default: Generator, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function(*args, **kwargs)`` with another default generator.

    A model whose operations are not told which generator to draw from then repeats and resumes like any other, and
    the caller's default generator is left alone.
    """
    context = contextvars.copy_context()
    context.run(_default.set, default)
    return context.run(function, *args, **kwargs)


__all__ = ["STREAMS", "drawing_from", "stream_seed"]
