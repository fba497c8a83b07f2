"""Ctrl-C, with real signals: the first ends a step and loses nothing, the second ends it at once; offline tries."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
from functools import partial

import huggingface_hub.constants
import pytest
from pictures import encoded, noise
from tiny_encoder import write_tiny_encoder
from waiting import PATIENCE_S

from build.weights import offline_if_unreachable
from common import download, paths
from common.download import DownloadError, unreachable
from recipes.schema import load_recipe

STEP = """
import sys, time
from recipes.errors import run_step

def main():
    try:
        print("begun", flush=True)
        time.sleep(1000)
    finally:
        print("cleaning up", flush=True)
        time.sleep(SECONDS)
        print("cleaned up", flush=True)

sys.exit(run_step("build.x", main, "interrupted; all is kept"))
"""
EMBED = """
import os, signal, sys
from training import embed
from recipes.errors import run_step
from training.errors import INTERRUPTED

make = embed.OnnxEncoder

class Encoder(make):
    calls = 0

    def __call__(self, pixels):
        Encoder.calls += 1
        if Encoder.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__call__(pixels)

embed.OnnxEncoder = Encoder
sys.exit(run_step("training.embed", embed.main, INTERRUPTED))
"""


def started(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=paths.ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell script is started with Ctrl-C ignored, and so would be its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_the_first_interrupt_ends_a_step_cleanly():
    with started(STEP.replace("SECONDS", "0")) as step:
        assert step.stdout is not None
        assert step.stdout.readline() == "begun\n"
        step.send_signal(signal.SIGINT)
        out, err = step.communicate(timeout=PATIENCE_S)
    assert (step.returncode, out, err) == (130, "cleaning up\ncleaned up\n", "build.x: interrupted; all is kept\n")


def test_the_second_interrupt_ends_it_at_once():
    with started(STEP.replace("SECONDS", "1000")) as step:
        assert step.stdout is not None
        assert step.stdout.readline() == "begun\n"
        step.send_signal(signal.SIGINT)
        assert step.stdout.readline() == "cleaning up\n"
        step.send_signal(signal.SIGINT)
        out, err = step.communicate(timeout=PATIENCE_S)
    assert (step.returncode, out, err) == (130, "", "\nbuild.x: ended at once\n")


def test_an_interrupted_embed_keeps_its_batches_and_the_next_run_goes_on(tmp_path):
    environment = {"CLIPSIEVE_ARTIFACTS": str(tmp_path / "artifacts")}
    recipe = load_recipe("demo")
    write_tiny_encoder(tmp_path / "artifacts" / "encoders" / paths.encoder_folder(recipe).name)
    batch = recipe.serving.max_batch_size
    for number in range(4 * batch):
        path = tmp_path / "data" / ("angular", "round")[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(16, 16, seed=number), "PNG"))
    where = ["--recipe", "demo", "--data", tmp_path / "data"]
    with started(EMBED, *where, **environment) as step:
        _, err = step.communicate(timeout=PATIENCE_S)
    assert (step.returncode, "Traceback" in err) == (130, False)
    assert err.endswith("training.embed: interrupted; what is finished is kept, run the same command to go on\n")
    command = [sys.executable, "-m", "training.embed", *map(str, where)]
    again = subprocess.run(
        command, cwd=paths.ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert f"{2 * batch} embedded, {2 * batch} known before, 0 failed" in again.stderr


# ---- without a network ----


def test_a_port_that_nobody_listens_on_is_unreachable(refusing_url, monkeypatch):
    assert "refused" in (unreachable(f"http://{refusing_url}/file") or "")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/file"
        assert unreachable(address) is None


def test_a_lookup_that_takes_minutes_is_not_waited_for(monkeypatch, tmp_path):
    """Stands for a resolver that no packet comes back from."""
    monkeypatch.setattr(download, "REACH_S", 0.01)
    monkeypatch.setattr(download.socket, "create_connection", lambda *_: signal.pause())
    with pytest.raises(DownloadError, match=r"could not be downloaded \(hub does not answer within 0.01 s\)"):
        download.download("http://hub/file", tmp_path / "file", None)


def test_the_hub_is_left_alone_where_it_cannot_be_reached(monkeypatch, refusing_url):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{refusing_url}")
    with offline_if_unreachable(None, on_hub=True):
        assert constants.HF_HUB_OFFLINE
        assert socket.getdefaulttimeout() == 1.0
    assert not constants.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("error", [urllib.error.URLError("gone"), OSError("gone")])
def test_a_library_that_fails_offline_leaves_the_settings_as_they_were(monkeypatch, refusing_url, error):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def load() -> None:
        with offline_if_unreachable(f"http://{refusing_url}/x.pt", on_hub=False):
            raise error

    with pytest.raises(OSError, match="gone"):
        load()
    assert socket.getdefaulttimeout() is None
