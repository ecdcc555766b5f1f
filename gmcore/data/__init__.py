"""Data sets, read from their original files, and the minibatches and binarisation of training on them.

=================  ======  ==================  ===========================================================
name               pixels  train/valid/test    files (one of their usual names; gzipped or not)
=================  ======  ==================  ===========================================================
digits             8x8     1439/179/179        none: they come with scikit-learn
mnist              28x28   50000/10000/10000   train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz
fashion-mnist      28x28   50000/10000/10000   train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz
binarized-mnist    28x28   50000/10000/10000   binarized_mnist_{train,valid,test}.amat
omniglot           28x28   23000/1345/8070     chardata.mat
frey-faces         28x20   1573/196/196        frey_rawface.mat
a path             own     own, or 80/10/10    .npy or .npz
tinyshakespeare    text    90/5/5 %, in order  input.txt
a path             text    90/5/5 %, in order  any other file, UTF-8
=================  ======  ==================  ===========================================================

`load` finds them and says, where it cannot, which files to put where. The validation images of MNIST and
Fashion-MNIST are the last 10000 of the training file; those of OMNIGLOT are the ones of the IWAE paper
(Burda, Grosse, Salakhutdinov 2016); digits and Frey faces are split by a fixed permutation.
"""

from gmcore.data import sets as _sets  # noqa: F401  registers the data sets of the table
from gmcore.data.binarize import MODES, batches, binarize
from gmcore.data.dataset import SPLITS, AnyDataset, Dataset, check_support
from gmcore.data.own import own_arrays
from gmcore.data.prepare import Minibatches, is_binary, prepare
from gmcore.data.readers import read_amat, read_arrays, read_frey_faces, read_idx, read_omniglot
from gmcore.data.sources import File, Source, cache_dir, load, register, sources
from gmcore.data.text import Text, Vocabulary, read_text

__all__ = [
    "MODES",
    "SPLITS",
    "AnyDataset",
    "Dataset",
    "File",
    "Minibatches",
    "Source",
    "Text",
    "Vocabulary",
    "batches",
    "binarize",
    "cache_dir",
    "check_support",
    "is_binary",
    "load",
    "own_arrays",
    "prepare",
    "read_amat",
    "read_arrays",
    "read_frey_faces",
    "read_idx",
    "read_omniglot",
    "read_text",
    "register",
    "sources",
]
