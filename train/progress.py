"""Types of the callbacks by which a long run reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the step's name, the parts that are done, and all parts."""
StepProgress = Callable[[int, int], None]
"""The same within one step: the parts that are done, and all parts."""
