"""The data sets of the benchmarks and of the tests.

They are read from the folder that the environment variable `KERAS_DYNAMIC_DATA` names,
by default `../shared/data` beside the project, and downloaded by Keras where that
folder lacks them.
"""

import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
    "input.txt"
)
SST2 = (
    "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/"
    "master/data/SST2/"
)
ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("KERAS_DYNAMIC_DATA", ROOT / "../shared/data")).resolve()


def local_file(name):
    """Returns the path of a local data file, or None where there is none."""
    path = DATA_DIR / name
    return path if path.is_file() else None


def load_mnist():
    """MNIST: 60,000 images of handwritten digits to train on and 10,000 to test on.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images `(n, 28, 28, 1)`, float32 in
        [0, 1]; labels `(n,)`, int32.
    """
    path = local_file("mnist.npz")
    if path is None:
        train, test = keras.datasets.mnist.load_data()
    else:
        with np.load(path) as arrays:
            train = arrays["x_train"], arrays["y_train"]
            test = arrays["x_test"], arrays["y_test"]
    return _prepare(*train), _prepare(*test)


def load_cifar10():
    """CIFAR-10: 50,000 color images in ten classes to train on and 10,000 to test on.

    The local copy holds the images as JPEG, which loses a little: results on it lie
    near those on the original, and are not equal to them.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images `(n, 32, 32, 3)`, float32 in
        [0, 1]; labels `(n,)`, int32.
    """
    path = local_file("cifar10_jpeg.npz")
    if path is None:
        train, test = keras.datasets.cifar10.load_data()
    else:
        with np.load(path) as arrays:
            train = (
                _decode(arrays["jpeg_train"], arrays["len_train"]),
                arrays["y_train"],
            )
            test = _decode(arrays["jpeg_test"], arrays["len_test"]), arrays["y_test"]
    return _prepare(*train), _prepare(*test)


def load_tinyshakespeare():
    """One megabyte of Shakespeare's plays, the text of the char-rnn repository.

    Returns:
        `(train, held_out, test)`: the first 90 % of its characters, the next 5 % and
        the last 5 %; arrays `(n,)` of int32, from 0 to 64, in the order of the
        characters' code points.
    """
    path = local_file("tinyshakespeare.txt")
    if path is None:
        path = Path(keras.utils.get_file("tinyshakespeare.txt", SHAKESPEARE))
    text = np.frombuffer(path.read_bytes(), "uint8")
    _, characters = np.unique(text, return_inverse=True)
    parts = 9 * len(text) // 10, 19 * len(text) // 20
    return tuple(np.split(characters.astype("int32"), parts))


def load_sst2():
    """SST-2: sentences from film reviews, 0 where the reviewer disliked the film.

    Whole sentences only, in lower case, split into words by blanks: 6,920 to train on,
    872 to validate and 1,821 to test, the split of the Stanford Sentiment Treebank.

    Returns:
        `(train, held_out, test)`, each `(sentences, labels)`: a list of n strings;
        labels `(n,)`, int32.
    """
    return tuple(_sentences(name) for name in ("train", "dev", "test"))


def _sentences(name):
    path = local_file(f"sst2/{name}.tsv")
    if path is None:
        path = Path(keras.utils.get_file(f"sst2_{name}.tsv", f"{SST2}{name}.tsv"))
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [line.split("\t") for line in lines if line]
    return [text for text, _ in pairs], np.array([y for _, y in pairs], "int32")


def _prepare(images, labels):
    images = images.astype("float32") / 255.0
    if images.ndim == 3:
        images = images[..., np.newaxis]
    return images, labels.reshape(-1).astype("int32")


def _decode(stream, lengths):
    """Images from JPEG files that lie end to end in one array of bytes.

    Args:
        stream: uint8 array, all files one after the other.
        lengths: integer array, the bytes of each file.

    Returns:
        uint8 array `(n, height, width, 3)`.
    """
    ends = np.cumsum(lengths, dtype="int64")
    starts = ends - lengths
    files = [
        stream[start:end].tobytes() for start, end in zip(starts, ends, strict=True)
    ]
    images = (
        tf.data.Dataset.from_tensor_slices(files)
        .map(lambda file: tf.io.decode_jpeg(file, channels=3), tf.data.AUTOTUNE)
        .batch(1000)
    )
    return np.concatenate(list(images.as_numpy_iterator()))
