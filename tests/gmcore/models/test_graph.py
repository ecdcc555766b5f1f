"""Training steps of the models as CUDA graphs: the bits of eager steps, with schedules, short batches and chains.

On a GPU 200 steps of each. The emulation, which runs every thread of every launch on a core, has fewer.
"""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import pytest

import gmcore
from gmcore import Generator, Tensor, nn, ops, optim
from gmcore.device import put_all
from gmcore.models.base import Step
from gmcore.models.boltzmann.boltzmann_machine import BoltzmannMachine
from gmcore.models.boltzmann.rbm import RBM
from gmcore.models.language import Excerpt
from gmcore.models.latent.iwae import IWAE
from gmcore.models.latent.vae import VAE
from gmcore.models.recurrent.char_rnn import CharRNN
from gmcore.optim import SGD, Adam
from gmcore.streams import drawing_from
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

pytest.importorskip("cupy")
pytestmark = pytest.mark.slow


class Discriminator(nn.Module):
    """Convolutions, batch normalisation and a linear layer, with the gradients that `Model` computes of a loss."""

    def __init__(self) -> None:
        super().__init__()
        gmcore.manual_seed(1)
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(3, 4, 4, stride=2, padding=1),
            nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16, 1),
        )  # fmt: skip

    def compute_gradients(self, batch: tuple[Any, Any], *, generator: Generator) -> Step:
        x, label = batch
        loss = ops.binary_cross_entropy_with_logits(self.net(gmcore.as_tensor(x)), gmcore.as_tensor(label))
        loss.backward()
        return Step(loss.detach(), {}, len(x))


def images(rng: np.random.Generator, n: int) -> Any:
    return (rng.random((n, 1, 8, 8)) < 0.3).astype(np.float32), (rng.random((n, 1)) < 0.5).astype(np.float32)


def rows(rng: np.random.Generator, n: int) -> Any:
    return (rng.random((n, 7)) < 0.4).astype(np.float32)


def text(rng: np.random.Generator, n: int) -> Any:
    """Two texts; n characters of each."""
    codes = rng.integers(5, size=(n + 1, 2))
    return Excerpt(codes[:-1].copy(), codes[1:].copy(), bool(n == 4))


class Case(NamedTuple):
    make: Callable[[], Any]
    batch: Callable[[np.random.Generator, int], Any]
    """Of a size."""
    sizes: tuple[int, ...]
    """Of batches, in turn; the last is short."""
    steps: int
    """In the emulation."""


CASES = {
    "RBM, CD-1": Case(lambda: RBM(7, 5, chains=0, generator=Generator(1)), rows, (4, 4, 2), 9),
    "RBM, PCD": Case(lambda: RBM(7, 5, chains=3, steps=2, generator=Generator(1)), rows, (4, 4, 2), 9),
    "RBM, Gaussian": Case(lambda: RBM(7, 5, units="gaussian", generator=Generator(1)), rows, (4, 4, 2), 9),
    "Boltzmann machine": Case(lambda: BoltzmannMachine(7, chains=3), rows, (4, 4, 2), 9),
    "LSTM language model": Case(
        lambda: CharRNN("abcde", "lstm", 6, 1, dropout=0.2, generator=Generator(1)), text, (4, 5, 5, 3), 12
    ),
    "GRU language model": Case(lambda: CharRNN("abcde", "gru", 6, 1, generator=Generator(1)), text, (4, 3), 6),
    "RNN language model": Case(lambda: CharRNN("abcde", "rnn", 6, 1, generator=Generator(1)), text, (4, 3), 6),
    "discriminator": Case(Discriminator, images, (3, 3, 2), 9),
    "VAE": Case(lambda: VAE(7, 2, (5,), generator=Generator(1)), rows, (4, 4, 2), 9),
    "IWAE": Case(lambda: IWAE(7, 2, (5, 4), samples=3, generator=Generator(1)), rows, (4, 4, 2), 9),
}


def batches(case: Case) -> Iterator[Any]:
    rng, sizes = np.random.default_rng(3), cycle(case.sizes)
    for _ in range(200 if has_gpu() else case.steps):
        yield put_all(case.batch(rng, next(sizes)), "cuda")


def train(case: Case, capture: bool) -> tuple[list[bytes], Any]:
    """The bits of every loss and, after the last step, of all that a step leaves to the next; and how steps ran."""
    model, noise = case.make().to("cuda"), Generator(9)
    parameters = list(model.parameters())
    optimizer = SGD(parameters, 1e-2, momentum=0.5) if isinstance(model, RBM) else Adam(parameters, 1e-2)

    def descend(batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = drawing_from(noise, model.compute_gradients, batch, generator=noise).loss
        optim.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss

    step = gmcore.capture(descend) if capture else descend
    losses = []
    for i, batch in enumerate(batches(case)):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.97**i
        losses.append(step(batch))
    left = [*losses, *[p.detach() for p in parameters], *model.buffers(), *[p.grad for p in parameters]]
    left += getattr(model, "_carried", None) or [getattr(model, "_chains", None)]
    return [t.cpu().numpy().tobytes() for t in left if t is not None], step


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_graphs_have_the_bits_of_eager_steps(case: Case) -> None:
    expected, _ = train(case, capture=False)
    found, step = train(case, capture=True)
    assert len(step.programs) == len(set(case.sizes)) and step.refusal is None
    assert found == expected
    with cuda_stand_in.counting() as counts:
        step(put_all(case.batch(np.random.default_rng(4), case.sizes[-1]), "cuda"))
    if not has_gpu():
        assert counts["graph"] == 1 and not counts["launch"] and not counts["to_host"]
