"""Which headers of a request Envoy sends to the processor. Pure.

Owns these codes. What the processor may change is for `check_envoy_filter`.
"""

from collections.abc import Iterator
from typing import Final

from aibrix_extproc.doctor.check_envoy_filter import all_uses, is_forwarded
from aibrix_extproc.doctor.envoy_uses import distinct
from aibrix_extproc.doctor.facts import Facts
from aibrix_extproc.doctor.findings import Area, Code, Finding, Severity
from aibrix_extproc.extproc.messages import PREFERENCE_HEADERS

NEEDED: Final = Code(
    "envoy-headers-withheld",
    Area.ENVOY,
    Severity.RED,
    "the processor does not get a header without which it decides nothing",
    "Add it to `forward_rules.allowed_headers`, as in `envoy/override-host.yaml`.",
)
PREFERENCES: Final = Code(
    "envoy-preferences-withheld",
    Area.ENVOY,
    Severity.YELLOW,
    "clients may choose by a header (`AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS`) that the processor "
    "does not get",
    "Add it to `forward_rules.allowed_headers`, as in `envoy/override-host.yaml`; or set the "
    "variable to false.",
)

_NEEDED: Final = (":method", ":path", "content-type")


def check_forwarded(facts: Facts) -> Iterator[Finding]:
    """What is read of a request."""
    for use in distinct(all_uses(facts)):
        config = use.config or {}
        for code, names in ((NEEDED, _NEEDED), (PREFERENCES, _preferences(facts))):
            withheld = [name for name in names if not is_forwarded(config, name)]
            if withheld:
                yield code.found(use.where, f"not sent to the processor: {', '.join(withheld)}")


def _preferences(facts: Facts) -> tuple[str, ...]:
    return PREFERENCE_HEADERS if facts.settings.trust_client_headers else ()


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
