"""Kullback-Leibler divergences in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions.bernoulli import Bernoulli
from gmcore.distributions.categorical import Categorical, OneHotCategorical
from gmcore.distributions.count import Binomial, Geometric, NegativeBinomial, Poisson
from gmcore.distributions.dirichlet import Beta, Dirichlet
from gmcore.distributions.distribution import Distribution
from gmcore.distributions.gamma import Exponential, Gamma, InverseGamma, StudentT
from gmcore.distributions.half_normal import HalfNormal
from gmcore.distributions.independent import Independent
from gmcore.distributions.location_scale import Cauchy, Gumbel, Laplace, Logistic
from gmcore.distributions.multivariate_normal import LowRankMultivariateNormal, MultivariateNormal, _log_diagonal
from gmcore.distributions.normal import Normal
from gmcore.distributions.transformed import LogNormal
from gmcore.distributions.uniform import Uniform
from gmcore.errors import ArgumentError, ShapeError
from gmcore.tensor import Array, Tensor, tensor
from gmcore.watch import computed

Divergence = Callable[[Any, Any], Tensor]

_REGISTERED: dict[tuple[type[Distribution], type[Distribution]], Divergence] = {}


def register_kl(type_p: type[Distribution], type_q: type[Distribution]) -> Callable[[Divergence], Divergence]:
    """Decorator: the function ``(p, q) -> KL(p || q)`` for two types of distributions and their subclasses.

        @register_kl(Normal, Normal)
        def kl_normal_normal(p, q): ...

    Parameters
    ----------
    type_p, type_q : subclasses of `Distribution`.

    Returns
    -------
    The decorator, which gives the function back.

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

    Parameters
    ----------
    p, q : distributions whose batch shapes broadcast.

    Returns
    -------
    Tensor of the broadcast batch shape, in nats.

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


# -- two of one kind --------------------------------------------------------------------------------------------
@register_kl(Normal, Normal)
def kl_normal_normal(p: Normal, q: Normal) -> Tensor:
    """(s_p^2 / s_q^2 + (m_p - m_q)^2 / s_q^2 - 1) / 2 - log s_p / s_q."""
    distance = ops.square((p.loc - q.loc) / q.scale)
    return 0.5 * distance + _kl_of_scales(p.scale / q.scale)


def _kl_of_scales(ratio: Tensor) -> Tensor:
    """That of two normal numbers of one mean, with the ratio of their scales, whose square may be too small."""
    return 0.5 * (ops.square(ratio) - 1.0) - ops.log(ratio)


@register_kl(HalfNormal, HalfNormal)
def kl_half_normal_half_normal(p: HalfNormal, q: HalfNormal) -> Tensor:
    """As of normal ones of mean 0: both densities are doubled."""
    return _kl_of_scales(p.scale / q.scale)


@register_kl(LogNormal, LogNormal)
def kl_log_normal_log_normal(p: LogNormal, q: LogNormal) -> Tensor:
    """That of the logarithms: a function one to one changes nothing."""
    return kl_normal_normal(p.base_dist, q.base_dist)


@register_kl(Bernoulli, Bernoulli)
def kl_bernoulli_bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    """The cross entropy of p and q less the entropy of p; infinite where q excludes what p allows."""
    return p.cross_entropy(q) - p.entropy()


def _check_totals(n_p: Array, n_q: Array) -> None:
    if (n_p < n_q).any():
        raise ArgumentError("kl_divergence of two Binomial: no closed form where total_count of p is below that of q")


@register_kl(Binomial, Binomial)
def kl_binomial_binomial(p: Binomial, q: Binomial) -> Tensor:
    """That of as many trials; infinite where p has more than q.

    Raises
    ------
    ArgumentError : p with fewer trials than q somewhere, of which there is no closed form.
    """
    computed(_check_totals, p.total_count._data, q.total_count._data)
    failures = 1.0 - p.probs
    trial = p._log_powers(p.probs, failures) - q._log_powers(p.probs, failures)
    return ops.where(ops.greater(p.total_count, q.total_count), np.inf, p.total_count * trial)


@register_kl(Geometric, Geometric)
def kl_geometric_geometric(p: Geometric, q: Geometric) -> Tensor:
    """-H(p) - log q(success) - E_p[failures] log q(failure)."""
    return -p.entropy() - q._log_powers(tensor(1.0, q._dtype, q._device), p.mean)


@register_kl(Poisson, Poisson)
def kl_poisson_poisson(p: Poisson, q: Poisson) -> Tensor:
    """r_p log(r_p / r_q) - r_p + r_q."""
    with np.errstate(divide="ignore"):
        return ops.xlogy(p.rate, p.rate) - ops.xlogy(p.rate, q.rate) - p.rate + q.rate


@register_kl(Categorical, Categorical)
@register_kl(OneHotCategorical, OneHotCategorical)
def kl_categorical_categorical(p: Any, q: Any) -> Tensor:
    """sum_k p_k (log p_k - log q_k), with 0 log 0 = 0; infinite where q excludes what p allows."""
    if p.probs.shape[-1] != q.probs.shape[-1]:
        raise ShapeError(f"kl_divergence: {p.probs.shape[-1]} classes and {q.probs.shape[-1]}")
    possible = ops.greater(p.probs, 0.0)
    shape = np.broadcast_shapes(p.probs.shape, q.probs.shape)
    possible = ops.broadcast_to(possible, shape)
    return ops.sum(p.probs * (ops.where(possible, p.logits, 0.0) - ops.where(possible, q.logits, 0.0)), axis=-1)


@register_kl(Dirichlet, Dirichlet)
def kl_dirichlet_dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    """The difference of log normalisers, and of concentrations times E_p[log x]."""
    a, b = p.concentration, q.concentration
    total = ops.sum(a, axis=-1, keepdims=True)
    normalisers = (
        ops.lgamma(total)[..., 0] - ops.lgamma(ops.sum(b, axis=-1)) + ops.sum(ops.lgamma(b) - ops.lgamma(a), -1)
    )
    return normalisers + ops.sum((a - b) * (ops.digamma(a) - ops.digamma(total)), axis=-1)


@register_kl(Beta, Beta)
def kl_beta_beta(p: Beta, q: Beta) -> Tensor:
    """That of the two Dirichlet distributions of two classes."""
    a, b = p.concentration1 - q.concentration1, p.concentration0 - q.concentration0
    return (
        q._log_beta()
        - p._log_beta()
        + a * ops.digamma(p.concentration1)
        + b * ops.digamma(p.concentration0)
        - (a + b) * ops.digamma(p.concentration1 + p.concentration0)
    )


@register_kl(Laplace, Laplace)
def kl_laplace_laplace(p: Laplace, q: Laplace) -> Tensor:
    """log(s_q / s_p) + (s_p exp(-d / s_p) + d) / s_q - 1, d the distance of the centres."""
    apart = ops.absolute(p.loc - q.loc)
    return ops.log(q.scale / p.scale) + (p.scale * ops.exp(-apart / p.scale) + apart) / q.scale - 1.0


@register_kl(Cauchy, Cauchy)
def kl_cauchy_cauchy(p: Cauchy, q: Cauchy) -> Tensor:
    """log(((s_p + s_q)^2 + (m_p - m_q)^2) / (4 s_p s_q)): Chyzak & Nielsen 2019."""
    ratio, apart = p.scale / q.scale, p.loc - q.loc  # scales have squares that are no numbers before their ratio has
    return ops.log(0.25 * (ratio + 1.0 / ratio + apart / p.scale * (apart / q.scale)) + 0.5)


@register_kl(InverseGamma, InverseGamma)
def kl_inverse_gamma_inverse_gamma(p: InverseGamma, q: InverseGamma) -> Tensor:
    """That of the gamma numbers they are inverses of."""
    return kl_to_gamma(Gamma(p.concentration, p.rate, False), Gamma(q.concentration, q.rate, False))


@register_kl(MultivariateNormal, MultivariateNormal)
@register_kl(MultivariateNormal, LowRankMultivariateNormal)
@register_kl(LowRankMultivariateNormal, MultivariateNormal)
@register_kl(LowRankMultivariateNormal, LowRankMultivariateNormal)
def kl_multivariate_normal(p: Any, q: Any) -> Tensor:
    """log det(L_q) - log det(L_p) + (|L_q^-1 L_p|^2 + |L_q^-1 (m_p - m_q)|^2 - D) / 2 of the Cholesky factors L."""
    if p.event_shape != q.event_shape:
        raise ShapeError(f"kl_divergence: vectors of shape {p.event_shape} and {q.event_shape}")
    l_p, l_q = p.scale_tril, q.scale_tril
    batch = np.broadcast_shapes(p.batch_shape, q.batch_shape)
    apart = ops.broadcast_to(ops.expand_dims(p.loc - q.loc, -1), (*batch, *p.event_shape, 1))
    columns = ops.concatenate([ops.broadcast_to(l_p, (*batch, *l_p.shape[-2:])), apart], axis=-1)
    distance = ops.sum(ops.square(ops.solve_triangular(l_q, columns, upper=False)), axis=(-2, -1))
    return _log_diagonal(l_q) - _log_diagonal(l_p) + 0.5 * (distance - p.event_shape[0])


@register_kl(Independent, Independent)
def kl_independent_independent(p: Independent, q: Independent) -> Tensor:
    """The sum over the axes that both take into the event."""
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise ArgumentError(
            f"kl_divergence: {p.reinterpreted_batch_ndims} and {q.reinterpreted_batch_ndims} reinterpreted axes"
        )
    return p._sum(kl_divergence(p.base_dist, q.base_dist))


# -- -H(p) - E_p[log q], for all p that have the moments that log q is made of -------------------------------------
@register_kl(Beta, Normal)
@register_kl(Exponential, Normal)
@register_kl(Gamma, Normal)
@register_kl(Gumbel, Normal)
@register_kl(HalfNormal, Normal)
@register_kl(Laplace, Normal)
@register_kl(Logistic, Normal)
@register_kl(LogNormal, Normal)
@register_kl(Uniform, Normal)
def kl_to_normal(p: Distribution, q: Normal) -> Tensor:
    """The cross entropy is log s + log(2 pi) / 2 + (var p + (mean p - m)^2) / (2 s^2)."""
    spread = p.variance + ops.square(p.mean - q.loc)
    return 0.5 * spread / ops.square(q.scale) + ops.log(q.scale) + 0.5 * math.log(2.0 * math.pi) - p.entropy()


@register_kl(Beta, Exponential)
@register_kl(Exponential, Exponential)
@register_kl(Gamma, Exponential)
@register_kl(HalfNormal, Exponential)
@register_kl(LogNormal, Exponential)
def kl_to_exponential(p: Distribution, q: Exponential) -> Tensor:
    """The cross entropy is rate mean p - log rate."""
    return q.rate * p.mean - ops.log(q.rate) - p.entropy()


def _mean_log(p: Any) -> Tensor:
    """E_p[log x]."""
    if isinstance(p, Beta):
        return ops.digamma(p.concentration1) - ops.digamma(p.concentration1 + p.concentration0)
    if isinstance(p, LogNormal):
        return p.loc
    shape = p.concentration if isinstance(p, Gamma) else p.rate.new_ones(p.rate.shape)
    return ops.digamma(shape) - ops.log(p.rate)


@register_kl(Beta, Gamma)
@register_kl(Exponential, Gamma)
@register_kl(Gamma, Gamma)
@register_kl(LogNormal, Gamma)
def kl_to_gamma(p: Distribution, q: Gamma) -> Tensor:
    """The cross entropy is log Gamma(a) - a log rate - (a - 1) E_p[log x] + rate mean p."""
    a = q.concentration
    cross = ops.lgamma(a) - a * ops.log(q.rate) - (a - 1.0) * _mean_log(p) + q.rate * p.mean
    return cross - p.entropy()


def _laplace_transform(p: Any, t: Tensor, m: Tensor) -> Tensor:
    """E_p[exp(-t (x - m))] for t > 0, by one exponential: those of its factors may be no numbers."""
    if isinstance(p, Normal):
        return ops.exp(0.5 * ops.square(t * p.scale) - t * (p.loc - m))
    if isinstance(p, Gumbel):
        return ops.exp(ops.lgamma(1.0 + t * p.scale) - t * (p.loc - m))
    if isinstance(p, Uniform):
        length = t * (p.high - p.low)
        return ops.exp(-t * (p.low - m)) * (-ops.expm1(-length) / length)
    shape = p.concentration if isinstance(p, Gamma) else 1.0
    return ops.exp(t * m - shape * ops.log1p(t / p.rate))


@register_kl(Exponential, Gumbel)
@register_kl(Gamma, Gumbel)
@register_kl(Gumbel, Gumbel)
@register_kl(Normal, Gumbel)
@register_kl(Uniform, Gumbel)
def kl_to_gumbel(p: Distribution, q: Gumbel) -> Tensor:
    """The cross entropy is log s + (mean p - m) / s + E_p[exp(-(x - m) / s)]."""
    tail = _laplace_transform(p, 1.0 / q.scale, q.loc)
    return ops.log(q.scale) + (p.mean - q.loc) / q.scale + tail - p.entropy()


@register_kl(Normal, Laplace)
def kl_normal_laplace(p: Normal, q: Laplace) -> Tensor:
    """The cross entropy is log(2 s) + E|x - m| / s, with E|x - m| = d (2 Phi(d / s_p) - 1) + 2 s_p phi(d / s_p)."""
    d = (p.loc - q.loc) / p.scale
    distance = p.scale * (d * (2.0 * ops.ndtr(d) - 1.0) + math.sqrt(2.0 / math.pi) * ops.exp(-0.5 * ops.square(d)))
    return ops.log(2.0 * q.scale) + distance / q.scale - p.entropy()


def _inside(low: Any, high: Any, q: Uniform, divergence: Tensor) -> Tensor:
    inside = ops.logical_and(ops.less_equal(q.low, low), ops.greater_equal(q.high, high))
    return ops.where(ops.broadcast_to(inside, divergence.shape), divergence, np.inf)


@register_kl(Uniform, Uniform)
def kl_uniform_uniform(p: Uniform, q: Uniform) -> Tensor:
    """log of the ratio of the lengths; infinite unless q covers p."""
    return _inside(p.low, p.high, q, ops.log((q.high - q.low) / (p.high - p.low)))


@register_kl(Beta, Uniform)
def kl_beta_uniform(p: Beta, q: Uniform) -> Tensor:
    """The cross entropy is log(high - low); infinite unless q covers [0, 1]."""
    return _inside(0.0, 1.0, q, ops.log(q.high - q.low) - p.entropy())


def _infinite(p: Distribution, q: Distribution) -> Tensor:
    """p allows what q excludes."""
    shape = np.broadcast_shapes(p.batch_shape, q.batch_shape)
    return tensor(np.full(shape, np.inf, np.result_type(p._dtype, q._dtype)), device=p._device)


_LINE: list[type[Distribution]] = [Normal, Laplace, Logistic, Gumbel, Cauchy, StudentT]
_HALF_LINE: list[type[Distribution]] = [Exponential, Gamma, InverseGamma, HalfNormal, LogNormal]
_BOUNDED: list[type[Distribution]] = [Beta, Uniform]
_UNBOUNDED_COUNTS: list[type[Distribution]] = [Poisson, Geometric, NegativeBinomial]
_BOUNDED_COUNTS: list[type[Distribution]] = [Bernoulli, Binomial]
for _ps, _qs in (
    (_LINE, _HALF_LINE + _BOUNDED),
    (_HALF_LINE, _BOUNDED),
    (_UNBOUNDED_COUNTS, _BOUNDED_COUNTS),
):
    for _p in _ps:
        for _q in _qs:
            register_kl(_p, _q)(_infinite)
