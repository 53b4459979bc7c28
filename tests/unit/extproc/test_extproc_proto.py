"""Our protocol file against Envoy's own: the descriptors that its binary carries."""

import functools
import mmap
import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from aibrix_extproc.extproc.service import SERVICE
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.envoy_binary import envoy_path

ENVOY_FILES = (
    "envoy/service/ext_proc/v3/external_processor.proto",
    "envoy/extensions/filters/http/ext_proc/v3/processing_mode.proto",
    "envoy/config/core/v3/base.proto",
    "envoy/type/v3/http_status.proto",
)
_SYNTAX_FIELD = 12  # the last field of a descriptor that is not an edition's


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _descriptor_at(data: mmap.mmap, start: int) -> FileDescriptorProto:
    """A serialized descriptor has no length: its fields are walked up to the last one."""
    at = start
    while True:
        tag, after_tag = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire != 2:
            break
        length, after_length = _varint(data, after_tag)
        at = after_length + length
        if number == _SYNTAX_FIELD:
            break
    return FileDescriptorProto.FromString(data[start:at])


@functools.cache
def envoy_files() -> dict[str, FileDescriptorProto]:
    found = {}
    with envoy_path().open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for name in ENVOY_FILES:
            # The name, then the package: any other mention of the name has no package after it.
            raw = name.encode()
            pattern = re.escape(b"\x0a" + bytes([len(raw)]) + raw + b"\x12")
            match = re.search(pattern, data)
            assert match is not None, f"Envoy carries no descriptor of {name}"
            found[name] = _descriptor_at(data, match.start())
    return found


def _tree(
    prefix: str, message: DescriptorProto
) -> Iterator[tuple[str, DescriptorProto | EnumDescriptorProto]]:
    name = f"{prefix}{message.name}"
    yield name, message
    for enum in message.enum_type:
        yield f"{name}.{enum.name}", enum
    for nested in message.nested_type:
        yield from _tree(f"{name}.", nested)


def _all(file: FileDescriptorProto) -> dict[str, DescriptorProto | EnumDescriptorProto]:
    named: dict[str, DescriptorProto | EnumDescriptorProto] = {e.name: e for e in file.enum_type}
    for message in file.message_type:
        named.update(_tree("", message))
    return named


@functools.cache
def theirs() -> dict[str, DescriptorProto | EnumDescriptorProto]:
    named: dict[str, DescriptorProto | EnumDescriptorProto] = {}
    for file in envoy_files().values():
        named.update(_all(file))
    return named


def ours() -> dict[str, DescriptorProto | EnumDescriptorProto]:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return _all(file)


MESSAGES = sorted(name for name, kind in ours().items() if isinstance(kind, DescriptorProto))
ENUMS = sorted(name for name, kind in ours().items() if isinstance(kind, EnumDescriptorProto))


def _shape(field: FieldDescriptorProto, message: DescriptorProto) -> tuple[object, ...]:
    """Name, type, label, the referenced type without its package, and the oneof it is in."""
    reference = re.sub(r"^\.(aibrix|envoy)\.([a-z0-9_]+\.)*", "", field.type_name)
    oneof = field.HasField("oneof_index") and message.oneof_decl[field.oneof_index].name
    return (field.name, field.type, field.label, reference, oneof)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_has_envoys_number_name_type_and_label(name: str) -> None:
    mine, envoys = ours()[name], theirs()[name]
    assert isinstance(mine, DescriptorProto)
    assert isinstance(envoys, DescriptorProto)
    known = {field.number: _shape(field, envoys) for field in envoys.field}
    for field in mine.field:
        assert _shape(field, mine) == known.get(field.number), f"{name}.{field.name}"


@pytest.mark.parametrize("name", ENUMS)
def test_every_enum_value_has_envoys_number(name: str) -> None:
    mine, envoys = ours()[name], theirs()[name]
    assert isinstance(mine, EnumDescriptorProto)
    assert isinstance(envoys, EnumDescriptorProto)
    assert {v.name: v.number for v in mine.value}.items() <= {
        v.name: v.number for v in envoys.value
    }.items()


def test_the_comparison_would_see_a_wrong_number() -> None:
    message = theirs()["HttpBody"]
    assert isinstance(message, DescriptorProto)
    known = {field.number: _shape(field, message) for field in message.field}
    wrong = FieldDescriptorProto()
    wrong.CopyFrom(message.field[0])
    wrong.number = 2
    assert _shape(wrong, message) != known[2]


def test_the_service_is_registered_by_envoys_full_name() -> None:
    file = envoy_files()["envoy/service/ext_proc/v3/external_processor.proto"]
    service = file.service[0]
    assert f"{file.package}.{service.name}" == SERVICE
    (method,) = service.method
    assert (method.name, method.client_streaming, method.server_streaming) == ("Process", 1, 1)


def test_the_stubs_claim_no_name_of_envoys() -> None:
    assert pb.DESCRIPTOR.package == "aibrix.extproc.v3"
