"""Plans in the model repository: the files that are installed, their names, and every misfit the preflight finds.

The plan files are a few bytes: these checks read manifests, sums and configs, and never load a plan.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from artefacts import encoder_manifest

from build.encoder import VERIFICATION
from build.engine import engine_folder
from build.repository import check_installed, choose_plans, install
from build.repository_check import RepositoryError, check
from common import gpu, plans, preflight
from common.gpu import Gpu, Machine, comparable_version, find_gpus, find_machine, find_tensorrt
from common.manifest import BatchProfile, EngineManifest, ManifestError, read_encoder, sha256_of, write_manifest
from common.model_config import read_config
from common.paths import encoder_folder
from common.photos import verification_pictures
from common.plans import cc_model_filenames, manifest_path, plan_problems, repository_problems
from common.proof_file import read_proof
from serving.embedded import EmbeddedServer, ServerSettings
from serving.triton_wheel import ServingError

HOPPER, ADA = Gpu("NVIDIA H200", "9.0"), Gpu("NVIDIA L4", "8.9")
HERE = Machine((HOPPER,), "10.16.1.11")


def write_engine(folder: Path, encoder, gpu: Gpu = HOPPER, **changes) -> EngineManifest:
    """A plan of some bytes and its manifest, as build.engine leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.plan").write_bytes(f"a plan for {gpu.name}".encode())
    fields = {
        "encoder": encoder.fingerprint(),
        "onnx_sha256": encoder.onnx_sha256,
        "plan_sha256": sha256_of(folder / "model.plan"),
        "tensorrt": "10.16.1.11",
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "profile": BatchProfile(min_batch_size=1, opt_batch_size=32, max_batch_size=32),
        "workspace_bytes": 2**30,
        "precision": "fp32",
        "input": encoder.input,
        "output": encoder.output,
        "parity": {},
        "versions": {},
    }
    manifest = EngineManifest.model_validate(fields | changes)
    write_manifest(manifest, folder / "engine.json")
    return manifest


@pytest.fixture
def version(tmp_path):
    """A version folder as installed: one plan with its manifest and the encoder's."""
    folder = tmp_path / "model_repository" / "clip_encoder" / "1"
    write_engine(folder, encoder_manifest())
    write_manifest(encoder_manifest(), folder / "encoder.json")
    return folder


@pytest.fixture
def artefact(demo, repository, monkeypatch):
    """The demo encoder's folder, rid of the plans afterwards; this machine has a Hopper GPU."""
    monkeypatch.setattr("build.repository.find_machine", lambda: HERE)
    monkeypatch.setattr("common.plans.find_machine", lambda: HERE)
    folder = encoder_folder(demo)
    yield folder
    shutil.rmtree(folder / "engines", ignore_errors=True)


def add_plan(folder: Path, gpu: Gpu = HOPPER, **changes) -> None:
    target = engine_folder(folder, gpu.compute_capability)
    write_engine(target, read_encoder(folder), gpu, **changes)
    shutil.copy(folder / VERIFICATION, target)  # as if the plan computed the very same


def installed(target: Path) -> list[str]:
    return sorted(path.name for path in (target / "clip_encoder" / "1").iterdir())


def test_a_plan_that_fits_has_no_problems(version):
    assert plan_problems(version, HERE) == []
    assert repository_problems(version.parent.parent, HERE) == []


MISFITS = [
    ({"tensorrt": "10.12.0.36"}, HERE, "built by TensorRT 10.12.0.36, here is 10.16.1.11"),
    ({}, Machine((HOPPER,), None), "built by TensorRT 10.16.1.11, and none is found here"),
    ({"onnx_sha256": "c" * 64}, HERE, f"sha256 {'c' * 64}, the encoder's is {'b' * 64}"),
    ({"plan_sha256": "d" * 64}, HERE, f"engine.json says {'d' * 64}"),
    ({}, Machine((ADA,), "10.16.1.11"), "no plan for NVIDIA L4 (compute capability 8.9), only for 9.0"),
    ({}, Machine((HOPPER, ADA), "10.16.1.11"), "no plan for NVIDIA L4"),
    ({}, Machine((), "10.16.1.11", "no driver"), "TensorRT plans need an NVIDIA GPU (no driver)"),
]


@pytest.mark.parametrize(("changes", "machine", "expected"), MISFITS)
def test_a_plan_that_does_not_fit_is_refused_with_the_remedy(version, changes, machine, expected):
    write_engine(version, encoder_manifest(), **changes)
    (problem,) = plan_problems(version, machine)
    assert expected in problem
    assert "make engines TARGET=tensorrt in the serving container), or TARGET=onnx" in problem


def test_other_weights_behind_the_same_onnx_text_are_noticed(version):
    """Weights over 2 GB lie in a second file, which the sum of model.onnx does not cover."""
    write_manifest(encoder_manifest(weights_sha256="e" * 64), version / "encoder.json")
    assert any("with other weights" in problem for problem in plan_problems(version, HERE))


def test_a_plan_without_its_manifest_is_refused(version):
    (version / "engine.json").unlink()
    assert "engine.json: not found; make it with: make engines TARGET=tensorrt" in plan_problems(version, HERE)[0]


def test_names_of_plans_and_manifests():
    assert cc_model_filenames(["model.plan"]) == {}
    assert cc_model_filenames(["model_8.9.plan", "model_12.0.plan"]) == {
        "8.9": "model_8.9.plan",
        "12.0": "model_12.0.plan",
    }
    assert manifest_path(Path("1/model.plan")) == Path("1/engine.json")
    assert manifest_path(Path("1/model_9.0.plan")) == Path("1/engine_9.0.json")


def test_the_preflight_has_the_plans_problems(version, monkeypatch):
    monkeypatch.setattr(plans, "find_machine", lambda: Machine((ADA,), "10.16.1.11"))
    assert any("no plan for NVIDIA L4" in problem for problem in preflight.problems(version.parent.parent))


def test_a_repository_without_plans_asks_nothing_of_the_machine(repository, monkeypatch):
    monkeypatch.setattr(plans, "find_machine", lambda: pytest.fail("asked"))
    assert repository_problems(repository) == []


def test_one_plan_replaces_the_onnx_file_and_heads_stay(demo, artefact, tmp_path):
    add_plan(artefact)
    install(demo, tmp_path / "models")
    assert installed(tmp_path / "models") == ["encoder.json", "engine.json", "model.plan"]
    assert (tmp_path / "models/demo_head/1/model.onnx").is_file()
    assert check_installed(demo, tmp_path / "models") == []
    config = read_config(tmp_path / "models/clip_encoder/config.pbtxt")
    assert (config.default_model_filename, dict(config.cc_model_filenames)) == ("", {})


def test_the_proof_is_of_the_plan_and_its_gpu(demo, artefact, tmp_path):
    add_plan(artefact)
    path = engine_folder(artefact, HOPPER.compute_capability) / VERIFICATION
    with np.load(path) as arrays:
        embeddings = arrays["embeddings"] * np.float32(2)
    np.savez(path, embeddings=embeddings)
    install(demo, tmp_path / "models", "tensorrt")
    proof = read_proof(tmp_path / "models")
    assert proof.verified_on == "NVIDIA H200 with TensorRT 10.16.1.11"
    names = [picture.name for picture in verification_pictures()]
    for picture in proof.pictures:
        np.testing.assert_array_equal(np.array(picture.verified, np.float32), embeddings[names.index(picture.name)])


def test_a_plan_without_its_verification_is_not_installed(demo, artefact, tmp_path):
    add_plan(artefact)
    (engine_folder(artefact, HOPPER.compute_capability) / VERIFICATION).unlink()
    with pytest.raises(ManifestError, match=r"verification.npz: not found"):
        install(demo, tmp_path / "models", "tensorrt")


def test_onnx_comes_back_when_asked_for(demo, artefact, tmp_path):
    add_plan(artefact)
    install(demo, tmp_path / "models", "tensorrt")
    install(demo, tmp_path / "models", "onnx")
    assert installed(tmp_path / "models") == ["encoder.json", "model.onnx"]
    assert check_installed(demo, tmp_path / "models") == []


def test_plans_of_several_gpus_lie_side_by_side(demo, artefact, tmp_path):
    add_plan(artefact)
    add_plan(artefact, ADA)
    install(demo, tmp_path / "models")
    assert installed(tmp_path / "models") == [
        "encoder.json", "engine_8.9.json", "engine_9.0.json", "model_8.9.plan", "model_9.0.plan",
    ]  # fmt: skip
    config = read_config(tmp_path / "models/clip_encoder/config.pbtxt")
    assert dict(config.cc_model_filenames) == {"8.9": "model_8.9.plan", "9.0": "model_9.0.plan"}
    assert config.default_model_filename == "model.plan"  # tells Triton the backend; no GPU falls back to it
    assert check_installed(demo, tmp_path / "models") == []


def test_a_plan_of_another_release_is_left_out(demo, artefact, tmp_path):
    add_plan(artefact)
    add_plan(artefact, ADA, tensorrt="10.12.0.36")
    install(demo, tmp_path / "models")
    assert installed(tmp_path / "models") == ["encoder.json", "engine.json", "model.plan"]


def test_auto_installs_onnx_where_no_plan_fits_and_says_so(demo, artefact, tmp_path, capsys):
    add_plan(artefact, onnx_sha256="0" * 64)
    install(demo, tmp_path / "models")
    assert "model.onnx" in installed(tmp_path / "models")
    assert "no plan of this encoder for NVIDIA H200 (9.0) and TensorRT 10.16.1.11" in capsys.readouterr().err


def test_tensorrt_by_name_wants_a_plan_for_every_gpu(artefact):
    encoder = read_encoder(artefact)
    with pytest.raises(RepositoryError, match=r"no plan of this encoder for NVIDIA H200.*TARGET=tensorrt"):
        choose_plans(artefact, encoder, "tensorrt", HERE)
    add_plan(artefact)
    with pytest.raises(RepositoryError, match=r"for NVIDIA L4 \(8.9\)"):
        choose_plans(artefact, encoder, "tensorrt", Machine((HOPPER, ADA), "10.16.1.11"))
    with pytest.raises(RepositoryError, match=r"TensorRT \(not installed\)"):
        choose_plans(artefact, encoder, "tensorrt", Machine())


@pytest.fixture
def served(demo, artefact, tmp_path):
    add_plan(artefact)
    install(demo, tmp_path / "models")
    return tmp_path / "models"


def test_check_refuses_a_plan_of_another_machine(demo, served):
    assert any("no plan for NVIDIA L4" in line for line in check_installed(demo, served, Machine((ADA,), "10.16.1.11")))
    assert any("here is 11.4.0.106" in line for line in check(served, Machine((HOPPER,), "11.4.0.106")))


def test_check_compares_the_config_with_what_was_built(served):
    path = served / "clip_encoder/config.pbtxt"
    path.write_text(
        path.read_text().replace("max_batch_size: 32", "max_batch_size: 64").replace("dims: 128", "dims: 64")
    )
    version = served / "clip_encoder/1"
    from build.repository_check import _check_model_file

    problems = _check_model_file(version, read_config(path))
    assert (
        "clip_encoder: output is embedding TYPE_FP32 [64] in config.pbtxt, embedding TYPE_FP32 [128] in model.plan"
        in problems
    )
    assert any("max_batch_size 64 is over the 32 that model.plan was built for" in problem for problem in problems)


def test_check_compares_the_map_with_the_files(served):
    version = served / "clip_encoder/1"
    (version / "model.plan").rename(version / "model_9.0.plan")
    (version / "engine.json").rename(version / "engine_9.0.json")
    assert any(
        "cc_model_filenames is {} in config.pbtxt, the files are ['model_9.0.plan']" in line
        for line in check(served, HERE)
    )


def test_a_plan_beside_the_onnx_file_is_refused(served):
    (served / "clip_encoder/1/model.onnx").write_bytes(b"")
    assert any("found model.onnx, model.plan" in line for line in check(served, HERE))


class FakeDriver:
    """libcuda with two devices."""

    def __init__(self, devices=(HOPPER, ADA), status=0):
        self.devices, self.status = devices, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.devices)
        return 0

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name, length, device):
        name.value = self.devices[device.value].name.encode()
        return 0

    def cuDeviceGetAttribute(self, number, attribute, device):
        major, minor = self.devices[device.value].compute_capability.split(".")
        number._obj.value = int({75: major, 76: minor}[attribute])
        return 0


class FakeTensorRT:
    def __getattr__(self, name):
        numbers = {"Major": 10, "Minor": 16, "Patch": 1, "Build": 11}
        return lambda: numbers[name.removeprefix("getInferLib").removesuffix("Version")]


def loader(**libraries):
    def load(name):
        if name.split(".")[0] not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[name.split(".")[0]]

    return load


def test_the_machine_is_asked_through_its_libraries():
    machine = find_machine(loader(libcuda=FakeDriver(), libnvinfer=FakeTensorRT()))
    assert machine == Machine((HOPPER, ADA), "10.16.1.11")


def test_a_machine_without_a_driver():
    machine = find_machine(loader())
    assert machine.gpus == ()
    assert "libcuda.so.1: cannot open shared object file" in machine.gpu_problem


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (FakeDriver(status=100), r"cuInit failed with CUDA error 100 \(no GPU is visible\)"),
        (FakeDriver(devices=()), "CUDA_VISIBLE_DEVICES or the container hides it"),
    ],
)
def test_a_driver_without_a_gpu(driver, expected):
    with pytest.raises(OSError, match=expected):
        find_gpus(loader(libcuda=driver))


def test_tensorrt_without_its_library_is_the_python_package(monkeypatch):
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: "10.14.1.48.post1")
    assert find_tensorrt(loader()) == "10.14.1.48"
    assert comparable_version("11.4.0.106") == "11.4.0.106"


@pytest.mark.parametrize("gpus", [(HOPPER,), (HOPPER, ADA)])
def test_triton_chooses_its_tensorrt_backend_for_plans(demo, artefact, tmp_path, gpus):
    """The real server has no such backend here, and says that this is the one it looked for."""
    for one in gpus:
        add_plan(artefact, one)
    install(demo, tmp_path / "models", "tensorrt")
    server = EmbeddedServer(tmp_path / "models", ServerSettings.on_free_ports(tmp_path / "log", ready_timeout_s=60))
    with pytest.raises(ServingError), server:
        pass
    assert re.search(
        r"clip_encoder.*unable to find backend library for backend 'tensorrt'", (tmp_path / "log").read_text()
    )
