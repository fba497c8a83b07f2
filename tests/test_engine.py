"""build.engine: the target it chooses and why, and the files of a build. TensorRT is a fake (fake_tensorrt)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from artefacts import encoder_manifest
from fake_tensorrt import Script, fake_tensorrt
from tiny_graph import INPUT, OUTPUT, write_graph

from build import builder_thread, engine
from build.engine import EngineError, Toolchain, build_engine, choose_target, main, obstacles, plan_spec
from build.engine_parity import check_plan, plan_checker
from build.tensorrt_plan import PlanError, PlanSpec, Progress
from common.gpu import Gpu, Machine
from common.manifest import BatchProfile, ManifestError, Parity, read_engine, sha256_of, write_manifest
from common.paths import ROOT, encoder_folder
from common.photos import verification_pictures
from recipes.errors import run_step
from recipes.schema import RecipeError, load_recipe, parse_recipe

HOPPER = Gpu("NVIDIA H200", "9.0")
FULL = Toolchain(Machine((HOPPER,), "10.12.0.36"), fake_tensorrt(Script()))
NOTHING = Toolchain(Machine(gpu_problem="libcuda.so.1: cannot open"), None, "No module named 'tensorrt'")


def passes(trt, path, spec):
    return Parity(pictures=9, cosine_min=1.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An encoder's folder with a tiny ONNX file."""
    monkeypatch.setattr(engine, "ARTIFACTS", tmp_path)
    folder = tmp_path / "encoders" / "tiny"
    folder.mkdir(parents=True)
    write_graph(folder / "model.onnx")
    describe_encoder(folder)
    return folder


def describe_encoder(folder, **changes):
    fields = {"onnx_sha256": sha256_of(folder / "model.onnx"), "input": INPUT, "output": OUTPUT}
    write_manifest(encoder_manifest(**fields | changes), folder / "encoder.json")


def build(folder, script=None, check=passes, recipe=None):
    return build_engine(recipe or load_recipe("demo"), folder, fake_tensorrt(script or Script()), HOPPER, check)


def test_onnx_is_taken_when_asked_for(capsys):
    assert choose_target("onnx", FULL).target == "onnx"
    assert run_step("build.engine", lambda: main(["--target", "onnx"])) == 0
    assert capsys.readouterr().out == "onnx\n"


def test_auto_takes_tensorrt_where_it_is():
    choice = choose_target("auto", FULL)
    assert (choice.target, choice.reason) == ("tensorrt", "TensorRT 10.12.0.36 on NVIDIA H200, 9.0")


def test_auto_says_why_it_falls_back():
    choice = choose_target("auto", NOTHING)
    assert choice.target == "onnx"
    assert "cannot be imported (No module named 'tensorrt'); no NVIDIA GPU was found (libcuda.so.1" in choice.reason


def test_tensorrt_by_name_stops_with_the_remedy():
    with pytest.raises(EngineError) as caught:
        choose_target("tensorrt", NOTHING)
    assert "docker compose -f serving/container/compose.yaml run --rm engines" in str(caught.value)
    assert "pip install 'tensorrt>=10.12,<12'" in str(caught.value)
    assert "TARGET=onnx" in str(caught.value)


def test_the_command_on_a_machine_without_tensorrt(monkeypatch, capsys):
    monkeypatch.setattr(engine, "find_toolchain", lambda: NOTHING)
    assert run_step("build.engine", lambda: main(["--target", "tensorrt"])) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("build.engine: TARGET=tensorrt: the Python package tensorrt cannot be imported")
    assert run_step("build.engine", lambda: main(["--target", "auto"])) == 0
    assert capsys.readouterr().out == "onnx\n"


@pytest.mark.parametrize(
    ("version", "there", "expected"),
    [
        ("10.9.0.34", "10.9.0.34", "TensorRT 10.9.0.34 is not supported, it has to be at least 10.12 and below 12.0"),
        ("12.0.0.1", None, "TensorRT 12.0.0.1 is not supported"),
        ("10.12.0.36", "10.16.1.11", "Python's TensorRT is 10.12.0.36, but a server here loads 10.16.1.11"),
    ],
)
def test_a_tensorrt_that_would_make_a_useless_plan(version, there, expected):
    (problem,) = obstacles(Toolchain(Machine((HOPPER,), there), fake_tensorrt(Script(version))), "fp32")
    assert expected in problem


@pytest.mark.parametrize("version", ["10.12.0.36", "10.14.1.48.post1", "11.4.0.106"])
def test_supported_versions(version):
    assert obstacles(Toolchain(Machine((HOPPER,)), fake_tensorrt(Script(version))), "fp16") == []


def test_fp16_on_a_cpu_is_explained():
    with pytest.raises(EngineError, match=r"fp16, and no NVIDIA GPU was found .*int8, which is made for CPUs. TARGET"):
        choose_target("auto", NOTHING, "fp16")
    assert choose_target("onnx", NOTHING, "fp16").target == "onnx"  # for a server elsewhere
    assert choose_target("auto", FULL, "fp16").target == "tensorrt"


def test_fp16_on_a_gpu_without_tensorrt_is_served_as_onnx():
    choice = choose_target("auto", Toolchain(Machine((HOPPER,)), None, "No module named 'tensorrt'"), "fp16")
    assert (choice.target, "cannot be imported" in choice.reason) == ("onnx", True)


def test_int8_for_tensorrt_is_explained():
    assert choose_target("auto", FULL, "int8").reason == "build.precision int8 is made for CPUs; for TensorRT take fp16"
    with pytest.raises(EngineError, match="int8 is made for CPUs"):
        choose_target("tensorrt", FULL, "int8")


def test_choosing_is_fast_because_it_imports_neither_torch_nor_onnx():
    code = "import sys, build.engine as e; e.main(['--target', 'auto']); print({'torch', 'onnx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_plan_lies_beside_its_manifest(folder):
    target, built = build(folder)
    assert built
    assert target == folder / "engines" / "9.0"
    assert sorted(path.name for path in target.iterdir()) == ["engine.json", "model.plan"]
    manifest = read_engine(target / "engine.json")
    assert manifest.tensorrt == "10.12.0.36"
    assert (manifest.gpu, manifest.compute_capability) == ("NVIDIA H200", "9.0")
    assert manifest.onnx_sha256 == sha256_of(folder / "model.onnx")
    assert manifest.plan_sha256 == sha256_of(target / "model.plan")
    assert manifest.profile == BatchProfile(min_batch_size=1, opt_batch_size=32, max_batch_size=32)
    assert manifest.parity.cosine_min == 1.0


def test_the_profile_follows_the_recipe(folder):
    data = load_recipe("demo").model_dump(mode="json")
    data["serving"]["max_batch_size"] = 64
    data["build"]["engine"] = {"opt_batch_size": 16, "workspace_bytes": 2**28}
    spec = plan_spec(parse_recipe(data), encoder_manifest(), folder / "model.onnx")
    assert spec.profile == BatchProfile(min_batch_size=1, opt_batch_size=16, max_batch_size=64)
    assert spec.workspace_bytes == 2**28
    data["serving"]["max_batch_size"] = 8
    with pytest.raises(RecipeError, match=r"opt_batch_size 16 is over serving.max_batch_size 8"):
        parse_recipe(data)


def test_a_plan_that_is_there_is_not_built_again(folder):
    build(folder)
    assert build(folder, Script(builds=False)) == (folder / "engines" / "9.0", False)


def spoil_plan(folder):
    (folder / "engines/9.0/model.plan").write_bytes(b"cut short")


def export_again(folder):
    write_graph(folder / "model.onnx")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\x72\x00")  # an empty doc_string-like field: the same graph, another file
    describe_encoder(folder)


@pytest.mark.parametrize("change", [spoil_plan, export_again])
def test_a_plan_that_no_longer_fits_is_built_again(folder, change):
    build(folder)
    change(folder)
    assert build(folder)[1]


def test_another_release_builds_again(folder):
    build(folder)
    assert build(folder, Script("11.4.0.106"))[1]


def test_a_stricter_limit_is_held_against_the_plan(folder):
    build(folder, check=lambda trt, path, spec: Parity(pictures=9, cosine_min=0.999995))
    data = load_recipe("demo").model_dump(mode="json")
    assert not build(folder)[1]
    data["build"]["minimum_cosine"]["fp32"] = 0.999999
    assert build(folder, recipe=parse_recipe(data))[1]


def test_plans_of_other_gpus_stay(folder):
    build(folder)
    other = build_engine(load_recipe("demo"), folder, fake_tensorrt(Script()), Gpu("NVIDIA L4", "8.9"), passes)
    assert other == (folder / "engines" / "8.9", True)
    assert (folder / "engines/9.0/engine.json").is_file()


def refuses(trt, path, spec):
    raise PlanError("cosine 0.5 is below")


@pytest.mark.parametrize(("script", "check"), [(Script(builds=False), passes), (Script(), refuses)])
def test_a_failure_installs_nothing_and_keeps_what_was_there(folder, script, check):
    build(folder)
    before = (folder / "engines/9.0/model.plan").read_bytes()
    describe_encoder(folder, precision="fp16")
    with pytest.raises(PlanError):
        build(folder, script, check)
    assert sorted(path.name for path in (folder / "engines/9.0").iterdir()) == ["engine.json", "model.plan"]
    assert (folder / "engines/9.0/model.plan").read_bytes() == before


def interrupt(progress: Progress) -> None:
    """Press Ctrl-C, and wait until the main thread has heard it."""
    os.kill(os.getpid(), signal.SIGINT)
    while not progress.stopped:
        time.sleep(0.001)


@pytest.fixture
def progress(monkeypatch):
    """The Progress of the next build."""
    progress = Progress(report=lambda line: print(line, file=sys.stderr))
    monkeypatch.setattr("build.tensorrt_plan.Progress", lambda report: progress)
    return progress


def test_an_interrupted_build_installs_nothing_and_keeps_its_timings(folder, tmp_path, progress, capsys):
    script = Script(steps=50, on_step=lambda: interrupt(progress))
    with pytest.raises(KeyboardInterrupt):
        build(folder, script)
    assert "stopping at the builder's next step" in capsys.readouterr().err
    assert list((folder / "engines/9.0").iterdir()) == []
    (cache,) = (tmp_path / "timing_caches").iterdir()
    assert cache.name == "tensorrt-10.12.0.36-nvidia-h200-9.0.cache"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait_for_the_builder(folder, progress, capsys):
    in_step, go_on = threading.Event(), threading.Event()

    def long_step() -> None:
        interrupt(progress)
        os.kill(os.getpid(), signal.SIGINT)
        in_step.set()
        go_on.wait()

    try:
        with pytest.raises(KeyboardInterrupt):
            build(folder, Script(on_step=long_step))
        assert in_step.wait()
        assert "what this build has measured is not kept" in capsys.readouterr().err
        assert list((folder / "engines/9.0").iterdir()) == []
        assert any(thread.name == builder_thread.NAME for thread in threading.enumerate())
    finally:
        go_on.set()
        for thread in threading.enumerate():
            if thread.name == builder_thread.NAME:
                thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_does_not_wait_for_a_builder_that_is_left():
    code = (
        "import atexit, threading; from build.builder_thread import NAME, leave;"
        "atexit.register(print, 'exit handlers'); {}; leave(130)"
    )
    thread = "threading.Thread(target=threading.Event().wait, name=NAME).start()"
    for start, printed in (("0", "exit handlers\n"), (thread, "")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(start)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (130, printed)


def test_another_word_on_tf32_builds_again(folder):
    script = Script()
    build(folder, script)
    assert script.seen["tf32"] is False
    assert not read_engine(folder / "engines/9.0/engine.json").tf32
    data = load_recipe("demo").model_dump(mode="json")
    data["build"]["engine"]["tf32"] = True
    assert build(folder, script, recipe=parse_recipe(data))[1]
    assert script.seen["tf32"] is True


def test_a_plan_from_before_tf32_was_cleared_is_built_again(folder):
    build(folder)
    path = folder / "engines/9.0/engine.json"
    fields = json.loads(path.read_text())
    del fields["tf32"]
    path.write_text(json.dumps(fields))
    assert build(folder)[1]


def test_an_onnx_file_that_is_not_its_manifests_is_refused(folder):
    (folder / "model.onnx").write_bytes(b"something else")
    with pytest.raises(ManifestError, match=r"model.onnx: not the file of its encoder.json; make it again"):
        build(folder)


def test_without_the_encoder_the_error_says_how_to_make_it(capsys):
    assert run_step("build.engine", lambda: main(["--recipe", "nsfw-vit-b-32", "--target", "auto"])) == 1
    assert "encoder.json: not found; make it with" in capsys.readouterr().err


def test_the_command_builds_and_says_so(folder, monkeypatch, capsys):
    monkeypatch.setattr(engine, "find_toolchain", lambda: FULL)
    monkeypatch.setattr(engine, "encoder_folder", lambda encoder: folder)
    monkeypatch.setattr("build.engine_parity.plan_checker", lambda recipe, encoder: passes)
    assert run_step("build.engine", lambda: main(["--recipe", "demo", "--target", "tensorrt"])) == 0
    captured = capsys.readouterr()
    assert captured.out == "tensorrt\n"
    assert "model.plan built" in captured.err
    assert run_step("build.engine", lambda: main(["--recipe", "demo", "--target", "auto"])) == 0
    assert "model.plan is up to date" in capsys.readouterr().err


def test_a_build_that_fails_names_the_way_out(folder, monkeypatch, capsys):
    broken = Toolchain(FULL.machine, fake_tensorrt(Script(parser_errors=((3, "n", "Softmax", "no"),))))
    monkeypatch.setattr(engine, "find_toolchain", lambda: broken)
    monkeypatch.setattr(engine, "encoder_folder", lambda encoder: folder)
    assert run_step("build.engine", lambda: main(["--recipe", "demo", "--target", "auto"])) == 1
    error = capsys.readouterr().err
    assert "node 3 'n' (Softmax): no" in error
    assert "TARGET=onnx serves the same file" in error


def test_the_plan_is_held_against_the_onnx_file(folder):
    """The real check, on the fake's embeddings: a plan must compute what onnxruntime computes."""
    expected = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    demo = load_recipe("demo")
    parity = check_plan(expected, expected, demo)
    assert parity == Parity(pictures=2, cosine_min=1.0, cosine_mean=1.0, max_abs_difference=0.0)
    with pytest.raises(PlanError, match=r"cosine 0.70\d+ between onnxruntime and the plan is below .* 0.99999"):
        check_plan(expected, np.array([[1, 1, 0], [0, 1, 0]], np.float32), demo)
    with pytest.raises(PlanError, match="cosine nan"):
        check_plan(expected, np.zeros((2, 3), np.float32), demo)


def test_the_check_runs_the_plan_on_pictures(demo, encoder, tmp_path):
    """The demo's real ONNX file against a plan that makes the same embedding of everything."""
    script = Script(embedding=(1.0,) * encoder.embed_dim)
    spec = plan_spec(demo, encoder, encoder_folder(demo) / "model.onnx")
    (tmp_path / "model.plan").write_bytes(b"a plan")
    with pytest.raises(PlanError, match=r"between onnxruntime and the plan is below"):
        plan_checker(demo, encoder, "cpu")(fake_tensorrt(script), tmp_path / "model.plan", spec)
    assert script.seen["batches"] == [(len(verification_pictures()), 112, 112, 3)]


def test_a_spec_without_uint8_needs_no_cast(folder):
    from build.tensorrt_plan import check_uint8_input

    floats = INPUT.model_copy(update={"dtype": "FP32"})
    profile = BatchProfile(min_batch_size=1, opt_batch_size=1, max_batch_size=1)
    check_uint8_input(PlanSpec(folder / "absent.onnx", floats, OUTPUT, profile, 2**20))
