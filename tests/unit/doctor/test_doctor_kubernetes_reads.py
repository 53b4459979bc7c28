"""What doctor asks of Kubernetes is what its role allows."""

from aibrix_extproc.doctor.kubernetes_reads import KUBERNETES_READS


def test_doctor_lists_and_changes_nothing() -> None:
    assert {verb for read in KUBERNETES_READS for verb in read.verbs} == {"list"}
    assert len({(read.api_group, read.resource) for read in KUBERNETES_READS}) == 3
