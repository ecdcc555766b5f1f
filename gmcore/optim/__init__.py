"""Optimisers: `torch.optim`'s names, defaults and parameter groups, on fused kernels."""

from gmcore.optim import lr_scheduler
from gmcore.optim.adadelta import Adadelta
from gmcore.optim.adagrad import Adagrad
from gmcore.optim.adam import Adam, AdamW
from gmcore.optim.clip import clip_grad_norm_, clip_grad_value_
from gmcore.optim.ema import EMA
from gmcore.optim.lbfgs import LBFGS
from gmcore.optim.optimizer import Optimizer
from gmcore.optim.rmsprop import RMSprop
from gmcore.optim.sgd import SGD

__all__ = [
    "EMA",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "clip_grad_norm_",
    "clip_grad_value_",
    "lr_scheduler",
]
