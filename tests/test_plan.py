"""What a merge is made of, decided from headers, and every refusal that needs no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import CONFIG, Tensors, linear, model_tensors, raw_safetensors, write_model

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.checkpoint.dtypes import promote
from mergekit_cl.compatible import check_mergeable, check_same_tensors
from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.merging import OutputOptions, make_plan
from mergekit_cl.plan import Plan, Selection

TENSORS = model_tensors(0)


def plan(inputs: list[Path], **options: Any) -> Plan:
    return make_plan(linear(inputs), OutputOptions(target=inputs[0].parent / "out", **options))


def two(folder: Path, one: Tensors, other: Tensors) -> list[Path]:
    return [write_model(folder / "a", one), write_model(folder / "b", other)]


def test_every_tensor_has_a_step_in_the_order_of_the_first_input(tmp_path: Path) -> None:
    inputs = two(tmp_path, TENSORS, model_tensors(1))
    made = plan(inputs)
    with open_checkpoint(inputs[0]) as first:
        assert list(made.steps) == list(first.tensors)
    assert {step.action for step in made.steps.values()} == {"merged"}
    size = sum(t.nbytes for t in TENSORS.values())
    assert made.bytes_read == 2 * size
    assert size < made.bytes_written < size + 4096


def test_a_plan_reads_no_weights(tmp_path: Path) -> None:
    inputs = two(tmp_path, TENSORS, model_tensors(1))
    with (inputs[1] / "model.safetensors").open("r+b") as stream:
        stream.seek(-8, 2)
        stream.write(b"\xff" * 8)  # NaN: a merge would refuse it
    assert len(plan(inputs).steps) == len(TENSORS)


@pytest.mark.parametrize(
    ("one", "other", "asked", "expected"),
    [
        ("bfloat16", "bfloat16", None, "BF16"),
        ("float16", "float16", None, "F16"),
        ("bfloat16", "float16", None, "F32"),
        ("bfloat16", "float32", None, "F32"),
        ("float16", "float32", None, "F32"),
        ("float32", "float64", None, "F64"),
        ("bfloat16", "float64", None, "F64"),
        ("float64", "float64", None, "F64"),
        ("bfloat16", "float16", "F16", "F16"),
        ("float64", "float64", "BF16", "BF16"),
    ],
)
def test_equal_dtypes_are_kept_and_different_ones_promoted(
    tmp_path: Path, one: str, other: str, asked: str | None, expected: str
) -> None:
    inputs = two(
        tmp_path,
        {"w": torch.ones(2, dtype=getattr(torch, one))},
        {"w": torch.ones(2, dtype=getattr(torch, other))},
    )
    assert plan(inputs, dtype=asked).steps["w"].dtype == expected


@given(st.sets(st.sampled_from(["F16", "BF16", "F32", "F64"]), min_size=1))
def test_a_promoted_dtype_holds_every_value_of_the_others(dtypes: set[str]) -> None:
    spelled = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    found = {**spelled, "F64": torch.float64}[promote(dtypes)]
    for dtype in dtypes:
        info = torch.finfo({**spelled, "F64": torch.float64}[dtype])
        least = info.smallest_normal * info.eps
        values = torch.tensor([info.max, least, 1 + info.eps], dtype=torch.float64)
        assert torch.equal(values.to(found).double(), values)


def test_selected_tensors_are_merged_and_the_others_copied_from_the_first(tmp_path: Path) -> None:
    inputs = two(tmp_path, TENSORS, model_tensors(1))
    chosen = Selection(include=("*layers*",), exclude=("*norm*",))
    made = plan(inputs, selection=chosen)
    merged = {name for name, step in made.steps.items() if step.action == "merged"}
    assert merged == {name for name in TENSORS if "layers" in name and "norm" not in name}
    assert made.steps["lm_head.weight"].operands[0].checkpoint.path == inputs[0]
    assert any("copied" in note for note in made.notes)


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ((), (), "abc"),
        (("a",), (), "a"),
        (("a", "b"), (), "ab"),
        ((), ("a",), "bc"),
        (("*",), ("c",), "ab"),
        (("a", "b"), ("b",), "a"),
        (("[ab]",), (), "ab"),
        (("A",), (), ""),
        (("x",), (), ""),
    ],
)
def test_a_selection_is_what_is_included_and_not_excluded(
    include: tuple[str, ...], exclude: tuple[str, ...], chosen: str
) -> None:
    selection = Selection(include, exclude)
    assert "".join(name for name in "abc" if name in selection) == chosen


def test_integers_are_copied_and_counters_from_the_last_input(tmp_path: Path) -> None:
    integers = {"ids": torch.arange(3), "bn.num_batches_tracked": torch.tensor(5)}
    made = plan(two(tmp_path, {**TENSORS, **integers}, {**model_tensors(1), **integers}))
    assert made.steps["ids"].action == "copied"
    assert made.steps["ids"].operands[0].checkpoint.path.name == "a"
    assert made.steps["bn.num_batches_tracked"].operands[0].checkpoint.path.name == "b"


def test_every_difference_is_listed_before_anything_is_written(tmp_path: Path) -> None:
    one = {**TENSORS, "only.one": torch.ones(1), "ids": torch.ones(2, dtype=torch.int64)}
    other = {
        **TENSORS,
        "only.other": torch.ones(1),
        "lm_head.weight": torch.ones(40, 16).bfloat16(),
        "ids": torch.ones(2, dtype=torch.int32),
        "model.layers.0.norm.weight": torch.ones(16, dtype=torch.int64),
    }
    inputs = two(tmp_path, one, other)
    with pytest.raises(MismatchError) as caught:
        plan(inputs)
    detail = caught.value.detail or ""
    for said in (
        "only.one: not in",
        "only.other: not in",
        "lm_head.weight: [37, 16]",
        "ids: I64",
        "model.layers.0.norm.weight: BF16",
    ):
        assert said in detail
    assert "5 tensors" in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_scalar_and_a_vector_of_one_are_different_shapes(tmp_path: Path) -> None:
    inputs = two(tmp_path, {"w": torch.tensor(1.0)}, {"w": torch.ones(1)})
    with pytest.raises(MismatchError):
        plan(inputs)


def test_a_third_input_is_compared_too(tmp_path: Path) -> None:
    inputs = two(tmp_path, TENSORS, TENSORS)
    inputs.append(write_model(tmp_path / "c", {"w": torch.ones(1)}))
    with pytest.raises(MismatchError):
        check_same_tensors([open_checkpoint(path) for path in inputs])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "F8_E8M0", "C64"])
def test_numbers_that_mean_nothing_without_their_scales_are_refused(
    tmp_path: Path, dtype: str
) -> None:
    size = {"F4": 2, "F6_E2M3": 3, "C64": 32}.get(dtype, 4)
    entry = {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"scaled": entry}, bytes(size)))
    with pytest.raises(InputError) as caught:
        check_mergeable([open_checkpoint(path)])
    assert "scaled" in (caught.value.detail or "")


def test_packed_integers_of_a_quantised_model_are_refused_by_its_config(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    inputs = [
        write_model(tmp_path / name, {"w.qweight": torch.ones(4, dtype=torch.int32)}, config)
        for name in "ab"
    ]
    with pytest.raises(InputError, match="quantised") as caught:
        plan(inputs)
    assert "gptq" in (caught.value.detail or "")


def test_a_checkpoint_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tensors"):
        plan(two(tmp_path, {}, {}))


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "gpt2"), ("num_hidden_layers", 3), ("rope_theta", 1e6)]
)
def test_different_architectures_are_refused(tmp_path: Path, key: str, value: object) -> None:
    inputs = [
        write_model(tmp_path / "a", TENSORS, CONFIG),
        write_model(tmp_path / "b", TENSORS, {**CONFIG, key: value}),
    ]
    with pytest.raises(MismatchError, match="architectures") as caught:
        plan(inputs)
    assert key in (caught.value.detail or "")


def test_settings_that_change_no_function_may_differ_and_are_told(tmp_path: Path) -> None:
    inputs = [
        write_model(tmp_path / "a", TENSORS, CONFIG),
        write_model(tmp_path / "b", TENSORS, {**CONFIG, "_name_or_path": "x", "bos_token_id": 7}),
    ]
    notes = " ".join(plan(inputs).notes)
    assert "bos_token_id" in notes
    assert "_name_or_path" not in notes


def test_a_limit_divides_the_output_into_files(tmp_path: Path) -> None:
    inputs = two(tmp_path, TENSORS, model_tensors(1))
    made = plan(inputs, shard_size=1000)
    assert len(made.layout.shards) > 2
    assert made.layout.index is not None
    single = make_plan(linear(inputs), OutputOptions(target=tmp_path / "x.safetensors"))
    assert len(single.layout.shards) == 1
