"""What the listener says of clients that it does not take; what it does about them: `tests/cloudcore`."""

import ssl

import pytest

from cloudedge.listening import _wrong_with_tls


def tls_error(type_: type[ssl.SSLError], **of_what: str) -> ssl.SSLError:
    """As the TLS layer raises it: empty, with attributes."""
    error = type_()
    for name, value in of_what.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    (
        (ConnectionResetError(), "it hung up"),
        (
            tls_error(ssl.SSLError, reason="TLSV1_ALERT_UNKNOWN_CA"),
            "TLSV1_ALERT_UNKNOWN_CA; does it trust this cloud's CA?",
        ),
        (tls_error(ssl.SSLError, reason="PEER_DID_NOT_RETURN_A_CERTIFICATE"), "it shows no certificate"),
        (
            tls_error(ssl.SSLCertVerificationError, verify_message="certificate has expired"),
            "its certificate is not accepted: certificate has expired",
        ),
    ),
)
def test_what_is_wrong_with_tls_is_said_in_words(error: OSError, said: str) -> None:
    assert _wrong_with_tls(error) == said
