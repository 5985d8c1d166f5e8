"""What the page says: sizes of updates, places in the heat map, columns per parent."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mergekit_cl.divergence.metrics import metrics
from mergekit_cl.divergence.summary import Parent, summarise
from mergekit_cl.divergence.sums import Sums
from mergekit_cl.report.html.content import _numbers, page_value, update_size
from mergekit_cl.report.html.layout import kind_of, natural
from mergekit_cl.report.html.page import embedded


def sums_of(p: np.ndarray, x: np.ndarray, m: np.ndarray) -> Sums:
    """parent p, exact value x, stored value m."""
    return Sums(
        count=p.size,
        parent_square=float(p @ p),
        merged_square=float(m @ m),
        difference_square=float((m - p) @ (m - p)),
        largest=float(np.abs(m - p).max()),
        changed=int((m != p).sum()),
        update_square=float((x - p) @ (x - p)),
        update_survived=float((x - p) @ (m - p)),
        rounding_square=float((m - x) @ (m - x)),
    )


@pytest.mark.parametrize("size", [1e-1, 3e-3, 1e-3])
def test_the_exact_update_is_derived_from_what_rounding_left_of_it(size: float) -> None:
    draw = np.random.default_rng(0)
    p = draw.standard_normal(5000)
    x = p + size * draw.standard_normal(5000)
    step = 2.0 ** (np.floor(np.log2(np.abs(x))) - 7)
    m = np.where(np.abs(x - p) < step / 2, p, np.round(x / step) * step)
    expected = np.linalg.norm(x - p) / np.linalg.norm(p)
    assert update_size(metrics(sums_of(p, x, m))) == pytest.approx(expected, rel=1e-6)


def test_of_an_update_that_rounding_took_whole_nothing_is_derived() -> None:
    p = np.ones(4)
    assert update_size(metrics(sums_of(p, p + 1e-6, p))) is None


def test_without_the_exact_update_the_stored_one_counts() -> None:
    assert update_size({"rel_l2": 0.25, "survival": None, "rounding_error": None}) == 0.25


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "self_attn.q_proj.weight"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", "mlp.experts.*.up_proj.weight"),
        ("lm_head.weight", "weight"),
        ("scale", "scale"),
        ("encoder.layer.0.conv2d.weight", "conv2d.weight"),
    ],
)
def test_a_column_is_what_a_tensor_is_in_its_layer(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    names = ["h.10", "h.2", "h.1", "h.²", "embed"]
    assert sorted(names, key=natural)[:4] == ["embed", "h.1", "h.2", "h.10"]


def test_one_path_given_twice_is_two_parents() -> None:
    p = np.ones(3)
    far, near = sums_of(p, p + 2, p + 2), sums_of(p, p + 1, p + 1)
    found = _numbers(summarise({"t": (far, near)}, [Parent("a"), Parent("a")]), {})
    assert found["tensors"]["values"]["rel_l2"] == [[2.0], [1.0]]
    assert found["layers"]["values"]["rel_l2"] == [[2.0], [1.0]]


def test_a_tensor_that_one_parent_lacks_has_no_value_there() -> None:
    p = np.ones(3)
    one = sums_of(p, p + 2, p + 2)
    found = _numbers(summarise({"t": (one, None)}, [Parent("a"), Parent("b")]), {})
    assert found["tensors"]["values"]["rel_l2"] == [[2.0], [None]]
    assert found["tensors"]["update_size"][1] == [None]


def test_numbers_keep_six_digits_and_names_show_every_character() -> None:
    said = page_value({"a\u202e": [math.pi, None, True, 3, "x\n\x1b"]})
    assert said == {"a\\u202e": [3.14159, None, True, 3, "x\\n\\x1b"]}


def test_embedded_json_is_the_value_and_cannot_end_its_element() -> None:
    value = {"</script><!--": ["&lt;\u2028\u2029\ud800", 1.5, None]}
    text = embedded(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
