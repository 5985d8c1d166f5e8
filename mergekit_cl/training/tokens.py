"""One row of text as tokens, with the places where the model is asked for the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_cl.errors import DataError, InputError
from mergekit_cl.training.rows import Row

# Stands for a reply while its place in a rendered chat is sought; nobody writes it.
MARKER = "clmergeQ7reply7Q"

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tokens:
    """ids: the row's tokens. asked: for each, whether predicting it is part of the loss."""

    ids: tuple[int, ...]
    asked: tuple[bool, ...]


def tokenize(row: Row, tokenizer: Any) -> Tokens:
    """All tokens of a row, uncut.

    text and labelled: as the tokenizer encodes it; all are asked for. completion: prompt and
    completion as one text, then the end token unless it is there; a token is asked for where it
    holds a character of the completion. chat: as the chat template renders it; the replies of the
    assistant are asked for, with the special token that closes each.
    """
    if row.kind == "completion":
        return _completion(row, tokenizer)
    if row.kind == "chat":
        return _chat(row, tokenizer)
    ids = tokenizer(row.content["text"], verbose=False)["input_ids"]
    return Tokens(tuple(ids), (True,) * len(ids))


def _completion(row: Row, tokenizer: Any) -> Tokens:
    prompt, completion = row.content["prompt"], row.content["completion"]
    span = (len(prompt), len(prompt) + len(completion))
    tokens = _masked(prompt + completion, [span], tokenizer, add_special_tokens=True)
    end = tokenizer.eos_token_id
    if end is None or not any(tokens.asked) or tokens.ids[-1] == end:
        return tokens
    return Tokens((*tokens.ids, end), (*tokens.asked, True))


def _chat(row: Row, tokenizer: Any) -> Tokens:
    messages = row.content["messages"]
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template",
            detail=f"{row.where} is a chat",
            hint="give rows with text or with prompt and completion, or the tokenizer of a "
            "chat model",
        )

    def render(messages: Sequence[dict[str, Any]]) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        # A template is a program of the model's author; it may refuse in any way.
        except Exception as error:
            raise DataError(
                "the chat template refuses a row", detail=f"{row.where}: {error!s:.160}"
            ) from error

    text, spans = reply_spans(messages, render, row.where)
    # The template writes the start token itself.
    return _masked(text, spans, tokenizer, add_special_tokens=False)


def reply_spans(
    messages: Sequence[dict[str, Any]],
    render: Callable[[Sequence[dict[str, Any]]], str],
    where: str,
) -> tuple[str, list[Span]]:
    """The rendered chat and where in it each reply of the assistant stands.

    Each reply is replaced by a marker in turn: what stays the same before and after the marker is
    not the reply. Works for any template that copies replies, also one that trims them or writes
    the last turn differently. Raises DataError for a template that does not.
    """
    text = render(messages)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        changed = [*messages[:index], {**message, "content": MARKER}, *messages[index + 1 :]]
        before, marker, after = render(changed).partition(MARKER)
        end = len(text) - len(after)
        if not (marker and text.startswith(before) and text.endswith(after) and len(before) <= end):
            raise DataError(
                "the chat template does not copy a reply as it is",
                detail=f"{where}: message {index + 1}",
                hint="write the row as prompt and completion",
            )
        spans.append((len(before), end))
    return text, spans


def _masked(
    text: str, spans: Sequence[Span], tokenizer: Any, *, add_special_tokens: bool
) -> Tokens:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "this tokenizer does not say where its tokens stand in the text",
            detail=f"{type(tokenizer).__name__}: prompts cannot be told from completions",
            hint="save its fast form (tokenizer.json) beside the checkpoint",
        )
    coded = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    special = set(tokenizer.all_special_ids)
    asked: list[bool] = []
    inside = False
    for token, (start, stop) in zip(ids, offsets, strict=True):
        was_inside = inside
        inside = any(start < end and stop > begin for begin, end in spans)
        asked.append(inside or (was_inside and token in special))
    return Tokens(tuple(ids), tuple(asked))
