"""The steps in PyTorch, eager and compiled, written as its users would write them for speed.

Eager steps use what the library has in one call: losses, `addmm`, the fused optimisers. Compiled ones are one graph of
forward pass, backward pass and update, so that nothing is left between its kernels; the update is written out there,
because the optimisers of `torch.optim` keep their loop over parameters, and its guards, in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.workloads import LEARNING_RATE, Workload
from gmkernels import pool

LOG_2PI = math.log(2.0 * math.pi)
BETAS, EPS = (0.9, 0.999), 1e-8
"""Of Adam, by default here and there."""

Step = Callable[..., Any]
Loss = Callable[..., Tensor]


MODE: str | None = "reduce-overhead"
"""Of compiled steps on a GPU: CUDA graphs. They have their memory before they run; None shows how much they use."""


def _compiled(function: Step) -> Step:
    torch._dynamo.config.trace_autograd_ops = True  # the graph may hold the backward pass
    if torch.get_default_device().type == "cuda":
        return torch.compile(function, dynamic=False, mode=MODE)
    return torch.compile(function, dynamic=False)


def _training(model: nn.Module, loss: Loss, w: Workload, compiled: bool, *, sgd: float | None = None) -> Step:
    """A step of SGD at the rate `sgd`, or else of Adam, down `loss`, from the weights of `w`."""
    model.load_state_dict({name: torch.tensor(value) for name, value in w.weights.items()})
    parameters = list(model.parameters())
    if compiled:
        update = _sgd(parameters, sgd) if sgd else _adam(parameters)

        def compiled_step(*noise: Tensor) -> Tensor:
            value = loss(*noise)
            update(torch.autograd.grad(value, parameters))
            return value.detach()

        return _compiled(compiled_step)
    optimizer = (
        torch.optim.SGD(parameters, lr=sgd, fused=True)
        if sgd
        else torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    )

    def step(*noise: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(*noise)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def _sgd(parameters: Iterable[Tensor], rate: float) -> Callable[[Sequence[Tensor]], None]:
    @torch.no_grad()
    def update(gradients: Sequence[Tensor]) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(g, alpha=rate)

    return update


def _adam(parameters: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    count = torch.zeros(())
    if count.is_cuda:  # a CUDA graph may write only memory that is known to stay where it is
        for state in (*means, *squares, count):
            torch._dynamo.mark_static_address(state)

    @torch.no_grad()
    def update(gradients: Sequence[Tensor]) -> None:
        count.add_(1.0)
        rate = LEARNING_RATE / (1.0 - BETAS[0] ** count)
        scale = torch.rsqrt(1.0 - BETAS[1] ** count)
        for p, g, m, v in zip(parameters, gradients, means, squares, strict=True):
            m.lerp_(g, 1.0 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1.0 - BETAS[1])
            p.sub_(rate * m / (v.sqrt() * scale + EPS))

    return update


def _tensors(w: Workload) -> list[Tensor]:
    return [torch.tensor(a) for a in w.data]


# -- operations ----------------------------------------------------------------------------------------------
def small_op(w: Workload, compiled: bool) -> Step:
    """Eager."""
    x, y, gradient = _tensors(w)
    x.requires_grad_()
    y.requires_grad_()

    def step() -> Tensor:
        x.grad = y.grad = None
        product = x * y
        product.backward(gradient)
        return product

    return step


def gaussian_sample(w: Workload, compiled: bool) -> Step:
    mu, logvar, *incoming = _tensors(w)
    mu.requires_grad_()
    logvar.requires_grad_()

    def forward_and_backward(*noise: Tensor) -> tuple[Tensor, ...]:
        (eps,) = noise or (torch.randn_like(mu),)
        z = mu + torch.exp(0.5 * logvar) * eps
        kl = 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar).sum(-1)
        return z.detach(), kl.detach(), *torch.autograd.grad((z, kl), (mu, logvar), incoming)

    return _compiled(forward_and_backward) if compiled else forward_and_backward


def iwae_bound(w: Workload, compiled: bool) -> Step:
    (log_w,) = _tensors(w)
    log_w.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        total = (torch.logsumexp(log_w, 0) - math.log(len(log_w))).sum()
        return total.detach(), *torch.autograd.grad(total, log_w)

    return _compiled(step) if compiled else step


# -- models: submodules are named as gmcore's, so that a state dict of one loads into the other ----------------
def mlp_step(w: Workload, compiled: bool) -> Step:
    x, y = _tensors(w)
    width = len(w.weights["0.weight"])
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    return _training(model, lambda: F.mse_loss(model(x), y), w, compiled, sgd=w.config["learning_rate"])


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    def __init__(self, sizes: Sequence[int], latent_size: int) -> None:
        super().__init__()
        self.trunk = _mlp(sizes)
        self.mu = nn.Linear(sizes[-1], latent_size)
        self.logvar = nn.Linear(sizes[-1], latent_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.mu(h), self.logvar(h)


class Decoder(nn.Module):
    def __init__(self, sizes: Sequence[int], data_size: int) -> None:
        super().__init__()
        self.trunk = _mlp(sizes)
        self.logits = nn.Linear(sizes[-1], data_size)

    def forward(self, z: Tensor) -> Tensor:
        return self.logits(self.trunk(z))


class Autoencoder(nn.Module):
    def __init__(self, w: Workload) -> None:
        super().__init__()
        sizes = [w.config["data_size"], *w.config["hidden_sizes"]]
        self.samples = w.config["samples"]
        self.encoder = Encoder(sizes, w.config["latent_size"])
        self.decoder = Decoder([w.config["latent_size"], *sizes[:0:-1]], sizes[0])

    def negative_elbo(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Of one sample, with the KL divergence in closed form."""
        mu, logvar = self.encoder(x)
        z = mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) if eps is None else eps[0])
        cross_entropy = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar).sum()
        return (cross_entropy + kl) / len(x)

    def negative_bound(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Of the IWAE."""
        mu, logvar = self.encoder(x)
        if eps is None:
            eps = torch.randn(self.samples, *mu.shape)
        z = mu + torch.exp(0.5 * logvar) * eps
        logits = self.decoder(z)
        log_p_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_p_z = -0.5 * (LOG_2PI + z.square()).sum(-1)
        log_q = -0.5 * (LOG_2PI + logvar + eps.square()).sum(-1)
        return -(torch.logsumexp(log_p_x + log_p_z - log_q, 0) - math.log(self.samples)).mean()


def vae_step(w: Workload, compiled: bool) -> Step:
    (x,), model = _tensors(w), Autoencoder(w)
    return _training(model, lambda *noise: model.negative_elbo(x, *noise), w, compiled)


def iwae_step(w: Workload, compiled: bool) -> Step:
    (x,), model = _tensors(w), Autoencoder(w)
    return _training(model, lambda *noise: model.negative_bound(x, *noise), w, compiled)


def cd_step(w: Workload, compiled: bool) -> Step:
    """In place, without autograd."""
    (v,) = _tensors(w)
    weight, visible_bias, hidden_bias = (torch.tensor(w.weights[n]) for n in ("weight", "visible_bias", "hidden_bias"))
    rate = w.config["learning_rate"] / len(v)

    def sample(mean: Tensor, uniform: Tensor | None) -> Tensor:
        return torch.bernoulli(mean) if uniform is None else (uniform < mean).float()

    @torch.no_grad()
    def step(*noise: Tensor) -> dict[str, Tensor]:
        uniforms = noise or (None,) * (2 * w.config["steps"])
        h = h1 = torch.sigmoid(torch.addmm(hidden_bias, v, weight.T))
        for hidden, visible in zip(uniforms[::2], uniforms[1::2], strict=True):
            v1 = sample(torch.sigmoid(torch.addmm(visible_bias, sample(h1, hidden), weight)), visible)
            h1 = torch.sigmoid(torch.addmm(hidden_bias, v1, weight.T))
        weight.addmm_(h.T, v, alpha=rate).addmm_(h1.T, v1, alpha=-rate)
        visible_bias.add_((v - v1).sum(0), alpha=rate)
        hidden_bias.add_((h - h1).sum(0), alpha=rate)
        return {"weight": weight, "visible_bias": visible_bias, "hidden_bias": hidden_bias}

    return _compiled(step) if compiled else step


class CharRNN(nn.Module):
    def __init__(self, symbols: int, hidden_size: int) -> None:
        super().__init__()
        self.symbols = symbols
        self.rnn = nn.LSTM(symbols, hidden_size)
        self.output = nn.Linear(hidden_size, symbols)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; both (time, batch)."""
        h, _ = self.rnn(F.one_hot(inputs, self.symbols).float())
        return F.cross_entropy(self.output(h).flatten(0, 1), targets.flatten())


def language_step(w: Workload, compiled: bool) -> Step:
    inputs, targets = _tensors(w)
    model = CharRNN(w.config["symbols"], w.config["hidden_size"])
    return _training(model, lambda: model.loss(inputs, targets), w, compiled)


def discriminator_step(w: Workload, compiled: bool) -> Step:
    x, labels = _tensors(w)
    channels = w.config["channels"]
    model = nn.Sequential(
        nn.Conv2d(1, channels, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * channels * 7 * 7, 1),
    )
    return _training(model, lambda: F.binary_cross_entropy_with_logits(model(x), labels), w, compiled)


# -- layers --------------------------------------------------------------------------------------------------
def _gradients(y: Callable[[], Tensor], leaves: Sequence[Tensor], incoming: Tensor, compiled: bool) -> Step:
    """A step that gives the gradients of y by the leaves, from those by y."""

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y(), leaves, incoming)

    return _compiled(step) if compiled else step


def lstm_sequence(w: Workload, compiled: bool) -> Step:
    """On a GPU by cuDNN."""
    dtype = getattr(torch, w.config["dtype"])
    x, d_h = (a.to(dtype) for a in _tensors(w))
    x.requires_grad_()
    model = nn.LSTM(w.config["units"], w.config["units"])
    model.load_state_dict({name: torch.tensor(value) for name, value in w.weights.items()})
    model.to(dtype)
    return _gradients(lambda: model(x)[0], [x, *model.parameters()], d_h, compiled)


def last_layer(w: Workload, compiled: bool) -> Step:
    h, weight, bias, x, g = _tensors(w)
    leaves = [a.requires_grad_() for a in (h, weight, bias)]

    def log_prob() -> Tensor:
        logits = F.linear(h, weight, bias)
        return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    return _gradients(log_prob, leaves, g, compiled)


STEPS: dict[str, Callable[[Workload, bool], Step]] = {
    "small-op": small_op,
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


def configure(device: str) -> None:
    torch.set_default_device(device)
    torch.set_num_threads(pool.get_num_threads())
    torch.backends.cudnn.allow_tf32 = False  # as in products: float32 means float32 on both sides
    torch.set_flush_denormal(True)  # as gmcore's kernels do. PyTorch's threads, not yet started, inherit it


def make(contender: str, name: str, workload: Workload) -> Step:
    return STEPS[name](workload, contender == "torch.compile")


array = torch.tensor


def flushes_denormals() -> bool:
    """On all threads."""
    return not (torch.full((1 << 20,), 1e-30) * 1e-10).any()
