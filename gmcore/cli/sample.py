"""Draw samples from the model of a run: means of p(x | z) at draws of z, as a picture or an array."""

from __future__ import annotations

import argparse
from pathlib import Path

from gmcore.errors import ArgumentError, CheckpointError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", help="folder of a run")
    parser.add_argument("-n", type=int, default=100, metavar="N", help="number of samples (default: 100)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the samples (default: the run's)")
    parser.add_argument("--out", metavar="FILE", help="a .png or .npy file (default: RUN/samples-N-seedN.png)")


def run(arguments: argparse.Namespace) -> None:
    import numpy as np

    from gmcore import pictures
    from gmcore.models import GenerativeModel
    from gmcore.models.base import check_size
    from gmcore.random import Generator
    from gmcore.run import load, picture_format, read_config
    from gmcore.streams import drawing_from, stream_seed

    check_size("-n", arguments.n)
    config = read_config(arguments.path)
    seed = config["seed"] if arguments.seed is None else Generator(arguments.seed).seed
    out = Path(arguments.out or Path(arguments.path) / f"samples-{arguments.n}-seed{seed}.png")
    if out.suffix not in (".png", ".npy"):
        raise ArgumentError(f"--out {out}: expected a file that ends in .png or .npy")
    model = load(arguments.path)
    if not isinstance(model, GenerativeModel):
        raise ArgumentError(f"{arguments.path}: {model.name} draws no data vectors")
    noise = Generator(stream_seed(seed, "sampling"))
    samples = drawing_from(noise, model.sample, arguments.n, generator=noise).numpy()
    if out.suffix == ".png":
        pictures.save_samples(out, samples, *picture_format(config))
    else:
        try:
            np.save(out, samples)
        except OSError as error:
            raise CheckpointError(f"{out}: cannot be written ({error.strerror or error})") from None
    print(out)
