"""A certificate for a server on the loopback interface, which signs itself."""

import shutil
import subprocess

import pytest

OPENSSL = shutil.which("openssl")

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl to make a certificate with")


def make_certificate(folder):
    """The files of its key and of itself, for two days."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate
