"""Numbers of encoders, their threads and decoding processes: the recipe's own, or by `serving.goal` from the machine.

`latency` gives one encoder all cores, so that one request is answered soonest. `throughput` gives each encoder few, so
that no core waits for another at the end of a product: on two cores two encoders of one thread. Copies cost memory, the
weights of each stream through the same caches, and more encoders gather smaller batches: the threads of one grow with
the root of the cores, to 2 of 16 and 4 of 64. On a GPU two encoders hide copies, and decoding has all cores.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from common.cpu import physical_core_count
from common.gpu import find_gpus
from recipes.serving_section import Serving

PARAMETER = "instances_for"
"""Parameter of the encoder's config.pbtxt with the Processors that its numbers were decided for, as JSON."""
FEWEST_DECODING = 2
ENCODERS_OF_A_GPU = 2
PICTURES_OF_A_THREAD = 4
"""Pictures of a batch for each thread of an encoder: ViT-B/32 takes 85 ms of a core for one, 70 each for four."""


@dataclass(frozen=True)
class Processors:
    """What a machine has for instances."""

    cores: int
    """Physical cores."""
    gpus: int = 0

    @classmethod
    def of_this_machine(cls) -> Processors:
        try:
            return cls(physical_core_count(), len(find_gpus()))
        except OSError:  # without a driver
            return cls(physical_core_count())

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return cores + (f" and {self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "")


def with_instances(serving: Serving, machine: Processors) -> Serving:
    """The section with every number of instances and threads filled in; what the recipe gives stays."""
    return serving.model_copy(update=_decided(serving, machine))


def is_decided(serving: Serving) -> bool:
    """True if the machine decides a number."""
    given = (serving.encoder_instances, serving.intra_op_threads, serving.preprocess_instances)
    return serving.goal == "throughput" and None in given


def instances_line(serving: Serving, machine: Processors) -> str:
    """One line for logs: the numbers, the goal and the machine they are for."""
    full = with_instances(serving, machine)
    encoders = "1 encoder" if full.encoder_instances == 1 else f"{full.encoder_instances} encoders"
    threads = {0: "all cores", 1: "1 thread"}.get(full.intra_op_threads or 0, f"{full.intra_op_threads} threads")
    each = "a GPU" if machine.gpus else f"of {threads}"
    why = f"for goal {serving.goal} on {machine}" if is_decided(serving) else f"goal {serving.goal}"
    return f"{encoders} {each}, {full.preprocess_instances} to decode; {why}"


def preferred_batch(serving: Serving, machine: Processors) -> int | None:
    """Pictures that an encoder best takes at once where more wait; None to take all, as for latency and on a GPU.

    Larger batches are no faster on a CPU, and the pictures of one that takes all that waits are missing at the others.
    """
    if serving.goal == "latency" or machine.gpus:
        return None
    threads = with_instances(serving, machine).intra_op_threads or machine.cores
    return min(PICTURES_OF_A_THREAD * threads, serving.max_batch_size)


def processors_text(machine: Processors) -> str:
    return json.dumps(asdict(machine))


def recorded_processors(repository: Path) -> Processors | None:
    """The machine that a repository's numbers were decided for; None where the recipe or the goal latency gave them.

    Read without protobuf, which the server's image lacks.
    """
    config = repository / "clip_encoder" / "config.pbtxt"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    value = rf'key:\s*"{PARAMETER}"\s*value:?\s*{{\s*string_value:\s*"((?:[^"\\]|\\.)*)"'
    match = re.search(value, text)
    try:
        return Processors(**json.loads(match[1].replace('\\"', '"'))) if match else None
    except (ValueError, TypeError):
        return None


def other_machine_note(repository: Path, machine: Processors) -> str | None:
    """A line for the log where a repository's numbers were decided for another machine; None where they fit."""
    recorded = recorded_processors(repository)
    if recorded is None or recorded == machine:
        return None
    return (
        f"{repository}: its encoders were laid out for {recorded}, this machine has {machine}; likely slower than "
        "it could be: run make engines here, or give serving.encoder_instances and intra_op_threads in the recipe"
    )


def _decided(serving: Serving, machine: Processors) -> dict[str, int]:
    encoders, threads, decoding = serving.encoder_instances, serving.intra_op_threads, serving.preprocess_instances
    if serving.goal == "latency":
        decided = {"encoder_instances": 1, "intra_op_threads": 0, "preprocess_instances": FEWEST_DECODING}
    else:
        copies = max(1, machine.cores // (threads or threads_of_one(machine.cores)))
        count = encoders or (ENCODERS_OF_A_GPU if machine.gpus else copies)
        decided = {
            "encoder_instances": count,
            "intra_op_threads": max(1, machine.cores // (count * max(1, machine.gpus))),
            "preprocess_instances": max(FEWEST_DECODING, machine.cores),
        }
    given = {"encoder_instances": encoders, "intra_op_threads": threads, "preprocess_instances": decoding}
    return decided | {key: value for key, value in given.items() if value is not None}


def threads_of_one(cores: int) -> int:
    """Threads of one encoder for throughput: 1 up to 15 cores, 2 of 16, 4 of 64."""
    return max(1, math.isqrt(cores) // 2)
