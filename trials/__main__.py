"""Lists the trials, with what each does to the server or the decoders and its command.

    python -m trials                      # or make trial: what there is
    python -m trials overload --rounds 3  # or make trial NAME=overload OPTIONS='--rounds 3'

The same as `python -m trials.overload --rounds 3`, whose exit status is kept.
"""

from __future__ import annotations

import sys

from benchmarks import catalogue

if __name__ == "__main__":
    sys.exit(catalogue.main("trials", sys.argv[1:]))
