"""Calls of `gmkernels.gibbs` at the sizes at which they are measured, and the limits of their kernels."""

import numpy as np

from tests.support.ahead import KEY, Case


def _states(*shape):
    """What is uint8 is given as an array."""
    return np.broadcast_to(np.zeros((), np.uint8), shape)


# The tiles of large products, and those of the sizes of MNIST, whose chains are one launch of CUDA C; a small machine,
# whose chains are one of Triton too. Without tiles there are the kernels of a module of their own.
_MNIST, _SMALL = ((500, 784), (784,), (500,)), ((128, 64), (64,), (128,))
_CLAMPED, _BETAS = np.broadcast_to(np.zeros((), bool), (784,)), np.broadcast_to(np.zeros(()), (2,))
CASES = [
    Case("gibbs_half_step", (_states(4096, 4096), (4096, 4096), (4096,), KEY), {"units": "bernoulli", "dtype": "uint8"},
         wide={"triton": 0.8}),
    Case("gibbs_chain", (_states(512, 64), *_SMALL, KEY), {"steps": 25, "units": "bernoulli"}),
    Case("contrastive_divergence", (_states(100, 784), _states(100, 784), *_MNIST, KEY),
         {"steps": 1, "units": "bernoulli"}),
    Case("annealed_importance_sampling", (_states(100, 784), *_MNIST, (784,), _BETAS, KEY), {"units": "bernoulli"}),
    Case("free_energy", (_states(4096, 784), *_MNIST), {"units": "bernoulli"}),
    Case("boltzmann_sweep", (_states(100, 784), (784, 784), (784,), _CLAMPED, KEY), {"sweeps": 1}),
]  # fmt: skip
