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
    """A model of transformers, or a plain classifier.

    inputs: (B, T) ids or (B, D) numbers. labels: (B, T) already shifted, or (B,); -100 where there
    is no loss.
    """

    model: Any
    inputs: Tensor
    labels: Tensor

    def logits(self, model: Any, inputs: Tensor) -> Tensor:
        """(B, T, V) or (B, C)."""
        output = model(inputs)
        found: Tensor = output if isinstance(output, Tensor) else output.logits
        return found


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
        for index in range(len(task.inputs)):
            model.zero_grad(set_to_none=True)
            logits = task.logits(model, task.inputs[index : index + 1])
            loss_of(logits, task.labels[index : index + 1]).backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    values = parameter.grad.float()
                    sums[name].addcmul_(values, values)
        return {name: total / len(task.inputs) for name, total in sums.items()}

    return Peer(once)


def vmap(task: Task) -> Peer:
    """torch.func: vmap over grad; holds every example's gradient at once."""
    from torch.func import functional_call, grad
    from torch.func import vmap as over

    model = deepcopy(task.model)
    if hasattr(model, "config"):
        model.config._attn_implementation = "eager"  # what vmap has batching rules for
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        given: dict[str, Tensor] = {}
        if hasattr(model, "config"):  # a mask of one's own: transformers' is made with vmap itself
            mask = torch.full((len(inputs), len(inputs)), -1e30, device=inputs.device).triu(1)
            given["attention_mask"] = mask.to(model.dtype)[None, None]
        output = functional_call(model, weights, (inputs.unsqueeze(0),), given)
        return loss_of(output if isinstance(output, Tensor) else output.logits, labels)

    each = over(grad(loss), in_dims=(None, 0, 0))

    def once() -> dict[str, Tensor]:
        gradients = each(parameters, task.inputs, task.labels)
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

    class Likelihood(Interface):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return loss_of(task.logits(model, batch[0]), batch[1])

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    PartialState(cpu=not task.inputs.is_cuda)
    model = prepare_model(deepcopy(task.model), Likelihood())
    arguments = FactorArguments(strategy="diagonal", use_empirical_fisher=True)

    def once() -> dict[str, Tensor]:
        _, factors = fit_lambda_matrices_with_loader(
            model=model,
            state=State(),
            task=Likelihood(),
            loader=[(task.inputs, task.labels)],
            factor_args=arguments,
            disable_tqdm=True,
        )
        found: dict[str, Tensor] = {}
        for name, total in factors["lambda_matrix"].items():
            mean = total / len(task.inputs)
            width = dict(task.model.named_parameters())[f"{name}.weight"].shape[1]
            found[f"{name}.weight"] = mean[:, :width]
            if mean.shape[1] > width:  # the bias is the last column
                found[f"{name}.bias"] = mean[:, width]
        return found

    return Peer(once)


def nngeometry(task: Task) -> Peer:
    """PMatDiag of one function per row: the log likelihood of its label."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    layers = LayerCollection.from_model(task.model)

    def likelihood(*batch: Tensor) -> Tensor:
        scores = torch.log_softmax(task.logits(task.model, batch[0]), -1)
        return scores.gather(1, batch[1].unsqueeze(1))

    backend = TorchHooksJacobianBackend(
        layer_collection=layers, model=task.model, function=likelihood
    )
    rows = DataLoader(TensorDataset(task.inputs, task.labels), batch_size=len(task.inputs))

    def once() -> dict[str, Tensor]:
        flat = PMatDiag(generator=backend, examples=rows).get_diag()
        sizes = [p.numel() for p in task.model.parameters()]
        parts = zip(task.model.named_parameters(), flat.split(sizes), strict=True)
        return {name: part.view_as(p) for (name, p), part in parts}

    return Peer(once)


def backpack(task: Task) -> Peer:
    """SumGradSquared: of modules that are torch's own."""
    from backpack import backpack as extended
    from backpack import extend
    from backpack.extensions import SumGradSquared

    model = extend(deepcopy(task.model))
    loss = extend(nn.CrossEntropyLoss(reduction="sum", ignore_index=-100))

    def once() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        logits = task.logits(model, task.inputs)
        with extended(SumGradSquared()):
            loss(logits.movedim(-1, 1), task.labels).backward()
        missing = [n for n, p in model.named_parameters() if not hasattr(p, "sum_grad_squared")]
        if missing:
            raise NotImplementedError(f"no rule for {len(missing)} parameters, as {missing[0]}")
        return {n: p.sum_grad_squared / len(task.inputs) for n, p in model.named_parameters()}

    return Peer(once)


PEERS: dict[str, Callable[[Task], Peer]] = {
    "a loop over single rows": loop,
    "torch.func vmap": vmap,
    "kronfluence, diagonal": kronfluence,
    "nngeometry": nngeometry,
    "BackPACK, SumGradSquared": backpack,
}
