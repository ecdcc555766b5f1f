"""Modules: what models are made of. `torch.nn`'s names, argument order, defaults and state-dict names."""

from gmcore.nn import init, utils
from gmcore.nn.activation import Identity, ReLU, Sigmoid, Softplus, Tanh
from gmcore.nn.container import Sequential
from gmcore.nn.linear import Linear
from gmcore.nn.module import IncompatibleKeys, Module
from gmcore.nn.parameter import Parameter

__all__ = [
    "Identity",
    "IncompatibleKeys",
    "Linear",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "init",
    "utils",
]
