"""What `Connector.connect` and `Pool.acquire` give back: something to await, or to give to a task, which asks then."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ("Asking",)

T_co = TypeVar("T_co", covariant=True)


class Asking(Coroutine[Any, Any, T_co]):
    """Run as a coroutine, by a task, it begins at its first step. A subclass says what ``await`` does."""

    __slots__ = ()

    coroutine: Coroutine[Any, Any, T_co] | None
    """What was begun by a task; of the subclass's ``__slots__``, where those of two bases would not fit together."""

    def _begin(self) -> Coroutine[Any, Any, T_co]:
        return self._awaited()

    async def _awaited(self) -> T_co:
        return await self

    def send(self, value: Any, /) -> Any:
        """Run as a coroutine, as a task does."""
        if self.coroutine is None:
            self.coroutine = self._begin()
        return self.coroutine.send(value)

    def throw(self, *exc: Any) -> Any:
        """Throw into the coroutine, as a task does when it is cancelled."""
        if self.coroutine is None:
            self.coroutine = self._begin()
        try:
            return self.coroutine.throw(*exc)
        finally:
            # A frame that holds the exception whose traceback holds the frame would wait for the collector.
            del exc

    def close(self) -> None:
        """Give up what was begun as a coroutine."""
        if self.coroutine is not None:
            self.coroutine.close()
