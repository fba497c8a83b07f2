"""Fine-tuning on drawn pictures: what is trained, what is refused, and that a killed run goes on exactly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from drawn_shapes import CLASSES, draw_folder, finetune_recipe
from PIL import Image

from common import paths
from common.manifest import Preprocessing
from common.pixels import served_transform
from common.small_cnn import SmallCnn
from recipes.encoder_section import Augment, Finetune
from recipes.schema import Recipe, RecipeError, parse_recipe
from recipes.serving_section import Serving
from training import finetune as step
from training import finetune_run
from training.errors import StepError
from training.finetune_files import with_two_outputs
from training.finetune_model import freeze, new_model, optimizer_of, training_mode
from training.finetune_pictures import ServedPictures, TrainingPictures, batches, labelled_samples
from training.finetune_run import _loss, mean_auroc
from training.losses import TuningCurve
from training.sample import Sample
from training.tables import Columns

pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: make lightning")
pytest.importorskip("imagehash", reason="imagehash is not installed: make lightning")

HALF = (0.5, 0.5, 0.5)
VIEW = Preprocessing(image_size=32, resize_mode="squash", interpolation="bicubic", mean=HALF, std=HALF)
COLUMNS = Columns(None, "label", None, None, None)


def tuned(recipe: Recipe, data: Path, columns: Columns = COLUMNS) -> tuple[Path, dict[str, Any]]:
    """The classifier's folder and its record."""
    head = recipe.heads[0]
    folder = step.finetune(recipe, head, labelled_samples(str(data), head, columns), workers=0)
    assert folder is not None
    return folder, json.loads((folder / "finetune.json").read_text())


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "artifacts"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("shapes"))


def test_the_recipe_derives_what_follows_from_fine_tuning():
    recipe = finetune_recipe()
    assert (recipe.encoder.library, recipe.encoder.model, recipe.encoder.normalize) == ("timm", "clipsieve_cnn", False)
    assert recipe.encoder.weights == Path("artifacts/classifiers/tuned")
    assert (recipe.heads[0].fit.folds, recipe.heads[0].fit.near_duplicate_cosine) == (0, None)
    assert paths.named_path(Path("artifacts/classifiers/tuned")) == paths.ARTIFACTS / "classifiers" / "tuned"


@pytest.mark.parametrize(
    ("encoder", "problem"),
    [
        ({"library": "open_clip"}, "library of an encoder with finetune is 'timm'"),
        ({"normalize": True}, "normalize of an encoder with finetune is False"),
        ({"pretrained": "openai"}, "pretrained goes into finetune"),
        ({"finetune": {"model": "test_vit", "crop": 3}}, "unknown key"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(encoder, problem):
    section = {"finetune": {"model": "test_vit"}} | encoder
    heads = [{"name": "shape", "class_names": CLASSES}]
    with pytest.raises(RecipeError, match=problem):
        parse_recipe({"name": "x", "description": "x", "encoder": section, "heads": heads})


def test_texts_are_refused_with_the_reason():
    with pytest.raises(RecipeError, match="the encoder is fine-tuned, and its embeddings are no longer those"):
        finetune_recipe(head={"classifier": None, "prompts": {"angular": "a square", "round": "a disc"}})


def test_the_folder_is_timms_own_and_says_what_it_was_made_of(artifacts, shapes):
    folder, record = tuned(finetune_recipe(), shapes)
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == CLASSES
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert record["counts"] == {"train": 30, "validation": 8, "test": 10}
    assert record["metrics"]["test"]["auroc"] > 0.9
    assert record["metrics"]["test"]["auroc_95_interval"][0] < record["metrics"]["test"]["auroc"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pictures = pq.read_table(folder / "pictures.parquet").to_pylist()
    scores, labels = [], []
    for row in pictures:
        if row["split"] == "test":
            pixels = served_transform([VIEW], Serving())(Path(row["path"]).read_bytes())
            inputs = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            scores.append(model(inputs).softmax(dim=1)[0, 1].item())
            labels.append(row["label"] == "round")
    assert mean_auroc(np.array(labels)[:, None], np.array(scores)[:, None]) == record["metrics"]["test"]["auroc"]


def test_the_same_command_again_does_nothing_and_other_settings_train_anew(artifacts, shapes, monkeypatch):
    folder, first = tuned(finetune_recipe(), shapes)
    written = (folder / "finetune.json").stat().st_mtime_ns
    assert tuned(finetune_recipe(), shapes)[1] == first
    assert (folder / "finetune.json").stat().st_mtime_ns == written
    other = tuned(finetune_recipe(seed=1), shapes)[1]
    assert other["curve"] != first["curve"]
    assert len(list((artifacts / "tuned" / "finetune").glob("state-*"))) == 1


class _Stop(Exception):
    """Stands for a kill, at a moment that a test can choose."""


@pytest.mark.parametrize("after", [1, 6, 11])
def test_a_run_stopped_anywhere_goes_on_to_the_same_weights(artifacts, shapes, tmp_path, monkeypatch, after):
    """Within the first epoch, at its end and later, with dropout and augmentations, bit for bit."""
    folder, whole = tuned(finetune_recipe("whole", dropout=0.3), shapes)
    recipe, tune, done = finetune_recipe("stopped", dropout=0.3), finetune_run.tune, []

    def stopping(fabric, model, task, progress):
        def stop(place, total):
            done.append((place.epoch, place.step))
            if len(done) == after + 1:
                raise _Stop

        every_step = finetune_run.replace(task, save_every_s=-1.0)
        return tune(fabric, model, every_step, stop)

    monkeypatch.setattr(finetune_run, "tune", stopping)
    with pytest.raises(_Stop):
        tuned(recipe, shapes)
    monkeypatch.setattr(finetune_run, "tune", tune)
    resumed_folder, resumed = tuned(recipe, shapes)
    assert resumed["curve"] == whole["curve"]
    assert (resumed_folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_killed_process_goes_on_to_the_same_curve(artifacts, shapes, tmp_path):
    """SIGKILL while it trains, with a worker process; then the same command again, beside an undisturbed run here."""
    recipe, file = finetune_recipe("killed", epochs=4, patience=4), tmp_path / "killed.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)))
    options = ["--recipe", str(file), "--data", str(shapes), "--workers", "1"]

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "training.finetune", *options]
        environment = os.environ | {"CLIPSIEVE_ARTIFACTS": str(artifacts)}
        return subprocess.Popen(command, cwd=paths.ROOT, env=environment, start_new_session=True)

    first = start()
    while not list((artifacts / "killed" / "finetune").glob("state-*.ckpt")):
        assert first.poll() is None
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    folder = artifacts / "classifiers" / "killed"
    assert not folder.exists()
    assert start().wait() == 0
    whole, record = tuned(finetune_recipe("whole", epochs=4, patience=4), shapes)
    assert json.loads((folder / "finetune.json").read_text())["curve"] == record["curve"]
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_two_processes_share_each_step_and_give_the_same_curve(artifacts, shapes, tmp_path):
    """On the CPU, as on two GPUs: a step is of the same pictures, and a gradient is their mean."""
    curves = []
    for devices in (1, 2):
        recipe = finetune_recipe(f"on-{devices}", devices=devices, epochs=2)
        file = tmp_path / f"{recipe.name}.yaml"
        file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)))
        options = ["--recipe", str(file), "--data", str(shapes), "--workers", "0"]
        command = [sys.executable, "-m", "training.finetune", *options]
        environment = os.environ | {"CLIPSIEVE_ARTIFACTS": str(artifacts)}
        run = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, check=True, text=True)
        assert run.stdout.splitlines()[-1] == str(artifacts / "classifiers" / recipe.name)
        record = json.loads((artifacts / "classifiers" / recipe.name / "finetune.json").read_text())
        curves.append([record["curve"]["train"], record["curve"]["validation"]])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


def test_unreadable_pictures_are_listed_and_left_out_up_to_a_limit(artifacts, tmp_path):
    folder = draw_folder(tmp_path / "data", 20)
    (folder / "round" / "cut.png").write_bytes((folder / "round" / "000.png").read_bytes()[:300])
    (folder / "round" / "text.png").write_bytes(b"not a picture")
    with pytest.raises(StepError, match=r"2 of 42 files cannot be used, more than finetune.maximum_unreadable 0.01"):
        tuned(finetune_recipe(), folder)
    record = tuned(finetune_recipe(maximum_unreadable=0.05, epochs=1), folder)[1]
    assert record["unreadable"] == 2
    listed = (artifacts / "tuned" / "finetune" / "unreadable.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in listed] == ["code", "DECODE_FAILED", "NOT_AN_IMAGE"]


def test_a_picture_that_goes_while_training_runs_is_named(artifacts, shapes):
    dataset = TrainingPictures([Sample("a", shapes / "gone.png", "round")], VIEW, Serving(), Augment(), 0)
    with pytest.raises(StepError, match=r"gone.png: can no longer be read as a picture .* the same command again"):
        dataset[0, 0]


def test_a_data_set_of_one_class_is_refused(artifacts, tmp_path):
    draw_folder(tmp_path / "data", 6)
    table = tmp_path / "data" / "labels.csv"
    table.write_text("file,label\n" + "".join(f"round/{n:03d}.png,round\n" for n in range(6)))
    with pytest.raises(StepError, match="a head needs both angular and round"):
        tuned(finetune_recipe(), table)


def test_classes_that_differ_between_train_and_validation_are_refused(artifacts, tmp_path):
    draw_folder(tmp_path / "data" / "train", 6)
    draw_folder(tmp_path / "data" / "val", 6, ["angular", "Round"])
    with pytest.raises(StepError, match=r"val: its subfolders must be .*(?s:.*)Upper and lower case differ: Round"):
        tuned(finetune_recipe(), tmp_path / "data")


def test_a_head_of_grades_is_refused():
    recipe = finetune_recipe(head={"task": "regression", "class_names": ["beauty"], "classifier": None})
    with pytest.raises(StepError, match="fine-tuning is for classes and labels"):
        labelled_samples("x", recipe.heads[0], COLUMNS)


def test_a_recipe_without_the_section_is_refused(artifacts, shapes, demo):
    with pytest.raises(RecipeError, match="encoder has no section finetune"):
        step.finetune(demo, demo.heads[0], labelled_samples(str(shapes), demo.heads[0], COLUMNS))


def test_a_prescribed_split_is_kept_and_near_duplicates_share_a_side(artifacts, tmp_path):
    folder = draw_folder(tmp_path / "data", 20)
    for number in range(6):
        with Image.open(folder / "round" / f"{number:03d}.png") as image:
            image.resize((60, 50)).save(folder / "round" / f"{number:03d}-copy.jpg", quality=85)
    table = tmp_path / "data" / "labels.csv"
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*") if path.parent != folder)
    sides = ["test" if name.stem in ("007", "008") else "" for name in names]
    lines = [f"{name},{name.parent},{side}" for name, side in zip(names, sides, strict=True)]
    table.write_text("\n".join(["file,label,side", *lines]) + "\n")
    columns = Columns(None, "label", "side", None, None)
    written, record = tuned(finetune_recipe(epochs=1), table, columns)
    rows = pq.read_table(written / "pictures.parquet").to_pylist()
    side_of = {Path(row["path"]).relative_to(folder).as_posix(): row["split"] for row in rows}
    assert {side_of[f"{kind}/{number}.png"] for kind in CLASSES for number in ("007", "008")} == {"test"}
    assert [side_of[f"round/{n:03d}.png"] == side_of[f"round/{n:03d}-copy.jpg"] for n in range(6)] == [True] * 6
    assert record["duplicates"]["near_duplicate_groups"] == 6


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_several_classes_and_several_labels(artifacts, shapes, tmp_path, task):
    head = {"task": task, "class_names": ["angular", "round", "small"] if task == "multiclass" else CLASSES}
    recipe, data = finetune_recipe(head=head, epochs=2), shapes
    if task == "multilabel":
        data = tmp_path / "labels.json"
        rows = [{"file": str(path), "label": [path.parent.name]} for path in sorted(shapes.rglob("*.png"))]
        data.write_text(json.dumps(rows))
    else:
        data = draw_folder(tmp_path / "data", 12, head["class_names"])
    folder, record = tuned(recipe, data)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == len(head["class_names"])
    assert record["metrics"]["test"]["macro"]["auroc"] is not None


def test_losses_that_do_not_fit_the_task_are_refused(artifacts, shapes):
    recipe = finetune_recipe(head={"task": "multiclass"}, loss="bce")
    with pytest.raises(StepError, match=r"finetune.loss bce does not fit a multiclass head; take cross_entropy"):
        tuned(recipe, shapes)


def test_the_loss_is_smoothed_and_weighed_as_written_out():
    targets = np.array([[1], [0], [0], [0]], np.float32)
    logits = torch.tensor([[0.3], [-1.2], [0.8], [0.1]])
    loss = _loss(Finetune(model="x", class_weights=True, label_smoothing=0.2), "sigmoid", targets)
    smooth = targets[:, 0] * 0.8 + 0.1
    chance = torch.sigmoid(logits[:, 0]).numpy().astype(float)
    by_hand = -(3 * smooth * np.log(chance) + (1 - smooth) * np.log(1 - chance))  # three negatives to one positive
    assert loss(logits, torch.from_numpy(targets)).item() == pytest.approx(by_hand.mean(), rel=1e-6)
    several = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    weighed = _loss(Finetune(model="x", class_weights=True), "softmax", several)
    np.testing.assert_allclose(weighed.get_buffer("weight").numpy(), [4 / 2 / 3, 4 / 3, 4 / 3], rtol=1e-6)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_layer_by_layer():
    model = new_model(Finetune(model="test_convnext", layer_decay=0.5), 1)
    groups = optimizer_of(model, Finetune(model="test_convnext", layer_decay=0.5, learning_rate=0.01)).param_groups
    rates = sorted({group["lr"] for group in groups}, reverse=True)
    np.testing.assert_allclose(rates, 0.01 * 0.5 ** np.arange(len(rates)))
    assert len(rates) == 11  # as many as timm finds in this model
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_layers_are_frozen_by_count_by_name_and_all_but_the_biases():
    model = new_model(Finetune(model="test_convnext"), 1)
    everything = trained_names(model)
    freeze(model, 3)
    assert {name.split(".")[0] for name in everything - trained_names(model)} == {"stem", "stages"}
    assert "stages.3.blocks.0.mlp.fc1.weight" in trained_names(model)
    freeze(model, ["stem.*", "stages.0.*"])
    assert everything - trained_names(model) == {n for n in everything if n.startswith(("stem.", "stages.0."))}
    freeze(model, ["*", "!*.bias"])
    assert trained_names(model) == {name for name in everything if name.endswith(".bias")} | {"head.fc.weight"}


@pytest.mark.parametrize(
    ("which", "problem"),
    [
        (99, "freeze 99: the model has 11 layers"),
        (["stage.*"], r"freeze 'stage\.\*': no parameter is called so; .* stem"),
    ],
)
def test_what_cannot_be_frozen_is_refused(which, problem):
    with pytest.raises(StepError, match=problem):
        freeze(timm.create_model("test_convnext", num_classes=1), which)


def test_frozen_normalisations_keep_their_statistics():
    model = timm.create_model("test_resnet", num_classes=1)
    freeze(model, ["bn1.*", "layer1.*"])
    training_mode(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 3, 64, 64))
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert not [name for name in changed if name.startswith(("bn1", "layer1."))]
    assert [name for name in changed if name.startswith("layer2.")]


class _Code:
    def __reduce__(self):
        return (os.system, ("touch /tmp/clipsieve-code-was-run",))


def test_weights_of_something_else_are_refused(artifacts, shapes, tmp_path):
    other = timm.create_model("test_resnet", num_classes=2)
    timm.models.save_for_hf(other, str(tmp_path / "resnet"), safe_serialization=True)
    with pytest.raises(StepError, match=r"holds a test_resnet, finetune.model is test_convnext"):
        new_model(Finetune(model="test_convnext", weights=tmp_path / "resnet"), 1)
    with pytest.raises(StepError, match=r"these are not the weights of test_convnext \(.* name the model"):
        new_model(Finetune(model="test_convnext", weights=tmp_path / "resnet" / "model.safetensors"), 1)
    torch.save({"state_dict": _Code()}, tmp_path / "code.pth")
    with pytest.raises(StepError, match=r"cannot be read as weights: .* no code is run from it"):
        new_model(Finetune(model="test_convnext", weights=tmp_path / "code.pth"), 1)
    with pytest.raises(StepError, match=r"no file .*missing\.pth"):
        new_model(Finetune(model="test_convnext", weights=tmp_path / "missing.pth"), 1)


def test_it_starts_from_given_weights_of_any_number_of_classes(tmp_path):
    start = timm.create_model("test_convnext", num_classes=7)
    timm.models.save_for_hf(start, str(tmp_path / "start"), safe_serialization=True)
    model = new_model(Finetune(model="test_convnext", weights=tmp_path / "start"), 1)
    state = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith("head.fc")}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert model.state_dict()["head.fc.weight"].shape == (1, 64)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"model": "test_convnex"}, "unknown to timm; nearest: test_convnext"),
        ({"model": "test_vit", "image_size": 33}, "finetune.image_size 33: test_vit cannot run at this size"),
        ({"model": "test_convnext.r160_in1k"}, r"(?s)could not be downloaded.*weights: weights/<file>"),
    ],
)
def test_models_that_cannot_be_had_are_refused(settings, problem):
    with pytest.raises(StepError, match=problem):
        new_model(Finetune(**settings), 1)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_remedy(artifacts, shapes):
    with pytest.raises(StepError, match=r"no longer finite in epoch \d .*lower finetune.learning_rate than 1e\+20"):
        tuned(finetune_recipe(learning_rate=1e20, warmup_epochs=0), shapes)


def test_a_picture_is_changed_alike_wherever_it_is_loaded(shapes):
    samples = [Sample(str(n), shapes / "round" / f"{n:03d}.png", "round") for n in range(4)]
    here, there = (TrainingPictures(samples, VIEW, Serving(), Augment(blur=1), 5) for _ in range(2))
    torch.manual_seed(1)
    first = here[2, 3]
    state = torch.random.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(there[2, 3], first)
    assert not torch.equal(there[3, 3], first)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's chance is used up
    assert first.shape == (3, 32, 32)


def test_without_changes_a_training_picture_is_nearly_the_served_one(shapes):
    """The same resize by the same library, on the whole picture: only the crop's rounding may differ."""
    plain = Augment(crop_scale=1, flip=0, rotation=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0)
    samples = [Sample("a", shapes / "round" / "000.png", "round")]
    changed = TrainingPictures(samples, VIEW, Serving(), plain, 0)[0, 0]
    served = ServedPictures(samples, VIEW, Serving())[0]
    assert torch.equal(changed, served)


def test_batches_hold_every_row_once_and_none_alone():
    rows = np.arange(100, 117)
    cut = batches(rows, 3, 0, 8)
    assert [len(batch) for batch in cut] == [8, 9]
    assert sorted(np.concatenate(cut)) == rows.tolist()
    assert not np.array_equal(np.concatenate(batches(rows, 4, 0, 8)), np.concatenate(cut))


def test_the_best_epoch_is_of_the_best_auroc_then_of_the_least_loss():
    curve = TuningCurve(train=[1, 1, 1, 1], validation=[0.5, 0.4, 0.3, 0.1], auroc=[0.8, 0.9, 0.9, 0.85])
    assert curve.best_epoch == 2


def test_a_binary_model_of_one_logit_is_written_as_one_of_two():
    torch.manual_seed(0)
    model = SmallCnn(num_classes=1).eval()
    inputs = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        one = torch.sigmoid(model(inputs))[:, 0]
        two = torch.softmax(with_two_outputs(model)(inputs), dim=1)
    torch.testing.assert_close(two[:, 1], one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlflow uses what sqlalchemy has deprecated
def test_a_run_is_tracked_with_its_course_and_its_files(artifacts, shapes):
    recipe = finetune_recipe(epochs=2)
    head = recipe.heads[0]
    folder = step.finetune(recipe, head, labelled_samples(str(shapes), head, COLUMNS), track="", workers=0)
    assert folder is not None
    record = json.loads((folder / "finetune.json").read_text())
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{artifacts / 'mlflow' / 'mlflow.db'}")
    run = client.get_run(record["mlflow_run_id"])
    assert run.data.params["finetune.model"] == "clipsieve_cnn"
    course = client.get_metric_history(run.info.run_id, "auroc_validation")
    assert [point.value for point in course] == record["curve"]["auroc"]
    assert {file.path for file in client.list_artifacts(run.info.run_id, "classifier")} >= {"classifier/config.json"}


def test_a_state_that_was_damaged_is_named(artifacts, shapes):
    recipe = finetune_recipe(epochs=2)
    folder, _ = tuned(recipe, shapes)
    shutil.rmtree(folder)
    (state,) = (artifacts / "tuned" / "finetune").glob("state-*.ckpt")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(StepError, match="not a state that can be gone on from"):
        tuned(recipe, shapes)
