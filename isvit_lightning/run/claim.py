"""A run directory belongs to the run that writes to it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.lock import locked
from isvit_lightning.system.processes import broadcast_object, rank


@contextmanager
def claimed(directory: Path, below: Sequence[str] = ()) -> Iterator[None]:
    """Keep other runs out of ``directory``. All processes of a run must call it; the first one holds the lock.

    Args:
        directory: run directory; it is made.
        below: names of the folders in it that the run writes to.

    Raises:
        IsvitError: it cannot be written to, or another run writes there.
    """
    with ExitStack() as stack:
        refusal = ""
        if rank() == 0:
            try:
                stack.enter_context(locked(directory, below))
            except IsvitError as error:
                refusal = str(error)
        refusal = broadcast_object(refusal)
        if refusal:
            raise IsvitError(refusal)
        yield
