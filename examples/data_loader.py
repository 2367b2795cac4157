"""A data loader: batches of pictures and labels made in one process, for the training in others, with nothing copied.

A batch is made where the trainer will see it: numpy draws into shared memory, and the arrays that arrive look at that
memory. While the trainer works on one batch the next ones are made, as far as its stream has room for them. It needs
numpy. Try it from a shell::

    python examples/data_loader.py &
    python examples/data_loader.py train
    samehost describe data-loader
    samehost call data-loader batches count=2 size=1 | cut -c 1-80
"""

import logging
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

import samehost

SIDE = 64
CLASSES = 10

Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=1, le=512)]


class Batch(msgspec.Struct):
    """Some pictures and what is on them.

    Attributes:
        pictures: of shape (size, SIDE, SIDE), from 0 to 2.
        labels: of shape (size,), from 0 to CLASSES - 1.
    """

    pictures: NDArray[np.float32]
    labels: NDArray[np.int64]


class Loader(samehost.Client):
    """The loader, for its trainers."""

    def batches(self, count: Count, size: Size = 256, seed: int = 0) -> Iterator[Batch]:
        """So many batches, the same ones for the same seed."""
        raise NotImplementedError


loader = samehost.Service("data-loader", Loader)


@loader.method
def batches(call: samehost.Call, count: Count, size: Size = 256, seed: int = 0) -> Iterator[Batch]:
    """So many batches, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    for number in range(count):
        pictures, labels = new_array((size, SIDE, SIDE), np.float32), new_array((size,), np.int64)
        random.random(out=pictures, dtype=np.float32)
        labels[:] = random.integers(CLASSES, size=size)
        pictures[np.arange(size), 0, labels] = 2.0  # what there is to be learned
        yield Batch(pictures, labels)
        call.progress(number + 1, count)


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array in shared memory, of anything at first."""
    blob = samehost.allocate(np.dtype(dtype).itemsize * int(np.prod(shape)))
    return np.frombuffer(blob.view, dtype).reshape(shape)


def train(address: str, count: int = 100) -> None:
    """Learn nothing much, and say how fast."""
    begin, pictures, right, bytes_seen = time.monotonic(), 0, 0, 0
    with samehost.connect(address, Loader, wait=5) as client:
        for batch in client.batches(count):
            guessed = batch.pictures[:, 0].argmax(axis=1)
            right += int((guessed == batch.labels).sum())
            pictures += len(batch.labels)
            bytes_seen += batch.pictures.nbytes + batch.labels.nbytes
    seconds = time.monotonic() - begin
    print(f"{count} batches, {right} of {pictures} pictures recognised, {bytes_seen / seconds / 1e6:.0f} MB a second")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2] if len(sys.argv) > 2 else "data-loader")
    else:
        samehost.serve(loader, *sys.argv[1:2])
