"""The one exception of a training step: what was wrong, the value found and what to do.

StepError
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from common.manifest import ManifestError
from recipes.schema import RecipeError


class StepError(Exception):
    """The step cannot go on with what it was given. The message is for the person who ran it."""


def run_step(main: Callable[[], None]) -> int:
    """Run a step's `main` and turn an expected error into one message on stderr and exit status 1."""
    try:
        main()
    except (StepError, RecipeError, ManifestError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, run the same command to go on", file=sys.stderr)
        return 130
    return 0
