"""The other ways to a diagonal Fisher, each behind one call: `PEERS[name](task).once()`.

`once` runs one batch and returns {parameter: mean of squares} for the parameters that the peer
covers, so that the numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Task:
    """model: causal. ids, labels: (B, T), labels already shifted, -100 where there is no loss."""

    model: Any
    ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Peer:
    once: Callable[[], dict[str, Tensor]]


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over positions and rows."""
    return F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="sum", ignore_index=-100
    )


def loop(task: Task) -> Peer:
    """A batch of one at a time, torch's own gradients squared."""
    model = task.model
    parameters = dict(model.named_parameters())

    def once() -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        for index in range(len(task.ids)):
            model.zero_grad(set_to_none=True)
            logits = model(input_ids=task.ids[index : index + 1]).logits
            loss_of(logits, task.labels[index : index + 1]).backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    values = parameter.grad.float()
                    sums[name].addcmul_(values, values)
        return {name: total / len(task.ids) for name, total in sums.items()}

    return Peer(once)


def vmap(task: Task) -> Peer:
    """torch.func: vmap over grad; holds every example's gradient at once."""
    from torch.func import functional_call, grad
    from torch.func import vmap as over

    model = deepcopy(task.model)
    model.config._attn_implementation = "eager"  # what vmap has batching rules for
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        mask = torch.zeros(1, 1, len(ids), len(ids), device=ids.device, dtype=model.dtype)
        mask = mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).triu(1), -1e30)
        inputs = {"input_ids": ids.unsqueeze(0), "attention_mask": mask}
        logits = functional_call(model, weights, (), inputs).logits
        return loss_of(logits, labels)

    each = over(grad(loss), in_dims=(None, 0, 0))

    def once() -> dict[str, Tensor]:
        gradients = each(parameters, task.ids, task.labels)
        return {name: g.float().square_().mean(0) for name, g in gradients.items()}

    return Peer(once)


def kronfluence(task: Task) -> Peer:
    """strategy="diagonal", of linear layers alone; it sums over rows, here divided by them."""
    from accelerate.state import PartialState
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor.eigen import fit_lambda_matrices_with_loader
    from kronfluence.task import Task as Interface
    from kronfluence.utils.state import State

    from kronfluence.analyzer import prepare_model  # isort: skip

    class Language(Interface):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return loss_of(model(input_ids=batch[0]).logits, batch[1])

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    PartialState(cpu=not task.ids.is_cuda)
    model = prepare_model(deepcopy(task.model), Language())
    arguments = FactorArguments(strategy="diagonal", use_empirical_fisher=True)

    def once() -> dict[str, Tensor]:
        _, factors = fit_lambda_matrices_with_loader(
            model=model,
            state=State(),
            task=Language(),
            loader=[(task.ids, task.labels)],
            factor_args=arguments,
            disable_tqdm=True,
        )
        return {
            f"{name}.weight": total / len(task.ids)
            for name, total in factors["lambda_matrix"].items()
        }

    return Peer(once)


def nngeometry(task: Task) -> Peer:
    """PMatDiag through its hooks."""
    from nngeometry.layercollection import LayerCollection

    LayerCollection.from_model(task.model)
    raise NotImplementedError("nngeometry accepts the model, but its rule for linear layers is 2-D")


def backpack(task: Task) -> Peer:
    """SumGradSquared: modules that are torch's own, in a plain feed-forward order."""
    from backpack import backpack as extended
    from backpack import extend
    from backpack.extensions import SumGradSquared

    model = extend(deepcopy(task.model), use_converter=False)
    loss = extend(nn.CrossEntropyLoss(reduction="sum", ignore_index=-100))

    def once() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        logits = model(input_ids=task.ids).logits
        with extended(SumGradSquared()):
            loss(logits.transpose(1, 2), task.labels).backward()
        return {n: p.sum_grad_squared / len(task.ids) for n, p in model.named_parameters()}

    return Peer(once)


PEERS: dict[str, Callable[[Task], Peer]] = {
    "a loop over single rows": loop,
    "torch.func vmap": vmap,
    "kronfluence, diagonal": kronfluence,
    "nngeometry": nngeometry,
    "BackPACK, SumGradSquared": backpack,
}
