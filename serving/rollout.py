"""Replaces a head while it serves: install, verify, switch, and keep the old version for the way back.

    export CLIPSIEVE_ADMIN_KEY=…        # the server's: python -m serving.embedded --recipe demo --control explicit
    python -m serving.rollout demo --recipe demo
    python -m serving.rollout demo --recipe demo --rollback

The head comes from artifacts/<recipe>/heads/<name> (training.fit, build.head). The server runs it under another
name first and must give the scores that onnxruntime gives from the file; then the repository's proof learns what the
new version gives, config.pbtxt names it, the server loads it, and the proof's pictures are scored. Requests are
answered throughout, each by the version that its revision names. If anything fails, the old version keeps serving and
is what the repository serves. Prints what is served as JSON.

Servers that share one repository take the change one by one: run the command again with the --url of the next.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from common.head_parameters import head_parameters
from common.manifest import HeadManifest, ManifestError, compare_fingerprints, read_encoder, read_head
from common.paths import head_folder, repository_folder
from common.proof import Proof, ProofHead, image_misses
from common.proof_file import set_head
from common.served_versions import installed_versions
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from serving.config_text import edited
from serving.head_probe import ProbeSet, disagreement, probe_set
from serving.head_versions import (
    Served,
    add_version,
    only_rollout,
    read_replaced,
    read_served,
    write_config,
)
from serving.model_control import ControlledServer
from serving.proof import installed_proof
from serving.triton_wheel import ServingError
from serving.tritonserver_options import admin_key_from_environment, check_admin_key
from serving.watched_head import update_watch

_THRESHOLDS = "thresholds of each label"


@dataclass(frozen=True)
class Change:
    """The versions served before and after a rollout."""

    before: Served
    after: Served
    watch_problem: str | None = None
    """Why the head's watch knows nothing of it; the head serves all the same."""


def roll_out(
    head: str, repository: Path, source: Path, server: ControlledServer, other_decisions: bool = False
) -> Change:
    """Serve the head in `source` from now on.

    Args:
        head: its name.
        repository: the model repository that `server` loads from.
        source: folder with head.json and model.onnx.
        server: the running server.
        other_decisions: whether a label may get another number of thresholds.

    Raises:
        ServingError: it was not switched; the message says what is served.
        ManifestError: the head fits neither the repository's encoder nor its outputs.
    """
    folder = repository / f"{head}_head"
    with only_rollout(folder):
        before = read_served(repository, head)
        manifest = read_head(source)
        check_fits(manifest, before, repository, other_decisions)
        proof = installed_proof(repository)
        probes = probe_set(source, manifest, proof)
        if manifest.revision == before.manifest.revision:
            known = [each.revision for each in proof.heads]  # other servers may still have what it replaced
            set_head(repository, _proved(probes, proof), head, kept=known)
            _follow(before, probes, proof, server)
            return _changed(before, server)
        check_same_repository(before, server)
        try_candidate(source, before, manifest, probes, server)
        number = 1 + max(installed_versions(folder) + server.known_versions(folder.name))
        added = add_version(before, source, number)
        try:
            text = edited(before.config, number, _parameters(manifest, before), folder / "config.pbtxt")
            switch(before, text, probes, proof, server)
        except BaseException:
            shutil.rmtree(added)
            raise
        return _changed(before, server)


def roll_back(head: str, repository: Path, server: ControlledServer) -> Change:
    """Serve again what the served version replaced; the version that is left stays on disk.

    Raises:
        ServingError: there is nothing to go back to, or it was not switched.
    """
    with only_rollout(repository / f"{head}_head"):
        before = read_served(repository, head)
        replaced = read_replaced(before)
        folder = before.version_folder(replaced.version)
        proof = installed_proof(repository)
        switch(before, replaced.config, probe_set(folder, read_head(folder), proof), proof, server)
        return _changed(before, server)


def check_fits(manifest: HeadManifest, served: Served, repository: Path, other_decisions: bool = False) -> None:
    """Refuse a head of another encoder, or with other outputs than the served one.

    The number of thresholds says what a decision means: with one, 1 is to block; with two it is to review. Another
    number needs `other_decisions`.

    Raises:
        ManifestError: naming each differing field with both values.
    """
    compare_fingerprints(manifest, read_encoder(repository / "clip_encoder" / "1"))
    old, new = fixed_for_clients(served.manifest), fixed_for_clients(manifest)
    if not other_decisions:
        old[_THRESHOLDS], new[_THRESHOLDS] = (
            [len(row) for row in each.thresholds] for each in (served.manifest, manifest)
        )
    differing = [f"{key}: served {old[key]!r}, new {new[key]!r}" for key in old if old[key] != new[key]]
    if differing:
        only_decisions = all(old[key] == new[key] for key in old if key != _THRESHOLDS)
        remedy = (
            "Where clients may read decisions of another meaning, say --allow-other-decisions"
            if only_decisions
            else "Give it a name of its own in the recipe and install the repository again: make engines"
        )
        raise ManifestError(
            f"head {manifest.name!r} cannot take the place of {served.model} {served}:\n  "
            + "\n  ".join(differing)
            + f"\n{remedy}"
        )


def fixed_for_clients(manifest: HeadManifest) -> dict[str, object]:
    """Facts that clients and the ensemble rely on; another value needs a new repository."""
    return {
        "name": manifest.name,
        "task": manifest.task,
        "labels": manifest.labels,
        "class_names": manifest.class_names,
    }


def check_same_repository(served: Served, server: ControlledServer) -> None:
    """The server must serve what lies here.

    Raises:
        ServingError: it serves another revision.
    """
    revision = _serving_revision(served, server)
    if revision != served.manifest.revision:
        raise ServingError(
            f"{server.url} serves {served.model} revision {revision:016x}, {served.folder} has {served}; "
            "is it another repository? If not, restart the server first"
        )


def try_candidate(
    source: Path, served: Served, manifest: HeadManifest, probes: ProbeSet, server: ControlledServer
) -> None:
    """Let the server run the new head beside the old, under a name that nobody asks for.

    Raises:
        ServingError: it cannot load it, or scores otherwise than the file.
    """
    name = f"{served.model}_candidate"
    server.load_from_memory(name, served.config, sorted(source.glob("model.onnx*")))
    try:
        problem = disagreement(probes, server.score(name, probes.embeddings))
    finally:
        server.unload(name)
    if problem is not None:
        raise ServingError(f"{server.url}: {manifest.name} was tried and not installed: {problem}; {served} serves on")


def switch(before: Served, text: str, probes: ProbeSet, proof: Proof, server: ControlledServer) -> None:
    """Serve what the config `text` names, or, if that fails in any way, what was served before.

    The proof knows both versions first, and keeps knowing both: a server of this repository may be started at any
    moment, and others serve the old one until they reload it.

    Raises:
        ServingError: it failed.
    """
    repository, name, old = before.folder.parent, before.manifest.name, before.manifest.revision
    set_head(repository, _proved(probes, proof), name, kept=[old])
    write_config(before, text)
    try:
        server.load(before.model)
        check_serves(before, probes, proof, server)
    except BaseException as error:
        write_config(before, before.config)
        outcome = _taken_back(before, server)
        set_head(repository, None, name, kept=[old])
        if isinstance(error, ServingError):
            raise ServingError(f"{error}\n{outcome}") from error
        raise


def check_serves(served: Served, probes: ProbeSet, proof: Proof, server: ControlledServer) -> None:
    """The model and the ensemble answer with the head of the probe set, and score the proof's pictures as it does.

    Raises:
        ServingError: they do not.
    """
    if (problem := disagreement(probes, server.score(served.model, probes.embeddings))) is not None:
        raise ServingError(f"{server.url}: {served.model}: {problem}")
    answer = server.score_pictures(served.manifest.name, proof)
    if answer is None:
        return
    if missed := image_misses(replace(proof, heads=(probes.proved,)), served.manifest.name, answer):
        raise ServingError(f"{server.url}: {'; '.join(missed)}")


def _proved(probes: ProbeSet, proof: Proof) -> ProofHead:
    """The proof's entry for a head, which has scores of pictures only if it had them before."""
    head = probes.proved
    return head if head.name in proof.image_heads else replace(head, image_scores=None)


def _taken_back(before: Served, server: ControlledServer) -> str:
    """Have the server load the old version again; what came of it."""
    try:
        with contextlib.suppress(ServingError):  # a failed load has left the old version as it was
            server.load(before.model)
        revision = _serving_revision(before, server)
    except ServingError as error:
        return f"The repository serves {before} again; what the server serves is not known ({error})"
    if revision == before.manifest.revision:
        return f"Nothing has changed: {before} serves on."
    return f"The repository serves {before} again, but the server revision {revision:016x}: restart it"


def _serving_revision(served: Served, server: ControlledServer) -> int:
    return server.revision(served.model, served.manifest.encoder.embed_dim)


def _follow(served: Served, probes: ProbeSet, proof: Proof, server: ControlledServer) -> None:
    """The repository has this head already; have the server serve it too."""
    if _serving_revision(served, server) != probes.revision:
        server.load(served.model)
    check_serves(served, probes, proof, server)


def _changed(before: Served, server: ControlledServer) -> Change:
    """Report the outcome of a rollout, once the head's watch knows of it."""
    repository = before.folder.parent
    after = read_served(repository, before.manifest.name)
    try:
        update_watch(repository, after.manifest, server)
    except ServingError as error:
        return Change(before, after, str(error))
    return Change(before, after)


def _parameters(manifest: HeadManifest, before: Served) -> dict[str, str]:
    """Parameters from which clients learn about the new head."""
    notice = {"notice": manifest.notice or ""} if manifest.notice or before.manifest.notice else {}
    return head_parameters(manifest) | notice


def report(change: Change) -> str:
    def described(served: Served) -> dict[str, object]:
        return {"version": served.version, "revision": f"{served.manifest.revision:016x}"}

    before, after = change.before, change.after
    return json.dumps({"model": after.model, "served": described(after), "before": described(before)})


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.rollout", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("head", help="the name of the head")
    add_recipe_options(parser)
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC address")
    parser.add_argument("--repository", type=Path, help="where the server loads from; by default the recipe's")
    parser.add_argument(
        "--allow-other-decisions", action="store_true", help="also where a label has another number of thresholds"
    )
    parser.add_argument("--rollback", action="store_true", help="serve again what the served version replaced")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    repository = arguments.repository or repository_folder(recipe)
    with ControlledServer(arguments.url, check_admin_key(admin_key_from_environment())) as server:
        if arguments.rollback:
            change = roll_back(head.name, repository, server)
        else:
            source = head_folder(recipe, head)
            change = roll_out(head.name, repository, source, server, arguments.allow_other_decisions)
    print(f"{change.after.model}: {change.after} serves, before it {change.before}", file=sys.stderr)
    if change.watch_problem:
        print(
            f"serving.rollout: its scores are not compared with its training: {change.watch_problem}", file=sys.stderr
        )
    print(report(change))


if __name__ == "__main__":
    sys.exit(run_step("serving.rollout", main))
