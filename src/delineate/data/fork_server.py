"""Imported by the fork server of the loaders alone, as it starts: it and the workers leave our group of processes.

torchrun sends SIGTERM to the whole group of each training process. That process then stops between two steps, for which it
still needs its workers.
"""

import os

if hasattr(os, "setpgrp"):
    os.setpgrp()
