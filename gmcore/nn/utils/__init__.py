"""What `torch.nn.utils` has: clipping of gradients, parameters as one vector, parametrised weights, and
sequences of different lengths."""

from gmcore.nn.utils import parametrizations, parametrize, rnn
from gmcore.nn.utils.convert import parameters_to_vector, vector_to_parameters
from gmcore.optim.clip import clip_grad_norm_, clip_grad_value_

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "parameters_to_vector",
    "parametrizations",
    "parametrize",
    "rnn",
    "vector_to_parameters",
]
