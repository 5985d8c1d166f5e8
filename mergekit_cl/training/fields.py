"""From a record's fields to the row they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergekit_cl.errors import DataError
from mergekit_cl.training.records import TABLES, Record
from mergekit_cl.training.rows import Kind, Row, make_row

TEXT_FIELD = "text"
LABEL_FIELD = "label"


def as_row(record: Record, *, text_field: str | None, label_field: str | None) -> Row:
    """The row a record stands for.

    `messages` make a chat, `prompt` with `completion` a completion, else the text field (with a
    label where there is one). A field that was named must be there. Raises DataError.
    """
    where, fields = record
    kind = _kind(fields, text_field, label_field, where)
    if kind == "completion":
        content: dict[str, Any] = {
            field: _text(fields, field, where) for field in ("prompt", "completion")
        }
    elif kind == "chat":
        content = {"messages": _messages(fields["messages"], where)}
    else:
        content = {"text": _text(fields, text_field or TEXT_FIELD, where)}
    if kind == "labelled":
        content["label"] = _label(fields, label_field or LABEL_FIELD, where)
    return make_row(kind, content, where)


def _kind(
    fields: dict[str, Any], text_field: str | None, label_field: str | None, where: str
) -> Kind:
    if text_field is None and label_field is None:
        if "messages" in fields:
            return "chat"
        if "prompt" in fields and "completion" in fields:
            return "completion"
    text = text_field or TEXT_FIELD
    if text not in fields:
        raise _missing(text, fields, where, "--text-field")
    if label_field is not None and label_field not in fields:
        raise _missing(label_field, fields, where, "--label-field")
    return "labelled" if (label_field or LABEL_FIELD) in fields else "text"


def _missing(field: str, fields: dict[str, Any], where: str, option: str) -> DataError:
    there = ", ".join(repr(name) for name in list(fields)[:12]) or "no fields"
    hint = f"{option} NAME; or rows with text, prompt and completion, or messages"
    if Path(where.rpartition(":")[0]).suffix.lower() in TABLES:
        hint = f"{option} NAME; a table's first line must name its columns, such as: text,label"
    return DataError(
        f"a row has no field {field!r}",
        detail=f"{where}: it has {there:.200}",
        hint=hint,
    )


def _text(fields: dict[str, Any], field: str, where: str) -> str:
    value = fields[field]
    if not isinstance(value, str):
        raise DataError(f"the field {field!r} is not text", detail=f"{where}: {_shown(value)}")
    return _encodable(value, field, where)


def _encodable(value: str, field: str, where: str) -> str:
    # JSON can spell half a surrogate pair; no tokenizer can read one.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the field {field!r} holds half a surrogate pair",
            detail=f"{where}: character {error.start}",
        ) from None
    return value


def _label(fields: dict[str, Any], field: str, where: str) -> int | str:
    label = fields[field]
    if isinstance(label, bool) or not isinstance(label, (int, str)) or label == "":
        raise DataError(
            f"the label {field!r} is neither a number nor a name",
            detail=f"{where}: {_shown(label)}",
            hint="give each row the number or the name of its class",
        )
    return _encodable(label.strip(), field, where) if isinstance(label, str) else label


def _messages(messages: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(
            "the field 'messages' is not a list of messages", detail=f"{where}: {_shown(messages)}"
        )
    for number, message in enumerate(messages, start=1):
        inside = f"{where}: message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(
                "a message has no role or no content",
                detail=f"{inside}: {_shown(message)}",
                hint='write messages as {"role": "user", "content": "..."}',
            )
        for field in ("role", "content"):
            _text(message, field, inside)
    return messages


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
