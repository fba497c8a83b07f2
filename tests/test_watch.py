"""Watching, without a server: what is counted of images and scores, and the distribution that training keeps."""

from __future__ import annotations

import importlib
import math
import sys
import threading
import time

import numpy as np
import pytest
from artefacts import encoder_manifest, write_head
from pictures import jpeg
from waiting import until

from build.repository_warmup import draw_picture, warmup_file, warmup_tensor
from common.manifest import ScoreDistribution
from common.paths import MODEL_REPOSITORY
from common.pixels import served_module, served_transform
from common.score_edges import PROBABILITY_EDGES, default_edges
from common.score_watch.parameters import watched_parameters
from common.score_watch.steps import TEMPLATE
from recipes.schema import load_recipe
from serving.drift import TRAINED
from training.score_distribution import score_distribution

served_module()  # clip_pixels, once and for all
sys.path += [str(MODEL_REPOSITORY / "preprocess" / "1"), str(TEMPLATE)]
metric_counters = importlib.import_module("metric_counters")
image_counts = importlib.import_module("image_counts")
score_counts = importlib.import_module("score_counts")
del sys.path[-2:]

LABELS = (("head", "nsfw"), ("label", "nsfw"))


class FakeRegistry:
    """Triton's registry, as a dict."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple], float] = {}
        self.calls = 0

    def increment(self, name, labels, amount):
        self.calls += 1
        self.values[name, labels] = self.values.get((name, labels), 0) + amount

    def set(self, name, labels, value):
        self.values[name, labels] = value

    def of(self, name: str) -> dict[str, float]:
        """Values of one metric by the last of its labels."""
        return {labels[-1][1]: value for (metric, labels), value in self.values.items() if metric == name}


class BrokenRegistry(FakeRegistry):
    def increment(self, name, labels, amount):
        if name == "broken":
            raise RuntimeError("no such family")
        super().increment(name, labels, amount)


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


# ---- counters ----


def test_nothing_reaches_the_registry_before_a_flush_and_then_only_what_changed(registry):
    counters = metric_counters.Counters(registry)
    for _ in range(5):
        counters.add("images")
    counters.add("failures", amount=0)
    assert registry.calls == 0
    counters.flush()
    assert registry.values == {("images", ()): 5, ("failures", ()): 0}
    counters.add("failures", amount=0)
    counters.flush()
    assert registry.calls == 2


def test_histograms_are_cumulative_and_complete(registry):
    counters = metric_counters.Counters(registry)
    counters.add_buckets("sizes", (), (1.0, 10.0, 0.5e6), ())
    for value in (0.5, 1, 1.5, 10, 11, 1e9):
        counters.observe("sizes", (1.0, 10.0, 0.5e6), value)
    counters.flush()
    assert registry.of("sizes") == {"1": 2, "10": 4, "500000": 5, "+Inf": 6}


def test_edges_as_labels():
    assert [metric_counters.le(edge) for edge in (0.001, 0.5, 0, 64e6, 3.14159265, -math.inf)] == [
        "0.001", "0.5", "0", "64000000", "3.14159", "-Inf",
    ]  # fmt: skip


def test_a_registry_that_refuses_one_metric_gets_the_others():
    registry = BrokenRegistry()
    counters = metric_counters.Counters(registry)
    counters.add("broken")
    counters.add("images")
    counters.flush()
    assert registry.values == {("images", ()): 1}


def test_threads_lose_no_count(registry):
    counters = metric_counters.Counters(registry)
    stop = threading.Event()

    def flush_all_the_time() -> None:
        while not stop.is_set():
            counters.flush()

    threads = [threading.Thread(target=lambda: [counters.add("images") for _ in range(2000)]) for _ in range(4)]
    flusher = threading.Thread(target=flush_all_the_time)
    for thread in (flusher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    flusher.join()
    counters.flush()
    assert registry.values["images", ()] == 8000


def test_the_flusher_survives_an_error_and_stops():
    calls = []

    def flush() -> None:
        calls.append(1)
        raise RuntimeError("once more")

    flusher = metric_counters.Flusher(flush, interval_s=0.01)
    until(lambda: len(calls) >= 3)
    flusher.stop()
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count


# ---- images ----


@pytest.fixture
def counted(registry):
    preprocessing, serving = encoder_manifest().preprocessing, load_recipe("demo").serving
    counters = metric_counters.Counters(registry)
    return image_counts.CountedTransform.of(served_transform(preprocessing, serving), counters), counters


def test_images_failures_and_sizes_are_counted(counted, registry):
    transform, counters = counted
    pictures = [jpeg(100, 100), jpeg(1200, 1000), b"not a picture", b""]
    with pytest.raises(served_module().BatchError):
        transform.batch(pictures)
    counters.flush()
    assert registry.values["clipsieve_images_total", ()] == 4
    assert registry.of("clipsieve_image_failures_total") == {"NOT_AN_IMAGE": 1, "EMPTY": 1}
    pixels, sizes = registry.of("clipsieve_image_pixels_bucket"), registry.of("clipsieve_image_bytes_bucket")
    assert (pixels["50000"], pixels["1000000"], pixels["2000000"], pixels["+Inf"]) == (1, 1, 2, 2)
    assert (sizes["10000"], sizes["+Inf"]) == (sum(len(data) <= 10_000 for data in pictures), 4)


def test_counting_changes_no_pixel_and_no_limit(counted):
    transform, _ = counted
    plain = served_transform(encoder_manifest().preprocessing, load_recipe("demo").serving)
    assert np.array_equal(transform(jpeg()), plain(jpeg()))
    assert {name: value for name, value in vars(transform).items() if name != "counters"} == vars(plain)


def test_a_probe_and_the_warm_up_are_not_counted(registry, tmp_path):
    serving = load_recipe("demo").serving
    warmup_file(tmp_path).parent.mkdir(parents=True)
    warmup_file(tmp_path).write_bytes(warmup_tensor(serving))
    transform = served_transform(encoder_manifest().preprocessing, serving)
    counters = metric_counters.Counters(registry)
    transforms = image_counts.RequestTransforms(transform, counters, tmp_path / "preprocess")

    def send(request_id: str, *files: bytes) -> None:
        images = np.array(files, object)
        transforms.of(request_id, images).batch(images)

    warmup = draw_picture(serving)
    send("", warmup)
    send("probe", jpeg())
    counters.flush()
    assert registry.values["clipsieve_images_total", ()] == 0
    send("", jpeg())
    send("", warmup, jpeg())
    counters.flush()
    assert registry.values["clipsieve_images_total", ()] == 3


# ---- scores ----


def watched(**changes):
    fields = {"head": "nsfw", "labels": ("nsfw",), "thresholds": (2,), "edges": (0.1, 0.5, 0.9)} | changes
    return score_counts.WatchedHead(**fields)


def outputs(scores, decisions, revision=7, **more) -> dict[str, np.ndarray]:
    scores, decisions = np.array(scores, np.float32), np.array(decisions, np.int32)
    return {"score": scores, "decision": decisions, "revision": np.full((len(scores), 1), revision), **more}


def test_scores_and_decisions_are_counted(registry):
    counts = score_counts.ScoreCounts(watched(), registry)
    counts.record(outputs([[0.05], [0.0625]], [[0], [0]]))
    counts.record(outputs([[0.6], [0.95], [0.5]], [[1], [2], [0]]))
    counts.flush()
    assert registry.values["clipsieve_scores_total", LABELS] == 5
    assert registry.of("clipsieve_score_bucket") == {"0.1": 2, "0.5": 3, "0.9": 4, "+Inf": 5}
    assert registry.of("clipsieve_decisions_total") == {"allow": 3, "review": 1, "block": 1}
    assert registry.of("clipsieve_head_revision") == {f"{7:016x}": 1}


def test_every_series_is_there_before_the_first_score(registry):
    score_counts.ScoreCounts(watched(), registry).flush()
    assert registry.of("clipsieve_score_bucket") == {"0.1": 0, "0.5": 0, "0.9": 0, "+Inf": 0}
    assert registry.of("clipsieve_decisions_total") == {"allow": 0, "review": 0, "block": 0}
    assert registry.values["clipsieve_scores_total", LABELS] == 0


@pytest.mark.parametrize(
    ("thresholds", "decisions", "expected"),
    [(0, [0, 0], {}), (1, [0, 1], {"allow": 1, "block": 1}), (3, [0, 1, 2, 3], {"allow": 1, "review": 2, "block": 1})],
)
def test_decisions_are_named_as_clients_name_them(registry, thresholds, decisions, expected):
    counts = score_counts.ScoreCounts(watched(thresholds=(thresholds,)), registry)
    counts.record(outputs([[0.5]] * len(decisions), [[value] for value in decisions]))
    counts.flush()
    assert registry.of("clipsieve_decisions_total") == expected


def test_labels_are_counted_apart_up_to_a_limit(registry):
    many = score_counts.MOST_LABELS + 5
    names = tuple(f"label{number}" for number in range(many))
    counts = score_counts.ScoreCounts(watched(labels=names, thresholds=(1,) * many), registry)
    scores = np.zeros((2, many))
    scores[:, 1] = 0.7
    counts.record(outputs(scores, scores > 0.5))
    counts.flush()
    counted = {labels[1][1] for name, labels in registry.values if name == "clipsieve_scores_total"}
    assert counted == set(names[: score_counts.MOST_LABELS])
    of_label = (("head", "nsfw"), ("label", "label1"), ("decision", "block"))
    assert registry.values["clipsieve_decisions_total", of_label] == 2


def test_the_tensors_of_a_request_are_copied(registry):
    counts = score_counts.ScoreCounts(watched(), registry)
    shared = outputs([[0.05]], [[0]])
    counts.record(shared)
    shared["score"][:] = 0.95  # the server uses its memory again
    counts.flush()
    assert registry.of("clipsieve_score_bucket")["0.1"] == 1


def test_training_ratios_are_those_of_the_revision_that_speaks(registry):
    watched_head = watched(training_ratios=((0.2, 0.5, 1.0),), training_revision=f"{7:016x}")
    counts = score_counts.ScoreCounts(watched_head, registry)
    counts.flush()
    known = {"0.1": 0.2, "0.5": 0.5, "0.9": 1.0, "+Inf": 1.0}
    assert registry.of(TRAINED) == known
    lower = {labels[-1][1]: labels[-2][1] for name, labels in registry.values if name == TRAINED}
    assert lower == {"0.1": "-Inf", "0.5": "0.1", "0.9": "0.5", "+Inf": "0.9"}
    for revision, expected in ((8, [math.nan] * 4), (7, list(known.values()))):
        counts.record(outputs([[0.5]], [[0]], revision=revision))
        counts.flush()
        np.testing.assert_equal(list(registry.of(TRAINED).values()), expected)
    assert registry.of("clipsieve_head_revision") == {f"{8:016x}": 0, f"{7:016x}": 1}


def test_a_shadow_is_compared(registry):
    counts = score_counts.ScoreCounts(watched(shadow="next", shadow_thresholds=(1,)), registry)
    shadow = {
        "shadow_score": np.array([[0.05], [0.6], [0.7]], np.float32),
        "shadow_decision": np.array([[0], [1], [1]]),
    }
    counts.record(outputs([[0.05], [0.6], [0.95]], [[0], [1], [2]], **shadow))
    counts.flush()
    assert registry.of("clipsieve_shadow_score_bucket") == {"0.1": 1, "0.5": 1, "0.9": 3, "+Inf": 3}
    assert registry.of("clipsieve_shadow_decisions_total") == {"allow": 1, "block": 2}
    assert registry.of("clipsieve_shadow_disagreements_total") == {"next": 1}  # review against block


def test_outputs_that_cannot_be_counted_do_no_harm(registry):
    counts = score_counts.ScoreCounts(watched(), registry)
    counts.record(outputs([[math.nan]], [[0]]))
    counts.flush()
    assert registry.of("clipsieve_score_bucket") == {"0.1": 0, "0.5": 0, "0.9": 0, "+Inf": 1}
    counts.record({"score": np.zeros((1, 1))})
    with pytest.raises(KeyError):  # the flusher goes on
        counts.flush()
    counts.record(outputs([[0.2]], [[0]]))
    counts.flush()
    assert registry.values["clipsieve_scores_total", LABELS] == 2


# ---- the training's distribution ----


def test_distribution_of_probabilities():
    scores = np.array([[0.0005], [0.2], [0.96], [0.9999]])
    distribution = score_distribution("binary", scores)
    assert (distribution.images, distribution.edges) == (4, PROBABILITY_EDGES)
    ratios = dict(zip(distribution.edges, distribution.ratios[0], strict=True))
    assert (ratios[0.001], ratios[0.3], ratios[0.95], ratios[0.999]) == (0.25, 0.5, 0.5, 0.75)


def test_a_regression_is_cut_at_its_deciles():
    scores = np.random.default_rng(0).normal(5, 2, (1000, 1))
    distribution = score_distribution("regression", scores)
    np.testing.assert_allclose(distribution.ratios[0], np.linspace(0.1, 0.9, 9), atol=0.002)
    assert all(float(f"{edge:.6g}") == edge for edge in distribution.edges)
    assert score_distribution("regression", np.full((10, 1), 3.0)).edges == [3.0]


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_edges_ascend_and_differ_as_labels(task):
    edges = default_edges(task)
    assert edges == sorted(set(edges))
    assert len({metric_counters.le(edge) for edge in edges}) == len(edges)


def test_the_watch_reads_what_the_build_writes(tmp_path):
    manifest = write_head(tmp_path, encoder_manifest(), ["safe", "nsfw"], name="nsfw", thresholds=(0.5, 0.9))
    known = ScoreDistribution(images=4, edges=[0.25, 0.5], ratios=[[0.5, 0.75]])
    manifest = manifest.model_copy(update={"score_distribution": known})
    head = score_counts.WatchedHead.from_parameters({"watched": watched_parameters(manifest, manifest)})
    assert head == score_counts.WatchedHead(
        head="nsfw",
        labels=("nsfw",),
        thresholds=(2,),
        edges=(0.25, 0.5),
        training_ratios=((0.5, 0.75),),
        training_revision=f"{manifest.revision:016x}",
        shadow="nsfw",
        shadow_thresholds=(2,),
    )
