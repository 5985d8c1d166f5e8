"""A parent besides its weights: its Fisher, and what a merge recorded of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.comparing.comparison import Comparison, Source
from mergekit_cl.comparing.made import Made
from mergekit_cl.comparing.pairing import Pairing, pair
from mergekit_cl.comparing.reading import Compared
from mergekit_cl.digest import weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.divergence.sums import Sums
from mergekit_cl.plan import Selection
from mergekit_cl.sidecar import Sidecar, find_sidecar, sidecar_of


def open_sidecars(
    parents: Sequence[Checkpoint], given: Sequence[str], stack: ExitStack
) -> list[Sidecar | None]:
    """The sidecar of each parent: those given, else those beside them; None where there is none."""
    found: list[Sidecar | None] = []
    for k, parent in enumerate(parents):
        path = given[k] if given else None
        if path is None and find_sidecar(parent) is None:
            found.append(None)
            continue
        sidecar = sidecar_of(parent, path)
        stack.enter_context(sidecar.checkpoint)
        found.append(sidecar)
    return found


def comparisons_of(
    merged: Checkpoint,
    parents: Sequence[Checkpoint],
    pairings: Sequence[Pairing],
    sidecars: Sequence[Sidecar | None],
    base: Checkpoint | None,
) -> list[Comparison]:
    """What to read for each tensor that any parent has too.

    base: read where it has the tensor, and more than one of the parents do or there is but one.
    """
    bases = {} if base is None else pair(merged, base, Selection()).names
    found = []
    for name in merged.tensors:
        those = _having(name, pairings)
        if not those:
            continue
        sources = tuple(Source(parents[k], pairings[k].names[name]) for k in those)
        fishers = tuple(
            _fisher(sidecars[k], source.name) for k, source in zip(those, sources, strict=True)
        )
        pulled = base is not None and name in bases and (len(those) > 1 or len(parents) == 1)
        origin = Source(base, bases[name]) if base is not None and pulled else None
        found.append(Comparison(Source(merged, name), sources, fishers, origin))
    return found


def sums_of(
    pairings: Sequence[Pairing], read: Mapping[str, Compared]
) -> dict[str, list[Sums | None]]:
    """{tensor: its sums against each parent}, None for a parent that lacks it."""
    found: dict[str, list[Sums | None]] = {}
    for name, compared in read.items():
        known = dict(zip(_having(name, pairings), compared.sums, strict=True))
        found[name] = [known.get(k) for k in range(len(pairings))]
    return found


def digests_of(pairings: Sequence[Pairing], read: Mapping[str, Compared]) -> list[dict[str, str]]:
    """For each parent the digests of its tensors that were read, by its own names."""
    found: list[dict[str, str]] = [{} for _ in pairings]
    for name, compared in read.items():
        those = _having(name, pairings)
        for k, digest in zip(those, compared.parent_digests, strict=True):
            found[k][pairings[k].names[name]] = digest
    return found


def is_stale(sidecar: Sidecar | None, digests: Mapping[str, str]) -> bool:
    """Whether a Fisher was taken at other weights than were read."""
    if sidecar is None:
        return False
    expected = {name: sidecar.digest(name) for name in digests}
    return any(want is not None and want != digests[name] for name, want in expected.items())


def path_in(made: Made, parent: Checkpoint, digests: Mapping[str, str]) -> str | None:
    """The path that a merge recorded for the input of a parent's weights.

    digests: those known already; the others are read.
    """
    rest = parent.tensors.keys() - digests.keys()
    whole = {**digests, **(checkpoint_digests(parent, names=rest) if rest else {})}
    entries = [(t.name, t.dtype, t.shape, whole[t.name]) for t in parent.tensors.values()]
    return made.parents.get(weights_digest(entries))


def _having(name: str, pairings: Sequence[Pairing]) -> list[int]:
    return [k for k, pairing in enumerate(pairings) if name in pairing.names]


def _fisher(sidecar: Sidecar | None, name: str) -> Source | None:
    if sidecar is None or name not in sidecar.checkpoint.tensors:
        return None
    return Source(sidecar.checkpoint, name)
