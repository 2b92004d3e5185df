"""HTTPS: certificate, encrypted key and client certificates, over a real gateway."""

from __future__ import annotations

import contextlib
import ssl

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.gateway.server import serve
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.threads.polling import wait_until

PASSWORD = "secret"
HI = [{"role": "user", "content": "Hi"}]


def write_encrypted(leaf, path):
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(PASSWORD.encode())
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    write_encrypted(leaf, folder / "key.pem")
    (folder / "password").write_text(f"{PASSWORD}\n")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return {
        "gateway_tls_cert": folder / "cert.pem",
        "gateway_tls_key": folder / "key.pem",
        "gateway_tls_key_password_file": folder / "password",
        "gateway_tls_client_ca": folder / "ca.pem",
    }


@contextlib.contextmanager
def gateway_running(gateway):
    gateway.start()
    yield
    gateway.terminate()
    gateway.wait(60)


def context_of(authority, client=None):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    return context


def test_a_client_with_a_certificate_is_served_and_no_other(null_stack, authority, files, tmp_path):
    known = context_of(authority, authority.issue_cert("client@example.org"))
    variables = {f"PAGEFLEET_{name.upper()}": str(path) for name, path in files.items()}
    log = tmp_path / "gateway.log"
    gateway = GatewayProcess(
        null_stack.redis_url, GatewaySettings(**files), 0, log_file=log, environment=variables
    )
    assert gateway.url.startswith("https://")
    with gateway_running(gateway), httpx.Client(base_url=gateway.url, verify=known, timeout=30) as client:

        def answers():
            try:
                return client.get("/v1/models").status_code == 200
            except httpx.TransportError:
                return False

        assert wait_until(answers, 60, 0.1), log.read_text()
        assert f"{gateway.url}/v1" in log.read_text()
        body = {"model": "null", "messages": HI, "max_tokens": 50, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert list(reply.iter_lines())[-2:] == ["data: [DONE]", ""]
        stranger = context_of(authority, trustme.CA().issue_cert("client@example.org"))
        for context in (context_of(authority), stranger, ssl.create_default_context()):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{gateway.url}/health", verify=context)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{gateway.port}/health")


def test_a_key_that_cannot_be_read_is_named(files):
    without_password = {**files, "gateway_tls_key_password_file": None}
    with pytest.raises(ConfigurationError, match="gateway_tls_cert: the certificate"):
        serve(GatewaySettings(**without_password, gateway_port=0), lambda url: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", "gateway_tls_key_password_file: .* is empty; write the password"),
        (b"\xff\xfe", "gateway_tls_key_password_file: .* codec can't decode"),
        (b"x" * 2000, "gateway_tls_cert: the certificate .*password cannot be longer"),
        (b"wrong", "gateway_tls_cert: the certificate"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_named(files, tmp_path, content, message):
    (tmp_path / "password").write_bytes(content)
    settings = {**files, "gateway_tls_key_password_file": tmp_path / "password"}
    with pytest.raises(ConfigurationError, match=message):
        serve(GatewaySettings(**settings, gateway_port=0), lambda url: None)


def test_tls_options_without_a_certificate_are_refused(files):
    with pytest.raises(ConfigurationError, match="set gateway_tls_cert too, or remove gateway_tls_key"):
        GatewaySettings.load(gateway_tls_key=files["gateway_tls_key"])
