"""The connector of one node alone: in memory, without any network.

What must outlive the process is in the node's store, from which the plugin publishes again
when it starts.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nativert.errors import Code, NativertError
from nativert.plugin.connector import Answer, Closing, Sample, matches
from nativert.plugin.string_api import Reply


@dataclass(eq=False)
class _Subscription:
    selector: str
    listener: Callable[[Sample], None]
    owner: EmbeddedConnector
    samples: queue.SimpleQueue[Sample | None] = field(default_factory=queue.SimpleQueue)

    def deliver(self) -> None:
        while (sample := self.samples.get()) is not None:
            self.listener(sample)

    def close(self) -> None:
        self.owner.forget(self)


@dataclass(eq=False)
class _Registered:
    close_it: Callable[[], None]

    def close(self) -> None:
        self.close_it()


class EmbeddedConnector:
    """Satisfies `Connector`. Each subscription has a thread, so that no listener waits."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._count = itertools.count(1)
        self._samples: dict[str, Sample] = {}
        self._answers: dict[str, Answer] = {}
        self._subscriptions: list[_Subscription] = []
        self._alive: dict[str, int] = {}

    def get(self, selector: str) -> list[Sample]:
        """Return what is there now, by path."""
        with self._mutex:
            if "*" not in selector:
                found = self._samples.get(_path(selector))
                return [] if found is None else [found]
            return [
                self._samples[path] for path in sorted(self._samples) if matches(selector, path)
            ]

    def put(self, path: str, value: bytes) -> None:
        """Put a whole value in place of the one before."""
        with self._mutex:
            sample = Sample(_path(path), value, str(next(self._count)))
            self._samples[sample.path] = sample
            self._tell(sample)

    def delete(self, path: str) -> None:
        """Take a value away; safe when absent."""
        with self._mutex:
            if self._samples.pop(_path(path), None) is not None:
                self._tell(Sample(_path(path), None, str(next(self._count))))

    def _tell(self, sample: Sample) -> None:
        for subscription in self._subscriptions:
            if matches(subscription.selector, sample.path):
                subscription.samples.put(sample)

    def subscribe(self, selector: str, listener: Callable[[Sample], None]) -> Closing:
        """Call *listener* for what comes from now on, in order, never two at once."""
        subscription = _Subscription(selector, listener, self)
        threading.Thread(target=subscription.deliver, name="subscription", daemon=True).start()
        with self._mutex:
            self._subscriptions.append(subscription)
        return subscription

    def forget(self, subscription: _Subscription) -> None:
        """End a subscription; what waits for its listener is still delivered."""
        with self._mutex:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
                subscription.samples.put(None)

    def eval(self, path: str, answer: Answer) -> Closing:
        """Answer the questions to *path*; another answer to it is replaced."""
        path = _path(path)
        with self._mutex:
            self._answers[path] = answer

        def close() -> None:
            with self._mutex:
                if self._answers.get(path) is answer:
                    del self._answers[path]

        return _Registered(close)

    def ask(self, path: str, parameters: Mapping[str, str], *, timeout_s: float) -> Reply:  # noqa: ARG002
        """Return the answer of whoever answers at *path*; here it takes as long as it takes."""
        with self._mutex:
            answer = self._answers.get(_path(path))
        if answer is None:
            raise NativertError(f"{path}: nobody answers", code=Code.NOT_FOUND)
        return answer(parameters)

    def liveliness(self, path: str) -> Closing:
        """Tell that *path* is alive until closed."""
        path = _path(path)
        token = _Registered(lambda: self._leave(path, token))
        with self._mutex:
            self._alive[path] = id(token)
        return token

    def _leave(self, path: str, token: _Registered) -> None:
        with self._mutex:
            if self._alive.get(path) == id(token):
                del self._alive[path]

    def alive(self, selector: str) -> list[str]:
        """Return the paths that are alive."""
        with self._mutex:
            return sorted(path for path in self._alive if matches(selector, path))


def _path(path: str) -> str:
    # A question may come with a slash at its end, an answer is registered without.
    return "/" + path.strip("/")
