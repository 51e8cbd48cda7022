"""Scripts that lack `if __name__ == "__main__":`, and would begin their training anew in every process that it starts."""

from __future__ import annotations

import multiprocessing
import os

UNGUARDED = 64
"""Exit code of a process that was about to begin such a script's training again."""

ADVICE = (
    'each process that this run starts would run your script again; put the part that trains under `if __name__ == "__main__":`'
)


def end_process_that_starts() -> None:
    """End this process, silently, if it is still being started: it is then executing the user's script for a second time.

    Python's own remedy is a long traceback in each new process; the main process says `ADVICE` instead.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)
