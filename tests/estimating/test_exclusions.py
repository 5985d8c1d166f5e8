"""Options that exclude each other are told before anything is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergekit_cl.errors import OptionError
from mergekit_cl.estimating.exclusions import check_options
from mergekit_cl.estimating.request import FisherRequest

NOWHERE = FisherRequest("no-model", ("no-rows",))
STREAMED = replace(NOWHERE, stream_layers=True)


@pytest.mark.parametrize(
    ("request_", "processes", "seen", "hint"),
    [
        (replace(STREAMED, base="b"), 1, "--stream-layers with --base b", "leave out --base"),
        (replace(STREAMED, target_se=0.1), 1, "--target-se 0.1", "give --samples"),
        (
            replace(STREAMED, adapter=Path("x")),
            1,
            "--adapter x",
            "lora-merge no-model x",
        ),
        (STREAMED, 2, "--stream-layers with 2 processes", "leave out torchrun"),
        (replace(NOWHERE, target_se=0.1), 2, "--target-se 0.1 with 2", "leave out torchrun"),
    ],
)
def test_each_pair_is_refused_with_what_was_seen_and_what_to_do(
    request_: Any, processes: int, seen: str, hint: str
) -> None:
    with pytest.raises(OptionError) as caught:
        check_options(request_, processes)
    assert seen in str(caught.value.detail)
    assert hint in str(caught.value.hint)


def test_what_can_be_done_together_passes() -> None:
    check_options(STREAMED, 1)
    check_options(replace(NOWHERE, base="b", target_se=0.1, adapter=Path("x")), 1)
    check_options(replace(NOWHERE, base="b"), 8)
