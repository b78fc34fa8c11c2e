"""Tensors that stay on the device between two runs of one session: a model's own past, say.

In: an output of a run. Out: an input of a later one, without a way through the caller's memory.
"""

from __future__ import annotations

from fanlight.inference.tensor import Tensor, dtype_of, nbytes
from fanlight.runtime.session import Held, Session

ON_DEVICE = "device"  # where an output stays there


class DeviceTensor:
    """``shape`` and ``dtype`` as those of a Tensor. Memory until ``dispose``, or until the session
    goes."""

    __slots__ = ("dtype", "held", "session", "shape")

    def __init__(self, session: Session, held: Held, dtype: str, shape: tuple[int, ...]) -> None:
        self.session, self.held, self.dtype, self.shape = session, held, dtype, shape

    async def read(self) -> Tensor:
        """A copy in the caller's memory. Raises PlanError after ``dispose``."""
        data = memoryview(await self.session.read(self.held.name))
        size = nbytes(dtype_of(self.dtype), self.shape)
        return Tensor(data[:size], self.dtype, self.shape)

    async def dispose(self) -> None:
        """Gives its memory back. Safe to call twice."""
        await self.session.release(self.held)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.dtype}{list(self.shape)})"
