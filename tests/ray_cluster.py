"""A Ray cluster of two machines on this one: two raylets with one CPU each, in processes of their own.

    python tests/ray_cluster.py FOLDER

starts it with its files in FOLDER, prints a line of JSON, {"address": …, "raylet_pids": […]} with the process ids of
the first and the second raylet, and ends it when stdin is closed: also when the process that started it dies.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 60_000, "health_check_failure_threshold": 5}
"""A machine that is gone refuses, and is noticed after some seconds instead of half a minute; one that is slow is not
taken for it."""
STORE_BYTES = 80 * 2**20


@contextmanager
def two_raylets() -> Iterator[dict[str, Any]]:
    """Run the program below and yield what it prints; it leaves nothing behind."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: names of sockets may have 107 bytes
    os.mkdir(os.path.join(folder, "ray"))  # where Ray notes the cluster's address; it does not make it itself
    command = [sys.executable, __file__, folder]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
    with open(os.path.join(folder, "log"), "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"no cluster: {Path(folder, 'log').read_text()[-2000:]}")
        yield json.loads(line)
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: str) -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": folder, "_system_config": QUICK})
    nodes: list[Any] = [cluster.head_node, cluster.add_node(**node)]
    raylets = [process.process.pid for each in nodes for process in each.all_processes["raylet"]]
    print(json.dumps({"address": cluster.address, "raylet_pids": raylets}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _serve(sys.argv[1])
