"""The sets of manifests under envoy/gateway, and the xDS that Envoy Gateway makes of them, by its
own egctl, kept under tests/data/gateway (`make gateway-xds`).

Owns the paths, and whether a golden still belongs to the files that it was made from. Runs neither
kustomize nor egctl: `make test` needs none of them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.manifests import kustomize
from tests.support import data_path

Json = dict[str, Any]

ROOT: Final = Path(__file__).parents[2]
GATEWAY: Final = ROOT / "envoy" / "gateway"
GOLDENS: Final = data_path("gateway")


@dataclass(frozen=True, slots=True)
class Set:
    """What somebody applies: a kustomization, and components that he adds to it."""

    name: str
    folder: str
    components: tuple[str, ...] = ()
    translates: bool = True
    """Whether Envoy Gateway alone makes xDS of it."""

    def objects(self) -> list[Json]:
        """Its manifests, rendered."""
        return kustomize.with_components(
            GATEWAY / self.folder, *(GATEWAY / name for name in self.components)
        )

    def fingerprint(self) -> str:
        """SHA-256 of its manifests: comments and layout do not count."""
        return hashlib.sha256(json.dumps(self.objects(), sort_keys=True).encode()).hexdigest()

    def xds_path(self, release: str) -> Path:
        """Of one release, as `tests.manifests.crds` names it."""
        return GOLDENS / f"{self.name}.{release.replace(' ', '-')}.json"

    def xds(self, release: str) -> Json:
        """`listener`, `routes`, `clusters`, and `refused`: conditions that are not true.

        Raises LookupError where it was made of other manifests.
        """
        path = self.xds_path(release)
        golden: Json = json.loads(path.read_text())
        if golden["made_of"] != self.fingerprint():
            raise LookupError(f"{path.name} is older than envoy/gateway: run `make gateway-xds`")
        return golden


BASE: Final = Set("base", "base")
PATCHED: Final = Set("envoy-patches", "base", ("components/envoy-patches",))
AIBRIX: Final = Set("aibrix", "overlays/aibrix")
POOL: Final = Set("inference-pool", "overlays/inference-pool", translates=False)
SETS: Final = (BASE, PATCHED, AIBRIX, POOL)
