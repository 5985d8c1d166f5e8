"""From what was asked to what the batches need: rows, a model, an estimator, a batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.device import choose_device
from mergekit_cl.estimating.company import device_here
from mergekit_cl.estimating.place import check_memory
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.estimating.sampling import Stages, in_stages
from mergekit_cl.estimating.streaming import build_to_stream

if TYPE_CHECKING:
    import torch

    from mergekit_cl.training.choose import Choice
    from mergekit_cl.training.encode import Encoded
    from mergekit_cl.training.model import BuiltModel
    from mergekit_cl.training.skeleton import Weights

EXACT_CLASSES = 64
CHARACTERS_PER_TOKEN = 4  # of English: how long a passage of plain text is cut


@dataclass(frozen=True)
class Ready:
    """Everything the batches need, decided. weights: where they are, if they are streamed."""

    built: BuiltModel
    encoded: Encoded
    stages: Stages
    estimator: str
    batch_size: int
    weights: Weights | None


def choose_rows(request: FisherRequest) -> Choice:
    """The rows to take, read from the data."""
    from mergekit_cl.training.choose import choose
    from mergekit_cl.training.data import read_rows

    rows = read_rows(
        request.data,
        text_field=request.text_field,
        label_field=request.label_field,
        passage=CHARACTERS_PER_TOKEN * request.max_length,
    )
    return choose(rows, request.samples, request.seed)


def default_estimator(kind: str, config: dict[str, Any] | None) -> str:
    """`exact` for classifiers of at most 64 classes, else `mc`."""
    from mergekit_cl.training.labels import class_names

    if kind == "classifier" and len(class_names(config or {})) <= EXACT_CLASSES:
        return "exact"
    return "mc"


def device_of(request: FisherRequest) -> torch.device:
    """Where the model goes: a GPU, if there is one and nothing else was said."""
    import torch

    named = device_here(request.device)
    if named == "auto" and torch.cuda.is_available():
        return torch.device("cuda")
    return choose_device(named)


def prepare(request: FisherRequest, checkpoint: Checkpoint, choice: Choice) -> Ready:
    """Build the model and encode the rows; raises before anything is computed."""
    import torch

    from mergekit_cl.training.encode import auto_batch_size, encode
    from mergekit_cl.training.model import build
    from mergekit_cl.training.tokenizer import load_tokenizer, pad_id

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = device_of(request)
    tokenizer = load_tokenizer(checkpoint.root)
    config = checkpoint.config or {}
    weights = None
    if request.stream_layers:
        padding = pad_id(tokenizer, config)
        built, weights = build_to_stream(request, checkpoint, device, padding)
    else:
        check_memory(request, checkpoint)
        built = build(
            checkpoint,
            adapter=request.adapter,
            dtype=torch_dtype(request.compute_dtype),
            device=device,
            pad_id=pad_id(tokenizer, config),
        )
    encoded = encode(
        choice.rows, tokenizer, task=built.kind, config=config, max_length=request.max_length
    )
    return Ready(
        built,
        encoded,
        in_stages(encoded, [row.id for row in choice.rows], request.target_se),
        request.estimator or default_estimator(built.kind, checkpoint.config),
        request.batch_size or auto_batch_size(built.parameters, encoded.longest),
        weights,
    )
