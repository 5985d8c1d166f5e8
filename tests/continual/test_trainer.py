"""EWC inside transformers' Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mergekit_cl.continual.ewc import Protection
from mergekit_cl.continual.trainer import ewc_callback
from mergekit_cl.errors import MismatchError, OptionError
from tests.continual import toys

STRENGTH = 0.02


class Model(nn.Module):
    """A classifier of seven numbers that a Trainer can train."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.body, self.head = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.body(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


ROWS = [
    {"x": torch.randn(7, generator=torch.Generator().manual_seed(n)), "labels": n % 3}
    for n in range(32)
]


def protection() -> Protection:
    return toys.protection(shapes={n: tuple(p.shape) for n, p in Model().named_parameters()})


def train(folder: Path, *, callbacks: Any = (), penalty: bool = False, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class Penalised(Trainer):  # type: ignore[misc]
        """The penalty as a part of the loss, as it is usually written."""

        def compute_loss(self, model: Any, inputs: Any, **rest: Any) -> Any:
            loss = model(**inputs)["loss"]
            return loss + toys.as_loss(dict(model.named_parameters()), protection(), STRENGTH)

    plain: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    }
    kind = Penalised if penalty else Trainer
    arguments = TrainingArguments(**{**plain, **options})
    trainer = kind(Model(), arguments, train_dataset=ROWS, callbacks=list(callbacks))
    trainer.train()
    return trainer


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in trainer.model.named_parameters()}


@pytest.fixture(scope="module")
def coupled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    callback = ewc_callback(protection(), STRENGTH)
    return train(tmp_path_factory.mktemp("coupled"), callbacks=[callback]), callback


def test_it_trains_as_if_the_penalty_were_in_the_loss(coupled: Any, tmp_path: Path) -> None:
    expected, plain = weights(train(tmp_path, penalty=True)), weights(train(tmp_path))
    for name, found in weights(coupled[0]).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights(coupled[0])["head.weight"], plain["head.weight"], rtol=1e-2)


def test_accumulation_changes_nothing(coupled: Any, tmp_path: Path) -> None:
    parts = train(
        tmp_path,
        callbacks=[ewc_callback(protection(), STRENGTH)],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    for name, found in weights(parts).items():
        torch.testing.assert_close(found, weights(coupled[0])[name], rtol=1e-5, atol=1e-6)


def test_the_log_has_the_penalty_and_the_callback_its_coverage(coupled: Any) -> None:
    assert coupled[1].held.coverage.share == 1
    assert coupled[1].held.penalty() > 0


def test_the_proximal_update_holds_where_the_coupled_diverges(tmp_path: Path) -> None:
    strong = 1e5
    near = train(tmp_path, callbacks=[ewc_callback(protection(), strong, update="proximal")])
    held = protection()
    for name, found in weights(near).items():
        firm = held.fisher[name] > 1e-2
        torch.testing.assert_close(found[firm], held.anchor[name][firm], rtol=0, atol=0.05)
    far = train(
        tmp_path, callbacks=[ewc_callback(held, strong)], logging_nan_inf_filter=False, max_steps=20
    )
    assert not bool(weights(far)["body.weight"].isfinite().all())


def test_training_does_not_begin_where_nothing_would_be_protected(tmp_path: Path) -> None:
    other = toys.protection(shapes={"encoder.weight": (3, 3)})
    with pytest.raises(MismatchError, match="no trained parameter"):
        train(tmp_path, callbacks=[ewc_callback(other, 1.0)])


def test_deepspeed_is_refused() -> None:
    callback: Any = ewc_callback(protection(), 1.0)
    with pytest.raises(OptionError, match="DeepSpeed"):
        callback.on_train_begin(SimpleNamespace(deepspeed="ds.json"), None, None, model=Model())


@pytest.mark.parametrize("clipped", [True, False])
def test_the_loss_scale_of_fp16_is_taken_out_first(clipped: bool) -> None:
    grown, gradients = Model(), {}
    for scale in (None, 1024.0):
        model = copy.deepcopy(grown)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        outer = SimpleNamespace(optimizer=optimizer, scaler=scaler, step_was_skipped=False)
        loss = model(ROWS[0]["x"], torch.tensor(ROWS[0]["labels"]))["loss"]
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None and clipped:
            scaler.unscale_(optimizer)  # what clipping does first
        callback: Any = ewc_callback(protection(), STRENGTH)
        callback.on_train_begin(SimpleNamespace(), None, None, model=model)
        callback.on_pre_optimizer_step(None, None, None, optimizer=outer)
        gradients[scale] = {name: p.grad for name, p in model.named_parameters()}
    for name, found in gradients[1024.0].items():
        torch.testing.assert_close(found, gradients[None][name], rtol=1e-6, atol=1e-7)
