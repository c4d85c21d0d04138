"""Where the ranks of a group meet: a store that rank 0 keeps, and what they tell each other through it."""

import secrets
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

from loguru import logger
from torch._C._distributed_c10d import TCPStore

from lorikeet_server.config import GroupConfig
from lorikeet_server.dist.bond import KEY as BROKEN
from lorikeet_server.dist.bond import PERIOD_SECONDS
from lorikeet_server.errors import ConfigError, GroupError

SAME, MACHINE, JOINED = "lorikeet/same/{}", "lorikeet/machine/{}", "lorikeet/joined/{}"
ENDPOINT, TOKEN = "lorikeet/endpoint/{}", "lorikeet/token"


@dataclass(frozen=True, slots=True)
class Directory:
    """How a router reaches the ranks that are not on rank 0's machine."""

    endpoints: tuple[str, ...] = ()  # on rank 0: `host:port` by rank, empty for those on its own machine
    token: str = ""  # random for each group; empty if there is nobody to show it to


def join(group: GroupConfig, device: str, timeout: timedelta) -> TCPStore:
    """The group's store. Raises ConfigError where there never will be a group: rank 0 counts other ranks or
    is on another `device`, or machines overlap; GroupError, and RuntimeError after `timeout`.

    A rank that is there for the second time was lost from a group whose others have not noticed. It breaks
    that group, whose ranks end then, and joins the next one.
    """
    if group.rank == 0:
        store = _keep(group, timeout)
        for flag, value in _settings(group, device).items():
            store.set(SAME.format(flag), value)
        return store
    end = time.monotonic() + timeout.total_seconds()
    while True:
        store = connect_to_store(group, timeout)
        _compare(store, group, device)
        if store.add(JOINED.format(group.rank), 1) == 1:
            return store
        logger.warning(
            "rank {} was in this group before, so all of its ranks start again; if it was not lost, another "
            "machine has the same --rank",
            group.rank,
        )
        _outlive(store, group, end)


def _settings(group: GroupConfig, device: str) -> dict[str, str]:
    return {"--world-size": str(group.world_size), "--device": device}


def _compare(store: TCPStore, group: GroupConfig, device: str) -> None:
    for flag, own in _settings(group, device).items():
        if (first := store.get(SAME.format(flag)).decode()) != own:
            where = f"rank 0, at {group.address}:{group.port}"
            raise ConfigError(f"{flag} is {own} here and {first} on {where}; give the same everywhere")
    begins = str(group.rank - group.local_rank)
    if (other := store.compare_set(MACHINE.format(group.rank), "", begins).decode()) != begins:
        raise ConfigError(
            f"rank {group.rank} is on two machines, whose --rank is {begins} and {other}; the next machine's --rank "
            "is this one's and its --num-shard together"
        )


def exchange(store: TCPStore, group: GroupConfig, endpoint: str) -> None:
    """Puts what others ask for into the store, before they can: this rank's endpoint, and rank 0's token."""
    store.set(ENDPOINT.format(group.rank), endpoint)
    if group.rank == 0:
        store.set(TOKEN, secrets.token_hex(16))


def directory(store: TCPStore, group: GroupConfig) -> Directory:
    """Waits for what the others have put there. Empty for a group on one machine."""
    token = store.get(TOKEN).decode()
    if group.apart:
        return Directory(token=token)
    if group.rank > 0:
        return Directory()
    found = [store.get(ENDPOINT.format(rank)).decode() for rank in range(group.world_size)]
    return Directory(tuple(found), token) if any(found) else Directory()


def connect_to_store(group: GroupConfig, timeout: timedelta) -> TCPStore:
    """A connection of its own, which may be used on one thread. Tries for as long as `timeout`."""
    return TCPStore(group.address, group.port, group.world_size, is_master=False, timeout=timeout)


def own_address(address: str, port: int) -> str:
    """The address of this machine on the way to `address`. Raises OSError if there is no way."""
    family = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))  # a datagram socket: sends nothing
        return str(probe.getsockname()[0])


def _keep(group: GroupConfig, timeout: timedelta) -> TCPStore:
    """Binds the socket itself, since TCPStore would bind it to every interface."""
    family = socket.getaddrinfo(group.address, group.port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((group.address, group.port), family=family)
    return TCPStore(
        group.address,
        group.port,
        group.world_size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=True,
    )


def _outlive(store: TCPStore, group: GroupConfig, end: float) -> None:
    """Returns when the store is gone."""
    try:
        store.set(BROKEN, str(group.rank))
        while store.check([BROKEN]):
            if time.monotonic() > end:
                raise GroupError(f"rank 0 at {group.address}:{group.port} does not leave its broken group")
            time.sleep(PERIOD_SECONDS)
    except RuntimeError as error:
        logger.debug("the broken group is gone: {}", error)
