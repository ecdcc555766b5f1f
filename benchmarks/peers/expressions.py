"""What users write where gmcore has a kernel: in CuPy, in PyTorch (eager and compiled), and in JAX.

Each function takes the kernel's inputs, as arrays of its library, without keys: a library draws from its own generator.
It returns what the kernel computes. Where a library has a call of its own for something, that is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Expression = Callable[..., Any]
LOG_2PI = math.log(2.0 * math.pi)


def of_arrays(m: Any, draw: Callable[[Sequence[int]], Any], uniform: Callable[[Sequence[int]], Any]) -> dict[str, Any]:
    """In a library `m` with NumPy's names, which draws normal and uniform numbers by the functions given."""

    def gaussian_sample(mu: Any, logvar: Any) -> Any:
        eps = draw(mu.shape)
        kl = 0.5 * (m.exp(logvar) + mu**2 - 1.0 - logvar).sum(-1)
        return mu + m.exp(0.5 * logvar) * eps, kl, -0.5 * (LOG_2PI + logvar + eps**2).sum(-1)

    def gaussian_sample_backward(g_z: Any, g_kl: Any, g_log_q: Any, mu: Any, logvar: Any, eps: Any) -> Any:
        through = g_z * m.exp(0.5 * logvar) * eps - g_log_q[:, None]
        return g_z + g_kl[:, None] * mu, 0.5 * (through + g_kl[:, None] * (m.exp(logvar) - 1.0))

    def iwae_bound(log_w: Any) -> Any:
        highest = log_w.max(0)
        return highest + m.log(m.exp(log_w - highest).sum(0)) - math.log(len(log_w))

    def log_prob(logits: Any, x: Any) -> Any:
        return (x * logits - m.maximum(logits, 0.0) - m.log1p(m.exp(-m.abs(logits)))).sum(-1)

    def linear_log_prob_backward(g: Any, h: Any, weight: Any, bias: Any, x: Any) -> Any:
        residual = g[..., None] * (x - 1.0 / (1.0 + m.exp(-(h @ weight.T + bias))))
        rows = residual.reshape(-1, len(weight))
        return residual @ weight, rows.T @ h.reshape(-1, h.shape[-1]), rows.sum(0)

    def cross_entropy(logits: Any, target: Any) -> Any:
        shifted = logits - logits.max(-1, keepdims=True)
        probabilities = m.exp(shifted)
        total = probabilities.sum(-1)
        picked = m.take_along_axis(shifted, target[:, None], -1)[:, 0]
        return m.log(total) - picked, probabilities / total[:, None]

    def cross_entropy_backward(g: Any, probabilities: Any, target: Any) -> Any:
        return g[:, None] * (probabilities - (target[:, None] == m.arange(probabilities.shape[-1])))

    return {
        "uniform": lambda shape: uniform(shape),
        "normal": lambda shape: draw(shape),
        "gaussian_sample": gaussian_sample,
        "gaussian_sample_backward": gaussian_sample_backward,
        "bernoulli_sample": lambda p: (uniform(p.shape) < p).astype(p.dtype),
        "dropout": lambda x: m.where(uniform(x.shape) < 0.5, 2.0 * x, 0.0),
        "iwae_bound": iwae_bound,
        "iwae_bound_backward": lambda g, log_w, highest, scale: g * scale * m.exp(log_w - highest),
        "bernoulli_log_prob": log_prob,
        "bernoulli_log_prob_backward": lambda g, logits, x: g[..., None] * (x - 1.0 / (1.0 + m.exp(-logits))),
        "linear_bernoulli_log_prob": lambda h, weight, bias, x: log_prob(h @ weight.T + bias, x),
        "linear_bernoulli_log_prob_backward": linear_log_prob_backward,
        "softmax_cross_entropy": cross_entropy,
        "softmax_cross_entropy_backward": cross_entropy_backward,
        "matmul": lambda a, b: a @ b,
        "linear": lambda x, weight, bias: m.tanh(x @ weight.T + bias),
        "activation_backward": lambda g, y: (g * (1.0 - y * y), (g * (1.0 - y * y)).sum(0)),
        "sum": lambda x: x.sum(0),
        "free_energy": lambda v, weight, visible_bias, hidden_bias: (
            -(v @ visible_bias) - m.logaddexp(0.0, v @ weight.T + hidden_bias).sum(-1)
        ),
    }


def of_cupy() -> dict[str, Expression]:
    import cupy

    return of_arrays(
        cupy,
        lambda shape: cupy.random.standard_normal(shape, dtype=cupy.float32),
        lambda shape: cupy.random.random_sample(shape, dtype=cupy.float32),
    )


def of_torch() -> dict[str, Expression]:
    import torch
    from torch.nn import functional as F

    def gaussian_sample(mu: Any, logvar: Any) -> Any:
        eps = torch.randn_like(mu)
        kl = 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar).sum(-1)
        return mu + torch.exp(0.5 * logvar) * eps, kl, -0.5 * (LOG_2PI + logvar + eps.square()).sum(-1)

    def gaussian_sample_backward(g_z: Any, g_kl: Any, g_log_q: Any, mu: Any, logvar: Any, eps: Any) -> Any:
        through = g_z * torch.exp(0.5 * logvar) * eps - g_log_q[:, None]
        return torch.addcmul(g_z, g_kl[:, None], mu), 0.5 * (through + g_kl[:, None] * torch.expm1(logvar))

    def log_prob(logits: Any, x: Any) -> Any:
        return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    def linear_log_prob_backward(g: Any, h: Any, weight: Any, bias: Any, x: Any) -> Any:
        residual = g[..., None] * (x - torch.sigmoid(F.linear(h, weight, bias)))
        rows = residual.flatten(0, -2)
        return residual @ weight, rows.T @ h.flatten(0, -2), rows.sum(0)

    def cross_entropy_backward(g: Any, probabilities: Any, target: Any) -> Any:
        return g[:, None] * (probabilities - F.one_hot(target, probabilities.shape[-1]))

    def activation_backward(g: Any, y: Any) -> Any:
        d_pre = g * (1.0 - y * y)
        return d_pre, d_pre.sum(0)

    def gibbs_half_step(states: Any, weight: Any, bias: Any) -> Any:
        mean = torch.sigmoid(F.linear(states.to(weight.dtype), weight, bias))
        return mean, torch.bernoulli(mean).to(torch.uint8)

    return {
        "uniform": lambda shape: torch.rand(shape),
        "normal": lambda shape: torch.randn(shape),
        "gaussian_sample": gaussian_sample,
        "gaussian_sample_backward": gaussian_sample_backward,
        "bernoulli_sample": torch.bernoulli,
        "dropout": lambda x: F.dropout(x, 0.5),
        "iwae_bound": lambda log_w: torch.logsumexp(log_w, 0) - math.log(len(log_w)),
        "iwae_bound_backward": lambda g, log_w, highest, scale: g * torch.softmax(log_w, 0),
        "bernoulli_log_prob": log_prob,
        "bernoulli_log_prob_backward": lambda g, logits, x: g[..., None] * (x - torch.sigmoid(logits)),
        "linear_bernoulli_log_prob": lambda h, weight, bias, x: log_prob(F.linear(h, weight, bias), x),
        "linear_bernoulli_log_prob_backward": linear_log_prob_backward,
        "softmax_cross_entropy": lambda logits, target: (
            F.cross_entropy(logits, target, reduction="none"),
            torch.softmax(logits, -1),
        ),
        "softmax_cross_entropy_backward": cross_entropy_backward,
        "matmul": torch.matmul,
        "linear": lambda x, weight, bias: torch.tanh(F.linear(x, weight, bias)),
        "activation_backward": activation_backward,
        "sum": lambda x: x.sum(0),
        "adam": _torch_adam,
        "gibbs_half_step": gibbs_half_step,
        "free_energy": lambda v, weight, visible_bias, hidden_bias: (
            -(v @ visible_bias) - F.softplus(F.linear(v, weight, hidden_bias)).sum(-1)
        ),
        "conv2d": lambda x, weight: F.conv2d(x, weight, padding=1),
        "conv2d_backward_input": lambda g, weight: F.conv_transpose2d(g, weight, padding=1),
        "conv2d_backward_weight": lambda g, x: torch.nn.grad.conv2d_weight(
            x, (g.shape[1], x.shape[1], 3, 3), g, padding=1
        ),
    }


def _torch_adam(grads: Any, hyper: Any, params: Any, means: Any, squares: Any, largest: Any) -> Any:
    """In place, in one launch: what `torch.optim.Adam(fused=True)` calls."""
    import torch

    steps = [torch.ones(()) for _ in params]
    torch._fused_adam_(
        list(params), list(grads), list(means), list(squares), [], steps,
        lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip
    return params


def of_jax() -> dict[str, Expression]:
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0, impl="rbg")
    found = of_arrays(jnp, lambda shape: jax.random.normal(key, shape), lambda shape: jax.random.uniform(key, shape))
    found["iwae_bound"] = lambda log_w: jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))
    found["conv2d"] = lambda x, weight: jax.lax.conv(x, weight, (1, 1), "SAME")
    return found
