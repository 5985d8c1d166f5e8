"""Models on the hub: the files a merge needs, in huggingface_hub's own cache."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint.place import INDEXES, SINGLE
from mergekit_cl.checkpoint.refusals import reason
from mergekit_cl.checkpoint.small import CUSTOMARY, companions_among
from mergekit_cl.errors import ClmergeError, InputError

HUB = "hf://"
_NAME = re.compile(r"hf://(?P<repo>(?:[\w.-]+/)?[\w.-]+?)/?(?:@(?P<revision>[^@\s]+))?")
_FILE = re.compile(r"hf://[\w.-]+(?:/[\w.-]+)?@[0-9a-f]{40}/.+")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def fetch(text: str) -> tuple[Path, str]:
    """The folder with a model's weights, configs and tokenizer, and its commit.

    text: `hf://org/name[@revision]`. What is in the cache is not fetched again; without a network
    the cache alone is asked. Raises InputError where the model cannot be had.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise InputError(
            "this is no name of a model on the hub",
            detail=text,
            hint="hf://org/name, or hf://org/name@revision",
        )
    repo, revision = found["repo"], found["revision"]
    from huggingface_hub import errors

    try:
        with _quiet():
            folder = Path(_snapshot(repo, revision))
    except ClmergeError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(
            "the model is gated, and access has not been granted",
            detail=text,
            hint=f"ask for it on https://huggingface.co/{repo}, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            "the hub has no such model, or it is private",
            detail=text,
            hint="check the name; for a private model: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            "the model has no such revision",
            detail=text,
            hint=f"see https://huggingface.co/{repo}/commits/main",
        ) from error
    except errors.HFValidationError as error:
        raise InputError("this is no name of a model on the hub", detail=text) from error
    # A missing network is an exception of whichever HTTP library the hub's client uses.
    except Exception as error:
        raise InputError(
            "the hub cannot be reached, and the cache does not hold the whole model",
            detail=f"{text}: {reason(error)}",
            hint=f"where there is a network: hf download {repo}"
            + (f" --revision {revision}" if revision else ""),
        ) from error
    return folder, folder.name


def by_ranges(text: str) -> tuple[str, str] | None:
    """The URL of a model's folder at its commit, for reading headers alone, and that commit.

    text: as of `fetch`. None where `fetch` is the way: the cache has the weights, it says better
    what is wrong, or they are torch files, whose headers are pickles among the weights.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    found = _NAME.fullmatch(text)
    if found is None or constants.HF_HUB_OFFLINE:
        return None
    repo = found["repo"]
    try:
        with _quiet():
            info = HfApi().model_info(repo, revision=found["revision"])
    # A missing network is an exception of whichever HTTP library the hub's client uses.
    except Exception:
        return None
    wanted = needed(file.rfilename for file in info.siblings or [])
    if info.sha is None or {SINGLE[0], INDEXES[0]}.isdisjoint(wanted):
        return None
    weights = [
        name for name in wanted if name.startswith("model") and name.endswith(".safetensors")
    ]
    held = [try_to_load_from_cache(repo, name, revision=info.sha) for name in weights]
    if all(isinstance(path, str) for path in held):
        return None
    return f"{HUB}{repo}@{info.sha}", info.sha


def is_file(text: str) -> bool:
    """Whether a URL names one file at one commit, and no model."""
    return _FILE.fullmatch(text) is not None


def needed(names: Iterable[str]) -> list[str]:
    """Which files of a repository to fetch: one format's weights, companions, a Fisher sidecar.

    Only of its top folder, and no other copy of the weights: exports lie beside them in plenty.
    """
    listed = list(names)
    wanted = companions_among(name for name in listed if "/" not in name)
    for single, index in zip(SINGLE, INDEXES, strict=True):
        if single in listed:
            wanted.append(single)
            break
        if index in listed:
            suffix = Path(single).suffix
            stem = single.removesuffix(suffix)
            shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}")
            wanted += [index, *filter(shard.fullmatch, listed)]
            break
    beside = [name for name in listed if name.startswith("clmerge/") or name in ADAPTER]
    return [*wanted, *beside]


def _snapshot(repo: str, revision: str | None) -> str:
    """The local folder of a revision; from the cache alone where the hub cannot be asked."""
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    unreachable: Exception | None = None
    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().model_info(repo, revision=revision)
            wanted = needed(file.rfilename for file in info.siblings or [])
            # Not by the commit just seen: the cache remembers branches only if asked for one.
            return snapshot_download(
                repo, revision=revision, allow_patterns=[escape(name) for name in wanted]
            )
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, ClmergeError):
            raise
        except errors.HFValidationError:
            raise
        # A missing network is an exception of whichever HTTP library the hub's client uses.
        except Exception as error:
            unreachable = error
    settings = [name for name in CUSTOMARY if name.endswith((".json", ".txt", ".model"))]
    try:
        return snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=settings
        )
    except errors.LocalEntryNotFoundError:
        if unreachable is not None:
            raise unreachable from None
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and bars only for people who watch: the error that follows says what matters."""
    utils: Any = import_module("huggingface_hub.utils")  # made lazily, so unknown to type checkers
    logger = logging.getLogger("huggingface_hub")
    level, silent = logger.level, utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if not silent:
            utils.enable_progress_bars()
