"""Deleting links in the background: it takes 15-60 ms, of which nobody should see anything."""

from __future__ import annotations

import threading

from nativert.isolation.network.links import delete_group
from nativert.isolation.network.netlink import NETLINK_ROUTE, Netlink


class GroupDeleter:
    """One thread, started when first wanted, that deletes all links of one group at a time.

    What is put into the group while it waits for the kernel goes with the next round, so
    that a thousand links take tens of rounds and not a thousand.
    """

    def __init__(self, group: int) -> None:
        self._group = group
        # Opened here: a link's namespace is that of its node, not of some later thread.
        self._netlink = Netlink(NETLINK_ROUTE)
        self._changed = threading.Condition()
        self._wanted = 0
        self._done = 0
        self._closing = False
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None

    def delete(self) -> None:
        """Have the links that are in the group now deleted soon."""
        with self._changed:
            if self._closing:
                raise RuntimeError("cannot delete links: the node is closed")
            self._wanted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="links", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait for what was asked for; raises OSError if the kernel refused."""
        with self._changed:
            target = self._wanted
            self._changed.wait_for(lambda: self._done >= target)
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Finish, end the thread and release the socket; safe twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._netlink.close()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._wanted > self._done)
                if self._wanted == self._done:
                    return
                wanted = self._wanted
            failure: OSError | None = None
            try:
                delete_group(self._netlink, self._group)
            except OSError as e:
                failure = e
            with self._changed:
                self._done = wanted
                self._failure = failure or self._failure
                self._changed.notify_all()
