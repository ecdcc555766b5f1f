"""How gradients flow through the time steps of a recurrent net: products of Jacobians, vanishing and exploding.

With s_t the whole state at step t, the gradient of a loss L_T at step T with respect to an earlier state is

    dL_T/ds_k = dL_T/ds_T  prod_{j=k}^{T-1} ds_{j+1}/ds_j

For the simple RNN h_{j+1} = f(w h_j + ...) a factor is D_{j+1} w with D_{j+1} = diag f'. Where the spectral radius of
the factors is below 1 the product shrinks exponentially with T - k, the gradient vanishes; above 1 it may explode
(Hochreiter 1991; Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013). For a linear unit, D = I, the slope
of log || w^(T-k) || is the logarithm of the spectral radius of w.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gmcore import nn, ops
from gmcore.engine import grad
from gmcore.extras import require
from gmcore.io import write_atomically
from gmcore.tensor import Tensor, as_tensor, no_grad

Arrays = tuple[np.ndarray, ...]


class GradientFlow(NamedTuple):
    """Norms by the distance T - k = 0, 1, ..., T in time.

    Parameters
    ----------
    jacobian : (T + 1,), the Frobenius norm of ds_T/ds_k over that of the identity.
    gradient : (T + 1,), the Euclidean norm of dL_T/ds_k.
    """

    jacobian: np.ndarray
    gradient: np.ndarray


def _step(layer: Any, x: np.ndarray, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The states after one step of input x (batch, ...)."""
    _, new = layer(x[None], state if len(state) > 1 else state[0])
    return new if isinstance(new, tuple) else (new,)


def _jacobian(layer: Any, x: np.ndarray, state: Arrays) -> np.ndarray:
    """ds_{t+1}/ds_t at a state, (S, S). S copies of the state take the step at once; copy i gives row i."""
    size = sum(part.size for part in state)
    copies = [Tensor(np.repeat(part, size, axis=1), requires_grad=True) for part in state]
    new = _step(layer, np.repeat(x[None], size, axis=0), tuple(copies))
    rows = ops.concatenate([ops.reshape(ops.swapaxes(part, 0, 1), (size, -1)) for part in new], axis=1)
    found = grad(rows, copies, np.eye(size, dtype=rows.dtype))
    return np.concatenate([g.numpy().swapaxes(0, 1).reshape(size, -1) for g in found], axis=1)


def jacobian_products(layer: Any, inputs: Any, hx: Any = None) -> Iterator[np.ndarray]:
    """The products ds_T/ds_k for k = T, T - 1, ..., 0, each (S, S).

    Parameters
    ----------
    layer : an `nn.RNN`, `nn.GRU` or `nn.LSTM` in one direction. Its state s is the states h of all layers, then, of
        an LSTM, the cells c: S numbers in all.
    inputs : (T, input_size), or integers (T,) for one-hot rows: one sequence.
    hx : the first states, of shape (num_layers, hidden_size); zeros by default.
    """
    xs = as_tensor(inputs).numpy()
    shape = (layer.num_layers, 1, layer.hidden_size)
    if hx is None:
        hx = (np.zeros(shape, layer.weight_hh_l0.dtype),) * (2 if isinstance(layer, nn.LSTM) else 1)
    states = [tuple(as_tensor(part).numpy().reshape(shape) for part in (hx if isinstance(hx, tuple) else (hx,)))]
    with no_grad():
        for x in xs:
            new = _step(layer, x[None], tuple(Tensor(part) for part in states[-1]))
            states.append(tuple(part.numpy() for part in new))
    product = np.eye(sum(part.size for part in states[0]), dtype=states[0][0].dtype)
    yield product
    for x, state in zip(xs[::-1], states[-2::-1], strict=True):
        product = product @ _jacobian(layer, x, state)
        yield product


def measure(layer: Any, output: nn.Linear, codes: np.ndarray) -> GradientFlow:
    """The flow of the gradient of L_T = -log p(x_{T+1} | x_1 .. x_T) = -log softmax(output(h_T)) at x_{T+1}.

    Parameters
    ----------
    layer : as in `jacobian_products`, of one-hot characters.
    output : from the state of the last layer to the logits.
    codes : x_1 .. x_{T+1}, numbers of characters.
    """
    inputs, target = codes[:-1], codes[-1:]
    with no_grad():
        h, _ = layer(inputs)
    top = Tensor(h.numpy()[-1:], requires_grad=True)
    g_top = grad(ops.cross_entropy(output(top), target), top).numpy()[0]
    jacobian: list[Any] = []
    gradient: list[Any] = []
    for product in jacobian_products(layer, inputs):
        if not jacobian:  # dL_T/ds_T: only h of the last layer reaches the output
            g = np.zeros(len(product), product.dtype)
            end = layer.num_layers * layer.hidden_size
            g[end - layer.hidden_size : end] = g_top
        jacobian.append(np.linalg.norm(product) / np.sqrt(len(product)))
        gradient.append(np.linalg.norm(g @ product))
    return GradientFlow(np.array(jacobian), np.array(gradient))


def save(path: str | os.PathLike[str], flows: Mapping[str, GradientFlow], cell: str) -> None:
    """Write the norms of named flows over the distance in time, on logarithmic axes, as a picture."""
    figure = require("matplotlib.figure", "drawing pictures").Figure(figsize=(9, 4), layout="constrained")
    titles = ("norm of ds_T/ds_k, over that of the identity", "norm of dL_T/ds_k")
    for axes, title, norms in zip(figure.subplots(1, 2), titles, ("jacobian", "gradient"), strict=True):
        for name, flow in flows.items():
            values = getattr(flow, norms)
            axes.semilogy(np.arange(len(values)), np.maximum(values, np.finfo(values.dtype).tiny), label=name)
        axes.set_title(f"{cell}: {title}")
        axes.set_xlabel("T - k")
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


__all__ = ["GradientFlow", "jacobian_products", "measure", "save"]
