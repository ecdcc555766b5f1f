"""The data sets that gmcore knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from gmcore.data.dataset import SPLITS, Dataset, float_rows
from gmcore.data.own import split_at_random
from gmcore.data.readers import optional_import, read_amat, read_frey_faces, read_idx, read_omniglot
from gmcore.data.sources import File, Source, register
from gmcore.data.text import Text, read_text
from gmcore.errors import DataError


def _digits(paths: Mapping[str, Path]) -> Dataset:
    datasets = optional_import("sklearn.datasets", "data set 'digits'")
    images = float_rows(datasets.load_digits().images, 16)
    train, valid, test, split = split_at_random(images, "digits")
    return Dataset("digits", train, valid, test, (8, 8), {"split": split})


def _idx_images(name: str, paths: Mapping[str, Path]) -> Dataset:
    images = {key: read_idx(path) for key, path in paths.items()}
    for key, array in images.items():
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[1:] != images["train"].shape[1:]:
            raise DataError(
                f"{paths[key]}: expected uint8 images (n, height, width), all of one size, "
                f"found {array.dtype} {array.shape}"
            )
    train, test = (float_rows(images[key], 255) for key in ("train", "test"))
    if len(train) < 6:
        raise DataError(f"{paths['train']}: expected at least 6 images, found {len(train)}")
    valid = len(train) // 6
    split = f"train and valid: the first {len(train) - valid} and last {valid} of the training file"
    height, width = images["train"].shape[1:]
    return Dataset(name, train[:-valid], train[-valid:], test, (height, width), {"split": split})


def _binarized_mnist(paths: Mapping[str, Path]) -> Dataset:
    images = {key: read_amat(path) for key, path in paths.items()}
    for key, array in images.items():
        if array.shape[1] != 784:
            raise DataError(f"{paths[key]}: expected 784 digits a line, found {array.shape[1]}")
    train, valid, test = (float_rows(images[split], 1) for split in SPLITS)
    return Dataset("binarized-mnist", train, valid, test, (28, 28), {"split": "as in the files"})


def _omniglot(paths: Mapping[str, Path]) -> Dataset:
    train, test = (float_rows(images, 1) for images in read_omniglot(paths["all"]))
    if len(train) < 19:
        raise DataError(f"{paths['all']}: expected at least 19 training images, found {len(train)}")
    # 1345 of 24345 images are for validation, chosen as by Burda et al., so that bounds can be compared.
    valid = len(train) * 1345 // 24345
    train = train[np.random.RandomState(123).permutation(len(train))]
    provenance = {"split": f"numpy RandomState(123).permutation of the training images; the last {valid} valid"}
    if paths["all"].name == "chardata_rebuilt.mat":
        provenance["note"] = (
            "rebuilt from the 105x105 images, with a resizing and test split of its own: "
            "bounds are not comparable with published ones"
        )
    return Dataset("omniglot", train[:-valid], train[-valid:], test, (28, 28), provenance)


def _frey_faces(paths: Mapping[str, Path]) -> Dataset:
    faces = float_rows(read_frey_faces(paths["all"]), 255)
    train, valid, test, split = split_at_random(faces, str(paths["all"]))
    note = "frames of one video: a random split puts near copies of test frames into train"
    return Dataset("frey-faces", train, valid, test, (28, 20), {"split": split, "note": note})


def _tinyshakespeare(paths: Mapping[str, Path]) -> Text:
    return read_text(paths["all"], "tinyshakespeare")


def _idx_files(url: str, train: tuple[str, ...], test: tuple[str, ...]) -> dict[str, File]:
    names = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
    return {
        key: File((f"{names[key]}.gz", names[key]), digests, f"{url}{names[key]}.gz")
        for key, digests in {"train": train, "test": test}.items()
    }


def _amat_files(**digests: str) -> dict[str, File]:
    url = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
    names = {split: f"binarized_mnist_{split}.amat" for split in digests}
    return {split: File((name, f"{name}.gz"), (digests[split],), url + name) for split, name in names.items()}


register(Source("digits", "8x8 digits that come with scikit-learn, 17 grey levels", _digits, {}))
register(
    Source(
        "mnist",
        "28x28 handwritten digits, grey (LeCun et al. 1998)",
        partial(_idx_images, "mnist"),
        _idx_files(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            train=(
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",  # decompressed
            ),
            test=(
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",  # decompressed
            ),
        ),
        ("MNIST/raw",),
    )
)
register(
    Source(
        "fashion-mnist",
        "28x28 articles of clothing, grey (Xiao, Rasul, Vollgraf 2017)",
        partial(_idx_images, "fashion-mnist"),
        _idx_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            # Digests of the decompressed files are not published: those are read, but not verified.
            train=("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",),
            test=("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",),
        ),
        ("FashionMNIST/raw",),
    )
)
register(
    Source(
        "binarized-mnist",
        "MNIST binarised once for all (Salakhutdinov, Murray 2008; Larochelle, Murray 2011)",
        _binarized_mnist,
        _amat_files(
            train="ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
            valid="1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
            test="e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
        ),
        ("BinaryMNIST",),
    )
)
register(
    Source(
        "omniglot",
        "28x28 handwritten characters of 50 alphabets, ink in [0, 1] (Burda et al. 2016)",
        _omniglot,
        {"all": File(("chardata.mat", "chardata_rebuilt.mat"))},
        ("OMNIGLOT", "omniglot28"),
    )
)
register(
    Source(
        "frey-faces",
        "1965 video frames of one face, 28x20, grey (Frey, Roweis)",
        _frey_faces,
        {"all": File(("frey_rawface.mat",))},
    )
)
register(
    Source(
        "tinyshakespeare",
        "40000 lines of Shakespeare's plays, 65 characters (Karpathy 2015)",
        _tinyshakespeare,
        {
            "all": File(
                ("input.txt",),
                ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",),
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            )
        },
    )
)
