"""The verb `serve`: a trained network behind HTTP, until Ctrl-C. Who may ask it is settled before anything starts."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from fer_ray.cli import connection, stages, wording
from fer_ray.config import Config, ConfigError, ServeConfig
from fer_ray.report import pages
from fer_ray.train import resources
from fer_ray.use import drawing

TOKEN = "FER_RAY_SERVE_TOKEN"
MIN_TOKEN = 16  # characters; shorter ones can be guessed over a network
POLL_S = 2.0


def run_serve(config: Config) -> str:
    """Serve the network of a run until the process is told to end; the address."""
    token = _token(config.serve)
    try:
        from fer_ray.use import web
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve: needs the package {error.name}: pip install -e '.[serve]'") from None
    network, search = stages.network_and_search(config, "serve")
    _require_free(config.serve)
    calibrated = network.temperature is not None
    page = pages.render_service({"calibrated": calibrated, "token": bool(token), "max_mb": config.serve.max_mb,
                                 "colours": drawing.COLOURS})
    connection.connect(config.storage)
    from fer_ray.use import service  # imports Ray, which reads its environment then

    device = stages.device_of(config, network.uri)
    settings = web.Settings(page, calibrated, web.digest(token) if token else "", config.serve.max_mb)
    job = service.Job(network.uri, search, device, config.serve, settings, _joins())
    address = _url(config.serve)
    with service.running(job) as processes:
        finders = wording.count(processes.services, "process", "processes")
        where = (f"in {wording.count(processes.networks, 'process', 'processes')}; faces are found by {finders}"
                 if processes.networks else f"in {finders}, where faces are found too")
        wording.say("serve", [f"{network.uri} on {resources.DEVICES[device]} {where}", f"{address} (Ctrl-C ends it)"])
        try:
            _watch(service.trouble)
        except KeyboardInterrupt:
            wording.say("serve", ["ending"])
    return address


def _watch(trouble: Callable[[], str]) -> NoReturn:
    """Say what is wrong with the service, whenever that changes."""
    before = ""
    while True:
        if (now := trouble()) != before:
            wording.say("serve", [now or "all processes answer again"])
        before = now
        time.sleep(POLL_S)


def _joins() -> bool:
    """Whether the command joins a Ray that others have started, maybe on other machines."""
    return (os.environ.get("RAY_ADDRESS") or "local") != "local"


def _require_free(config: ServeConfig) -> None:
    """Raises: ConfigError if another program listens there. Ray Serve would wait for a minute first."""
    if _joins():
        return  # the port is that of other machines
    try:
        socket.create_server((config.host, config.port), family=_family(config.host)).close()
    except OSError as error:
        raise ConfigError(f"serve.port: {config.port} on {config.host}: {error.strerror}; use another --serve.port"
                          ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None)[0][0]


def _token(config: ServeConfig) -> str:
    """The token that requests must bring; "" for none. Raises: ConfigError if there must be one, or a better one."""
    token = os.environ.get(TOKEN, "")
    if token and (len(token) < MIN_TOKEN or not token.isascii() or any(c.isspace() for c in token)):
        raise ConfigError(f"{TOKEN}: must have at least {MIN_TOKEN} characters, all of them ASCII and no blanks")
    if not token and not _is_loopback(config.host):
        raise ConfigError(f"serve.host: {config.host} is open to the network, so a token is needed: set {TOKEN}, for "
                          "example to the output of `openssl rand -hex 24`, or use --serve.host 127.0.0.1")
    return token


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. Raises: ConfigError if there is no such address."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"serve.host: {host!r} is no address of a machine ({error})") from None
    return bool(host) and all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def _url(config: ServeConfig) -> str:
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
