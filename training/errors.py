"""The one exception of a training step: what was wrong, the value found and what to do.

StepError
"""

from __future__ import annotations

from recipes.errors import ExpectedError

INTERRUPTED = "interrupted; what is finished is kept, run the same command to go on"
"""Message of a step that Ctrl-C ends."""


class StepError(ExpectedError):
    """The step cannot go on with what it was given. The message is for the person who ran it."""
