"""The format of the endpoints file: YAML text in, pods out, or a message that says what to write.

Pure. `endpoints_file` reads the file and follows it; nothing here knows where the text is from.
"""

import difflib
import reprlib
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import ErrorDetails

from aibrix_extproc.discovery import ports
from aibrix_extproc.discovery.pods import Pod, Rank

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 2

Name = Annotated[str, Field(min_length=1, max_length=253)]
Model = Annotated[str, Field(min_length=1, max_length=512)]
Port = Annotated[int, Field(ge=1, le=ports.MAX_PORT)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _KvEvents(_Strict):
    """Ports written down by the operator; one left out is the setting's."""

    port: Port | None = None
    replay_port: Port | None = None


class _Entry(_Strict):
    """One item of `pods`."""

    name: Name
    namespace: Name = "default"
    model: Model
    address: Annotated[str, AfterValidator(ports.parse_address)]
    labels: dict[str, str] = {}
    ready: bool = True
    adapters: list[Model] = []
    lora_id: Annotated[int, Field(ge=0)] | None = None
    ranks: Annotated[int, Field(ge=1, le=ports.MAX_RANKS)] = 1
    kv_events: StrictBool | _KvEvents = False
    metrics_port: Port | None = None


class _File(_Strict):
    pods: list[_Entry]


@dataclass(frozen=True, slots=True)
class Listing:
    """What one reading of the file says."""

    pods: tuple[Pod, ...]
    ranks_written: frozenset[str]
    """Keys of the pods whose `kv_events` names ports: they rule over `/kv_event_sources`."""


class BadEndpoints(ValueError):
    """The text is no endpoints file; the message says which entry and field, and what to write."""

    def __init__(self, message: str, about: str = "") -> None:
        """`about`: `name` or `address` where two pods share it, `ports` where those collide."""
        super().__init__(message)
        self.about = about


def parse_pods(text: str, event_port: int, replay_port: int) -> Listing:
    """The pods that an endpoints file lists; the ports are the settings', for entries without.

    Raises BadEndpoints.
    """
    try:
        # Our loader only adds a check to the safe one.
        document = yaml.load(text, Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # The last two are PyYAML's for a date like 2024-13-01, an endless number, deep nesting.
        raise BadEndpoints(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise BadEndpoints("the file holds no mapping: write 'pods:' and a list (or 'pods: []')")
    try:
        entries = _File.model_validate(document).pods
    except ValidationError as error:
        lines = [_explain(e, document) for e in error.errors() if not _said_by_another(e)]
        raise BadEndpoints("; ".join(lines[:5])) from None
    _check_unique([f"{e.namespace}/{e.name}" for e in entries], "name")
    _check_unique([e.address for e in entries], "address")
    pods = tuple(_pod(e, i, event_port, replay_port) for i, e in enumerate(entries))
    written = {
        pod.key for pod, e in zip(pods, entries, strict=True) if not isinstance(e.kv_events, bool)
    }
    return Listing(pods, frozenset(written))


class _Loader(yaml.SafeLoader):
    """The safe loader, and a key that stands twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, times in keys.items():
            if times > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} stands {times} times in one mapping",
                    problem_mark=node.start_mark,
                )
        return super().construct_mapping(node, deep=deep)


def _pod(entry: _Entry, position: int, event_port: int, replay_port: int) -> Pod:
    ip, _ = ports.split_host_port(entry.address)
    try:
        ranks = _ranks(entry, ip, event_port, replay_port)
    except ValueError as error:
        message = f"pods[{position}] ({entry.name}): kv_events: {error}"
        raise BadEndpoints(message, about="ports") from None
    return Pod(
        namespace=entry.namespace,
        name=entry.name,
        uid=f"file:{entry.namespace}/{entry.name}@{entry.address}",
        address=entry.address,
        model=entry.model,
        labels=dict(entry.labels),
        ready=entry.ready,
        adapters=tuple(dict.fromkeys(entry.adapters)),
        kv_events=entry.kv_events is not False,
        lora_id=entry.lora_id,
        ranks=ranks,
        metrics_address=(
            ports.join_host_port(ip, entry.metrics_port) if entry.metrics_port else None
        ),
    )


def _ranks(entry: _Entry, ip: str, event_port: int, replay_port: int) -> tuple[Rank, ...]:
    """The ranks of an entry. Raises ValueError where their ports cannot be right."""
    if entry.kv_events is False:
        return ports.rank_endpoints(ip, None, None, entry.ranks)
    replay: int | None = replay_port
    if isinstance(entry.kv_events, _KvEvents):
        event_port = entry.kv_events.port or event_port
        if "replay_port" in entry.kv_events.model_fields_set:
            replay = entry.kv_events.replay_port  # null: the engine has none
    problems = [ports.out_of_range(event_port, entry.ranks)]
    if replay is not None:
        problems.append(ports.out_of_range(replay, entry.ranks))
        problems.append(ports.collision(event_port, replay, entry.ranks))
    for problem in problems:
        if problem:
            raise ValueError(problem)
    return ports.rank_endpoints(ip, event_port, replay, entry.ranks)


def _check_unique(values: list[str], field: str) -> None:
    first: dict[str, int] = {}
    for position, value in enumerate(values):
        if value in first:
            raise BadEndpoints(
                f"pods[{position}]: {field} {value} is already that of pods[{first[value]}]",
                about=field,
            )
        first[value] = position


def _said_by_another(error: ErrorDetails) -> bool:
    """`kv_events` is a flag or a mapping: of two errors for one value, the one that fits less."""
    is_mapping = isinstance(error["input"], dict)
    return error["loc"][-2:] == ("kv_events", "bool" if is_mapping else "_KvEvents")


def _explain(error: ErrorDetails, document: Any) -> str:
    """One line for one error: which entry, which field, what to write."""
    where = _where(error["loc"], document)
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key{_did_you_mean(error['loc'])}"
    if kind == "missing":
        return f"{where}: missing, and it is required"
    if kind == "string_type":
        return f"{where}: {_shown(given)} is no text: write it in quotes"
    message = error["msg"].removeprefix("Value error, ")
    if error["loc"][-2:] == ("kv_events", "bool"):
        message = "write true, false or {port: 5557, replay_port: 5657}"
    elif kind in {"model_type", "dict_type", "list_type"}:
        message = "write a list" if kind == "list_type" else "write a mapping"
    return f"{where}: {message}" + (f" (it is {_shown(given)})" if kind != "value_error" else "")


def _shown(value: Any) -> str:
    """What was written, in short: aliases make a small file hold any number of values."""
    return _SHORT.repr(value)


def _where(loc: tuple[int | str, ...], document: Any) -> str:
    """`pods[1] (llama-1).address` from pydantic's path; its names of union members are left out."""
    text = ""
    for i, step in enumerate(loc):
        if isinstance(step, int):
            text += f"[{step}]"
            if i == 1:
                text += _entry_name(document, step)
        elif step not in {"bool", "_KvEvents"}:
            text += f".{step}" if text else step
    return text


def _entry_name(document: Any, position: int) -> str:
    try:
        name = document["pods"][position]["name"]
        return f" ({name})" if isinstance(name, str) else ""
    except (KeyError, TypeError, IndexError):
        return ""


def _did_you_mean(loc: tuple[int | str, ...]) -> str:
    owner = _KvEvents if "kv_events" in loc else _Entry if len(loc) > 1 else _File
    known = list(owner.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
