"""What tests share: hypothesis, the size of pages, forked commands, moments to stop at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from short_pages import make_pages_short, make_pages_whole

if TYPE_CHECKING:
    from forked import Forks
    from interrupted import Expected

# How long an example takes says something of the machine, and nothing of what is tested.
settings.register_profile("clmerge", deadline=None)
settings.load_profile("clmerge")


@pytest.fixture(scope="session", autouse=True)
def _short_pages() -> None:
    make_pages_short()


@pytest.fixture(scope="module")
def whole_pages() -> Iterator[None]:
    """Pages as users get them, for the tests of a module that looks at pages."""
    make_pages_whole()
    yield
    make_pages_short()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Processes that have imported everything, for the time of a test module."""
    from forked import forking

    with forking() as server:
        yield server


@pytest.fixture(scope="module")
def expected(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forks: Forks
) -> Expected:
    """The prepared place of the scenario that a test is parametrized with."""
    from interrupted import prepared

    return prepared(request.param, tmp_path_factory.mktemp("prepared"), forks)


@pytest.fixture
def a_span_for_each_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for several small ones, so that there is a moment between any two of them."""
    from mergekit_cl import stream

    monkeypatch.setattr(stream, "gather", lambda steps, most: iter(steps))
