"""gmcore against PyTorch, what `gmcore bench` runs.

Each case first computes one loss, or gradient, on both sides from the same weights, data and noise, and stops
unless they agree; then it times both (`gmkernels.bench.compare`). Without PyTorch it times gmcore alone, and says so.
Results that are kept, and the README's table of them: `gmcore bench --json benchmarks/results/cpu-2core.json`, then
`python -m benchmarks.report`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import gmcore
from benchmarks import workloads
from gmcore import ops
from gmcore.models.latent.vae import VAE
from gmcore.random import Generator
from gmkernels import bench, pool

try:
    import torch

    from benchmarks import peers
except ImportError:
    torch = None

try:
    from sklearn import neural_network as sklearn
except ImportError:
    sklearn = None

Call = Callable[[], Any]
TOLERANCE = 1e-4


def _agree(ours: Any, theirs: Any) -> None:
    """Raise unless the tensors that both sides returned are the same numbers."""
    ours, theirs = (x if isinstance(x, tuple) else (x,) for x in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().numpy(), b.detach().numpy()
        if not np.max(np.abs(a - b)) <= TOLERANCE * np.max(np.abs(b)):
            raise AssertionError(f"gmcore gives {a!r}, PyTorch {b!r}: nothing to compare")


def _noise(shape: tuple[int, ...]) -> Any:
    """The first noise that a generator of `workloads` draws."""
    return torch.tensor(ops.normal(shape, generator=Generator(workloads.NOISE_SEED)).numpy())


def small_op() -> dict[str, Call]:
    return {"gmcore": workloads.small_op()} | ({"PyTorch": peers.small_op()} if torch else {})


def gaussian_sample() -> dict[str, Call]:
    mu, logvar = workloads.gaussian_parameters()
    leaves = [gmcore.tensor(a, requires_grad=True) for a in (mu, logvar)]
    contenders: dict[str, Call] = {
        "gmcore": workloads.gaussian_sample(*leaves),
        "gmcore, kernels alone": workloads.gaussian_sample_kernels(mu, logvar),
    }
    if torch:
        theirs = [torch.tensor(a, requires_grad=True) for a in (mu, logvar)]
        incoming = [torch.tensor(g) for g in workloads.incoming_gradients()]
        _agree(contenders["gmcore"](), peers.gaussian_sample(*theirs, incoming, eps=_noise(mu.shape))())
        contenders["PyTorch"] = peers.gaussian_sample(*theirs, incoming)
    return contenders


def iwae_bound() -> dict[str, Call]:
    log_w = workloads.log_weights()
    contenders: dict[str, Call] = {
        "gmcore": workloads.iwae_bound(gmcore.tensor(log_w, requires_grad=True)),
        "gmcore, kernels alone": workloads.iwae_bound_kernels(log_w),
    }
    if torch:
        contenders["PyTorch"] = peers.iwae_bound(torch.tensor(log_w, requires_grad=True))
        _agree(contenders["gmcore"](), contenders["PyTorch"]())
    return contenders


def _training(model: VAE, batch_size: int, peer: Call) -> dict[str, Call]:
    x = workloads.images(batch_size)
    step = workloads.train_step(model, x)
    if not torch:
        return {"gmcore": step}
    theirs, data = peers.load(peer(), model.state_dict()), torch.tensor(x)
    noise = _noise((model.samples, batch_size, model.latent_size))
    _agree(step(), theirs.loss(data, noise if model.samples > 1 else noise[0]))
    return {"gmcore": step, "PyTorch": peers.train_step(theirs, data)}


def vae_step() -> dict[str, Call]:
    return _training(workloads.vae(), 100, lambda: peers.VAE(784, 20, (500,)))


def iwae_step() -> dict[str, Call]:
    return _training(workloads.iwae_model(), 20, lambda: peers.IWAE(784, 50, (200, 200), 50))


def cd_step() -> dict[str, Call]:
    model, v, rate = workloads.rbm(), workloads.images(100), 1e-4
    contenders: dict[str, Call] = {"gmcore": workloads.cd_step(model, v, rate)}
    if torch:
        # The noise differs, so what agrees is the mean over many steps from one place: a test compares the statistics
        # (tests/gmkernels/test_gibbs.py).
        theirs = [
            torch.tensor(p.detach().numpy().copy()) for p in (model.weight, model.visible_bias, model.hidden_bias)
        ]
        contenders["PyTorch"] = peers.cd_step(*theirs, torch.tensor(v), rate)
    if sklearn:
        estimator = sklearn.BernoulliRBM(500, learning_rate=rate, batch_size=100, random_state=0)
        estimator.partial_fit(v)
        contenders["scikit-learn"] = lambda: estimator.partial_fit(v)
    return contenders


def language_step() -> dict[str, Call]:
    model, batch = workloads.char_rnn(), workloads.excerpt()
    step = workloads.language_step(model, batch)
    if not torch:
        return {"gmcore": step}
    theirs = peers.load(peers.CharRNN(65, 256), model.state_dict())
    inputs, targets = torch.tensor(batch.inputs), torch.tensor(batch.targets)
    peer = peers.supervised_step(theirs, lambda: theirs.loss(inputs, targets))
    _agree(step(), peer())
    return {"gmcore": step, "PyTorch": peer}


def discriminator_step() -> dict[str, Call]:
    model, x = workloads.discriminator(), workloads.images(64)
    labels = (np.arange(64) % 2).astype(np.float32)[:, None]
    step = workloads.discriminator_step(model, x, labels)
    if not torch:
        return {"gmcore": step}
    theirs = peers.load(peers.discriminator(), model.state_dict())
    images, target = torch.tensor(x).reshape(-1, 1, 28, 28), torch.tensor(labels)
    peer = peers.supervised_step(
        theirs, lambda: torch.nn.functional.binary_cross_entropy_with_logits(theirs(images), target)
    )
    _agree(step(), peer())
    return {"gmcore": step, "PyTorch": peer}


CASES: dict[str, Callable[[], dict[str, Call]]] = {
    case.__name__.replace("_", "-"): case
    for case in (
        small_op,
        gaussian_sample,
        iwae_bound,
        vae_step,
        iwae_step,
        cd_step,
        language_step,
        discriminator_step,
    )
}


def machine() -> dict[str, Any]:
    """What the times depend on: the device with its measured rates, and the versions."""
    device = bench.measure_cpu()
    return {
        "device": {"name": platform.processor() or platform.machine(), "threads": pool.get_num_threads(),
                   "copy_rate": device.copy_rate, "product_rate": device.product_rate, "slot_rate": device.slot_rate},
        "versions": {"gmcore": gmcore.__version__, "numpy": np.__version__, "torch": torch and torch.__version__},
    }  # fmt: skip


def measure(names: Iterable[str]) -> dict[str, Any]:
    """Time the `CASES` of these names, print the table of each, and return the figures by name."""
    if torch is None:
        print("PyTorch is not installed: timing gmcore alone.\n")
    figures = {}
    for name in names:
        result = bench.compare(CASES[name](), baseline="PyTorch" if torch else "gmcore")
        print(f"{name}\n{workloads.STEPS[name].title}\n{result}\n", flush=True)
        figures[name] = result.as_json()
    return figures
