"""From a URL to the weight files it means, with the small files beside them fetched."""

from __future__ import annotations

from mergekit_cl.checkpoint.filesystem import RemoteFile, RemoteFolder
from mergekit_cl.checkpoint.index import parse_index
from mergekit_cl.checkpoint.place import INDEXES, SINGLE, Place, side_name
from mergekit_cl.checkpoint.small import CUSTOMARY, companions_among
from mergekit_cl.checkpoint.urls import shown, split
from mergekit_cl.errors import FormatError, InputError

PICKLES = (".bin", ".pt", ".pth", ".bin.index.json")


def locate_url(url: str) -> Place:
    """Find the weight files a URL names: a folder's, an index's, or the one file.

    Raises InputError where nothing, or no weights, are there; FormatError for a broken index.
    """
    url = url.rstrip("/")
    parent, name = split(url)
    if name.endswith(PICKLES):
        raise _pickled(url)
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return _file(RemoteFolder(parent), name)
    source = RemoteFolder(url)
    listing = source.listing()
    for single, index in zip(SINGLE, INDEXES, strict=True):
        wanted = [single, index]
        found = [listing.get(n) for n in wanted] if listing is not None else source.find_all(wanted)
        for name, file in zip(wanted, found, strict=True):
            if file is not None and name.endswith(PICKLES):
                raise _pickled(f"{url}/{name}")
            if file is not None:
                return _place(source, file, listing, "clmerge", folder=True)
    if listing == {}:
        raise InputError("no such directory, or nothing is in it", detail=shown(url))
    raise InputError(
        "the directory holds no checkpoint",
        detail=f"{shown(url)}: none of {', '.join([*SINGLE, *INDEXES])}",
        hint="name the weight file itself" if listing is None or _weights(listing) else None,
    )


def _file(source: RemoteFolder, name: str) -> Place:
    file = source.find(name)
    if file is None:
        raise InputError("no such file", detail=f"{shown(source.url)}/{name}")
    return _place(source, file, source.listing(), side_name(name), folder=False)


def _place(
    source: RemoteFolder,
    file: RemoteFile,
    listing: dict[str, RemoteFile] | None,
    side: str,
    *,
    folder: bool,
) -> Place:
    files: tuple[RemoteFile, ...] = (file,)
    weight_map = None
    if file.name.endswith(".index.json"):
        files, weight_map = _sharded(source, file, listing)
    _fetch_companions(source, listing, side)
    return Place(
        source.scratch,
        files,
        weight_map,
        source.scratch / side,
        folder=folder,
        source=source,
    )


def _sharded(
    source: RemoteFolder, index: RemoteFile, listing: dict[str, RemoteFile] | None
) -> tuple[tuple[RemoteFile, ...], dict[str, str]]:
    weight_map = parse_index(source.fetch_small([index])[0], str(index), lambda name: True)
    names = list(dict.fromkeys(weight_map.values()))
    found = [listing.get(n) for n in names] if listing is not None else source.find_all(names)
    for name, file in zip(names, found, strict=True):
        if file is None:
            raise FormatError(
                "the index names a file that is not there",
                detail=f"{index}: {name!a}",
                hint="upload or save it again",
            )
    return tuple(file for file in found if file is not None), weight_map


def _fetch_companions(
    source: RemoteFolder, listing: dict[str, RemoteFile] | None, side: str
) -> None:
    """Bring config, tokenizer and the like, and how the model was made, to the scratch folder."""
    made = f"{side}/manifest.json"
    if listing is None:
        wanted = source.find_all([*CUSTOMARY, made], optional=True)
    else:
        names = companions_among(listing)
        wanted = [*(listing[name] for name in names), source.find(made, optional=True)]
    files = [file for file in wanted if file is not None]
    for file, content in zip(files, source.fetch_small(files), strict=True):
        path = source.scratch / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def _weights(listing: dict[str, RemoteFile]) -> bool:
    return any(name.endswith(".safetensors") for name in listing)


def _pickled(url: str) -> InputError:
    return InputError(
        "torch files are read from this disk only: their weights lie inside a pickle",
        detail=shown(url),
        hint="copy the model to this disk first, or save it as safetensors",
    )
