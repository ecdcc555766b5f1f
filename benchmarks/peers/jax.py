"""The steps in JAX: one jitted function of a state, whose buffers are donated, with loss, gradient and update.

Weights are kept as JAX's users keep them: matrices (in, out), kernels of convolutions (height, width, in, out), images
(batch, height, width, channels). Keys are of the generator "rbg", which is the faster one. XLA flushes
denormals by itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks.workloads import LEARNING_RATE, Workload
from gmkernels import pool

LOG_2PI = math.log(2.0 * math.pi)
BETAS, EPS = (0.9, 0.999), 1e-8
"""Of Adam, by default here and there."""

Step = Callable[..., Any]
Parameters = dict[str, Array]
Draw = Callable[[Array], tuple[Array, ...]]


array = jnp.array


def configure(device: str) -> None:
    """Start the client; that of the CPU with as many threads as gmcore has, one for each processor that it may use just
    then."""
    jax.config.update("jax_platforms", device)
    jax.config.update("jax_default_matmul_precision", "highest")  # float32 means float32 on both sides
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[: pool.get_num_threads()])
    try:
        jax.devices()
    finally:
        os.sched_setaffinity(0, before)


def _no_noise(key: Array) -> tuple[Array, ...]:
    return ()


def _stepping(update: Callable[..., Any], state: Any, data: Sequence[np.ndarray]) -> Step:
    """`update(state, data, noise)` -> (result, state) as a step; the state starts with a key.

    A step without a result gives the parameters, which come next in the state.
    """
    jitted = jax.jit(update, donate_argnums=0)
    kept = (jax.random.key(0, impl="rbg"), *state)
    arrays = tuple(map(jnp.array, data))

    def step(*noise: Array) -> Any:
        nonlocal kept
        result, kept = jitted(kept, arrays, noise)
        result = kept[1] if result is None else result
        return jax.block_until_ready(result)  # and the state with it: what a call makes is ready at once

    return step


def _training(
    loss: Callable[..., Array], parameters: Parameters, w: Workload, draw: Draw = _no_noise, sgd: float | None = None
) -> Step:
    """A step of SGD at the rate `sgd`, or else of Adam, down `loss(parameters, *data, *noise)`."""

    def update(state: Any, data: tuple[Array, ...], noise: tuple[Array, ...]) -> Any:
        key, parameters, *moments = state
        key, own = jax.random.split(key)
        value, gradients = jax.value_and_grad(loss)(parameters, *data, *(noise or draw(own)))
        if sgd:
            return value, (key, jax.tree.map(lambda p, g: p - sgd * g, parameters, gradients))
        return value, (key, *_adam(parameters, gradients, *moments))

    zeros = partial(jax.tree.map, jnp.zeros_like, parameters)
    return _stepping(update, (parameters,) if sgd else (parameters, zeros(), zeros(), jnp.zeros(())), w.data)


def _adam(p: Parameters, g: Parameters, means: Parameters, squares: Parameters, count: Array) -> tuple[Any, ...]:
    count = count + 1
    means = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, means, g)
    squares = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g * g, squares, g)
    rate = LEARNING_RATE / (1 - BETAS[0] ** count)
    scale = lax.rsqrt(1 - BETAS[1] ** count)
    p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * scale + EPS), p, means, squares)
    return p, means, squares, count


def _parameters(w: Workload) -> Parameters:
    return {name: jnp.array(value.T if value.ndim == 2 else value) for name, value in w.weights.items()}


def _linear(p: Parameters, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def _cross_entropy(logits: Array, x: Array) -> Array:
    """Of a Bernoulli variable; the stable formula."""
    return jnp.maximum(logits, 0) - logits * x + jnp.log1p(jnp.exp(-jnp.abs(logits)))


# -- operations ----------------------------------------------------------------------------------------------
def gaussian_sample(w: Workload) -> Step:
    mu, *_ = w.data

    def update(state: Any, data: tuple[Array, ...], noise: tuple[Array, ...]) -> Any:
        mu, logvar, *incoming = data
        key, own = jax.random.split(state[0])
        (eps,) = noise or (jax.random.normal(own, mu.shape),)

        def sample(mu: Array, logvar: Array) -> tuple[Array, Array]:
            kl = 0.5 * (jnp.exp(logvar) + mu**2 - 1.0 - logvar).sum(-1)
            return mu + jnp.exp(0.5 * logvar) * eps, kl

        outputs, pull_back = jax.vjp(sample, mu, logvar)
        return (*outputs, *pull_back(tuple(incoming))), (key,)

    return _stepping(update, (), w.data)


def iwae_bound(w: Workload) -> Step:
    def total(log_w: Array) -> Array:
        return (jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))).sum()

    return _stepping(lambda state, data, noise: (jax.value_and_grad(total)(*data), state), (), w.data)


# -- models --------------------------------------------------------------------------------------------------
def mlp_step(w: Workload) -> Step:
    def loss(p: Parameters, x: Array, y: Array) -> Array:
        h = jnp.tanh(_linear(p, "0", x))
        return jnp.mean((_linear(p, "4", jnp.tanh(_linear(p, "2", h))) - y) ** 2)

    return _training(loss, _parameters(w), w, sgd=w.config["learning_rate"])


def _trunk(p: Parameters, name: str, layers: int, x: Array) -> Array:
    for i in range(layers):
        x = jnp.tanh(_linear(p, f"{name}.trunk.{2 * i}", x))
    return x


def _normal(samples: int | None, w: Workload) -> Draw:
    shape = (samples or 1, len(w.data[0]), w.config["latent_size"])
    return lambda key: (jax.random.normal(key, shape),)


def vae_step(w: Workload) -> Step:
    layers = len(w.config["hidden_sizes"])

    def loss(p: Parameters, x: Array, eps: Array) -> Array:
        h = _trunk(p, "encoder", layers, x)
        mu, logvar = _linear(p, "encoder.mu", h), _linear(p, "encoder.logvar", h)
        z = mu + jnp.exp(0.5 * logvar) * eps[0]
        logits = _linear(p, "decoder.logits", _trunk(p, "decoder", layers, z))
        kl = 0.5 * (jnp.exp(logvar) + mu**2 - 1.0 - logvar).sum()
        return (_cross_entropy(logits, x).sum() + kl) / len(x)

    return _training(loss, _parameters(w), w, _normal(None, w))


def iwae_step(w: Workload) -> Step:
    layers, samples = len(w.config["hidden_sizes"]), w.config["samples"]

    def loss(p: Parameters, x: Array, eps: Array) -> Array:
        h = _trunk(p, "encoder", layers, x)
        mu, logvar = _linear(p, "encoder.mu", h), _linear(p, "encoder.logvar", h)
        z = mu + jnp.exp(0.5 * logvar) * eps
        logits = _linear(p, "decoder.logits", _trunk(p, "decoder", layers, z))
        log_p_x = -_cross_entropy(logits, x).sum(-1)
        log_p_z = -0.5 * (LOG_2PI + z**2).sum(-1)
        log_q = -0.5 * (LOG_2PI + logvar + eps**2).sum(-1)
        return -(jax.nn.logsumexp(log_p_x + log_p_z - log_q, axis=0) - math.log(samples)).mean()

    return _training(loss, _parameters(w), w, _normal(samples, w))


def cd_step(w: Workload) -> Step:
    rate = w.config["learning_rate"] / len(w.data[0])

    def update(state: Any, data: tuple[Array, ...], noise: tuple[Array, ...]) -> Any:
        key, p = state
        weight, visible_bias, hidden_bias = p["weight"], p["visible_bias"], p["hidden_bias"]
        (v,) = data
        shapes = ((len(v), len(hidden_bias)), v.shape) * w.config["steps"]
        key, *own = jax.random.split(key, 1 + len(shapes))
        uniforms = noise or [jax.random.uniform(k, s) for k, s in zip(own, shapes, strict=True)]
        h = h1 = jax.nn.sigmoid(v @ weight.T + hidden_bias)
        for hidden, visible in zip(uniforms[::2], uniforms[1::2], strict=True):
            v1 = (visible < jax.nn.sigmoid((hidden < h1).astype(v.dtype) @ weight + visible_bias)).astype(v.dtype)
            h1 = jax.nn.sigmoid(v1 @ weight.T + hidden_bias)
        changed = {
            "weight": weight + rate * (h.T @ v - h1.T @ v1),
            "visible_bias": visible_bias + rate * (v - v1).sum(0),
            "hidden_bias": hidden_bias + rate * (h - h1).sum(0),
        }
        return None, (key, changed)

    return _stepping(update, ({name: jnp.array(value) for name, value in w.weights.items()},), w.data)


def _lstm(p: Parameters, x: Array) -> Array:
    """The states of all steps, from zeros; x (steps, streams, inputs)."""

    def cell(carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = carry
        i, f, g, o = jnp.split(x + h @ p["weight_hh_l0"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((x.shape[1], len(p["weight_hh_l0"])), x.dtype)
    _, h = lax.scan(cell, (start, start), x @ p["weight_ih_l0"] + p["bias_ih_l0"] + p["bias_hh_l0"])
    return h


def language_step(w: Workload) -> Step:
    symbols = w.config["symbols"]

    def loss(p: Parameters, inputs: Array, targets: Array) -> Array:
        h = _lstm({name.removeprefix("rnn."): a for name, a in p.items()}, jax.nn.one_hot(inputs, symbols))
        log_p = jax.nn.log_softmax(_linear(p, "output", h))
        return -jnp.take_along_axis(log_p, targets[..., None], axis=-1).mean()

    return _training(loss, _parameters(w), w)


def discriminator_step(w: Workload) -> Step:
    """Running means of the batch norm are left out, which the loss does not need."""
    channels = w.config["channels"]

    def convolve(p: Parameters, name: str, x: Array) -> Array:
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, p[f"{name}.weight"], (2, 2), [(1, 1)] * 2, dimension_numbers=dimensions)
        return y + p[f"{name}.bias"]

    def loss(p: Parameters, x: Array, labels: Array) -> Array:
        h = convolve(p, "2", jax.nn.leaky_relu(convolve(p, "0", x), 0.2))
        h = (h - h.mean((0, 1, 2))) * lax.rsqrt(h.var((0, 1, 2)) + 1e-5) * p["3.weight"] + p["3.bias"]
        logits = _linear(p, "6", jax.nn.leaky_relu(h, 0.2).reshape(len(x), -1))
        return _cross_entropy(logits, labels).mean()

    trained = {
        name: value for name, value in w.weights.items() if not name.startswith("3.") or name in ("3.weight", "3.bias")
    }
    for name in ("0.weight", "2.weight"):
        trained[name] = trained[name].transpose(2, 3, 1, 0)
    flat = trained["6.weight"].reshape(2 * channels, 7, 7)
    trained["6.weight"] = flat.transpose(1, 2, 0).reshape(-1, 1)
    x, labels = w.data
    parameters = {name: jnp.array(value) for name, value in trained.items()}
    return _training(loss, parameters, w._replace(data=(x.transpose(0, 2, 3, 1), labels)))


# -- layers --------------------------------------------------------------------------------------------------
def _gradients(y: Callable[..., Array], leaves: tuple[Any, ...], incoming: Any) -> Step:
    """A step that gives the gradients of y by its arguments, from those by y."""

    def update(state: Any, data: tuple[Any, ...], noise: tuple[Array, ...]) -> Any:
        *leaves, incoming = data
        return jax.vjp(y, *leaves)[1](incoming), state

    return _stepping(update, (), (*leaves, incoming))


def lstm_sequence(w: Workload) -> Step:
    """With the weights as they are: their gradients are compared."""
    x, d_h, *weights = (jnp.array(a, w.config["dtype"]) for a in (*w.data, *w.weights.values()))

    def states(x: Array, *weights: Array) -> Array:
        return _lstm(dict(zip(w.weights, (a.T for a in weights), strict=True)), x)

    return _gradients(states, (x, *weights), d_h)


def last_layer(w: Workload) -> Step:
    h, weight, bias, x, g = w.data

    def log_prob(h: Array, weight: Array, bias: Array) -> Array:
        return -_cross_entropy(h @ weight.T + bias, x).sum(-1)

    return _gradients(log_prob, (h, weight, bias), g)


STEPS: dict[str, Callable[[Workload], Step]] = {
    "mlp-step": mlp_step,
    "vae-step": vae_step,
    "iwae-step": iwae_step,
    "cd-step": cd_step,
    "language-step": language_step,
    "gaussian-sample": gaussian_sample,
    "iwae-bound": iwae_bound,
    "discriminator-step": discriminator_step,
    "lstm-sequence": lstm_sequence,
    "last-layer": last_layer,
}


def make(contender: str, name: str, workload: Workload) -> Step:
    return STEPS[name](workload)


def flushes_denormals() -> bool:
    return not jax.jit(lambda x: x * 1e-10)(jnp.full(1 << 20, 1e-30)).any()
