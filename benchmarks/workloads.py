"""What the benchmarks run: training steps and operations of gmcore, at the sizes that reports are kept for.

Each function makes a `Workload`: a step as a function with its arguments, and the numbers that a peer (`peers`) needs
to make the same step: weights, data, and the noise that the first two steps draw. Those that take a `device` run on a
GPU too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import gmcore
import gmkernels
from gmcore import nn, ops, optim
from gmcore.device import put_all
from gmcore.models.boltzmann.rbm import RBM
from gmcore.models.language import Excerpt
from gmcore.models.latent.iwae import IWAE
from gmcore.models.latent.vae import VAE
from gmcore.models.recurrent.char_rnn import CharRNN
from gmcore.random import Generator
from gmkernels.gibbs.spec import step_key
from gmkernels.rng import reference as rng

Noise = tuple[np.ndarray, ...]

NOISE_SEED = 1
LEARNING_RATE = 1e-3
"""Of Adam."""


class Workload(NamedTuple):
    """A step of gmcore, and what it starts from. The first two steps draw `noise`; later ones go on from there."""

    step: Callable[..., Any]
    arguments: tuple[Any, ...]
    """Of `step`: the batch."""
    data: tuple[np.ndarray, ...]
    """What a peer is given for the batch."""
    config: Mapping[str, Any] = {}
    """Sizes and constants of the model."""
    weights: Mapping[str, np.ndarray] = {}
    """The parameters before the first step, by their names in the state dict."""
    noise: tuple[Noise, Noise] = ((), ())
    """What each of the first two steps draws."""
    parameters: Mapping[str, gmcore.Tensor] = {}
    """Of a step that returns nothing: what is compared in place of a loss."""
    leaves: tuple[gmcore.Tensor, ...] = ()
    """Whose gradients are compared beside what the step returns."""

    def __call__(self, *noise: np.ndarray) -> Any:
        """One step; what to compare with the peers. The noise is what the step draws anyway."""
        returned = self.step(*self.arguments)
        if self.leaves:
            results = returned if isinstance(returned, tuple) else () if returned is None else (returned,)
            return *results, *[leaf.grad for leaf in self.leaves]
        return self.parameters if returned is None else returned


def _weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}


def _placed(device: str, *arrays: np.ndarray) -> tuple[gmcore.Tensor, ...]:
    return tuple(gmcore.tensor(a, device=device) for a in arrays)


def _normal(shape: tuple[int, ...]) -> tuple[Noise, Noise]:
    """The normal numbers of the first two draws of `NOISE_SEED`."""
    generator = Generator(NOISE_SEED)
    first, second = (ops.normal(shape, generator=generator).numpy() for _ in range(2))
    return (first,), (second,)


def images(n: int, size: int = 784) -> np.ndarray:
    """Binary images, (n, size): an eighth of the pixels lit, as in MNIST."""
    return (np.random.default_rng(0).random((n, size)) < 0.125).astype(np.float32)


# -- operations ----------------------------------------------------------------------------------------------
def small_op() -> Workload:
    """Eight elements, multiplied, with the gradients of both: the overhead of the tape."""
    x, y, gradient = np.arange(8.0, dtype=np.float32), np.full(8, 2.0, np.float32), np.ones(8, np.float32)
    incoming = gmcore.tensor(gradient)

    def step(x: gmcore.Tensor, y: gmcore.Tensor) -> gmcore.Tensor:
        x.grad = y.grad = None
        product = x * y
        product.backward(incoming)
        return product

    arguments = tuple(gmcore.tensor(a, requires_grad=True) for a in (x, y))
    return Workload(step, arguments, (x, y, gradient))


def gaussian_sample(rows: int = 20_000, size: int = 100, device: str = "cpu") -> Workload:
    """A sample and its KL divergences, and from the gradients of both those of mu and logvar."""
    draw = np.random.default_rng(0).standard_normal
    mu, logvar, d_z = (
        draw((rows, size), np.float32),
        0.1 * draw((rows, size), np.float32),
        draw((rows, size), np.float32),
    )
    d_kl = np.ones(rows, np.float32)
    generator = Generator(NOISE_SEED)
    incoming = [gmcore.tensor(g, device=device) for g in (d_z, d_kl)]

    def step(mu: gmcore.Tensor, logvar: gmcore.Tensor) -> tuple[gmcore.Tensor, gmcore.Tensor]:
        z, kl, _ = ops.gaussian_sample(mu, logvar, generator=generator)
        mu.grad, logvar.grad = gmcore.grad((z, kl), (mu, logvar), incoming)
        return z.detach(), kl.detach()  # results too: a captured step would leave out what nobody needs

    leaves = tuple(gmcore.tensor(a, device=device, requires_grad=True) for a in (mu, logvar))
    return Workload(step, leaves, (mu, logvar, d_z, d_kl), noise=_normal(mu.shape), leaves=leaves)


def iwae_bound(samples: int = 50, rows: int = 20_000, device: str = "cpu") -> Workload:
    """The bound of every column of log weights, spread like those of a trained model, and the gradient of their sum."""
    log_w = 3.0 * np.random.default_rng(0).standard_normal((samples, rows), np.float32) - 90.0

    def step(log_w: gmcore.Tensor) -> gmcore.Tensor:
        log_w.grad = None
        total = ops.sum(ops.iwae_bound(log_w, axis=0))
        total.backward()
        return total

    leaf = gmcore.tensor(log_w, device=device, requires_grad=True)
    return Workload(step, (leaf,), (log_w,), leaves=(leaf,))


# -- training steps ------------------------------------------------------------------------------------------
def _descend(optimizer: optim.Optimizer, loss: gmcore.Tensor) -> gmcore.Tensor:
    """The loss, after a step of the optimiser down it."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def mlp_step(batch: int = 32, width: int = 16, device: str = "cpu") -> Workload:
    """SGD on a network 2-16-16-1: nearly all of it is overhead."""
    draw = np.random.default_rng(0).standard_normal
    x, y = draw((batch, 2), np.float32), draw((batch, 1), np.float32)
    gmcore.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    model.to(device)
    config, weights = {"learning_rate": 1e-2}, _weights(model)
    optimizer = optim.SGD(model.parameters(), lr=config["learning_rate"])

    def step(x: gmcore.Tensor, y: gmcore.Tensor) -> gmcore.Tensor:
        return _descend(optimizer, ops.mse_loss(model(x), y))

    return Workload(step, _placed(device, x, y), (x, y), config, weights)


def _autoencoder_step(model: VAE, batch: int, device: str) -> Workload:
    model.to(device)
    x, weights = images(batch, model.data_size), _weights(model)
    generator = Generator(NOISE_SEED)
    optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(x: gmcore.Tensor) -> gmcore.Tensor:
        return _descend(optimizer, model.loss(x, generator=generator)[0])

    noise = _normal((model.samples, batch, model.latent_size))
    return Workload(step, _placed(device, x), (x,), model.config, weights, noise)


def vae_step(batch: int = 100, data: int = 784, hidden: int = 500, latent: int = 20, device: str = "cpu") -> Workload:
    """Adam on a VAE 784-500-20, as in the VAE paper."""
    return _autoencoder_step(VAE(data, latent, (hidden,), generator=Generator(0)), batch, device)


def iwae_step(
    batch: int = 20, data: int = 784, hidden: int = 200, latent: int = 50, samples: int = 50, device: str = "cpu"
) -> Workload:
    """Adam on an IWAE 784-200-200-50 with 50 samples, as in the IWAE paper."""
    return _autoencoder_step(
        IWAE(data, latent, (hidden, hidden), samples=samples, generator=Generator(0)), batch, device
    )


def cd_step(batch: int = 100, visible: int = 784, hidden: int = 500, steps: int = 1, device: str = "cpu") -> Workload:
    """CD-k by plain SGD on a machine with the spread-out weights of one that has learned something."""
    v, rate = images(batch, visible), 1e-2
    model = RBM(visible, hidden, steps=steps, chains=0, generator=Generator(0))
    model.weight.copy_(5.0 * model.weight.detach().numpy())
    weights = _weights(model)
    model.to(device)
    generator = Generator(NOISE_SEED)
    optimizer = optim.SGD(model.parameters(), lr=rate)

    def step(v: Any) -> None:
        model.compute_gradients(v, generator=generator)
        optimizer.step()

    units = (hidden, visible) * steps
    noise = tuple(_uniforms(gmkernels.key_array(NOISE_SEED, draw), batch, units) for draw in range(2))
    config = {"learning_rate": rate, "steps": steps}
    parameters = dict(model.named_parameters())
    return Workload(step, (put_all(v, device),), (v,), config, weights, (noise[0], noise[1]), parameters)


def _uniforms(key: np.ndarray, rows: int, sizes: tuple[int, ...]) -> Noise:
    """What the units of these layers in turn are compared with in a chain, by the rule of `gibbs.spec`."""
    return tuple(
        (rng.words(step_key(key, step, units), rows * units) / 2.0**32).astype(np.float32).reshape(rows, units)
        for step, units in enumerate(sizes)
    )


def language_step(
    steps: int = 64, streams: int = 32, units: int = 256, symbols: int = 65, device: str = "cpu"
) -> Workload:
    """Adam on an LSTM language model and a piece of a text of random characters."""
    model = CharRNN("".join(chr(33 + i) for i in range(symbols)), "lstm", units, 1, generator=Generator(0))
    codes = np.random.default_rng(0).integers(symbols, size=(steps + 1, streams))
    inputs, targets = codes[:-1].copy(), codes[1:].copy()
    config, weights = {"symbols": symbols, "hidden_size": units}, _weights(model)
    model.to(device)
    generator = Generator(NOISE_SEED)
    optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(inputs: Any, targets: Any) -> gmcore.Tensor:
        optimizer.zero_grad()
        loss = model.compute_gradients(Excerpt(inputs, targets, first=True), generator=generator).loss
        optimizer.step()
        return loss

    return Workload(step, put_all((inputs, targets), device), (inputs, targets), config, weights)


def discriminator_step(batch: int = 64, channels: int = 32, device: str = "cpu") -> Workload:
    """Adam on 28 x 28 images and their labels, half of them real."""
    x = images(batch).reshape(batch, 1, 28, 28)
    labels = (np.arange(batch) % 2).astype(np.float32)[:, None]
    gmcore.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, channels, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * channels * 7 * 7, 1),
    )
    config, weights = {"channels": channels}, _weights(model)
    model.to(device)
    optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(x: gmcore.Tensor, labels: gmcore.Tensor) -> gmcore.Tensor:
        return _descend(optimizer, ops.binary_cross_entropy_with_logits(model(x), labels))

    return Workload(step, _placed(device, x, labels), (x, labels), config, weights)


# -- layers --------------------------------------------------------------------------------------------------
def lstm_sequence(
    steps: int = 1024, streams: int = 16, units: int = 64, dtype: str = "float32", device: str = "cpu"
) -> Workload:
    """An LSTM over long sequences of as many inputs as units: the states, and all gradients from theirs."""
    model = nn.LSTM(units, units)
    model.reset_parameters(Generator(0))
    weights = _weights(model)
    model.to(device, dtype)
    draw = np.random.default_rng(0).standard_normal
    x, d_h = (draw((steps, streams, units), np.float32) for _ in range(2))
    leaves = (gmcore.tensor(x, dtype=dtype, device=device, requires_grad=True), *model.parameters())
    incoming = gmcore.tensor(d_h, dtype=dtype, device=device)

    def step(x: gmcore.Tensor) -> None:
        h, _ = model(x)
        _leave_gradients(h, leaves, incoming)

    return Workload(step, leaves[:1], (x, d_h), {"units": units, "dtype": dtype}, weights, leaves=leaves)


def last_layer(
    samples: int = 50, batch: int = 100, data: int = 784, hidden: int = 200, device: str = "cpu"
) -> Workload:
    """The last layer of a decoder with the log-likelihood of binary images, of many samples each, and its gradients."""
    draw = np.random.default_rng(0).standard_normal
    h, bias = draw((samples, batch, hidden), np.float32), draw(data, np.float32)
    weight = draw((data, hidden), np.float32) / np.float32(np.sqrt(hidden))
    x, g = images(batch, data), draw((samples, batch), np.float32)
    leaves = tuple(gmcore.tensor(a, device=device, requires_grad=True) for a in (h, weight, bias))
    target, incoming = _placed(device, x, g)

    def step(h: gmcore.Tensor, weight: gmcore.Tensor, bias: gmcore.Tensor) -> None:
        _leave_gradients(ops.linear_bernoulli_log_prob(h, weight, bias, target), leaves, incoming)

    return Workload(step, leaves, (h, weight, bias, x, g), leaves=leaves)


def _leave_gradients(y: gmcore.Tensor, leaves: tuple[gmcore.Tensor, ...], incoming: gmcore.Tensor) -> None:
    for leaf, gradient in zip(leaves, gmcore.grad(y, leaves, incoming), strict=True):
        leaf.grad = gradient


class Step(NamedTuple):
    """What is compared with the peers."""

    title: str
    aim: float | None
    """Time of our captured step over that of the best peer: no more than this is wanted. None of what is measured on a
    GPU alone."""
    make: Callable[..., Workload]
    small: Mapping[str, int] = {}
    """Sizes at which a step takes no time: for tests, and for what a library does once."""
    aim_with_mkl: float | None = None
    """The same where products are MKL's, if that is another."""
    of_tapes: bool = False
    """Whether it is about graphs, so that nothing compiled or captured takes part."""


STEPS = {
    "small-op": Step("8-element multiply, forward + backward", 0.40, small_op, of_tapes=True),
    "mlp-step": Step("MLP 2-16-16-1, batch 32, SGD", 0.40, mlp_step, {"batch": 5, "width": 4}),
    "vae-step": Step(
        "VAE 784-500-20, batch 100, Adam",
        0.70,
        vae_step,
        {"batch": 3, "data": 12, "hidden": 5, "latent": 2},
        aim_with_mkl=0.65,
    ),
    "iwae-step": Step(
        "IWAE 784-200-200-50, k 50, batch 20, Adam",
        0.65,
        iwae_step,
        {"batch": 3, "data": 12, "hidden": 5, "latent": 2, "samples": 4},
        aim_with_mkl=0.65,
    ),
    "cd-step": Step(
        "RBM 784 x 500, CD-1, batch 100, SGD", 0.80, cd_step, {"batch": 4, "visible": 9, "hidden": 5}, aim_with_mkl=0.65
    ),
    "language-step": Step(
        "LSTM 256, 65 characters, 64 steps x 32, Adam",
        0.85,
        language_step,
        {"steps": 4, "streams": 3, "units": 5, "symbols": 6},
        aim_with_mkl=0.65,
    ),
    "gaussian-sample": Step("Gaussian sample + KL, 2e6, with gradient", 0.12, gaussian_sample, {"rows": 6, "size": 5}),
    "iwae-bound": Step("IWAE bound, 50 x 20,000, with gradient", 0.40, iwae_bound, {"samples": 5, "rows": 7}),
    "discriminator-step": Step(
        "Conv discriminator 28 x 28, batch 64, Adam", 0.85, discriminator_step, {"batch": 4, "channels": 2}
    ),
    "lstm-sequence": Step(
        "LSTM, 1024 steps x 16, with gradients", None, lstm_sequence, {"steps": 4, "streams": 3, "units": 5}
    ),
    "last-layer": Step(
        "Last layer 200-784 and log-likelihood, k 50, batch 100, with gradients",
        None,
        last_layer,
        {"samples": 4, "batch": 3, "data": 12, "hidden": 5},
    ),
}
"""The steps of `compare` by name."""
CPU_STEPS = tuple(name for name, step in STEPS.items() if step.aim is not None)
"""Those that are measured on the CPU."""
