"""Prints alerts.yml as the PrometheusRule of the Prometheus operator.

    python -m serving.monitoring.prometheus_rule > serving/kubernetes/monitoring/prometheus_rule.yaml

The rules live in alerts.yml; a test holds that the checked-in manifest is what this prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recipes.errors import run_step

ALERTS = Path(__file__).parent / "alerts.yml"
HEAD = """\
# Printed by `python -m serving.monitoring.prometheus_rule` from serving/monitoring/alerts.yml; do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: clipsieve}
spec:
"""


def prometheus_rule() -> str:
    """The manifest as YAML: the groups as they stand, without the comment above them."""
    groups = "groups:" + ALERTS.read_text().split("\ngroups:", 1)[1]
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


def main() -> None:
    print(prometheus_rule(), end="")


if __name__ == "__main__":
    sys.exit(run_step("serving.monitoring.prometheus_rule", main))
