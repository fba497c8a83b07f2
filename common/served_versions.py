"""Reads which versions of a model are installed, and which of them Triton serves."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)


def installed_versions(model: Path) -> list[int]:
    """The versions in a model's folder, ascending; Triton passes over other names, such as `01`."""
    names = [path.name for path in model.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def served_versions(model: Path, config: ModelConfig) -> list[int]:
    """The installed versions that Triton loads by the config's `version_policy`, ascending.

    A request that names no version is answered by the last of them. None are served where the policy names only
    versions that are not installed.
    """
    installed, policy = installed_versions(model), config.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return installed
    if kind == "specific":
        return [version for version in installed if version in policy.specific.versions]
    count = policy.latest.num_versions if kind == "latest" else 1
    return installed[-count:] if count else []
