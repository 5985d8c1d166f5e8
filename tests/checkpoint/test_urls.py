"""URLs are understood as typed and shown without what opens them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.checkpoint.refusals import access_error, reason
from mergekit_cl.checkpoint.urls import as_typed, child, is_url, shown, split

SHOWN = {
    "s3://bucket/model": "s3://bucket/model",
    "https://user:pass@host.org/a/b": "https://host.org/a/b",
    "https://user@host.org/a": "https://host.org/a",
    "sftp://me:pa/ss@w@host/a": "sftp://host/a",
    "https://host.org/m.safetensors?X-Amz-Signature=abc&x=1": "https://host.org/m.safetensors",
    "https://host.org/m#token=abc": "https://host.org/m",
    "https://host.org:8080/models@v1/x": "https://host.org:8080/models@v1/x",
    "simplecache::s3://k:s@bucket/m": "simplecache::s3://bucket/m",
}


@pytest.mark.parametrize("url", SHOWN)
def test_what_is_shown_holds_no_secret(url: str) -> None:
    assert shown(url) == SHOWN[url]


@given(st.text("abcXYZ019/:@?&=+%#.-_", max_size=30), st.sampled_from(["?sig=", "?a=b&token="]))
def test_no_query_is_ever_shown(path: str, query: str) -> None:
    assert "HUSH" not in shown(f"https://host/{path}{query}HUSH")
    assert "HUSH" not in shown(f"failed at 'https://host/{path}{query}HUSH' with 500")


@given(st.text("abcXYZ019/+%.-_", max_size=30))
def test_no_password_is_ever_shown(password: str) -> None:
    assert "HUSH" not in shown(f"ftp://me:HUSH{password}HUSH@host/x")


def test_a_text_keeps_the_rest_around_its_urls() -> None:
    told = shown("503, message='no', url='https://u:p@host/a?b=c' (twice)")
    assert told == "503, message='no', url='https://host/a' (twice)"


def test_a_librarys_message_is_told_in_one_line_without_its_urls_secrets() -> None:
    cause = OSError("bad answer from https://host/x?sig=HUSH\nand more")
    error = RuntimeError("outer")
    error.__cause__ = cause
    assert reason(error) == "OSError: bad answer from https://host/x"
    told = access_error(error, "https://u:HUSH@host/x?sig=HUSH")
    assert "HUSH" not in f"{told.message} {told.detail} {told.hint}"


def test_a_path_gives_back_the_slash_it_swallowed(tmp_path: Path) -> None:
    assert as_typed(Path("s3://bucket/model")) == "s3://bucket/model"
    assert as_typed(Path("hf://org/name@main")) == "hf://org/name@main"
    assert as_typed("s3://bucket/model") == "s3://bucket/model"
    assert as_typed(Path("file:///a/b")) == "file:///a/b"
    assert as_typed(Path("/a/b")) == "/a/b"


def test_a_folder_whose_name_looks_like_a_protocol_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run:/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert as_typed(Path("run:/model")) == "run:/model"


@pytest.mark.parametrize("text", ["model", "./a:b", "/a/b", "org/name", "C:\\x", "a//b", "x:/y"])
def test_a_path_is_no_url(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    "text", [*SHOWN, "hf://org/name", "memory://x", "s3a://b/x", "zip://a::s3://b"]
)
def test_a_protocol_makes_a_url(text: str) -> None:
    assert is_url(text)


def test_a_name_in_a_signed_folder_keeps_the_signature() -> None:
    assert child("https://host/m?sig=1", "a b.json") == "https://host/m/a%20b.json?sig=1"
    assert child("s3://bucket/m?x/", "a b.json") == "s3://bucket/m?x/a b.json"


@pytest.mark.parametrize(
    "folder", ["https://host/m?sig=1", "https://host/m", "s3://b/m", "memory://m"]
)
@pytest.mark.parametrize("name", ["x.safetensors", "a?b.json", "ü 1.json"])
def test_a_file_splits_into_what_it_was_made_of(folder: str, name: str) -> None:
    assert split(child(folder, name)) == (folder, name)
