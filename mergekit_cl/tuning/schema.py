"""What a training config may say: every key, its type, its default, its unit.

Values here are as typed; `tuning/reading.py` reads the file, applies `--set` and resolves paths.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Place = Annotated[str, Field(min_length=1, json_schema_extra={"format": "path"})]
Estimator = Literal["mc", "exact", "empirical"]
Model = Annotated[str, Field(min_length=1, json_schema_extra={"format": "checkpoint"})]
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="a name of letters, digits, '.', '_' and '-'",
    ),
]


class Section(BaseModel):
    """A table of the config: no key but its own, no change after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False
    )


class Task(Section):
    """Rows to learn, in their turn. One of `steps` and `epochs`; default one epoch.

    validation: rows the task is judged by; without it `validation_share` of the data is set aside
    by content hash. Validation rows are never trained on, wherever they turn up again.
    """

    name: Name
    data: Annotated[list[Place], Field(min_length=1)]
    validation: list[Place] = []
    validation_share: Share = 0.1
    text_field: str | None = None
    label_field: str | None = None
    steps: Count | None = None
    epochs: Positive | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Task:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self


class Lora(Section):
    """An adapter instead of the whole model (Hu et al. 2021); ranks above 16 forget more."""

    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Share = 0.0
    targets: str | list[str] = "all-linear"
    modules_to_save: list[str] = []
    rslora: bool = False


class Batches(Section):
    """rows: per optimizer step, over all processes. accumulate: parts one process takes them in."""

    rows: Count = 8
    accumulate: Count = 1
    max_length: Count = 512
    completion_only: bool = True


class Optimizer(Section):
    """clip: norm of the task's gradient; 0 does not clip. warmup: steps of each task."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 2e-5
    weight_decay: NotNegative = 0.0
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    momentum: Share = 0.0
    clip: NotNegative = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"


class AutoStrength(Section):
    """How `lambda = "auto"` is chosen: on held-out tasks, or by a budget of forgetting.

    candidates: values of lambda to try, besides 0. tasks: names of tasks to tune on; default all
    but the last, or all if nothing would be forgotten then. steps: of each task in a trial. budget:
    nats per token that earlier tasks may lose, by the calibrated prediction.
    """

    candidates: Annotated[list[Positive], Field(min_length=2)] = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]
    tasks: list[str] = []
    steps: Count | None = None
    budget: Positive | None = None


class Ewc(Section):
    """Elastic weight consolidation; lambda is in the unit of the sidecar, nats per example.

    sidecars, anchors: of earlier tasks, in order; without them the first task is unprotected.
    """

    strength: Annotated[NotNegative | Literal["auto"], Field(alias="lambda")]
    auto: AutoStrength = AutoStrength()
    update: Literal["coupled", "proximal"] = "coupled"
    mode: Literal["sum", "online"] = "online"
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    sidecars: list[Place] = []
    anchors: list[Model] = []
    estimator: Estimator | None = None
    samples: Count = 256

    @model_validator(mode="after")
    def _pairs(self) -> Ewc:
        if len(self.sidecars) != len(self.anchors):
            raise ValueError("sidecars and anchors belong together, one of each per earlier task")
        return self


class Replay(Section):
    """rows: kept of all earlier tasks. ratio: share of the final mix. buffer: one to begin with."""

    rows: Count = 200
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.25
    unit: Literal["rows", "tokens"] = "rows"
    policy: Literal["reservoir", "balanced", "gdumb"] = "reservoir"
    buffer: Place | None = None


class Ema(Section):
    """An average of the weights, kept in float32; `publish` makes it the model that is written.

    snapshot_every: steps between snapshots of two more, which others are made of afterwards.
    """

    half_life: Positive = 700.0
    unit: Literal["steps", "tokens"] = "steps"
    warmup: bool = True
    publish: bool = True
    snapshot_every: Annotated[int, Field(ge=0)] = 0


class Gate(Section):
    """Held-out loss, against the model before each task and an anchor (numerics: non-inferiority).

    every: steps between looks; 0 looks once, at the end of each task. suites: {name: paths} besides
    the validation rows of the tasks so far. anchor: a release that small losses add up against.
    """

    every: Annotated[int, Field(ge=0)] = 0
    margin: Positive = 0.02
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    min_rows: Count = 500
    suites: dict[str, list[Place]] = {}
    anchor: Model | None = None
    inconclusive: Literal["keep", "drop"] = "keep"
    ledger: Place | None = None


class Drift(Section):
    """A detector on the loss of each step's new rows, before they are learnt."""

    detector: Literal["page-hinkley", "cusum", "adwin"] = "page-hinkley"
    mean_time_between_false_alarms: Annotated[Count, Field(alias="arl")] = 500
    calibration: Annotated[int, Field(ge=50)] = 500
    state: Place | None = None
    stop: bool = False


class Config(Section):
    """A run: a model, its tasks in order, and what keeps it from forgetting."""

    model: Model
    output: Place = "run"
    seed: int = 0
    task: Annotated[list[Task], Field(min_length=1)]
    lora: Lora | None = None
    batch: Batches = Batches()
    optimizer: Optimizer = Optimizer()
    ewc: Ewc | None = None
    replay: Replay | None = None
    ema: Ema | None = None
    gate: Gate | None = None
    drift: Drift | None = None
    fisher: bool = True
    shard: bool = False
    save_every: Count = 100
    trackers: list[Literal["tensorboard", "wandb"]] = []

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        names = [task.name for task in self.task]
        if len(set(names)) < len(names):
            raise ValueError("two tasks have the same name")
        return self

    @model_validator(mode="after")
    def _suites_are_no_tasks(self) -> Config:
        suites = {} if self.gate is None else self.gate.suites
        if both := [task.name for task in self.task if task.name in suites]:
            raise ValueError(
                f"gate.suites has {both[0]}, the name of a task, whose validation rows the gate "
                "looks at anyway; give the suite another name"
            )
        return self
