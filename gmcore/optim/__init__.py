"""Optimisers: `torch.optim`'s names, defaults and parameter groups, on fused kernels."""

from gmcore.optim.adam import Adam
from gmcore.optim.optimizer import Optimizer
from gmcore.optim.sgd import SGD

__all__ = ["SGD", "Adam", "Optimizer"]
