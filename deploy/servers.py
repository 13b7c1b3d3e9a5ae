"""Real Redis, PostgreSQL and Ray on this machine's loopback, for tests and demonstrations: begun here, ended here.

`python -m deploy.servers` installs the programs where they are missing (Debian). Nothing that already runs is used.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

_WAIT_S = 30.0
_POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks it whether a package may start its service
_PACKAGES = {"redis-server": "redis-server", "postgres": "postgresql", "initdb": "postgresql"}


class ServerMissing(RuntimeError):
    """A program is not installed, or did not start."""


def program(name: str) -> str:
    """Path of an installed program.

    Raises:
        ServerMissing: it is not installed.
    """
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath), "/usr/local/bin", "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise ServerMissing(f"{name} is not installed: python -m deploy.servers, or install {_PACKAGES[name]}")
    return os.path.abspath(found)


def install() -> None:
    """Install what is missing with apt, without starting any service of it.

    Raises:
        ServerMissing: there is no apt, or it may not be used.
    """
    missing = set()
    for name, package in _PACKAGES.items():
        try:
            program(name)
        except ServerMissing:
            missing.add(package)
    if not missing:
        return
    wanted = " ".join(sorted(missing))
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ServerMissing(f"install {wanted} (as root: apt-get install {wanted})")
    print(f"installing {wanted}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    kept = _POLICY.exists()
    if not kept:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *sorted(missing)]):
            subprocess.run(["apt-get", "-qq", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    except subprocess.CalledProcessError:
        raise ServerMissing(f"apt-get could not install {wanted}: install it by hand") from None
    finally:
        if not kept:
            _POLICY.unlink()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class LocalServer:
    """A server in the foreground, as a child of this process.

    Attributes:
        command: starts it.
        port: where it listens on loopback.
        url: for clients.
        ready: whether it answers.
        user: whom it runs as, if not as us.
        wait_s: how long it may take to answer, or to stop.
    """

    command: Sequence[str]
    port: int
    url: str
    ready: Callable[[], bool]
    user: str | None = None
    wait_s: float = _WAIT_S
    _popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        """Start it, with the data it had; returns when it answers.

        One that ends at once is tried again: PostgreSQL does not start beside what a killed one has left running.

        Raises:
            ServerMissing: it does not.
        """
        deadline = time.monotonic() + self.wait_s
        self._popen = self._begun()
        while not self.ready():
            if time.monotonic() > deadline:
                raise ServerMissing(f"{Path(self.command[0]).name} did not start")
            time.sleep(0.05)
            if self._popen.poll() is not None:
                time.sleep(0.5)
                self._popen = self._begun()

    def _begun(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self.user,
            start_new_session=True,
        )

    def kill(self) -> None:
        """As a power failure would: it and its children, at once."""
        children = []
        if self._popen is not None:
            for thread in Path(f"/proc/{self.pid}/task").glob("*/children"):
                children += [int(pid) for pid in thread.read_text().split()]
        self._end(signal.SIGKILL)
        for pid in children:  # PostgreSQL's have process groups of their own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to stop, and its clients to go."""
        self._end(signal.SIGINT)

    def pause(self) -> None:
        """Keep it from answering, until it is resumed."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        os.killpg(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._popen is None:
            return
        if self._popen.poll() is None:
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                self._popen.send_signal(number)
        try:
            self._popen.wait(self.wait_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
        self._popen = None


@contextmanager
def redis(*options: str) -> Iterator[LocalServer]:
    """A Redis that keeps nothing on disk, on a free port; options as on its command line."""
    port = _free_port()
    with TemporaryDirectory(prefix="redis-") as folder:
        fixed = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"]
        server = LocalServer(
            [program("redis-server"), *fixed, *options], port, f"redis://127.0.0.1:{port}/0", lambda: _answers(port)
        )
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def postgresql(*settings: str) -> Iterator[LocalServer]:
    """A PostgreSQL with an empty database `sealface`, on a free port; settings as `name=value`."""
    port = _free_port()
    # it refuses to run as root
    user = None if os.geteuid() else next((name for name in ("postgres", "nobody") if _exists(name)), None)
    with TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data"
        data.mkdir(mode=0o700)
        if user is not None:
            Path(folder).chmod(0o711)
            os.chown(data, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        run = {"check": True, "user": user, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        initdb = [program("initdb"), "-D", str(data), "-U", "sealface", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(initdb, **run)  # type: ignore[call-overload]
        single = [program("postgres"), "--single", "-D", str(data), "postgres"]
        subprocess.run(single, input=b"CREATE DATABASE sealface;\n", **run)  # type: ignore[call-overload]
        fixed = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "max_connections=200"]
        options = [word for setting in (*fixed, *settings) for word in ("-c", setting)]
        server = LocalServer(
            [program("postgres"), "-D", str(data), *options],
            port,
            f"postgresql://sealface@127.0.0.1:{port}/sealface",
            lambda: _accepts(port),
            user,
        )
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def ray_cluster(cpus: int = 4, memory: int = 4_000_000_000) -> Iterator[LocalServer]:
    """A Ray cluster of this machine alone, on a free port; needs the extra `ray`.

    Args:
        cpus: that it says it has, whatever the machine has.
        memory: bytes that it says it has.

    Raises:
        ServerMissing: Ray is not installed, or does not start.
    """
    if importlib.util.find_spec("ray") is None:
        raise ServerMissing("Ray is not installed: pip install 'sealface[ray]'")
    port = _free_port()
    with TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:  # short: it holds sockets
        # without the first Ray listens at the machine's outer address; who joins the cluster needs them too
        settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += [f"--num-cpus={cpus}", f"--memory={memory}", "--temp-dir", folder, "--include-dashboard=false"]
        command += ["--disable-usage-stats"]
        written = Path(folder) / "ray_current_cluster"
        server = LocalServer(command, port, f"127.0.0.1:{port}", written.exists, wait_s=60.0)
        with _environment(settings):
            try:
                server.start()
                yield server
            finally:
                server.stop()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _connected(port: int, request: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(request)
            return connection.recv(64)
    except OSError:
        return b""


def _answers(port: int) -> bool:
    """Whether a Redis answers, if only that it wants a password."""
    return _connected(port, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))


def _accepts(port: int) -> bool:
    """Whether a PostgreSQL lets in: the first message asks for a protocol and a user, `R` is the answer."""
    names = b"user\0sealface\0database\0sealface\0\0"
    start = (8 + len(names)).to_bytes(4, "big") + (196608).to_bytes(4, "big") + names
    return _connected(port, start).startswith(b"R")


if __name__ == "__main__":
    try:
        install()
    except ServerMissing as missing_:
        sys.exit(f"deploy.servers: {missing_}")
