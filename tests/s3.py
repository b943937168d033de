"""A real S3 server on loopback, and a proxy before it that breaks requests as a busy or distant server does."""

from __future__ import annotations

import collections
import contextlib
import http.client
import os
import random
import re
import socket
import struct
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "very-secret-testing-key",
        "AWS_DEFAULT_REGION": "eu-central-1", "AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true"}
FAULTS = ("503", "500", "slow", "reset before", "reset after", "truncated")
ERROR = (b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>injected</Message>'
         b"<RequestId>0</RequestId></Error>")


@contextlib.contextmanager
def server(bucket: str = "bucket"):
    """Port of a moto server that has `bucket`."""
    import boto3
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    # what it holds belongs to the process: without this a second server has the content of the first
    urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", b"").close()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="eu-central-1",
                          aws_access_key_id="testing", aws_secret_access_key="testing")
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    try:
        yield port
    finally:
        moto.stop()


def environment(port: int) -> dict[str, str]:
    """What a user sets to reach it."""
    return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


@contextlib.contextmanager
def in_this_process(port: int):
    """Have this process use it, and no client of another server that an earlier test reached or will reach."""
    import pytest

    import fer_ray.s3

    clients = [value for value in vars(fer_ray.s3).values() if hasattr(value, "cache_clear")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(port).items():
            patch.setenv(name, value)
        for client in clients:
            client.cache_clear()
        try:
            yield
        finally:
            for client in clients:
                client.cache_clear()


class Hold:
    """Stops requests of a kind on their way, so that a client can be killed in the middle of them, or refuses them."""

    def __init__(self):
        self.wanted, self.reached = None, threading.Event()
        self.refused: re.Pattern | None = None  # of "METHOD PATH": such requests are answered by 503
        self.faults = True  # False: nothing breaks by chance any more, which makes everything faster

    def at(self, method: str, pattern: str) -> None:
        """From now on such requests wait until `release`, and are then dropped."""
        self.reached.clear()
        self.wanted = (method, re.compile(pattern))

    def release(self) -> None:
        """Let everything through again."""
        self.wanted = None

    def keeps(self, method: str, path: str) -> bool:
        """Whether a request was held back."""
        kept = False
        while (wanted := self.wanted) and method == wanted[0] and wanted[1].search(path):
            kept = True
            self.reached.set()
            time.sleep(0.05)
        return kept


@contextlib.contextmanager
def faulty(upstream: int, fraction: float = 0.1, seed: int = 0, faults: tuple[str, ...] = FAULTS):
    """A proxy to the server on port `upstream` that breaks `fraction` of the requests; yields its port, how often each
    fault was injected, and a `Hold`."""
    draw, lock, injected, hold = random.Random(seed), threading.Lock(), collections.Counter(), Hold()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            if hold.keeps(self.command, self.path):
                return self._reset()
            if hold.refused and hold.refused.search(f"{self.command} {self.path}"):
                return self._answer(503, [], ERROR % b"SlowDown")
            with lock:
                fault = draw.choice(faults) if hold.faults and draw.random() < fraction else ""
                injected[fault or "none"] += 1
            if fault in ("503", "500"):
                return self._answer(int(fault), [], ERROR % (b"SlowDown" if fault == "503" else b"InternalError"))
            if fault == "reset before":
                return self._reset()
            if fault == "slow":
                time.sleep(1.5)
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            connection.request(self.command, self.path, body, {k: v for k, v in self.headers.items()
                                                               if k.lower() != "transfer-encoding"})
            response = connection.getresponse()
            content, headers = response.read(), response.getheaders()
            connection.close()
            if fault == "reset after":
                return self._reset()
            if fault == "truncated" and len(content) > 1:
                self._answer(response.status, headers, content, sent=len(content) // 2)
                self.close_connection = True
                return None
            return self._answer(response.status, headers, content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def _body(self) -> bytes:
            if self.headers.get("Expect"):
                pass  # the base class has answered 100 already
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, status: int, headers: list, content: bytes, sent: int | None = None) -> None:
            self.send_response_only(status)
            length = next((v for k, v in headers if k.lower() == "content-length"), str(len(content)))
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:sent])

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format, *args) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request, client_address) -> None:  # a client that gave up
            pass

    proxy = Server(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy.server_address[1], injected, hold
    finally:
        proxy.shutdown()
        proxy.server_close()


def main() -> None:
    """Serve until interrupted, for trying by hand."""
    with server() as port:
        print("\n".join(f"export {k}={v}" for k, v in environment(port).items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    os.environ.update(KEYS)
    main()
