"""benchmarks.peers: the report of the peers, how they are loaded, and the reason that is given for a missing one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pictures import jpeg
from PIL import Image
from waiting import PATIENCE_S

from benchmarks.peers import environments, processes, vit_classifier
from benchmarks.peers.__main__ import CLASSIFIER, ENVIRONMENT_OF, RECIPE, SERVICES, WITHOUT_SERVER
from benchmarks.peers.clip_retrieval import command, read_run
from benchmarks.peers.contest import Contest, Settings, equal_rate
from benchmarks.peers.contestants import Contestant, Served
from benchmarks.peers.environments import ENVIRONMENTS, Environment, PeerError, install, last_line
from benchmarks.peers.figures import (
    Figures,
    Measured,
    PairedRatio,
    added_ms,
    as_json,
    comparisons,
    figures_of,
    paired_ratios,
    picture_latencies,
)
from benchmarks.peers.hugging_face import image_config, model_config, renamed
from benchmarks.peers.limit import Limit, until
from benchmarks.peers.load import Ask, Throughput, offer, one_by_one, saturate
from benchmarks.peers.material import CHECKED, Material, PictureAnswer, difference, leaves_even
from benchmarks.peers.pausing import Paused
from benchmarks.peers.pictures import MEGAPIXELS, jpeg_pictures, scaled_size
from benchmarks.peers.processes import Process, busy_s, cpu_s, process_tree, resident_mib, wait_until
from benchmarks.peers.servers import Server, Service, served_recipe, services
from benchmarks.results.views import terminal_text
from common.manifest import Preprocessing
from common.paths import ROOT
from recipes.schema import load_recipe

SHORT = Settings(seconds=0.1, rounds=2, concurrencies=(1, 2))


@pytest.fixture
def material(tmp_path: Path, demo) -> Material:
    """A server that scores pictures 0 to 7 with a tenth of their number."""
    embeddings = np.eye(CHECKED, 8, dtype=np.float32)
    return Material(demo, tmp_path, [bytes([number]) for number in range(8)], np.arange(CHECKED) / 10, embeddings)


async def tenth(picture: bytes) -> PictureAnswer:
    await asyncio.sleep(0.001)
    return PictureAnswer(score=picture[0] / 10)


async def failing(picture: bytes) -> PictureAnswer:
    raise ValueError("no")


class FakeServer(Server):
    """Answers in this process; `pid` is another's, which can be stopped."""

    def __init__(self, ask: Ask, pid: int = 0) -> None:
        self.ask, self._pid = ask, pid

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def started_s(self) -> float:
        return 0.0

    def check(self) -> None:
        pass

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        yield self.ask


def service(name: str, ask: Ask, workers: tuple[int, ...] = (1,)) -> Service:
    @contextmanager
    def start(workers: int, folder: Path) -> Iterator[Server]:
        with Process(["sleep", "999"], os.environ, folder / f"{name}.log") as process:
            yield FakeServer(ask, process.pid)

    return Service(name, start, workers)


# ---- environments ----


@pytest.fixture
def peers(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(environments, "PEERS", tmp_path / "peers")
    return tmp_path / "peers"


def test_an_environment_that_was_never_made_says_how_to_make_it(peers):
    with pytest.raises(PeerError, match="--install"):
        ENVIRONMENTS["mlflow"].check()


def test_what_cannot_be_installed_is_told_with_the_installers_last_line(peers, tmp_path):
    nowhere = Environment("nowhere", (str(tmp_path / "no-such-package"),), "nowhere")
    problem = install(nowhere)
    assert "no-such-package" in problem
    with pytest.raises(PeerError, match=r"could not be installed: .*no-such-package"):
        nowhere.check()


def test_an_environment_sees_the_packages_of_this_one_after_its_own(peers, tmp_path):
    (tmp_path / "none.txt").write_text("# nothing of its own\n")
    empty = Environment("empty", ("--requirements", str(tmp_path / "none.txt")), "numpy")
    assert install(empty) == ""
    empty.check()
    say = "import numpy, sys; print(numpy.__version__, sys.path[-1])"
    finished = subprocess.run([empty.bin / "python", "-c", say], capture_output=True, text=True, check=True)
    assert finished.stdout.split()[0] == np.__version__
    assert finished.stdout.split()[1] in sys.path
    assert empty.version() == np.__version__


def test_peers_download_nothing_and_find_their_own_programs_first():
    variables = ENVIRONMENTS["fastapi"].variables(threads=2)
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["PATH"].startswith(str(ENVIRONMENTS["fastapi"].bin))
    assert "OMP_NUM_THREADS" not in set(ENVIRONMENTS["fastapi"].variables()) - set(os.environ)


def test_torch_is_never_installed_again():
    assert "torch ; python_version < '3'" in environments.overrides().splitlines()


@pytest.mark.parametrize(
    ("text", "line"),
    [("error: a\n  cause: b\n\n", "cause: b"), ("  × No way\n  ╰─▶ Because of this.\n", "Because of this."), ("", "")],
)
def test_last_line(text, line):
    assert last_line(text) == line


def test_every_peer_has_an_environment_and_a_start(demo, tmp_path):
    material = Material(demo, tmp_path, [], np.zeros(0), np.zeros((0, 1)))
    assert [each.name for each in services(material, material)] == list(SERVICES)
    assert set(ENVIRONMENT_OF.values()) == set(ENVIRONMENTS)
    assert set(ENVIRONMENT_OF) < set(SERVICES) | set(WITHOUT_SERVER)


@pytest.mark.parametrize("name", ["FastAPI", "MLflow", "LitServe", "infinity", "transformers ViT-B/16"])
def test_a_peer_that_is_not_installed_is_not_started(peers, material, name):
    (peer,) = (each for each in services(material, material) if each.name == name)
    with pytest.raises(PeerError, match="--install"), peer.start(1, material.folder):
        pass


@pytest.mark.parametrize("file", [RECIPE, CLASSIFIER])
def test_the_benchmarks_own_recipes_are_some(file):
    assert load_recipe(ROOT / file).encoder.weights_source == "random-1"


def test_ours_differ_in_precision_and_goal_alone(material):
    recipe = served_recipe(material, "int8", "throughput")
    assert (recipe.build.precision, recipe.serving.goal) == ("int8", "throughput")
    assert served_recipe(material, "fp32", "latency").serving == material.recipe.serving


# ---- pictures and right answers ----


def test_pictures_are_jpegs_of_mixed_size():
    pictures = jpeg_pictures()
    sizes = []
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.append(image.size)
    assert len(pictures) == 9 * len(MEGAPIXELS) + 16
    assert sum(width * height > 1.5e6 for width, height in sizes) == 9
    assert len(set(sizes[:10])) > 5


def test_scaled_size_keeps_the_shape():
    assert scaled_size((400, 300), 0.48) == (800, 600)
    assert scaled_size((10_000, 1), 0.000_001)[1] == 1


def test_right_scores_and_embeddings_pass(material):
    assert difference(material, [PictureAnswer(score=score) for score in material.scores], 0.999) == 0
    longer = [PictureAnswer(embedding=3 * row) for row in material.embeddings]
    assert difference(material, longer, 0.999) == pytest.approx(0)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([PictureAnswer(score=0.0)], "1 of 6"),
        ([PictureAnswer(score=0.3)] * CHECKED, "scores differ from ours by 0.3"),
        ([PictureAnswer(score=float("nan"))] * CHECKED, "scores differ"),
        ([PictureAnswer(embedding=np.ones(8))] * CHECKED, "cosine"),
        ([PictureAnswer(embedding=np.zeros(8))] * CHECKED, "cosine"),
    ],
)
def test_wrong_answers_are_refused(material, answers, message):
    with pytest.raises(PeerError, match=message):
        difference(material, answers, 0.999)


# ---- load ----


@pytest.mark.parametrize(("size", "even"), [((248, 248), True), ((248, 250), True), ((248, 251), False)])
def test_a_crop_that_leaves_out_an_odd_number_is_known(size, even):
    view = Preprocessing(
        image_size=224, resize_size=248, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
    )
    assert leaves_even(jpeg(*size), view) is even
    assert leaves_even(jpeg(*size[::-1]), view) is even


def test_a_closed_loop_counts_what_it_was_given():
    throughput = asyncio.run(saturate(tenth, [b"\0", b"\1"], concurrency=3, seconds=0.1))
    assert throughput.images >= 3
    assert throughput.seconds >= 0.1
    assert throughput.images_per_s == pytest.approx(throughput.images / throughput.seconds)


def test_every_picture_is_sent_once_alone():
    sent = []

    async def ask(picture: bytes) -> PictureAnswer:
        sent.append(picture)
        return PictureAnswer()

    assert len(asyncio.run(one_by_one(ask, [b"a", b"b", b"c"]))) == 3
    assert sent == [b"a", b"b", b"c"]


def test_an_open_loop_sends_no_more_than_its_rate():
    assert 1 <= len(asyncio.run(offer(tenth, [b"\0"], rate_per_s=100, seconds=0.2))) <= 21


@pytest.mark.parametrize("load", [lambda: saturate(failing, [b""], 2, 0.05), lambda: offer(failing, [b""], 50, 0.05)])
def test_failures_are_no_answers(load):
    with pytest.raises(PeerError, match="requests failed, the first with ValueError"):
        asyncio.run(load())


# ---- the limit ----


@pytest.fixture
def limit() -> Limit:
    def encoder(threads: int):
        return lambda pixels: pixels.reshape(len(pixels), -1)[:, 0] / 10

    return Limit(encoder, lambda data: np.full((2, 2, 3), data[0], np.uint8), [bytes([number]) for number in range(5)])


@pytest.mark.parametrize("layout", ["beside", "apart"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_both_layouts_work_until_the_time_is_up(limit, layout, batch_size):
    figures = limit.run(seconds=0.05, batch_size=batch_size, layout=layout)
    assert figures["images"] >= 1
    assert figures["seconds"] >= 0.05


def test_the_limit_scores_in_order_and_alone(limit):
    assert limit.scores(3)["scores"] == pytest.approx([0, 0.1, 0.2])
    assert len(limit.one_by_one()["milliseconds"]) == 5
    assert len(limit.one_by_one(3)["milliseconds"]) == 3


def test_until_a_moment_that_has_passed_nothing_is_drawn():
    assert list(until(iter([b"a"]), end=0)) == []


# ---- processes ----


def python(code: str, log: Path, pipe: bool = False) -> Process:
    return Process([sys.executable, "-c", code], os.environ, log, pipe)


def test_a_process_that_fails_is_told_with_its_last_line(tmp_path):
    with python("import sys; print('first'); sys.exit('out of luck')", tmp_path / "log") as process:
        with pytest.raises(PeerError, match="status 1: out of luck"):
            process.wait(PATIENCE_S)
        with pytest.raises(PeerError, match="out of luck"):
            process.check()


def test_a_program_that_is_not_there_is_told(tmp_path):
    with pytest.raises(PeerError, match="nothing-of-this-name cannot be started: No such file"):
        Process([tmp_path / "nothing-of-this-name"], {}, tmp_path / "log").__enter__()


def test_a_process_ends_with_all_it_started(tmp_path):
    code = "import subprocess, time; subprocess.Popen(['sleep', '999']); print('up', flush=True); time.sleep(999)"
    with python(code, tmp_path / "log") as process:
        assert wait_until(lambda: process.log.read_text() == "up\n", PATIENCE_S)
        (child,) = psutil.Process(process.pid).children()
        assert resident_mib(process.pid) > 1
        assert cpu_s(process.pid) > 0
    assert wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, PATIENCE_S)


def test_the_machines_time_grows_with_work():
    before = busy_s()
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        pass
    assert busy_s() > before


# ---- stopping what is not measured ----


@pytest.fixture
def family(tmp_path) -> Iterator[int]:
    """A process with a child and a grandchild."""
    sleeps = "import subprocess, time; subprocess.Popen(['sleep', '999']); time.sleep(999)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {sleeps!r}]); time.sleep(999)"
    with python(code, tmp_path / "family.log") as process:
        assert wait_until(lambda: len(process_tree(process.pid)) == 3, PATIENCE_S)
        yield process.pid


def states(pid: int) -> set[bool]:
    """Whether the processes of a tree are stopped."""
    return {process.status() == psutil.STATUS_STOPPED for process in process_tree(pid)}


def test_all_processes_of_a_peer_stop_and_go_on(family):
    with Paused() as paused:
        paused.stop(family)
        assert wait_until(lambda: states(family) == {True}, PATIENCE_S)
        with paused.awake(family):
            assert wait_until(lambda: states(family) == {False}, PATIENCE_S)
        assert wait_until(lambda: states(family) == {True}, PATIENCE_S)
    assert wait_until(lambda: states(family) == {False}, PATIENCE_S)
    assert len(process_tree(family)) == 3


@pytest.mark.parametrize("error", [PeerError("broken"), KeyboardInterrupt(), SystemExit(143)])
def test_what_was_stopped_goes_on_after_an_exception(family, error):
    with pytest.raises(type(error)), Paused() as paused:  # noqa: PT012 (the second is stopped when it comes)
        paused.stop(family)
        with paused.awake(family):
            raise error
    assert wait_until(lambda: states(family) == {False}, PATIENCE_S)


def test_a_peer_without_a_process_or_with_one_that_ended_is_no_trouble(tmp_path):
    with python("pass", tmp_path / "log") as process:
        process.wait(PATIENCE_S)
        with Paused() as paused:
            paused.stop(process.pid)
            with paused.awake(process.pid), paused.awake(None):
                pass
    assert process_tree(process.pid) == []


def test_in_the_contest_only_one_is_awake_and_an_interruption_leaves_none_stopped(material):
    seen, pids, stopped_at_first = [], {}, []

    def watched(name: str) -> Service:
        async def ask(picture: bytes) -> PictureAnswer:
            seen.append({each: states(pid) for each, pid in pids.items()} | {"asked": name})
            return await tenth(picture)

        @contextmanager
        def start(workers: int, folder: Path) -> Iterator[Server]:
            with Process(["sleep", "999"], os.environ, folder / f"{name}.log") as process:
                pids[name] = process.pid
                yield FakeServer(ask, process.pid)

        return Service(name, start)

    with pytest.raises(KeyboardInterrupt), Contest(material, material.folder, SHORT) as contest:  # noqa: PT012
        contest.add_service(watched("first"))
        contest.add_service(watched("second"))
        stopped_at_first += [states(pid) for pid in pids.values()]
        contest.run_rounds()
        raise KeyboardInterrupt
    assert stopped_at_first == [{True}, {True}]
    for look in seen:
        if set(look) == {"first", "second", "asked"}:
            other = "second" if look["asked"] == "first" else "first"
            assert look[look["asked"]] == {False}
            assert look[other] == {True}
    assert all(not process_tree(pid) for pid in pids.values())


def test_a_process_that_does_not_end_in_time_is_killed_with_groups_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    lines = [
        "import signal, subprocess, time",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "subprocess.Popen(['sleep', '999'], start_new_session=True)",
        "print('up', flush=True); time.sleep(999)",
    ]
    with python("\n".join(lines), tmp_path / "log") as process:
        assert wait_until(lambda: process.log.read_text() == "up\n", PATIENCE_S)
        (child,) = psutil.Process(process.pid).children()
    assert wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, PATIENCE_S)


def test_waiting_ends(tmp_path):
    assert not wait_until(lambda: False, deadline_s=0.1, pause_s=0.01)


# ---- the contest ----


def test_all_peers_are_measured_in_every_round(material):
    with Contest(material, material.folder, SHORT) as contest:
        contest.add_service(service("quick", tenth, workers=(1, 2)))
        contest.add_service(service("other", tenth))
        contest.run_rounds()
    row = contest.rows["quick"]
    assert row.problem is None
    assert (len(row.images_per_s), len(row.alone_ms), len(row.loaded_ms)) == (2, 2, 2)
    assert len(row.cold_start_s) == 2  # one and two workers
    assert [len(round_) for round_ in row.alone_ms] == [8, 8]
    assert row.difference == 0
    assert "workers" in row.setting
    assert "workers" not in contest.rows["other"].setting


def test_a_peer_that_fails_is_told_and_the_others_go_on(material, peers, capsys):
    async def wrong(picture: bytes) -> PictureAnswer:
        return PictureAnswer(score=0.9)

    @contextmanager
    def missing(workers: int, folder: Path) -> Iterator[Server]:
        raise PeerError("could not be installed: no network")
        yield

    with Contest(material, material.folder, SHORT) as contest:
        contest.add_service(service("wrong", wrong))
        contest.add_service(Service("missing", missing))
        contest.add_folder_command("clip-retrieval")
        contest.add_service(service("right", tenth))
        contest.run_rounds()
    assert "scores differ" in str(contest.rows["wrong"].problem)
    assert contest.rows["missing"].problem == "could not be installed: no network"
    assert "--install" in str(contest.rows["clip-retrieval"].problem)
    assert len(contest.rows["right"].images_per_s) == 2
    assert "no network" in capsys.readouterr().err


def test_a_peer_that_breaks_in_a_round_keeps_what_was_measured(material):
    broken = False

    async def ask(picture: bytes) -> PictureAnswer:
        if broken:
            raise OSError("gone")
        return await tenth(picture)

    with Contest(material, material.folder, SHORT) as contest:
        contest.add_service(service("fragile", ask))
        broken = True
        contest.run_rounds()
    assert "OSError" in str(contest.rows["fragile"].problem)
    assert contest.rows["fragile"].images_per_s == []


def test_the_equal_load_is_what_the_slowest_server_carries(material):
    fast, slow = Served(FakeServer(tenth), []), Served(FakeServer(tenth), [])
    fast.capacity_per_s, slow.capacity_per_s = 100, 10

    class Folder(Contestant):
        def saturate(self, seconds: float) -> Throughput:
            return Throughput(1, 1)

    assert equal_rate([fast, slow, Folder()]) == 8
    assert equal_rate([]) == 1


# ---- figures ----


def test_figures_are_medians_and_p99_of_all_rounds():
    row = Measured("x", images_per_s=[1, 9, 2], alone_ms=[[10, 30], [20, 30], [90, 30]], loaded_ms=[[1] * 99, [7]])
    figures = figures_of(row)
    assert figures.images_per_s == 2
    assert figures.p50_ms == 25
    assert figures.p99_loaded_ms == pytest.approx(1, abs=0.1)
    assert figures.cpu_ms is None


def test_what_a_server_adds_is_compared_picture_by_picture():
    served, limit = Measured("a", alone_ms=[[12, 102, 53]]), Measured("b", alone_ms=[[10, 100, 50]])
    assert added_ms(served, limit) == 2
    assert added_ms(served, Measured("none")) is None
    assert picture_latencies([]) == []


def test_comparisons_are_with_the_best_of_the_others():
    rows = {
        "limit": Measured("limit", images_per_s=[20.0], alone_ms=[[50]]),
        "clipsieve fp32": Measured("clipsieve fp32", images_per_s=[19.5], alone_ms=[[52]], loaded_ms=[[60]]),
        "clipsieve fp32 throughput": Measured("clipsieve fp32 throughput", images_per_s=[19.0]),
        "FastAPI": Measured("FastAPI", images_per_s=[13.0], loaded_ms=[[200]]),
        "MLflow": Measured("MLflow", images_per_s=[10.0], loaded_ms=[[100]]),
        "infinity": Measured("infinity", problem="not installed"),
    }
    served, added, fp32, int8, p99, cold = comparisons(rows)
    assert (served.value, served.met) == (pytest.approx(0.95), True)
    assert (added.value, added.met) == (2, True)
    assert (fp32.value, fp32.against, fp32.met) == (1.5, "FastAPI", True)
    assert (int8.value, int8.met) == (None, None)
    assert (p99.value, p99.against, p99.met) == (0.6, "MLflow", True)
    assert cold.value is None


def test_images_are_compared_round_by_round_with_the_spread():
    rows = {
        "limit": Measured("limit", weights="b32", images_per_s=[20.0, 10.0, 8.0]),
        "clipsieve fp32": Measured("clipsieve fp32", weights="b32", images_per_s=[18.0, 8.0, 8.0]),
        "FastAPI": Measured("FastAPI", weights="b32", images_per_s=[9.0, 8.0]),
        "clipsieve ViT-B/16": Measured("clipsieve ViT-B/16", weights="b16", images_per_s=[3.0]),
        "transformers ViT-B/16": Measured("transformers ViT-B/16", weights="b16", images_per_s=[2.0]),
        "infinity": Measured("infinity", weights="b32", problem="not installed"),
    }
    assert paired_ratios(rows) == [
        PairedRatio("clipsieve fp32", "limit", 3, 0.8, 0.9, 1.0),
        PairedRatio("clipsieve fp32", "FastAPI", 2, 1.0, 1.5, 2.0),
        PairedRatio("clipsieve ViT-B/16", "transformers ViT-B/16", 1, 1.5, 1.5, 1.5),
    ]


def test_a_ratio_is_that_of_the_rounds_and_not_of_the_medians():
    """The machine was slow in one round of three: the medians of both are of different rounds."""
    rows = {
        "limit": Measured("limit", images_per_s=[10.0, 40.0, 20.0]),
        "clipsieve fp32 throughput": Measured("clipsieve fp32 throughput", images_per_s=[9.0, 38.0, 19.0]),
        "clipsieve fp32": Measured("clipsieve fp32", images_per_s=[9.0, 38.0, 19.0]),
        "FastAPI": Measured("FastAPI", images_per_s=[6.0, 19.0, 19.0]),
    }
    served, _, fp32, *_ = comparisons(rows)
    assert served.value == pytest.approx(0.95)
    assert fp32.value == pytest.approx(1.5)


def test_peers_of_other_weights_are_never_the_best_peer():
    rows = {
        "clipsieve fp32": Measured("clipsieve fp32", weights="b32", images_per_s=[20.0]),
        "FastAPI": Measured("FastAPI", weights="b32", images_per_s=[10.0]),
        "transformers ViT-B/16": Measured("transformers ViT-B/16", weights="b16", images_per_s=[15.0]),
    }
    assert [each.against for each in comparisons(rows) if each.name.startswith("fp32")] == ["FastAPI"]


def test_comparisons_of_nothing_are_not_measured():
    assert {each.met for each in comparisons({})} == {None}


def test_the_terminal_shows_everything():
    rows = [Figures("quick", 12.34, 5.0, setting="4 at once"), Figures("missing", problem="no network")]
    how = {"benchmark": "peers", "rounds": 1, "seconds": 1, "encoder": "an encoder"}
    text = terminal_text(how | as_json(rows, comparisons({})))
    assert "12.3" in text
    assert "4 at once" in text
    assert "missing was not measured to the end: no network" in text
    assert "not measured" in text.splitlines()[-1]


def test_the_terminal_shows_the_spread_of_paired_ratios_and_that_others_were_stopped():
    rows = [
        Figures("limit", 20.0, busy=0.991, weights="b32"),
        Figures("clipsieve fp32", 18.0, busy=0.87, weights="b32"),
        Figures("clipsieve ViT-B/16", 3.0, weights="b16"),
        Figures("transformers ViT-B/16", 2.0, weights="b16"),
    ]
    ratios = [
        PairedRatio("clipsieve fp32", "limit", 5, 0.851, 0.9, 0.954),
        PairedRatio("clipsieve ViT-B/16", "transformers ViT-B/16", 5, 1.4, 1.5, 1.6),
    ]
    how = {"benchmark": "peers", "rounds": 5, "seconds": 2, "encoder": "b32", "idle": "stopped"}
    text = terminal_text(how | as_json(rows, [], ratios))
    assert "stopped (SIGSTOP)" in text
    assert "99%" in text
    assert "0.90 (0.85 to 0.95)" in text
    assert "1.50 (1.40 to 1.60)" in text
    assert "clipsieve fp32: 18.0 images/s, 90% of one process without a server." in text
    assert "clipsieve ViT-B/16: 3 images/s, 1.5 × transformers ViT-B/16, the fastest of the others." in text


def test_the_json_line_is_json():
    content = as_json([Figures("a", images_per_s=float("nan"), p50_ms=1.23456)], comparisons({}))
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text)["peers"][0]["p50_ms"] == 1.235
    assert json.loads(text)["peers"][0]["images_per_s"] is None


# ---- formats of the peers ----


def written_run(folder: Path, counted: int, rows: int) -> Path:
    (folder / "stats").mkdir(parents=True)
    (folder / "img_emb").mkdir()
    (folder / "stats" / "0.json").write_text(json.dumps({"sample_count": counted, "total_duration": 4.0}))
    np.save(folder / "img_emb" / "img_emb_0.npy", np.ones((rows, 3), np.float16))
    return folder


def test_a_run_of_clip_retrieval_is_read(tmp_path):
    run = read_run(written_run(tmp_path / "run", 8, 8), took_s=20, pictures=8)
    assert (run.images, run.seconds, run.start_s, len(run.answers)) == (8, 4, 16, CHECKED)


@pytest.mark.parametrize(("counted", "rows"), [(8, 7), (7, 8)])
def test_a_run_that_left_out_pictures_is_refused(tmp_path, counted, rows):
    with pytest.raises(PeerError, match="of 8 pictures"):
        read_run(written_run(tmp_path / "run", counted, rows), took_s=20, pictures=8)


def test_a_run_without_output_is_refused(tmp_path):
    with pytest.raises(PeerError, match="no complete output"):
        read_run(tmp_path, took_s=20, pictures=8)


def test_clip_retrieval_gets_the_weights_as_a_path(material):
    assert f"--clip_model=open_clip:{material.model}/{material.weights}" in command(material, material.folder)


SMALL_VIT: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}


@pytest.fixture
def small_vit() -> dict[str, np.ndarray]:
    """The state dict of a small timm ViT with seeded weights and no classifier."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", **SMALL_VIT)
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def test_a_vits_weights_are_renamed_for_transformers(small_vit):
    head = {"weight": np.ones((1, 128), np.float32), "bias": np.zeros(1, np.float32)}
    tensors = vit_classifier.renamed(small_vit, head)
    assert len(tensors) == len(small_vit) + 2 * 2 * 2 + 2  # 3 for 1: weights and biases of 2 blocks; the classifier
    layer = "vit.encoder.layer.1.attention.attention"
    parts = [tensors[f"{layer}.{name}.weight"] for name in ("query", "key", "value")]
    np.testing.assert_array_equal(np.concatenate(parts), small_vit["blocks.1.attn.qkv.weight"])
    np.testing.assert_array_equal(tensors["classifier.weight"], head["weight"])
    with pytest.raises(ValueError, match=r"fc_norm\.weight"):
        vit_classifier.renamed({"fc_norm.weight": np.zeros(1)}, head)


def test_a_vits_config_follows_from_the_weights(small_vit):
    config = vit_classifier.model_config(small_vit)
    assert (config["image_size"], config["patch_size"], config["hidden_size"]) == (32, 8, 128)
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["intermediate_size"]) == (2, 2, 512)


def test_transformers_computes_the_same_from_the_folder(small_vit, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra; .peers/transformers has it")
    import timm
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in small_vit.items()}, tmp_path / "weights.pt")
    np.savez(tmp_path / "head.npz", weight=np.ones((1, 128), np.float32), bias=np.full(1, 0.5, np.float32))
    half = (0.5, 0.5, 0.5)
    views = Preprocessing(image_size=32, resize_mode="shortest", interpolation="bicubic", mean=half, std=half)
    folder = vit_classifier.write_folder(tmp_path / "weights.pt", tmp_path / "head.npz", views, tmp_path / "folder")
    ours = timm.create_model("vit_base_patch16_224", **SMALL_VIT)
    ours.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    theirs = transformers.ViTForImageClassification.from_pretrained(folder)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = ours.eval()(pixels).sum(dim=1) + 0.5
        np.testing.assert_allclose(theirs.eval()(pixels).logits[:, 0].numpy(), expected.numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    """A small CLIP that open_clip knows by the name peers-test-vit, with seeded weights."""
    import open_clip
    import torch

    tower = {"width": 64, "layers": 2}
    vision = tower | {"image_size": 32, "patch_size": 8, "head_width": 64}
    text = tower | {"context_length": 8, "vocab_size": 100, "heads": 1}
    config = tmp_path_factory.mktemp("config") / "peers-test-vit.json"
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # that nothing pretrained is loaded
    model = open_clip.create_model("peers-test-vit")
    logging.disable(logging.NOTSET)
    return model


@pytest.fixture
def clip_state(small_clip) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in small_clip.state_dict().items()}


def test_weights_are_renamed_for_transformers(clip_state):
    tensors = renamed(clip_state)
    assert len(tensors) == len(clip_state) + 2 * 2 * 2 * 2  # 3 for 1: weights and biases, blocks, towers
    block = "vision_model.encoder.layers.1.self_attn"
    projections = [tensors[f"{block}.{letter}_proj.weight"] for letter in "qkv"]
    np.testing.assert_array_equal(
        np.concatenate(projections), clip_state["visual.transformer.resblocks.1.attn.in_proj_weight"]
    )
    np.testing.assert_array_equal(tensors["visual_projection.weight"], clip_state["visual.proj"].T)
    assert sum(tensor.size for tensor in tensors.values()) == sum(tensor.size for tensor in clip_state.values())


def test_the_config_follows_from_the_weights(clip_state):
    config = model_config(clip_state, "quick_gelu")
    assert config["vision_config"]["image_size"] == 32
    assert config["vision_config"]["patch_size"] == 8
    assert config["vision_config"]["num_hidden_layers"] == config["text_config"]["num_hidden_layers"] == 2
    assert config["text_config"]["max_position_embeddings"] == 8
    assert config["projection_dim"] == 16
    assert image_config(32, [0.5] * 3, [0.5] * 3)["crop_size"] == {"height": 32, "width": 32}


def test_a_tensor_of_another_architecture_is_refused():
    with pytest.raises(ValueError, match=r"visual\.attnpool"):
        renamed({"visual.attnpool.weight": np.zeros(1)})


# ---- the usual script ----


@pytest.fixture
def files(small_clip, tmp_path) -> dict[str, str]:
    """The script's settings."""
    import torch

    torch.save(small_clip.state_dict(), tmp_path / "weights.pt")
    np.savez(tmp_path / "head.npz", weight=np.ones((1, 16), np.float32), bias=np.full(1, 0.25, np.float32))
    return {"MODEL": "peers-test-vit", "WEIGHTS": str(tmp_path / "weights.pt"), "HEAD": str(tmp_path / "head.npz")}


def test_the_scripts_score_is_a_sigmoid_of_the_normalised_embedding(files):
    import torch

    from benchmarks.peers.open_clip_classifier import Classifier

    classifier = Classifier(*files.values())
    picture = jpeg()
    with torch.inference_mode(), Image.open(io.BytesIO(picture)) as image:
        embedding = classifier.model.encode_image(classifier.transform(image)[None])
    expected = torch.sigmoid(torch.nn.functional.normalize(embedding).sum() + 0.25)
    assert classifier.score(picture) == pytest.approx(float(expected), abs=1e-6)


def test_the_fastapi_script_scores_an_upload_and_refuses_what_is_no_image(files, monkeypatch):
    pytest.importorskip("python_multipart", reason="FastAPI's uploads need python-multipart; .peers/fastapi has it")
    from starlette.testclient import TestClient

    from benchmarks.peers.fastapi_server import create_app

    for name, value in files.items():
        monkeypatch.setenv(name, value)
    with TestClient(create_app()) as client:
        assert 0 < client.post("/score", files={"file": jpeg()}).json()["score"] < 1
        assert client.post("/score", files={"file": b"text"}).status_code == 400
