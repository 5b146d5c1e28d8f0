"""An S3 server on this machine, behind a proxy that can fail: moto in server mode. Skips what needs it where it is missing."""

import functools
import http.client
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from modernbert.patience import Patience

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
SOON = Patience(stall_seconds=0.8, total_seconds=20, first_pause_seconds=0.02, longest_pause_seconds=0.1)
AT_ONCE = Patience(stall_seconds=0.4, total_seconds=0.8, first_pause_seconds=0.05, longest_pause_seconds=0.2)


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on, or does what `faults` says to those whose line contains its text."""

    protocol_version = "HTTP/1.1"
    upstream = None
    requests: ClassVar = []  # "GET /bucket/key"
    faults: ClassVar = []  # [text, fault, times left]
    over = threading.Event()  # ends stalls

    def fault(self):
        line = f"{self.command} {self.path}"
        self.requests.append(line)
        for entry in list(self.faults):
            if entry[0] in line and entry[2] > 0:
                entry[2] -= 1
                return entry[1]
        return None

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.fault()
        if fault == "hang":  # nobody reads the request
            self.over.wait(20)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault in (403, 503):
            self.reply(fault, {}, DENIED if fault == 403 else b"")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection = http.client.HTTPConnection(*self.upstream, timeout=20)
        connection.request(self.command, self.path, body=body, headers=headers)
        response = connection.getresponse()
        content, kept = response.read(), dict(response.getheaders())
        connection.close()
        if fault == "flip":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.reply(response.status, kept, content, fault)

    def reply(self, status, headers, content, fault=None):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.over.wait(20)
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, *_):
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that go away are what these tests are about."""


@functools.cache
def endpoint():
    """Start server and proxy once; both are daemons of this process."""
    server = pytest.importorskip("moto.server", reason="pip install 'moto[server]' s3fs")
    pytest.importorskip("s3fs", reason="pip install s3fs")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    Proxy.upstream = moto.get_host_and_port()
    proxy = QuietServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{proxy.server_port}"


class Bucket:
    """An empty bucket, and what the proxy in front of it does."""

    def __init__(self):
        import s3fs

        self.fs = s3fs.S3FileSystem()
        self.name = f"b-{uuid.uuid4().hex[:12]}"
        self.fs.mkdir(self.name)
        Proxy.requests.clear()

    def at(self, path):
        return f"s3://{self.name}/{path}"

    def fails(self, text, fault, times=1):
        """The next requests whose line contains a text fail so."""
        Proxy.faults.append([text, fault, times])

    def recovers(self):
        Proxy.faults.clear()

    def asked(self, text=""):
        return [line for line in Proxy.requests if text in line]

    def forget(self):
        Proxy.requests.clear()

    def unasked(self):
        """Faults that no request has met."""
        return [entry for entry in Proxy.faults if entry[2] > 0]


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """The driver's own variables, pointing at the proxy, and an empty cache."""
    url = endpoint()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # or botocore tries again by itself, for seconds, before this package does
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "MODERNBERT_CACHE": str(tmp_path / "cache"),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def new_driver():
    """The driver keeps what it was opened with; this test's variables are others."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(aws):
    Proxy.faults.clear()
    Proxy.over.clear()
    yield Bucket()
    Proxy.faults.clear()
    Proxy.over.set()


def within(seconds, function, *args):
    """Its result or error, which must come in time."""
    began_at = time.monotonic()
    try:
        return function(*args)
    finally:
        assert time.monotonic() - began_at < seconds
