"""Optimisers: `torch.optim`'s names, defaults and parameter groups, on fused kernels."""

from gmcore.optim.adadelta import Adadelta
from gmcore.optim.adagrad import Adagrad
from gmcore.optim.adam import Adam, AdamW
from gmcore.optim.optimizer import Optimizer
from gmcore.optim.rmsprop import RMSprop
from gmcore.optim.sgd import SGD

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop"]
