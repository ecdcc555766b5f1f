"""Kullback-Leibler divergences in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gmcore import ops
from gmcore.distributions.bernoulli import Bernoulli
from gmcore.distributions.distribution import Distribution
from gmcore.distributions.normal import Normal
from gmcore.errors import ArgumentError
from gmcore.tensor import Tensor

Divergence = Callable[[Any, Any], Tensor]

_REGISTERED: dict[tuple[type[Distribution], type[Distribution]], Divergence] = {}


def register_kl(type_p: type[Distribution], type_q: type[Distribution]) -> Callable[[Divergence], Divergence]:
    """Decorator: the function ``(p, q) -> KL(p || q)`` for two types of distributions and their subclasses.

        @register_kl(Normal, Normal)
        def kl_normal_normal(p, q): ...

    Raises
    ------
    ArgumentError : types that are no distributions, or a pair that has a function already.
    """
    for kind in (type_p, type_q):
        if not (isinstance(kind, type) and issubclass(kind, Distribution)):
            raise ArgumentError(f"register_kl: expected two subclasses of Distribution, got {kind!r}")
    if (type_p, type_q) in _REGISTERED:
        raise ArgumentError(f"register_kl: {type_p.__name__}, {type_q.__name__} is registered already")

    def register(function: Divergence) -> Divergence:
        _REGISTERED[type_p, type_q] = function
        return function

    return register


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q) = E_p[log p(x) - log q(x)], of the shape of both batches broadcast.

    The function registered for the nearest base classes of p, then of q, is used.

    Raises
    ------
    ArgumentError : none is registered.
    """
    for type_p in type(p).__mro__:
        for type_q in type(q).__mro__:
            if (type_p, type_q) in _REGISTERED:
                return _REGISTERED[type_p, type_q](p, q)
    raise ArgumentError(
        f"no KL divergence is registered for {type(p).__name__} and {type(q).__name__}; register one with "
        "register_kl, or estimate it from samples and log_prob"
    )


@register_kl(Normal, Normal)
def kl_normal_normal(p: Normal, q: Normal) -> Tensor:
    """(s_p^2 / s_q^2 + (m_p - m_q)^2 / s_q^2 - 1 - log s_p^2 / s_q^2) / 2."""
    variance_ratio = ops.square(p.scale / q.scale)
    distance = ops.square((p.loc - q.loc) / q.scale)
    return 0.5 * (variance_ratio + distance - 1.0 - ops.log(variance_ratio))


@register_kl(Bernoulli, Bernoulli)
def kl_bernoulli_bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    """The cross entropy of p and q less the entropy of p; infinite where q excludes what p allows."""
    return p.cross_entropy(q) - p.entropy()
