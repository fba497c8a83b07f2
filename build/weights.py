"""Finds a tower's checkpoint: a local file, a folder of the Hugging Face hub, or an address to download."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from common.download import DownloadError, check_sha256, download
from common.hub import first_line as first_line  # for the modules beside this one
from common.hub import offline_if_unreachable as offline_if_unreachable
from common.manifest import sha256_of
from common.paths import ARTIFACTS, named_path
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError

_SUM_IN_URL = re.compile(r"/(?P<whole>[0-9a-f]{64})/[^/]+$|-(?P<start>[0-9a-f]{8})\.\w+$")
"""Sum in an address: OpenAI's is a folder, open_clip's and timm's begins in the file's name."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
FOLDER_CHECKPOINTS = (  # in the order in which open_clip takes them
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


CLASSIFIER_CONFIG = "config.json"
PROCESSOR_CONFIG = "preprocessor_config.json"
CLASSIFIER_CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")
"""Weights of an image classifier's folder, in the order in which they are taken."""


def weights_file(encoder: Encoder) -> Path | None:
    """The checkpoint that a recipe names, if any; an address is downloaded first.

    Raises:
        RecipeError: it is missing, cannot be downloaded, or its sum is not `weights_sha256`.
    """
    if encoder.weights is None:
        return None
    try:
        if isinstance(encoder.weights, str):
            return download(encoder.weights, downloaded_file(encoder), encoder.weights_sha256)
        path = _local_file(encoder)
        if encoder.weights_sha256 is not None:
            check_sha256(path, encoder.weights_sha256, f"encoder.weights {path}")
    except DownloadError as error:
        raise RecipeError(_with_remedy(encoder, error)) from error
    return path


def weights_folder(encoder: Encoder) -> Path | None:
    """The folder that `weights` names, when it is one with a model config of its own."""
    if not isinstance(encoder.weights, Path) or not named_path(encoder.weights).is_dir():
        return None
    return named_path(encoder.weights)


def is_file_of_tag(encoder: Encoder, path: Path, url: str | None) -> bool | None:
    """Compare the checkpoint of `weights` with the sum in the tag's address; warns on stderr where they differ.

    The same weights in another format have another sum, so only a file that bears the name of the tag's is refused.

    Args:
        encoder: with `weights` and `pretrained`.
        path: the checkpoint.
        url: of the tag's own file.

    Returns:
        None when the tag's sum is not known.

    Raises:
        RecipeError: it is called as the tag's file, and is another.
    """
    match = _SUM_IN_URL.search(url or "")
    if match is None:
        return None
    expected, name, actual = match["whole"] or match["start"], Path(str(url)).name, sha256_of(path)
    if actual.startswith(expected):
        return True
    sums = f"its sha256 begins {actual[:12]}, that of {name} {expected[:12]}"
    if path.name == name:
        raise RecipeError(
            f"encoder.weights {path}: these are not the weights of {encoder.pretrained}, the file is damaged or "
            f"another ({sums}); fetch it again, or for weights of your own rename it and leave out encoder.pretrained"
        )
    print(
        f"encoder {encoder.id}: {path.name} is not the file of {encoder.pretrained} ({sums}). If it has the same "
        f"weights in another format, all is well. On weights of your own, heads for {encoder.pretrained} give scores "
        "that mean nothing: leave out encoder.pretrained (where the build asks for it, it names their preprocessing)",
        file=sys.stderr,
    )
    return False


def source_sha256(encoder: Encoder) -> str | None:
    """Sum of the checkpoint that the recipe names, of an image classifier's folder with its configs before it; for an
    address the recipe's own, so nothing is fetched."""
    if isinstance(encoder.weights, str):
        return encoder.weights_sha256
    if encoder.weights is None:
        return None
    folder, path = weights_folder(encoder), _local_file(encoder)
    beside = (
        []
        if folder is None or encoder.library == "open_clip"
        else [folder / name for name in (CLASSIFIER_CONFIG, PROCESSOR_CONFIG)]
    )
    return sha256_of(*(config for config in beside if config.is_file()), path)


def downloaded_file(encoder: Encoder) -> Path:
    """The path artifacts/downloads/<start of the sum>-<name>: files of one name do not replace each other."""
    return ARTIFACTS / "downloads" / f"{(encoder.weights_sha256 or '')[:12]}-{encoder.weights_name}"


def hub_revision(repository: str, revision: str | None) -> str | None:
    """The commit that the hub's files of `repository` were taken from: the recipe's, or that of `main` at the time."""
    if revision is not None:
        return revision
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    main = Path(constants.HF_HUB_CACHE) / folder / "refs" / "main"
    return main.read_text().strip() if main.is_file() else None


def download_advice(encoder: Encoder, source: Mapping[str, Any], problem: str) -> str:
    """The message about weights that could not be downloaded: what to fetch, and where to put it.

    Args:
        encoder: of the recipe.
        source: open_clip's config of its tag, or the recipe's address: `hf_hub` and `url`.
        problem: why they could not.
    """
    where = [str(source["hf_hub"]).rstrip("/") + " on the Hugging Face hub"] if source.get("hf_hub") else []
    where += [str(source["url"])] if source.get("url") else []
    name = encoder.weights_name if encoder.weights is not None else "<file>"
    tag = encoder.pretrained or name
    return (
        f"weights of {encoder.model} ({tag}) could not be downloaded: {problem}\n"
        f"On a machine with a network fetch {' or '.join(where)} (its open_clip .safetensors, .bin or .pt file), "
        f"put it into weights/, and name it in the recipe:\n  encoder:\n    weights: weights/{name}"
    )


def checkpoint_in(folder: Path) -> Path:
    """The one file with the weights of an image classifier's folder.

    Raises:
        RecipeError: there is no config.json, or no weights, or they are in several files.
    """
    if not (folder / CLASSIFIER_CONFIG).is_file():
        raise RecipeError(
            f"encoder.weights {folder}: the folder has no {CLASSIFIER_CONFIG}, which an image classifier's has; "
            "name a checkpoint in it"
        )
    there = [name for name in CLASSIFIER_CHECKPOINTS if (folder / name).is_file()]
    if there:
        return folder / there[0]
    if indexes := sorted(path.name for path in folder.glob("*.index.json")):
        raise RecipeError(
            f"encoder.weights {folder}: its weights are in several files, listed in {indexes[0]}; load the model and "
            "save it as one file: model.save_pretrained(NEW_FOLDER, max_shard_size='1TB')"
        )
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    found = f"; found {', '.join(others)}: rename the one that is meant to {_name_like(others[0])}" if others else ""
    raise RecipeError(f"encoder.weights {folder}: the folder has none of {', '.join(CLASSIFIER_CHECKPOINTS)}{found}")


def _local_file(encoder: Encoder) -> Path:
    folder = weights_folder(encoder)
    if folder is not None:
        return _checkpoint_in(folder, encoder)
    path = named_path(Path(str(encoder.weights)))
    if not path.is_file():
        raise RecipeError(
            f"encoder.weights: no file {path}; give the path of a .pt, .bin or .safetensors checkpoint, "
            f"of a folder with {OPEN_CLIP_CONFIG}, or an http(s) address with weights_sha256"
        )
    return path


def _checkpoint_in(folder: Path, encoder: Encoder) -> Path:
    if encoder.library != "open_clip":
        return checkpoint_in(folder)
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        raise RecipeError(f"encoder.weights {folder}: the folder has no {OPEN_CLIP_CONFIG}; name a checkpoint in it")
    there = [folder / name for name in FOLDER_CHECKPOINTS if (folder / name).is_file()]
    if not there:
        raise RecipeError(f"encoder.weights {folder}: the folder has none of {', '.join(FOLDER_CHECKPOINTS)}")
    return there[0]


def _name_like(other: str) -> str:
    """The name that a checkpoint in a folder goes by, of the same format as `other`."""
    return CLASSIFIER_CHECKPOINTS[0 if other.endswith(".safetensors") else 1]


def _with_remedy(encoder: Encoder, error: DownloadError) -> str:
    if isinstance(encoder.weights, Path):
        return f"{error}; give the file's own sum as encoder.weights_sha256, or the file that has this one"
    return (
        f"encoder.weights: {error}\nWithout a network, fetch it on another machine and name the local copy:\n"
        f"  encoder:\n    weights: weights/{encoder.weights_name}"
    )
