"""The models, by name. One file a system, in folders by family.

gmcore.models.get("iwae")            # the class
gmcore.models.register(MyModel)      # a model of one's own, also from outside the package
"""

from __future__ import annotations

import importlib

from gmcore.errors import UnknownNameError, unknown_name
from gmcore.models.base import Model, Recipe, Step
from gmcore.models.generative import GenerativeModel
from gmcore.models.language import LanguageModel

_BUILT_IN = {
    "boltzmann": "gmcore.models.boltzmann.boltzmann_machine:BoltzmannMachine",
    "char_rnn": "gmcore.models.recurrent.char_rnn:CharRNN",
    "iwae": "gmcore.models.latent.iwae:IWAE",
    "rbm": "gmcore.models.boltzmann.rbm:RBM",
    "vae": "gmcore.models.latent.vae:VAE",
}
_registered: dict[str, type[Model]] = {}


def names() -> list[str]:
    """Names of the models that `get` finds."""
    return sorted({*_BUILT_IN, *_registered})


def get(name: str) -> type[Model]:
    """The class of the model `name`. Raises `UnknownNameError` with the nearest name."""
    if name in _registered:
        return _registered[name]
    if name not in _BUILT_IN:
        raise unknown_name("model", name, names())
    module, _, cls = _BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def register(cls: type[Model]) -> type[Model]:
    """List a model under ``cls.name``; usable as a decorator. Raises `UnknownNameError` if the name is taken."""
    if cls.name in names():
        raise UnknownNameError(f"a model called {cls.name!r} is registered already")
    _registered[cls.name] = cls
    return cls


__all__ = ["GenerativeModel", "LanguageModel", "Model", "Recipe", "Step", "get", "names", "register"]
