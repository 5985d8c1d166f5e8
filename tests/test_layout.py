"""Which file every tensor gets: limits, names, index, and headers that equal the library's."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.layout import Layout, lay_out

METADATA = {"format": "pt"}


def sizes(layout: Layout) -> list[int]:
    return [sum(t.nbytes for t in shard.header.tensors) for shard in layout.shards]


def test_what_fits_is_one_file_without_an_index() -> None:
    layout = lay_out([("w", "F32", (4,))], stem="model", shard_size=16, metadata=METADATA)
    assert [shard.file for shard in layout.shards] == ["model.safetensors"]
    assert layout.index is None


def test_the_limit_counts_weights_and_may_be_reached() -> None:
    tensors = [(name, "F32", (4,)) for name in "abcd"]
    layout = lay_out(tensors, stem="model", shard_size=32, metadata=METADATA)
    assert sizes(layout) == [32, 32]
    assert sizes(lay_out(tensors, stem="model", shard_size=31, metadata=METADATA)) == [16] * 4


def test_files_and_index_are_named_as_transformers_names_them() -> None:
    tensors = [(name, "F32", (4,)) for name in "abc"]
    layout = lay_out(tensors, stem="model", shard_size=16, metadata=METADATA)
    assert [shard.file for shard in layout.shards] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
    assert layout.index_name == "model.safetensors.index.json"
    assert layout.index is not None
    assert json.loads(layout.index) == {
        "metadata": {"total_size": 48},
        "weight_map": {n: f"model-0000{i}-of-00003.safetensors" for i, n in enumerate("abc", 1)},
    }


def test_a_tensor_above_the_limit_has_a_file_of_its_own() -> None:
    tensors = [("a", "U8", (1,)), ("large", "U8", (100,)), ("b", "U8", (1,)), ("c", "U8", (1,))]
    layout = lay_out(tensors, stem="model", shard_size=10, metadata=METADATA)
    assert [[t.name for t in s.header.tensors] for s in layout.shards] == [
        ["a"],
        ["large"],
        ["b", "c"],
    ]


def test_another_stem_names_everything() -> None:
    tensors = [("a", "U8", (2,)), ("b", "U8", (2,))]
    layout = lay_out(tensors, stem="fisher", shard_size=2, metadata={})
    assert layout.shards[0].file == "fisher-00001-of-00002.safetensors"
    assert layout.index_name == "fisher.safetensors.index.json"


TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.tuples(
        st.sampled_from(["BF16", "F32", "I64", "BOOL"]),
        st.lists(st.integers(0, 6), max_size=3).map(tuple),
    ),
    min_size=1,
)


@settings(deadline=None, max_examples=200)
@given(TENSORS, st.integers(1, 500))
def test_every_tensor_is_in_one_file_in_order_and_within_the_limit(
    described: dict[str, tuple[str, tuple[int, ...]]], limit: int
) -> None:
    tensors = [(name, dtype, shape) for name, (dtype, shape) in described.items()]
    layout = lay_out(tensors, stem="model", shard_size=limit, metadata=METADATA)
    order = list(described)
    where = [sorted(order.index(t.name) for t in s.header.tensors) for s in layout.shards]
    assert [i for shard in where for i in shard] == list(range(len(order)))
    for shard, size in zip(layout.shards, sizes(layout), strict=True):
        weighty = [t for t in shard.header.tensors if t.nbytes]
        assert size <= limit or len(weighty) == 1
        assert shard.header.file_bytes == len(shard.header.raw) + size
        assert len(shard.header.raw) % 8 == 0
    assert layout.nbytes == sum(s.header.file_bytes for s in layout.shards)
    assert (layout.index is None) == (len(layout.shards) == 1)
