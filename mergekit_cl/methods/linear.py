"""`linear-merge`: a weighted average, or a weighted sum, or weighted differences from a base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import MismatchError
from mergekit_cl.merge.formula import Differences, Formula, mean_of
from mergekit_cl.merge.kernel import Kernel
from mergekit_cl.merge.linear import weighted_deltas, weighted_mean, weighted_sum
from mergekit_cl.methods.method import Method, resolve_weights
from mergekit_cl.plan import Ingredients, Operand, float32_for
from mergekit_cl.sidecar import Sidecar, under_names_of_merge
from mergekit_cl.ties import find_ties


def linear_method(
    checkpoints: Sequence[Checkpoint],
    *,
    weights: Sequence[float] | None,
    normalize: bool,
    base: Checkpoint | None,
    sidecars: Sequence[Sidecar | None],
) -> Method:
    """Average `checkpoints`, weights normalised to sum 1 unless told otherwise.

    With a base and `normalize=False` the weights apply to the differences from the base (task
    arithmetic); normalised, the base cancels, and is only read for what is reported. sidecars: only
    for the report.
    """
    resolved = resolve_weights(weights, len(checkpoints), normalize=normalize)
    sidecars = by_names_of_merge(sidecars, checkpoints)

    count = len(checkpoints)
    if normalize or base is None:
        average = weighted_mean if normalize else weighted_sum
        kernel = first_operands(partial(average, weights=resolved), count)
        closeness = float32_for(count)
    else:
        kernel = _inputs_and_last(partial(weighted_deltas, weights=resolved), count)
        closeness = float32_for(count + 1)

    mean = mean_of(resolved) if normalize else None

    def recipe(name: str, inputs: Sequence[Operand]) -> Ingredients:
        more, places = report_operands(name, count, sidecars)
        # The base goes last, behind the Fishers.
        with_base = more if base is None else (*more, base_operand(name, inputs, base))
        place = None if base is None else count + len(more)
        formula: Formula | None = mean
        if mean is None and place is not None:
            formula = Differences(place, tuple(enumerate(resolved)))
        return Ingredients(kernel, with_base, places, closeness, place, formula)

    return Method(
        "linear-merge",
        {"weights": list(resolved), "normalize": normalize},
        checkpoints,
        recipe,
        sidecars,
        base,
    )


def by_names_of_merge(
    sidecars: Sequence[Sidecar | None], checkpoints: Sequence[Checkpoint]
) -> list[Sidecar | None]:
    """The sidecars, where an input calls a tied tensor otherwise than the merge does as well."""
    if not any(sidecars):
        return list(sidecars)
    ties = find_ties(checkpoints)
    return [None if one is None else under_names_of_merge(one, ties) for one in sidecars]


def report_operands(
    name: str, inputs: int, sidecars: Sequence[Sidecar | None]
) -> tuple[tuple[Operand, ...], tuple[int | None, ...]]:
    """Fisher operands of one tensor, and where each input's stands among all operands."""
    more: list[Operand] = []
    places: list[int | None] = []
    for sidecar in sidecars:
        tensor = None if sidecar is None else sidecar.tensor(name)
        if sidecar is None or tensor is None:
            places.append(None)
        else:
            places.append(inputs + len(more))
            more.append(Operand(sidecar.checkpoint, tensor))
    return tuple(more), tuple(places)


def base_operand(name: str, inputs: Sequence[Operand], base: Checkpoint) -> Operand:
    """The base's tensor of the name and shape of the inputs.

    Where only some of the inputs' rows are merged, the base may have more of them too. Raises
    MismatchError where it has no such tensor.
    """
    shape = inputs[0].info.shape
    tensor = base.tensors.get(name)
    if tensor is not None and shape and not all(operand.is_whole for operand in inputs):
        rows, *rest = tensor.shape or (0,)
        if rows > shape[0] and tuple(rest) == shape[1:]:
            tensor = tensor._replace(shape=shape)
    if tensor is None or tensor.shape != shape:
        have = "nothing" if tensor is None else str(list(tensor.shape))
        raise MismatchError(
            "the base differs from the inputs in a tensor",
            detail=f"{base.path}: {name}: the inputs have {list(shape)}, the base {have}",
        )
    return Operand(base, tensor)


def first_operands(kernel: Kernel, count: int) -> Kernel:
    """A kernel that is shown only the first `count` operands."""
    return lambda operands, scratch: kernel(operands[:count], scratch)


def _inputs_and_last(kernel: Kernel, count: int) -> Kernel:
    return lambda operands, scratch: kernel([*operands[:count], operands[-1]], scratch)
