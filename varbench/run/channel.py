"""A child's ends of the two pipes to its parent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from varbench.run.messages import Alive, Message, from_line, to_line


class Channel:
    """Sends messages to the parent, and reads its requests."""

    def __init__(self, reading: int, writing: int) -> None:
        for fd in (reading, writing):
            os.set_inheritable(fd, False)  # what a plugin starts must not hold the pipes open
        self._requests = os.fdopen(reading, "rb")
        self._fd = writing
        self._last = 0.0

    def send(self, message: Message) -> None:
        line = to_line(message)
        while line:
            line = line[os.write(self._fd, line) :]
        self._last = time.monotonic()

    def alive(self, text: str = "", *, share: float | None = None) -> None:
        """Sends a sign of life, at most twice a second."""
        if time.monotonic() - self._last > 0.5:
            self.send(Alive(text=text, share=share))

    def requests(self) -> Iterator[Message]:
        """The parent's requests one by one, until it closes its end."""
        for line in self._requests:
            yield from_line(line)
