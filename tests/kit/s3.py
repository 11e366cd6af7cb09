"""S3 on loopback: moto's server in a process of its own, which can be killed like a machine that goes down."""

import http.client
import socket
import subprocess
import sys
import time
from types import TracebackType

START_S = 60.0


class S3Server:
    """A running server with nothing in it. Its buckets go when it does. Use: `with S3Server() as server`."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.05)

    @property
    def environment(self) -> dict[str, str]:
        """Credentials and endpoint as a user gives them."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_S)
        connection.request("PUT", f"/{name}")
        connection.getresponse().read()
        connection.close()

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "S3Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
