"""`python -m serving` explains the folder; what is started from it are modules of their own."""

import sys

print(
    """What clipsieve serves with (each: python -m serving.<name> --help):
  embedded           Triton on this machine, without a container, on loopback; `make serve RECIPE=<name>`
  gateway            REST in front of Triton: files in forms, decisions in words, tokens, a page to drop pictures on
  gateway.token      makes a token for the gateway and the line for its file
  rollout            another version of a head while it serves, and the way back
  drift              whether the scores that are served still look like those of training
  perf               load by perf_analyzer and real photographs; `make perf RECIPE=<name>`
  monitoring.local   a Prometheus on this machine; monitoring.preview draws its figures as a page
serving/README.md has the rest: health, overload, priorities. serving/container/ and serving/kubernetes/ are for
production.""",
    file=sys.stderr,
)
