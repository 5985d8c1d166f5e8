"""Checkpoints that are not what they claim: refused by every command before anything is written."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import (
    CONFIG,
    SHAPES,
    checkpoint,
    raw_safetensors,
    sharded,
    weights,
    write_index,
)
from tests.commands.running import refused

COMMANDS = {
    "linear-merge": ("linear-merge", "a", "b"),
    "fisher-merge": ("fisher-merge", "a", "b"),
    "ema-merge": ("ema-merge", "a", "b", "--decay", "0.5", "-o", "merged"),
    "fisher": ("fisher", "b", "--data", "rows.txt"),
}
FIRST, SECOND, *_ = SHAPES
ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
AGAIN = "fetch or save the file again"

Break = Callable[[Path], None]


def cut(count: int) -> Break:
    """Drop bytes from the end of the weights."""
    return lambda b: rewrite(b, lambda content: content[:-count])


def rewrite(b: Path, change: Callable[[bytes], bytes]) -> None:
    file = b / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))


def header(content: dict[str, Any] | bytes, data: int = 16) -> Break:
    """Replace the weights by a file whose header says `content`."""
    return lambda b: raw_safetensors(b / "model.safetensors", content, bytes(data))


def no_weights(b: Path) -> None:
    (b / "model.safetensors").unlink()


def only_an_adapter(b: Path) -> None:
    (b / "model.safetensors").rename(b / "adapter_model.safetensors")


def only_loose_weights(b: Path) -> None:
    (b / "model.safetensors").rename(b / "weights.safetensors")


def as_shards(b: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Save the weights in two files with an index that `change` has gone over."""
    tensors = load_file(b / "model.safetensors")
    shutil.rmtree(b)
    files = {
        name: f"model-0000{1 + (i > 1)}-of-00002.safetensors" for i, name in enumerate(tensors)
    }
    sharded(b, tensors, files)
    write_index(b, change(files))


def index(change: Callable[[dict[str, str]], dict[str, str]]) -> Break:
    return lambda b: as_shards(b, change)


def index_text(text: str) -> Break:
    def broken(b: Path) -> None:
        as_shards(b, lambda files: files)
        (b / "model.safetensors.index.json").write_text(text)

    return broken


def in_two_files(b: Path) -> None:
    as_shards(b, lambda files: files)
    one, two = sorted(b.glob("*.safetensors"))
    save_file({**load_file(two), **load_file(one)}, two, metadata={"format": "pt"})


def shard_gone(b: Path) -> None:
    as_shards(b, lambda files: files)
    sorted(b.glob("*.safetensors"))[1].unlink()


def config(text: str) -> Break:
    return lambda b: (b / "config.json").write_text(text) and None


def with_tensor(name: str, tensor: torch.Tensor) -> Break:
    """Save one tensor more, or another one of that name."""

    def change(b: Path) -> None:
        file = b / "model.safetensors"
        save_file({**load_file(file), name: tensor}, file, metadata={"format": "pt"})

    return change


class Evil:
    """Runs a command when unpickled by a careless loader."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("PWNED"),)


def evil_pickle(b: Path) -> None:
    no_weights(b)
    (b / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))


def truncated_pickle(b: Path) -> None:
    torch.save(load_file(b / "model.safetensors"), b / "pytorch_model.bin")
    no_weights(b)
    whole = (b / "pytorch_model.bin").read_bytes()
    (b / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])


def pickle_of(value: Any) -> Break:
    def change(b: Path) -> None:
        no_weights(b)
        torch.save(value, b / "pytorch_model.bin")

    return change


W = "b/model.safetensors"
I = "b/model.safetensors.index.json"  # noqa: E741
CASES: dict[str, tuple[Break, tuple[str, ...]]] = {
    "no weights": (no_weights, ("the directory holds no checkpoint", "b: none of model.safe")),
    "only an adapter": (only_an_adapter, ("holds no checkpoint", "adapter, not a checkpoint")),
    "a loose file": (only_loose_weights, ("holds no checkpoint", "name the weight file itself")),
    "cut by a byte": (cut(1), ("the file is truncated", W, AGAIN)),
    "cut in half": (cut(600), ("the file is truncated", W, AGAIN)),
    "cut in its header": (
        lambda b: rewrite(b, lambda content: content[:40]),
        ("has a header longer than the file", W, AGAIN),
    ),
    "of three bytes": (
        lambda b: rewrite(b, lambda content: content[:3]),
        ("too short to be a safetensors file", f"{W}: 3 bytes"),
    ),
    "empty": (lambda b: rewrite(b, lambda _: b""), ("too short", f"{W}: 0 bytes")),
    "bytes too many": (
        lambda b: rewrite(b, lambda content: content + b"x"),
        ("has bytes after its last tensor", W),
    ),
    "header length absurd": (
        lambda b: rewrite(b, lambda content: b"\xff" * 8 + content[8:]),
        ("has a header longer than the file", "18446744073709551615"),
    ),
    "header no JSON": (header(b"{not json}"), ("header that is not JSON", W)),
    "header nested without end": (header(b"[" * 9000), ("header that is not JSON", W)),
    "header no object": (header(b"[1, 2]"), ("header that is not a JSON object", W)),
    "header names a tensor twice": (
        header(
            b'{"w":' + json.dumps(ENTRY).encode() + b',"w":' + json.dumps(ENTRY).encode() + b"}"
        ),
        ("names a tensor twice", f"{W}: w"),
    ),
    "entry incomplete": (header({"w": {"dtype": "F32"}}), ("incompletely", f"{W}: w")),
    "metadata no text": (header({"__metadata__": {"a": 1}}, 0), ("metadata that is not text", W)),
    "dtype unknown": (header({"w": {**ENTRY, "dtype": "F31"}}), ("unknown dtype", "w: 'F31'")),
    "dtype a list": (header({"w": {**ENTRY, "dtype": ["F32"]}}), ("unknown dtype", f"{W}: w")),
    "shape negative": (header({"w": {**ENTRY, "shape": [-4]}}), ("impossible shape", "w: [-4]")),
    "shape a fraction": (
        header({"w": {**ENTRY, "shape": [4.0]}}),
        ("impossible shape", "[4.0]"),
    ),
    "shape beyond any file": (
        header({"w": {**ENTRY, "shape": [2**40, 2**40]}}),
        ("size is not what its shape says", f"{W}: w"),
    ),
    "shape lies": (
        header({"w": {**ENTRY, "shape": [5]}}),
        ("size is not what its shape says", "w"),
    ),
    "offsets backwards": (
        header({"w": {**ENTRY, "data_offsets": [16, 0]}}),
        ("size is not what its shape says", "between bytes 16 and 0"),
    ),
    "offsets negative": (
        header({"w": {**ENTRY, "data_offsets": [-16, 0]}}),
        ("impossible offsets", f"{W}: w"),
    ),
    "offsets beyond the file": (
        header({"w": {**ENTRY, "data_offsets": [0, 16]}, "v": {**ENTRY, "data_offsets": [16, 32]}}),
        ("the file is truncated", W),
    ),
    "offsets overlap": (
        header({"w": ENTRY, "v": {**ENTRY, "data_offsets": [8, 24]}}, 24),
        ("tensors that overlap", f"{W}: v"),
    ),
    "offsets leave a gap": (
        header({"w": ENTRY, "v": {**ENTRY, "data_offsets": [20, 36]}}, 36),
        ("tensors that leave a gap", f"{W}: v"),
    ),
    "index no JSON": (index_text("{"), ("the index is not JSON", I)),
    "index a list": (index_text("[]"), ("the index has no weight_map", I)),
    "index empty": (index_text('{"weight_map": {}}'), ("the index has no weight_map", I)),
    "index of numbers": (index_text('{"weight_map": {"w": 1}}'), ("names no file", I)),
    "index file missing": (shard_gone, ("a file that is not there", "model-00002-of-00002")),
    "index leads outside": (
        index(lambda files: {**files, FIRST: "../a/model.safetensors"}),
        ("names a file outside its folder", "../a/model.safetensors"),
    ),
    "index leads to the root": (
        index(lambda files: {**files, FIRST: "/etc/passwd"}),
        ("names a file outside its folder", "/etc/passwd"),
    ),
    "index in the wrong file": (
        index(lambda files: {**files, FIRST: files[list(files)[-1]]}),
        ("a tensor that its file does not hold", FIRST),
    ),
    "index of a ghost": (
        index(lambda files: {**files, "ghost": files[FIRST]}),
        ("a tensor that its file does not hold", "ghost"),
    ),
    "index leaves tensors out": (
        index(lambda files: {name: file for name, file in files.items() if name != FIRST}),
        ("leaves out 1 tensors", FIRST),
    ),
    "a tensor in two files": (in_two_files, ("a tensor is in two files", "00001-of", "00002-of")),
    "config no JSON": (config("{"), ("config.json is not JSON", "b/config.json")),
    "config a list": (config("[]"), ("config.json is not a JSON object", "b/config.json")),
    "a pickle that runs code": (
        evil_pickle,
        ("only weights are ever unpickled", "b/pytorch_model.bin", "save its state dict"),
    ),
    "a truncated pickle": (truncated_pickle, ("truncated or is no torch checkpoint", "b/pytorch")),
    "a pickle of no dict": (pickle_of([1, 2]), ("no mapping of names to tensors", "b/pytorch")),
    "a pickle without weights": (
        pickle_of({"epoch": 3, "lr": 0.1}),
        ("no state dict is found", "epoch, lr"),
    ),
}
QUANTISED: dict[str, tuple[Break, tuple[str, ...]]] = {
    "quantised by its config": (
        config(json.dumps({**CONFIG, "quantization_config": {"quant_method": "gptq"}})),
        ("quantised", "b: config.json says gptq", "unquantised model"),
    ),
    "fp8": (
        with_tensor(SECOND, torch.zeros(SHAPES[SECOND]).to(torch.float8_e4m3fn)),
        ("quantised", f"b: {SECOND} is F8_E4M3"),
    ),
}


@pytest.fixture(autouse=True)
def _rows(place: Path) -> None:
    (place / "rows.txt").write_text("one two three\n" * 4)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", CASES)
def test_a_broken_checkpoint_is_refused_and_nothing_is_written(
    place: Path, case: str, command: str
) -> None:
    breaks, says = CASES[case]
    breaks(place / "b")
    refused(*COMMANDS[command], unchanged=place, says=says)
    assert not (place / "PWNED").exists()


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_weights_are_not_merged(place: Path, case: str, command: str) -> None:
    breaks, says = QUANTISED[case]
    breaks(place / "b")
    refused(*COMMANDS[command], unchanged=place, says=says)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_path_is_refused(place: Path, command: str) -> None:
    words = [("nowhere" if word == "b" else word) for word in COMMANDS[command]]
    refused(*words, unchanged=place, says=("no such file or directory", "nowhere"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bare_name_of_the_hub_is_never_downloaded(place: Path, command: str) -> None:
    words = [("org/name" if word == "b" else word) for word in COMMANDS[command]]
    says = ("no such file or directory", "  org/name\n", "if this is a model on the hub")
    refused(*words, unchanged=place, says=says)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_is_told_as_it_was_typed(place: Path, command: str) -> None:
    address = "nosuch://bucket//model"
    words = [(address if word == "b" else word) for word in COMMANDS[command]]
    refused(*words, unchanged=place, says=(address,))


def test_every_difference_in_names_and_shapes_is_listed(place: Path) -> None:
    tensors = weights(3)
    first, second, third, last = tensors
    del tensors[first]
    tensors[second] = torch.zeros(16, 9)
    tensors[last] = torch.zeros(8, dtype=torch.int64)
    tensors["extra.weight"] = torch.zeros(2)
    checkpoint(place / "c", tensors)
    says = (
        "the inputs differ in 4 tensors",
        f"{first}: not in c",
        f"{second}: [16, 8] in a, [16, 9] in c",
        f"{last}: F32 in a, I64 in c",
        "extra.weight: not in a",
    )
    message = refused("linear-merge", "a", "c", unchanged=place, says=says)
    assert third not in message
    message = refused("linear-merge", "a", "b", "c", unchanged=place, says=says)
    assert "in b" not in message


def test_a_checkpoint_without_tensors_is_refused(place: Path) -> None:
    header({}, 0)(place / "b")
    line = ("linear-merge", "a", "b", "--no-report")
    refused(*line, unchanged=place, says=("holds no tensors", "b"))


def test_models_of_other_functions_are_not_averaged(place: Path) -> None:
    config = {**CONFIG, "rope_theta": 1e6, "hidden_act": "relu"}
    (place / "b" / "config.json").write_text(json.dumps(config))
    says = ("different architectures", "rope_theta: 10000.0 in a, 1000000.0 in b", "hidden_act")
    refused("linear-merge", "a", "b", unchanged=place, says=says)
