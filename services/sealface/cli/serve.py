"""`sealface serve`: all three services on this machine, or one of them as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealface.cli.authority import CA_FILE
from sealface.cli.output import Exit, fail, print_json, progress, reporting
from sealface.cli.processes import OPERATOR, ZONES, LocalServices, certificate_files
from sealface.cli.workers import Pool, Workers

if TYPE_CHECKING:
    from sealface.runtime.authentication import Issuer
    from sealface.runtime.authorisation import Rate
    from sealface.runtime.server import ServerConfig
    from sealface.runtime.tls import Tls
    from sealface.storage.cache import CacheConfig

_NAMED = ("CREDENTIAL", "CA", "PASSPHRASE_FILE")  # files that the edge service is told of by the environment
_PACKAGES = ("sealface", "sealface_client", "sealface_protos")


class Service(StrEnum):
    """What can be served."""

    KEYS = "keys"
    ENROLLMENT = "enrollment"
    MATCHING = "matching"
    WORKER = "worker"
    EDGE = "edge"


def _memory_gib() -> float:
    """Memory of this machine, or of the container it runs in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit
        machine = min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine / (1 << 30)


@reporting
def serve(
    service: Annotated[Service | None, typer.Argument(help="One service; all three if left out.")] = None,
    state: Annotated[Path, typer.Option(envvar="SEALFACE_STATE", help="State folder.")] = Path(".state"),
    listen: Annotated[str, typer.Option(help="host:port; port 0 takes a free one.")] = "127.0.0.1:0",
    listen_internal: Annotated[
        str, typer.Option(help="host:port of `keys` for the other services, which show a certificate there.")
    ] = "127.0.0.1:0",
    health: Annotated[
        str, typer.Option(help="host:port for health alone, in plaintext: probes of a cluster. Of one service.")
    ] = "",
    keys: Annotated[
        str,
        typer.Option(
            envvar=["SEALFACE_KEYS_INTERNAL", "SEALFACE_KEYS"], help="Address of the key service for other services."
        ),
    ] = "",
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="SEALFACE_TLS_CERT", help="PEM file: this service's certificate.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="SEALFACE_TLS_KEY", help="PEM file: the certificate's private key.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="SEALFACE_TLS_CA", help="PEM file: whose certificates are believed.")
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="host:port of an HTTP endpoint for Prometheus; port 0 takes a free one. Who reaches that of `keys` "
            "sees how many match."
        ),
    ] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", envvar="SEALFACE_INSECURE", help="Plaintext; on loopback only.")
    ] = False,
    database: Annotated[
        str,
        typer.Option(
            envvar="SEALFACE_DATABASE", help="The record, postgresql://…; default a file in the state folder."
        ),
    ] = "",
    redis: Annotated[
        str,
        typer.Option(
            envvar="SEALFACE_REDIS", help="A cache of ciphertexts, redis://…, rediss://…, redis+cluster://…, or none."
        ),
    ] = "",
    redis_gib: Annotated[
        float,
        typer.Option(
            "--redis-memory", min=0.01, envvar="SEALFACE_REDIS_MEMORY", help="GiB of each gallery that Redis holds."
        ),
    ] = 4.0,
    threads: Annotated[
        int, typer.Option(min=1, envvar="SEALFACE_THREADS", help="Threads of all workers; default one a core.")
    ] = os.cpu_count() or 1,
    workers: Annotated[
        int,
        typer.Option(
            min=0, envvar="SEALFACE_WORKERS", help="Worker processes of `matching`; default one for 4 threads."
        ),
    ] = 0,
    pool: Annotated[Pool, typer.Option(envvar="SEALFACE_POOL", help="Where workers run.")] = Pool.LOCAL,
    ray_address: Annotated[
        str, typer.Option(envvar="SEALFACE_RAY_ADDRESS", help="The Ray cluster: host:port, or `auto`.")
    ] = "auto",
    replicas: Annotated[int, typer.Option(min=1, envvar="SEALFACE_REPLICAS", help="Workers that hold each block.")] = 1,
    memory_gib: Annotated[
        float,
        typer.Option(
            "--memory",
            min=0.01,
            envvar="SEALFACE_MEMORY",
            help="GiB of galleries in all workers; default 60% of memory.",
        ),
    ] = _memory_gib() * 0.6,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Largest picture that `edge` takes.")] = 12.0,
    key_encryption: Annotated[
        str,
        typer.Option(
            envvar="SEALFACE_KEY_ENCRYPTION",
            help="Key-encryption key of `keys`: file:PATH, env:NAME, vault+https://host:port/mount/key; "
            "default a file in the state folder.",
        ),
    ] = "",
    key_encryption_old: Annotated[
        str,
        typer.Option(
            envvar="SEALFACE_KEY_ENCRYPTION_OLD", help="The one before, until `sealface keys rewrap` is done."
        ),
    ] = "",
    strikes: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="SEALFACE_STRIKES",
            help="Requests an hour with results that are not genuine that put a key version into quarantine.",
        ),
    ] = 3,
    repeatable: Annotated[
        bool,
        typer.Option(
            envvar="SEALFACE_REPEATABLE",
            help="Keep, for a day, what an auditor needs to compute searches again (`sealface audit recompute`).",
        ),
    ] = False,
    issuers: Annotated[
        Path | None,
        typer.Option(
            envvar="SEALFACE_ISSUERS",
            help="JSON file of OpenID Connect issuers whose tokens are taken: a list of issuer, audience and jwks.",
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.1, envvar="SEALFACE_RATE", help="Calls a second that each caller may make.")
    ] = 500.0,
    as_json: Annotated[bool, typer.Option("--json", help="The ready line is JSON in any case.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Run the services. Prints one JSON line when they are ready; stops on SIGTERM after finishing what it began."""
    state = state.resolve()
    shared = Workers(pool, workers, threads, int(memory_gib * (1 << 30)), replicas, ray_address)
    cache = _cache(redis, redis_gib)
    # for the services and for workers: what may hold a password is in no command line of ours
    os.environ.update(
        SEALFACE_REPEATABLE=str(int(repeatable)),
        SEALFACE_RATE=str(rate),
        **({"SEALFACE_ISSUERS": str(issuers.absolute())} if issuers else {}),
        SEALFACE_DATABASE=database,
        SEALFACE_REDIS=redis,
        SEALFACE_REDIS_MEMORY=str(redis_gib),
    )
    if service is None:
        if health:
            fail("--health is of one service: name it", Exit.USAGE)
        os.environ.update(shared.environment())
        os.environ.update(SEALFACE_KEY_ENCRYPTION=key_encryption, SEALFACE_KEY_ENCRYPTION_OLD=key_encryption_old)
        os.environ.update(SEALFACE_STRIKES=str(strikes))
        if metrics and not metrics.endswith(":0"):
            fail("three services share no port: name port 0 with --metrics, or start each by itself", Exit.USAGE)
        _serve_all(state, insecure, metrics)
    else:
        if service in (Service.ENROLLMENT, Service.MATCHING) and not keys:
            fail("name the key service's address with --keys", Exit.USAGE)
        from sealface.runtime.server import ServerConfig

        tls = None if insecure else _certificate(service, state, (tls_cert, tls_key, tls_ca))
        os.environ.update({"SEALFACE_INSECURE": "1"} if insecure else {})  # for workers
        internal = listen_internal if service is Service.KEYS else None
        config = ServerConfig(listen, tls=tls, internal=internal, health=health or None, metrics=metrics or None)
        of_keys = (key_encryption, key_encryption_old, strikes)
        _serve_one(service, state, config, keys, database, cache, shared, max_megapixels, with_parent, of_keys)


def _certificate(service: Service, state: Path, named: tuple[Path | None, Path | None, Path | None]) -> Tls:
    """The files that were named, else those that `sealface serve` has put in the state folder."""
    from sealface.runtime.tls import Tls

    certificate, key, authority = named
    if certificate and key and authority:
        tls = Tls(certificate.absolute(), key.absolute(), authority.absolute())
        names = ("CERT", "KEY", "CA")
        os.environ.update({f"SEALFACE_TLS_{name}": str(path) for name, path in zip(names, tls.files, strict=True)})
        return tls
    tls = certificate_files(state, service)
    if any(named) or not tls.certificate.exists():
        fail(
            "name a certificate with --tls-cert, --tls-key and --tls-ca, or ask for plaintext with --insecure",
            Exit.USAGE,
        )
    return tls


def _cache(redis: str, gib: float) -> CacheConfig | None:
    """The cache that was named.

    Raises:
        WrongRedisAddress: it is none of Redis.
    """
    if not redis:
        return None
    from sealface.storage.cache import CacheConfig
    from sealface.storage.redis_address import RedisAddress

    return CacheConfig(RedisAddress.parse(redis), int(gib * (1 << 30)))


def _issuers() -> tuple[Issuer, ...]:
    """Whose tokens are taken, of the file that was named.

    Raises:
        InvalidIssuers: it is none.
    """
    from sealface.runtime.authentication import read_issuers

    named = os.environ.get("SEALFACE_ISSUERS")
    return tuple(read_issuers(Path(named))) if named else ()


def _rate() -> Rate:
    from sealface.runtime.authorisation import Rate

    per_second = float(os.environ["SEALFACE_RATE"])
    return Rate(per_second, 4 * per_second)


def _serve_all(state: Path, insecure: bool, metrics: str) -> None:
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    services = LocalServices(state, insecure=insecure, metrics=metrics)
    try:
        services.start()
        for name in services.waiting():
            progress.print(f"the {name} service is up and cannot serve yet: {name}.log in the state folder says why")
        ca = None if services.ca is None else str(services.ca)
        told = {"metrics": services.metrics_addresses} if metrics else {}
        print_json({**services.addresses, "ca": ca, "state": str(state), **told})
        services.watch(lambda: stopping, lambda name: progress.print(f"the {name} service died: starting it again"))
    finally:
        services.stop()


def _serve_one(
    service: Service,
    state: Path,
    config: ServerConfig,
    keys: str,
    database: str,
    cache: CacheConfig | None,
    shared: Workers,
    max_megapixels: float,
    with_parent: bool,
    of_keys: tuple[str, str, int],
) -> None:
    zone = state / ZONES[service]
    zone.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = zone / f"{service}-tmp"
    scratch.mkdir(mode=0o700, exist_ok=True)
    if "NUMBA_CACHE_DIR" not in os.environ:
        # compiled kernels are cached where this process may write, which numba reads when it is imported: begin anew
        os.environ.update(NUMBA_CACHE_DIR=str(zone / "numba"), TMPDIR=str(scratch))
        os.execv(sys.executable, [sys.executable, "-m", "sealface.cli.main", *sys.argv[1:]])  # noqa: S606

    from sealface.runtime import logs
    from sealface.runtime.confinement import confine

    logs.configure(service)
    readable = []
    if service is Service.EDGE:
        from sealface.recognition.weights import weights_folder

        made = subprocess.run([sys.executable, "-m", "sealface.edge.credential", str(state)])  # noqa: S603 - our own
        if made.returncode:
            fail("the edge service has no credential: see above")
        readable = [weights_folder(), state / "services.json", state / CA_FILE]
        readable += [Path(named) for name in _NAMED if (named := os.environ.get(f"SEALFACE_{name}"))]
    if service is Service.KEYS:
        from sealface.keys.providers import open_provider

        readable += [path for address in of_keys[:2] if address for path in _beside(open_provider(address).reads, zone)]
    if cache is not None:
        readable += map(Path, cache.address.files)
    if config.tls is not None:  # folders, because a file that is replaced is another one to the kernel; not the state's
        readable += {file if zone.is_relative_to(file.parent) else file.parent for file in config.tls.files}
    trusted = _issuers() if service in (Service.ENROLLMENT, Service.MATCHING) else ()
    readable += [Path(issuer.jwks) for issuer in trusted if "://" not in issuer.jwks]
    writable = [zone]
    if service is Service.MATCHING:
        writable += shared.folders()
    confined = confine(_PACKAGES, writable, readable)

    from sealface.runtime.server import Server, announce, run

    announce(confined)

    async def main() -> None:
        from sealface.cipher.scheme import Ckks

        scheme = Ckks()
        if service is not Service.MATCHING:  # its workers compute
            scheme.warm()
        server: Server
        if service is Service.KEYS:
            from sealface.keys.server import KeyConfig
            from sealface.keys.server import build as build_keys

            operator = zone / f"{OPERATOR}.pub"
            known = operator if operator.exists() else None
            encryption, before, strikes = of_keys
            server = build_keys(KeyConfig(zone, config, known, encryption, before, strikes=strikes), scheme)
        elif service is Service.ENROLLMENT:
            from sealface.enrollment.server import EnrollmentConfig
            from sealface.enrollment.server import build as build_enrollment

            enrollment = EnrollmentConfig(zone, config, keys, database, cache, trusted, _rate())
            server = build_enrollment(enrollment, scheme)
        elif service is Service.MATCHING:
            from sealface.matching.server import MatchingConfig
            from sealface.matching.server import build as build_matching

            home = shared.home(state, zone, database, cache, config.tls)
            repeatable = os.environ.get("SEALFACE_REPEATABLE") == "1"
            matching = MatchingConfig(
                zone,
                config,
                keys,
                home,
                shared.replicas,
                database=database,
                repeatable=repeatable,
                issuers=trusted,
                rate=_rate(),
            )
            server = build_matching(matching, scheme)
        elif service is Service.WORKER:
            from sealface.workers.server import WorkerConfig
            from sealface.workers.server import build as build_worker

            server = build_worker(WorkerConfig(zone, config, shared.threads, shared.memory, database, cache), scheme)
        else:
            from sealface.edge.server import EdgeConfig
            from sealface.edge.server import build as build_edge
            from sealface.recognition import Limits

            limits = Limits(max_pixels=int(max_megapixels * 1e6))
            server = await build_edge(EdgeConfig(state, config, limits), scheme)

        def ready(address: str) -> None:
            further = {"internal": server.internal} if service is Service.KEYS else {}
            further |= {"metrics": server.metrics} if server.metrics else {}
            further |= {"health": server.health} if server.health else {}
            print_json({"service": service.value, "address": address, "serving": server.serving, **further})

        await run(server, ready, with_stdin=with_parent)

    asyncio.run(main())
    sys.stdout.close()


def _beside(files: Sequence[Path], zone: Path) -> list[Path]:
    """What must be readable to read files that are put there later, or replaced: their folders, but not ours."""
    for path in files:
        if not path.parent.is_dir():  # the process could not read it later
            fail(f"the folder of {path.name} is not there: mount it, or name another file", Exit.USAGE)
    return [path if zone.is_relative_to(path.parent) else path.parent for path in files]
