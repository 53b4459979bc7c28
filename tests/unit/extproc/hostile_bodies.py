"""Request bodies that no honest client would send: valid ones, damaged in every way we know."""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.hostile import damaged_bytes, damaged_value

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"
_HELLO: Final = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé 漢\t"}]
_PARTS: Final = [
    {"role": "user", "content": [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]},
]  # fmt: skip

VALID: Final[list[tuple[str, dict[str, Any]]]] = [
    (CHAT, {"messages": _HELLO}),
    (CHAT, {"messages": _PARTS, "max_completion_tokens": 5, "stream": True}),
    (CHAT, {"messages": _HELLO, "tools": [{"type": "function", "function": {"name": "f"}}],
            "chat_template_kwargs": {"enable_thinking": False}, "cache_salt": "s"}),
    (COMPLETION, {"prompt": "once upon a time", "max_tokens": 3, "temperature": 0.5}),
    (COMPLETION, {"prompt": ["one", "two"], "logit_bias": {"5": -100}, "n": 2}),
    (COMPLETION, {"prompt": list(range(60)), "truncate_prompt_tokens": 20}),
    (COMPLETION, {"prompt": [[1, 2, 3], [4]], "vllm_xargs": {"kv_cache_report_mode": "full"}}),
    (COMPLETION, {"prompt_embeds": "AAAA"}),
    ("/v1/embeddings", {"input": "text"}),
]  # fmt: skip


@dataclass(frozen=True)
class HostileBody:
    path: str
    body: bytes
    headers: dict[str, str]
    damage: str
    """What was done to it, for the message of a failure."""


def _json(value: Any) -> bytes:
    return json.dumps(value, default=repr).encode("utf-8", "surrogatepass")


def _type_changed(rng: random.Random, fields: dict[str, Any]) -> bytes:
    other = rng.choice(VALID)[1]
    for _ in range(rng.randint(1, 3)):
        fields = damaged_value(rng, fields, other)
    return _json(_text_keys(fields))


def _text_keys(value: Any) -> Any:
    """JSON's names are texts: other junk in their place becomes one."""
    if isinstance(value, dict):
        return {str(name): _text_keys(inner) for name, inner in value.items()}
    return [_text_keys(inner) for inner in value] if isinstance(value, list) else value


def _with(fields: dict[str, Any], name: str, raw: bytes) -> bytes:
    """The body with one field given as it stands, at the end: the last one counts."""
    return _json(fields)[:-1] + b", " + _json(name) + b": " + raw + b"}"


def _any_field(rng: random.Random, fields: dict[str, Any]) -> str:
    return rng.choice([*fields, "messages", "prompt", "max_tokens", "seed", "unknown"])


def _nested(rng: random.Random, fields: dict[str, Any]) -> bytes:
    depth = rng.choice([10, 200, 1000, 5000, 30_000])
    left, right = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]"), (b"[", b"")])
    return _with(fields, _any_field(rng, fields), left * depth + b"1" + right * depth)


def _huge_number(rng: random.Random, fields: dict[str, Any]) -> bytes:
    number = rng.choice(
        [
            b"9" * 30,
            b"-" + b"9" * 30,
            b"9" * 6000,
            b"1e400",
            b"-1E+9999",
            b"1e-9999",
            b"0.1" + b"0" * 5000,
            b"18446744073709551616",
            b"4294967296",
            b"-1",
            b"1e9999999999999",
            b"00",
            b"+1",
            b".5",
            b"1.",
        ]
    )
    raw = rng.choice([number, b"[" + number + b"]", b"[1, " + number + b", 2]"])
    return _with(fields, _any_field(rng, fields), raw)


def _bad_utf8(rng: random.Random, fields: dict[str, Any]) -> bytes:
    body = _json(fields)
    junk = rng.choice(
        [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe2\x82"]
    )
    at = rng.choice([n for n, byte in enumerate(body) if byte == ord('"')]) + rng.randint(0, 1)
    return body[:at] + junk + body[at:]


def _escapes(rng: random.Random, fields: dict[str, Any]) -> bytes:
    text = rng.choice(
        [
            b'"\\ud800"',
            b'"\\udc00\\ud800"',
            b'"a\\ud83d\\ude00b"',
            b'"\\ud83dx"',
            b'"\\u0000"',
            b'"\\u12"',
            b'"\\x41"',
            b'"\\',
            b'"\x00"',
            b'"\x1f\n"',
            b'"\\u0000\\ud800\\uffff"',
        ]
    )
    name = _any_field(rng, fields)
    if rng.random() < 0.3:
        return _json(fields)[:-1] + b", " + text + b": 1}"
    raw = rng.choice([text, b"[" + text + b"]", b'[{"role": "user", "content": ' + text + b"}]"])
    return _with(fields, rng.choice([name, "model"]), raw)


def _repeated(rng: random.Random, fields: dict[str, Any]) -> bytes:
    name = rng.choice([*fields, "model"])
    raw = rng.choice([b"null", b"[]", b'"tiny"', b'"other"', b"1", _json(fields.get(name))])
    return _with(fields, name, b", ".join([raw] + [_json(name) + b": " + raw] * rng.choice([1, 3])))


def _encoded(rng: random.Random, fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields)
    encoding = rng.choice(["utf-16", "utf-32", "utf-16-be", "utf-8-sig", "utf-7"])
    return text.encode(encoding)


def _not_json(rng: random.Random, fields: dict[str, Any]) -> bytes:
    body = _json(fields)
    return rng.choice(
        [
            b"",
            b" ",
            b"\0",
            b"null",
            b"true",
            b"[]",
            b"{}",
            b"1",
            b'"tiny"',
            b"{",
            b"NaN",
            b"\xff" * 50,
            body + body,
            body + b"}",
            body + b"\0",
            b"\0" + body,
            b"// no\n" + body,
            body.replace(b'"', b"'"),
            body.replace(b":", b":NaN, ", 1),
            body.replace(b",", b",,", 1),
            body[:-1] + b",}",
            b" " * 5000 + body + b"\n" * 5000,
            b"{" + b'"":1,' * 3000 + b'"model":"tiny"}',
            b"model=tiny&prompt=x",
            b"[" + body + b"]",
            b"[" * 20_000,
        ]
    )


def _many(rng: random.Random, fields: dict[str, Any]) -> bytes:
    name, item = rng.choice(
        [
            ("messages", b'{"role":"user","content":"x"}'),
            ("messages", b"1"),
            ("messages", b"[]"),
            ("prompt", b'"x"'),
            ("prompt", b"7"),
            ("prompt", b"[7]"),
            ("prompt", b"[]"),
            ("stop", b'"x"'),
        ]
    )
    return _with(fields, name, b"[" + b",".join([item] * rng.choice([2, 300, 3000])) + b"]")


_DAMAGE: Final[list[Callable[[random.Random, dict[str, Any]], bytes]]] = [
    _type_changed,
    _type_changed,
    _type_changed,
    _nested,
    _huge_number,
    _bad_utf8,
    _escapes,
    _repeated,
    _encoded,
    _not_json,
    _many,
]


def hostile_body(rng: random.Random) -> HostileBody:
    """A body, the path it is for, and the headers that come with it."""
    path, fields = rng.choice(VALID)
    fields = {"model": "tiny"} | fields
    headers: dict[str, str] = {}
    kind = rng.randrange(len(_DAMAGE) + 4)
    if kind < len(_DAMAGE):
        damage = _DAMAGE[kind].__name__
        body = _DAMAGE[kind](rng, fields)
    elif kind == len(_DAMAGE):
        damage, body = "cut off", _json(fields)
        body = body[: rng.randrange(len(body))]
    elif kind == len(_DAMAGE) + 1:
        damage, body = "encoded", _json(fields)
        name = rng.choice(["gzip", "deflate", "br", "zstd", "identity", "gzip, br", "x", ""])
        headers["content-encoding"] = name
        if rng.random() < 0.7:
            body = rng.choice([gzip.compress, zlib.compress])(body)
    else:
        damage = "bytes"
        body = damaged_bytes(rng, _json(fields), _json(rng.choice(VALID)[1]))
    if rng.random() < 0.2:
        path = rng.choice([CHAT, COMPLETION, CHAT + "?a=%00", "/v1/embeddings", "/v1/unknown"])
    if rng.random() < 0.2:
        headers["content-type"] = rng.choice(
            [
                "",
                "text/plain",
                "application/json; charset=utf-16",
                "multipart/form-data; boundary=x",
                "application/x+json",
            ]
        )
    return HostileBody(path, body, headers, damage)
