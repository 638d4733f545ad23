from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from scripted_server import answer, ok, serving

from nativert.runtime.download import download
from nativert.runtime.image_errors import ImageError
from nativert.runtime.protocols import DownloadLimits

LIMITS = DownloadLimits(
    max_bytes=1 << 20, connect_timeout_s=5, stall_timeout_s=5, total_timeout_s=20
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", path, "-out", path.with_suffix(".crt")),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a") as both:
        both.write(path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_https_with_a_certificate_that_is_trusted(
    tmp_path: Path, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(ok(b"content"), tls=tls) as server:
        download(server.address + "/a", tmp_path / "a", limits=LIMITS, reserve_bytes=0)
    assert (tmp_path / "a").read_bytes() == b"content"


def test_https_with_an_unknown_certificate_is_refused(tmp_path: Path, tls: ssl.SSLContext) -> None:
    with (
        serving(ok(b"content"), tls=tls) as server,
        pytest.raises(ImageError, match=r"certificate is not accepted.*ca-certificates"),
    ):
        download(server.address + "/a", tmp_path / "a", limits=LIMITS, reserve_bytes=0)
    assert os.listdir(tmp_path) == []


def test_https_does_not_lead_to_plain_http(
    tmp_path: Path, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    onward = answer("HTTP/1.1 302 F\nLocation: http://127.0.0.1/a")
    with serving(onward, tls=tls) as server, pytest.raises(ImageError, match="plain http"):
        download(server.address + "/a", tmp_path / "a", limits=LIMITS, reserve_bytes=0)
    assert os.listdir(tmp_path) == []
