"""The variables of TLS on the gRPC port; a part of `settings`, which reads them."""

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.setting_types import SettingsGroup, var

CERT = "AIBRIX_EXTPROC_GRPC_TLS_CERT"
KEY = "AIBRIX_EXTPROC_GRPC_TLS_KEY"
CLIENT_CA = "AIBRIX_EXTPROC_GRPC_TLS_CLIENT_CA"


class TlsSettings(SettingsGroup):
    """Files of the gRPC port's TLS; without them it speaks plain text."""

    grpc_tls_cert: str = var(
        "",
        CERT,
        "PEM file of the gRPC port's certificate, its chain after it. With the key it switches "
        "TLS on; both are read again when they change.",
    )
    grpc_tls_key: str = var(
        "", KEY, "PEM file of the certificate's private key, without a passphrase."
    )
    grpc_tls_client_ca: str = var(
        "",
        CLIENT_CA,
        "PEM file of the authorities whose certificates clients must show (mTLS): who can show "
        "none is not let in.",
    )

    def check_tls(self) -> None:
        """Which of the three go together. Raises SettingsError."""
        if bool(self.grpc_tls_cert) != bool(self.grpc_tls_key):
            missing, given = (KEY, CERT) if self.grpc_tls_cert else (CERT, KEY)
            raise SettingsError(f"{missing}: is unset, but {given} is set: TLS needs both")
        if self.grpc_tls_client_ca and not self.grpc_tls_cert:
            raise SettingsError(
                f"{CERT}: is unset, but {CLIENT_CA} is set: clients can only be asked for a "
                "certificate where this server has one"
            )
