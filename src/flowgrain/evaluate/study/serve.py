"""Running the server: one process, this address, until it is told to stop."""

from flowgrain.errors import ConfigError, MissingExtraError
from flowgrain.evaluate.study.folder import Study
from flowgrain.evaluate.study.server import ServeConfig, build_app

try:
    import uvicorn
except ImportError:
    raise MissingExtraError("uvicorn", "study", "'flowgrain study serve'") from None

MOST_CONNECTIONS = 1000


def run(study: Study, serve: ServeConfig, host: str, port: int, trusted_proxies: list[str]) -> None:
    """Serve until SIGINT or SIGTERM; running requests are finished first.

    ``X-Forwarded-For`` and ``-Proto`` are believed from ``trusted_proxies`` alone. There is no access log: it would
    hold addresses and the ids of recruiting services. Raises ConfigError where the address cannot be used.
    """
    config = uvicorn.Config(
        build_app(study, serve),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=10,
        lifespan="off",
        ws="none",
    )
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn has said why
        raise ConfigError(f"{host}:{port}: this address cannot be used; choose another --port or --host") from None
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        return  # uvicorn has shut down in order and passes the Ctrl-C on
    finally:
        listening.close()
        study.store.engine.dispose()
