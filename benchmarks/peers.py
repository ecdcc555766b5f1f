"""The same work in PyTorch, written as its users would write it for speed: in-library losses, fused Adam.

Every function mirrors one of `workloads`. Where noise is drawn, `eps` replaces it, so that both sides can be
given the same. Denormals are flushed as gmcore's kernels flush them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from gmkernels import pool

LOG_2PI = math.log(2.0 * math.pi)

torch.set_num_threads(pool.get_num_threads())
torch.set_flush_denormal(True)


# -- operations ----------------------------------------------------------------------------------------------
def small_op() -> Callable[[], object]:
    x = torch.arange(8.0, requires_grad=True)
    y = torch.ones(8, requires_grad=True)
    gradient = torch.ones(8)

    def call() -> None:
        x.grad = y.grad = None
        (x * y).backward(gradient)

    return call


def gaussian_sample(
    mu: torch.Tensor, logvar: torch.Tensor, incoming: Sequence[torch.Tensor], eps: torch.Tensor | None = None
) -> Callable[[], tuple[torch.Tensor, ...]]:
    def call() -> tuple[torch.Tensor, ...]:
        z = mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) if eps is None else eps)
        kl = 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar).sum(-1)
        return torch.autograd.grad((z, kl), (mu, logvar), incoming)

    return call


def iwae_bound(log_w: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        log_w.grad = None
        loss = (torch.logsumexp(log_w, 0) - math.log(len(log_w))).sum()
        loss.backward()
        return loss

    return call


# -- models: submodules are named as gmcore's, so that a state dict of one loads into the other ----------------
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

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.trunk(x)
        return self.mu(h), self.logvar(h)


class Decoder(nn.Module):
    def __init__(self, sizes: Sequence[int], data_size: int) -> None:
        super().__init__()
        self.trunk = _mlp(sizes)
        self.logits = nn.Linear(sizes[-1], data_size)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.logits(self.trunk(z))


class VAE(nn.Module):
    def __init__(self, data_size: int, latent_size: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder([data_size, *hidden_sizes], latent_size)
        self.decoder = Decoder([latent_size, *hidden_sizes[::-1]], data_size)

    def loss(self, x: torch.Tensor, eps: torch.Tensor | None = None) -> torch.Tensor:
        mu, logvar = self.encoder(x)
        z = mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) if eps is None else eps)
        cross_entropy = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (logvar.exp() + mu.square() - 1.0 - logvar).sum()
        return (cross_entropy + kl) / len(x)


class IWAE(VAE):
    def __init__(self, data_size: int, latent_size: int, hidden_sizes: Sequence[int], samples: int) -> None:
        super().__init__(data_size, latent_size, hidden_sizes)
        self.samples = samples

    def loss(self, x: torch.Tensor, eps: torch.Tensor | None = None) -> torch.Tensor:
        mu, logvar = self.encoder(x)
        if eps is None:
            eps = torch.randn(self.samples, *mu.shape)
        z = mu + torch.exp(0.5 * logvar) * eps
        logits = self.decoder(z)
        log_p_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_p_z = -0.5 * (LOG_2PI + z.square()).sum(-1)
        log_q = -0.5 * (LOG_2PI + logvar + eps.square()).sum(-1)
        log_w = log_p_x + log_p_z - log_q
        return -(torch.logsumexp(log_w, 0) - math.log(self.samples)).mean()


Model = TypeVar("Model", bound=nn.Module)


def load(model: Model, state: Mapping[str, Any]) -> Model:
    """`model` with the weights of a gmcore model's state dict."""
    model.load_state_dict({name: torch.tensor(value.numpy()) for name, value in state.items()})
    return model


def train_step(model: VAE, x: torch.Tensor, eps: torch.Tensor | None = None) -> Callable[[], torch.Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def call() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss(x, eps)
        loss.backward()
        optimizer.step()
        return loss

    return call


# -- restricted Boltzmann machine, language model, discriminator ---------------------------------------------------
def cd_step(
    weight: torch.Tensor, visible_bias: torch.Tensor, hidden_bias: torch.Tensor, v: torch.Tensor, lr: float
) -> Callable[[], object]:
    """CD-1 in place, without autograd: products, fused sigmoids, no copies."""

    @torch.no_grad()
    def call() -> None:
        h = torch.sigmoid(torch.addmm(hidden_bias, v, weight.T))
        v1 = torch.bernoulli(torch.sigmoid(torch.addmm(visible_bias, torch.bernoulli(h), weight)))
        h1 = torch.sigmoid(torch.addmm(hidden_bias, v1, weight.T))
        step = lr / len(v)
        weight.addmm_(h.T, v, alpha=step).addmm_(h1.T, v1, alpha=-step)
        visible_bias.add_((v - v1).sum(0), alpha=step)
        hidden_bias.add_((h - h1).sum(0), alpha=step)

    return call


class CharRNN(nn.Module):
    """A character language model: one-hot symbols, an LSTM, a linear layer."""

    def __init__(self, symbols: int, hidden_size: int) -> None:
        super().__init__()
        self.symbols = symbols
        self.rnn = nn.LSTM(symbols, hidden_size)
        self.output = nn.Linear(hidden_size, symbols)

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy; both (time, batch)."""
        h, _ = self.rnn(F.one_hot(inputs, self.symbols).float())
        return F.cross_entropy(self.output(h).flatten(0, 1), targets.flatten())


def discriminator() -> nn.Sequential:
    """28 x 28 images to a logit by two convolutions of stride 2, the second with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 1),
    )


def supervised_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A step of Adam down `loss`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def call() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return call
