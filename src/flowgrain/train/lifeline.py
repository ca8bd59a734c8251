"""Notice within a second that a process of the run is gone.

A collective operation that waits for a dead process fails at once with gloo, but hangs with NCCL, and a process that
computes alone (caching, say) would not notice at all. So each process keeps one idle connection to the main one. The
operating system closes it when the process dies, whatever killed it, as it drops the lock of the run folder.
"""

import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait

from torch.distributed import Store

GRACE_SECONDS = 10.0
"""How long a process that lost another may take to end by itself before it is ended."""

_POLL_SECONDS = 0.2
_LOST, _FAILED, _DONE = "lost", "failed", "done"


@dataclass(frozen=True)
class Departure:
    """A process that left the run before its end."""

    rank: int
    exit_code: int | None
    """The exit code that it announced; None for a process that left without a word, such as a killed one."""


class Lifeline:
    """The connections of one process; ``on_stuck`` is called where it goes on too long after another left.

    Making it blocks until all processes are connected. ``store`` tells the others where the main process listens.
    """

    def __init__(self, rank: int, world: int, store: Store, host: str, on_stuck: Callable[[Departure], None]):
        self._rank = rank
        self._on_stuck = on_stuck
        self._departure: Departure | None = None
        self._departed = threading.Event()
        self._closing = threading.Event()
        if rank == 0:
            self._peers = _listen(world, store, host)
        else:
            self._peers = {_call(rank, store, host): 0}
        self._thread = threading.Thread(target=self._watch, name="flowgrain-lifeline", daemon=True)
        self._thread.start()

    def departure(self, timeout: float) -> Departure | None:
        """Who left first, None where nobody has left ``timeout`` seconds from now."""
        self._departed.wait(timeout)
        return self._departure

    def close(self, exit_code: int) -> None:
        """Leave: in good order with exit code 0, else the others learn that this process failed."""
        self._closing.set()
        self._thread.join()
        self._tell(_DONE if exit_code == 0 else _FAILED, self._rank, exit_code)
        for connection in self._peers:
            connection.close()

    def _watch(self) -> None:
        open_connections = dict(self._peers)
        while open_connections and not self._closing.is_set():
            for connection in wait(list(open_connections), _POLL_SECONDS):
                if not isinstance(connection, Connection):
                    continue
                rank = open_connections[connection]
                try:
                    word, who, code = connection.recv_bytes().decode().split()
                except (EOFError, OSError):
                    word, who, code = _LOST, str(rank), "0"
                if int(who) == rank:
                    del open_connections[connection]
                if word != _DONE:
                    self._note(Departure(int(who), None if word == _LOST else int(code)))

    def _note(self, departure: Departure) -> None:
        """Remember the first departure, pass it on, and see to it that this process ends too."""
        if self._departure is not None:
            return
        self._departure = departure
        self._departed.set()
        if self._rank == 0:
            self._tell(_LOST if departure.exit_code is None else _FAILED, departure.rank, departure.exit_code or 0)
        threading.Thread(target=self._end_if_stuck, args=(departure,), daemon=True).start()

    def _end_if_stuck(self, departure: Departure) -> None:
        if not self._closing.wait(GRACE_SECONDS):
            self._on_stuck(departure)

    def _tell(self, word: str, rank: int, exit_code: int) -> None:
        for connection in self._peers:
            try:
                connection.send_bytes(f"{word} {rank} {exit_code}".encode())
            except OSError:
                continue  # it is gone already: its own connection said so


def _listen(world: int, store: Store, host: str) -> dict[Connection, int]:
    """Accept a connection from every other process; each says its rank first."""
    key = secrets.token_bytes(16)
    with Listener((host, 0), authkey=key, backlog=world) as listener:
        store.set("flowgrain/lifeline", f"{listener.address[1]} {key.hex()}")
        peers = {}
        while len(peers) < world - 1:
            connection = listener.accept()
            peers[connection] = int(connection.recv_bytes())
        return peers


def _call(rank: int, store: Store, host: str) -> Connection:
    port, key = store.get("flowgrain/lifeline").decode().split()
    connection = Client((host or os.environ["MASTER_ADDR"], int(port)), authkey=bytes.fromhex(key))
    connection.send_bytes(str(rank).encode())
    return connection
