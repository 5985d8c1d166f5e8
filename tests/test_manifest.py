"""JSON that this tool writes: equal content is equal bytes, and a tensor is a line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.manifest import json_text

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(st.dictionaries(st.text(), VALUES))
def test_what_is_written_reads_back_and_does_not_depend_on_order(content: dict[str, Any]) -> None:
    text = json_text(content)
    assert json.loads(text) == content
    assert json_text(dict(reversed(content.items()))) == text


def test_each_tensor_is_a_line() -> None:
    tensors = {f"w{k}": {"shape": [2, k], "dtype": "F32"} for k in range(3)}
    assert json_text({"tensors": tensors, "empty": {}, "format": "x"}).splitlines() == [
        "{",
        '  "empty": {},',
        '  "format": "x",',
        '  "tensors": {',
        '    "w0": {"dtype": "F32", "shape": [2, 0]},',
        '    "w1": {"dtype": "F32", "shape": [2, 1]},',
        '    "w2": {"dtype": "F32", "shape": [2, 2]}',
        "  }",
        "}",
    ]
    rows = json_text({"tensors": list(tensors.values())}).splitlines()
    assert rows[2] == '    {"dtype": "F32", "shape": [2, 0]},'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("nested", [lambda v: v, lambda v: [v], lambda v: {"a": {"b": [v]}}])
def test_what_is_no_number_is_never_written(value: float, nested: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"metric": nested(value)})
