"""The three services as processes on this machine: started, watched, started again, stopped."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from sealface.cli.authority import CA_FILE, LEAF_LIFETIME, Authority
from sealface.errors import Unavailable, WrongState
from sealface.protocol.signing import Credential, write_private
from sealface.protocol.zones import Zone
from sealface.runtime.tls import Tls
from sealface_client.endpoints import SERVICES_FILE

OPERATOR = "operator"
SERVICES = ("keys", "enrollment", "matching")
ZONES = {"keys": "keys", "enrollment": "compute", "matching": "compute", "worker": "compute", "edge": "edge-service"}
_ZONE_OF = {"keys": Zone.KEYS, "compute": Zone.COMPUTE, "edge-service": Zone.EDGE}
_OF_COMPUTE = {"SEALFACE_DATABASE", "SEALFACE_REDIS"}
_OF_KEYS = ("SEALFACE_KEY_ENCRYPTION", "VAULT_")
_OF_A_DEPLOYMENT = {"SEALFACE_TLS_CERT", "SEALFACE_TLS_KEY", "SEALFACE_TLS_CA", "SEALFACE_INSECURE"}
_START_S = 120.0
_STOP_S = 30.0


class StateInUse(WrongState):
    """Other services run on the same state folder."""


class ServiceDidNotStart(Unavailable):
    """A service did not get ready."""


@dataclass
class _Process:
    name: str
    popen: subprocess.Popen[str]
    serving: bool = True


@dataclass
class LocalServices:
    """Running services.

    Attributes:
        state: their state folder.
        addresses: service -> `host:port`.
        environment: added to that of this process.
        insecure: whether they speak plaintext.
        internal: address of the key service for the other services.
        lifetime: of their certificates, which are renewed when half of it is over.
        metrics: `host:0` where each serves metrics; empty for none.
        metrics_addresses: service -> `host:port` of its metrics.
    """

    state: Path
    addresses: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    insecure: bool = False
    internal: str = ""
    lifetime: timedelta = LEAF_LIFETIME
    metrics: str = ""
    metrics_addresses: dict[str, str] = field(default_factory=dict)
    _authority: Authority | None = None
    _certified: float = 0.0  # when certificates were issued last, seconds since 1970
    _processes: dict[str, _Process] = field(default_factory=dict)
    _lock: IO[str] | None = None

    @property
    def ca(self) -> Path | None:
        """The certificate that clients are to trust."""
        return None if self.insecure else self.state / CA_FILE

    def pid(self, service: str) -> int:
        """Process id of a service."""
        return self._processes[service].popen.pid

    def waiting(self) -> list[str]:
        """Services that listened when they had started, and could not serve yet: sealed keys."""
        return [process.name for process in self._processes.values() if not process.serving]

    def worker_pids(self) -> list[int]:
        """Process ids of the workers of the matching service."""
        matching = Path(f"/proc/{self.pid('matching')}/task")
        return [int(pid) for thread in matching.iterdir() for pid in (thread / "children").read_text().split()]

    def start(self) -> None:
        """Start all three on free ports; returns when they accept calls.

        Raises:
            StateInUse: others run on the same state folder.
            ServiceDidNotStart: one of them did not; its log says why.
        """
        _prepare(self.state)
        self._lock = open(self.state / "lock", "w", opener=_private)  # noqa: SIM115 - held until they stop
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateInUse("services run on this state folder already: stop them, or name another folder") from None
        _compile(self.state)
        if not self.insecure:
            self._authority = Authority.at(self.state / "authority")
            self._authority.publish(self.state / CA_FILE)
            self.certify()
        self.launch("keys")
        for launched in [self._spawn(service) for service in SERVICES[1:]]:
            self._await(launched)
        found = self.addresses | ({} if self.insecure else {"ca": CA_FILE})
        write_private(self.state / SERVICES_FILE, json.dumps(found).encode())

    def certify(self) -> None:
        """Give every service another certificate; those that run take it up by themselves."""
        if self._authority is None:
            return
        for service, folder in ZONES.items():
            self._authority.certify(certificate_files(self.state, service), _ZONE_OF[folder], self.lifetime)
        self._certified = time.time()

    def launch(self, service: str) -> None:
        """Start one service, at the address it had before if it had one.

        Raises:
            ServiceDidNotStart: it did not get ready.
        """
        self._await(self._spawn(service))

    def _spawn(self, service: str) -> _Process:
        zone = self.state / ZONES[service]
        command = [sys.executable, "-m", "sealface.cli.main", "serve", service, "--state", str(self.state)]
        command += ["--with-parent", "--listen", self.addresses.get(service, "127.0.0.1:0")]
        command += ["--insecure"] if self.insecure else []
        command += ["--metrics", self.metrics_addresses.get(service, self.metrics)] if self.metrics else []
        if service == "keys":
            command += ["--listen-internal", self.internal or "127.0.0.1:0"]
        else:
            command += ["--keys", self.internal]
        environment = (
            {name: value for name, value in os.environ.items() if name not in _OF_A_DEPLOYMENT}
            | self.environment
            | {
                "NUMBA_CACHE_DIR": str(zone / "numba"),
                "TMPDIR": str(zone / f"{service}-tmp"),
                "MALLOC_ARENA_MAX": "2",  # glibc keeps what threads have freed for each of them: a tenth of memory
            }
        )
        # another operator's: each zone is not told where the other keeps its own
        hidden = _OF_COMPUTE if service == "keys" else _of_keys(environment)
        environment = {name: value for name, value in environment.items() if name not in hidden}
        died = self._processes.pop(service, None)
        if died is not None:
            died.popen.communicate()
        with open(zone / f"{service}.log", "a", opener=_private) as log:
            popen = subprocess.Popen(  # noqa: S603 - our own program, no shell
                command,
                stdin=subprocess.PIPE,  # never written to: it closes with this process, whatever ends it
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )
        self._processes[service] = _Process(service, popen)
        return self._processes[service]

    def _await(self, process: _Process) -> None:
        assert process.popen.stdout is not None  # noqa: S101 - it is a pipe
        line = _first_line(process.popen.stdout)
        try:
            ready = json.loads(line)
            self.addresses[process.name], process.serving = ready["address"], ready["serving"]
            self.internal = ready.get("internal", self.internal)
            self.metrics_addresses |= {process.name: ready["metrics"]} if self.metrics else {}
        except (ValueError, KeyError):
            process.popen.kill()  # it may be there and not get ready
            raise ServiceDidNotStart(
                f"the {process.name} service did not start: see {process.name}.log in the state folder"
            ) from None

    def watch(self, stopping: Callable[[], bool], restarted: Callable[[str], None]) -> None:
        """Start again what dies, until it is time to stop; what does not get ready, for want of a database, too.

        Certificates are renewed in time.
        """
        while not stopping():
            if time.time() - self._certified > self.lifetime.total_seconds() / 2:
                with suppress(OSError):  # a full disk: it is tried again, those that there are last as long once more
                    self.certify()
            for process in list(self._processes.values()):
                if process.popen.poll() is not None:
                    restarted(process.name)
                    with suppress(ServiceDidNotStart):  # it is dead, so that it is tried again
                        self.launch(process.name)
            time.sleep(0.2)

    def stop(self) -> None:
        """Ask all to stop, in the order in which they depend on each other."""
        for service in reversed(SERVICES):
            process = self._processes.pop(service, None)
            if process is None:
                continue
            process.popen.send_signal(signal.SIGTERM)
            try:
                process.popen.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.popen.kill()
            process.popen.communicate()
        if self._lock is not None:
            self._lock.close()


def _of_keys(environment: Mapping[str, str]) -> set[str]:
    """Variables that lead to the key-encryption key, or hold it."""
    found = {name for name in environment if name.startswith(_OF_KEYS)}
    addresses = [environment[name] for name in found]
    return found | {address.removeprefix("env:") for address in addresses if address.startswith("env:")}


def certificate_files(state: Path, service: str) -> Tls:
    """Where `sealface serve` puts a service's certificate, and a copy of the authority's: in the service's own zone."""
    folder = state / ZONES[service] / "tls"
    return Tls(folder / f"{service}.pem", folder / f"{service}.key", folder / CA_FILE)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _first_line(pipe: IO[str]) -> str:
    ready, _, _ = select.select([pipe], [], [], _START_S)
    return pipe.readline() if ready else ""


def _prepare(state: Path) -> None:
    """Folders by zone, and the operator's credential: the private half in the edge, the public one in the keys."""
    for zone in {*ZONES.values(), "edge"}:
        (state / zone).mkdir(mode=0o700, parents=True, exist_ok=True)
    private = state / "edge" / f"{OPERATOR}.pem"
    credential = Credential.load(private) if private.exists() else Credential.generate(f"callers/{OPERATOR}")
    if not private.exists():
        credential.save(state / "edge")
    credential.publish(state / "keys")


def _compile(state: Path) -> None:
    """Compile the kernels once on this machine, and give each zone its copy: a zone writes nowhere else."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sealface" / "kernels"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from sealface.cipher.scheme import Ckks; Ckks().warm()"]
    subprocess.run(command, env=os.environ | {"NUMBA_CACHE_DIR": str(cache)}, check=True)  # noqa: S603 - our own program
    for zone in set(ZONES.values()):
        shutil.copytree(cache, state / zone / "numba", dirs_exist_ok=True)


@contextmanager
def local_services(
    state: Path | None = None, *, insecure: bool = False, metrics: str = "", **environment: str
) -> Iterator[LocalServices]:
    """Services for the time of a block; in a temporary state folder if none is named, and with variables of theirs."""
    with TemporaryDirectory(prefix="sealface-") as temporary:
        services = LocalServices(state or Path(temporary), environment=environment, insecure=insecure, metrics=metrics)
        try:
            services.start()
            yield services
        finally:
            services.stop()


@contextmanager
def services_at(state: Path | None, tell: Callable[[str], None]) -> Iterator[Path | None]:
    """The running services a command was told of, else some of its own for as long as it runs."""
    if state is not None or all(os.environ.get(f"SEALFACE_{name.upper()}") for name in SERVICES):
        yield state
        return
    tell("no services named (--state): starting three of my own, their state is dropped at the end")
    with local_services() as services:
        yield services.state
