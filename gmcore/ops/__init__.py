"""The operations on tensors. NumPy's names and arguments where NumPy has the function."""

from gmcore import tensor as _tensor
from gmcore.ops.elementwise import (
    absolute,
    add,
    cast,
    cos,
    divide,
    equal,
    exp,
    expm1,
    greater,
    greater_equal,
    identity,
    isfinite,
    less,
    less_equal,
    log,
    log1p,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    power,
    relu,
    sigmoid,
    sign,
    sin,
    softplus,
    sqrt,
    square,
    subtract,
    tanh,
    to_device,
    where,
)
from gmcore.ops.linalg import ACTIVATIONS, linear, matmul
from gmcore.ops.loss import bernoulli_log_prob, iwae_bound
from gmcore.ops.random import bernoulli_sample, bernoulli_sample_logits, gaussian_sample, normal, uniform
from gmcore.ops.reduce import logsumexp, max, mean, sum
from gmcore.ops.shape import (
    broadcast_to,
    concatenate,
    expand_dims,
    getitem,
    reshape,
    scatter_add,
    stack,
    sum_to,
    transpose,
)

__all__ = [name for name in dir() if not name.startswith("_")]
_tensor._ops = __import__("sys").modules[__name__]
