"""Calls of `gmkernels.gibbs` at the sizes at which they are measured, and the limits of their kernels."""

import numpy as np

from tests.support.ahead import KEY, Case

# What is uint8 is given as an array. The tiles of large products, and those of the sizes of MNIST, whose chains are one
# launch of CUDA C. Without tiles there are the kernels of a module of their own.
_STATES = np.broadcast_to(np.zeros((), np.uint8), (100, 784))
_MACHINE = ((500, 784), (784,), (500,))
_CLAMPED = np.broadcast_to(np.zeros((), bool), (784,))
_LARGE = np.broadcast_to(np.zeros((), np.uint8), (4096, 4096))
CASES = [
    Case("gibbs_half_step", (_LARGE, (4096, 4096), (4096,), KEY), {"units": "bernoulli", "dtype": "uint8"},
         dtypes=("float32", "bfloat16")),
    Case("contrastive_divergence", (_STATES, _STATES, *_MACHINE, KEY), {"steps": 25, "units": "bernoulli"},
         dtypes=("float32",)),
    Case("boltzmann_sweep", (_STATES, (784, 784), (784,), _CLAMPED, KEY), {"sweeps": 1}, dtypes=("float32",)),
]  # fmt: skip
