"""What doctor reads from Kubernetes, and nothing else: the rules of its RBAC role.

The manifests' role for doctor is compared with this. The server itself reads pods alone.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class KubernetesRead:
    """One kind of object, as a rule of a Role or ClusterRole names it."""

    api_group: str
    """Empty for the core group."""
    resource: str
    """The plural, lower-case."""
    verbs: tuple[str, ...]


KUBERNETES_READS: Final = (
    # All of them, not only those with our label: what lacks it, or nearly has it, is looked for.
    KubernetesRead("", "pods", ("list",)),
    # Labels of these do not reach their pods; those of their pod templates do.
    KubernetesRead("apps", "deployments", ("list",)),
    KubernetesRead("apps", "statefulsets", ("list",)),
)
