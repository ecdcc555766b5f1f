"""Draw samples from the model of a run: pictures or an array of data vectors, or text."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from gmcore.errors import ArgumentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", help="folder of a run")
    parser.add_argument("-n", type=int, metavar="N", help="samples (default: 100), or characters (default: 1000)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the samples (default: the run's)")
    parser.add_argument("--prime", metavar="TEXT", help="of a text: what it begins with")
    parser.add_argument("--temperature", type=float, metavar="T", help="of a text: 0 is the likeliest (default: 1)")
    parser.add_argument("--device", metavar="NAME", help="where to draw them: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument(
        "--out", metavar="FILE",
        help="a .png or .npy file (default: RUN/samples-N-seedN.png); of a text, any file (default: print it)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from gmcore.device import using
    from gmcore.models import GenerativeModel, LanguageModel
    from gmcore.models.base import check_size
    from gmcore.random import Generator
    from gmcore.run import load, read_config
    from gmcore.streams import stream_seed

    if arguments.n is not None:
        check_size("-n", arguments.n)
    config = read_config(arguments.path)
    seed = config["seed"] if arguments.seed is None else Generator(arguments.seed).seed
    model, noise = load(arguments.path, device=arguments.device), Generator(stream_seed(seed, "sampling"))
    with using(model.device):
        if isinstance(model, LanguageModel):
            _text(arguments, model, noise)
        elif isinstance(model, GenerativeModel):
            _vectors(arguments, model, noise, config, seed)
        else:
            raise ArgumentError(f"{arguments.path}: {model.name} draws neither data vectors nor text")


def _text(arguments: argparse.Namespace, model: Any, noise: Any) -> None:
    from gmcore.io import write_atomically
    from gmcore.streams import drawing_from

    temperature = 1.0 if arguments.temperature is None else arguments.temperature
    text = drawing_from(
        noise, model.sample, arguments.n or 1000,
        prime=arguments.prime or "", temperature=temperature, generator=noise,
    )  # fmt: skip
    if arguments.out is None:
        print(text)
        return
    write_atomically(Path(arguments.out), text.encode())
    print(arguments.out)


def _vectors(arguments: argparse.Namespace, model: Any, noise: Any, config: dict[str, Any], seed: int) -> None:
    import numpy as np

    from gmcore import pictures
    from gmcore.io import write_atomically
    from gmcore.run import picture_format
    from gmcore.streams import drawing_from

    for option in ("prime", "temperature"):
        if getattr(arguments, option) is not None:
            raise ArgumentError(f"--{option}: {model.name} draws data vectors, no text")
    n = arguments.n or 100
    out = Path(arguments.out or Path(arguments.path) / f"samples-{n}-seed{seed}.png")
    if out.suffix not in (".png", ".npy"):
        raise ArgumentError(f"--out {out}: expected a file that ends in .png or .npy")
    samples = drawing_from(noise, model.sample, n, generator=noise).cpu().numpy()
    if out.suffix == ".png":
        pictures.save_samples(out, samples, *picture_format(config))
    else:
        content = io.BytesIO()
        np.save(content, samples)
        write_atomically(out, content.getvalue())
    print(out)
