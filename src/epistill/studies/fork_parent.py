"""Imported by the process that a study's workers are forked from, by no other: it ends at once.

Finalizing a Python that has imported torch takes seconds, in which it would hold the study's output
open: who reads that through a pipe waits for its end.
"""

from __future__ import annotations

import atexit
import os

atexit.register(os._exit, 0)
