"""What `tuning` tries: settings of a recipe's `serving`, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from common.instances import Processors, with_instances
from recipes.schema import Recipe, RecipeError, parse_recipe
from recipes.serving_section import Serving

Stage = Literal["encoder", "preprocess", "batch", "delay"]
STAGES: tuple[Stage, ...] = ("encoder", "preprocess", "batch", "delay")
QUEUE_DELAYS_US = (0, 500, 2000)


class Setting(BaseModel, extra="forbid", frozen=True):
    """The keys of `serving` that are tuned."""

    encoder_instances: int
    intra_op_threads: int
    preprocess_instances: int
    max_batch_size: int
    max_queue_delay_us: int

    @classmethod
    def of(cls, serving: Serving) -> Setting:
        """What is served with the section here: the recipe's numbers, or what its goal makes of this machine."""
        full = with_instances(serving, Processors.of_this_machine())
        return cls(**{key: getattr(full, key) for key in cls.model_fields})

    def applied_to(self, recipe: Recipe) -> Recipe:
        """
        Raises:
            RecipeError: another key of the recipe forbids it.
        """
        data = recipe.model_dump(exclude_unset=True)
        data["serving"] = data.get("serving", {}) | self.model_dump()
        return parse_recipe(data, recipe.name)

    def change(self, **keys: int) -> Setting:
        return self.model_copy(update=keys)

    def __str__(self) -> str:
        """`2 encoders × 1 thread, 2 preprocess, batch 32`."""
        threads = "all threads" if self.intra_op_threads == 0 else _counted(self.intra_op_threads, "thread")
        delay = f", delay {self.max_queue_delay_us} µs" if self.max_queue_delay_us else ""
        encoders = _counted(self.encoder_instances, "encoder")
        return f"{encoders} × {threads}, {self.preprocess_instances} preprocess, batch {self.max_batch_size}{delay}"


@dataclass(frozen=True)
class Room:
    """What candidates may use.

    Attributes:
        cores: of the machine.
        most_copies: of the encoder that its memory holds.
        most_in_flight: images that are sent at once; no batch is larger.
    """

    cores: int
    most_copies: int
    most_in_flight: int


def candidates(stage: Stage, incumbent: Setting, recipe: Recipe, room: Room) -> list[Setting]:
    """The best setting so far, then what the stage changes in it and the recipe's other keys allow."""
    changed = {
        "encoder": [
            incumbent.change(encoder_instances=instances, intra_op_threads=threads)
            for instances, threads in encoder_layouts(room.cores, room.most_copies)
        ],
        "preprocess": [incumbent.change(preprocess_instances=count) for count in preprocess_counts(room.cores)],
        "batch": [incumbent.change(max_batch_size=size) for size in batch_sizes(room.most_in_flight)],
        "delay": [incumbent.change(max_queue_delay_us=delay) for delay in QUEUE_DELAYS_US],
    }[stage]
    return list(dict.fromkeys([incumbent, *(setting for setting in changed if _allowed(setting, recipe))]))


def encoder_layouts(cores: int, most_copies: int) -> list[tuple[int, int]]:
    """(instances, threads of each) that share out the cores; and one that leaves a core to the decoding."""
    counts = {cores} | {2**power for power in range(cores.bit_length()) if 2**power <= cores}
    layouts = [(count, cores // count) for count in sorted(counts) if count <= most_copies]
    spared = (1, max(1, cores - 1))
    return layouts if spared in layouts else [*layouts, spared]


def preprocess_counts(cores: int) -> list[int]:
    """Processes that decode: one, half the cores, one a core, and half as many again."""
    half = max(1, cores // 2)
    return sorted({1, half, cores, cores + half})


def batch_sizes(most_in_flight: int) -> list[int]:
    """The largest batch that can come together, rounded up to a power of two, its half and its quarter."""
    largest = min(1024, 2 ** (most_in_flight - 1).bit_length())
    return sorted({max(1, largest // 4), max(1, largest // 2), largest})


def _allowed(setting: Setting, recipe: Recipe) -> bool:
    try:
        setting.applied_to(recipe)
    except RecipeError:
        return False
    return True


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
