"""The weights of a head that is an image classifier's last layer, as the recipe wants its classes.

As it was trained: a softmax over its outputs, or with `task: multilabel` a sigmoid of each. Of two classes a softmax is
the sigmoid of the difference of their logits. `combine` adds probabilities, so the head's classes are logs of sums of
exp over the model's outputs, of which a softmax gives the sums.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from common.classifier_layer import ClassifierLayer
from common.manifest import Layer, Linear, LogSumExp
from recipes.head_section import Head
from training.calibrate import Activation
from training.errors import StepError

_LAST, _DIFFERENCE = "linear_0", "linear_1"


@dataclass(frozen=True)
class ClassifierWeights:
    """A head's layers, and what makes scores of their logits."""

    class_names: list[str]
    weight: np.ndarray  # (N, embed_dim) float64, of the model's outputs or what the groups are made of
    bias: np.ndarray  # (N,) float64
    groups: list[list[int]]  # of the N values, where classes are combined
    difference: np.ndarray | None  # (L, groups) float64, of the groups' logits
    activation: Activation

    @property
    def layers(self) -> list[Layer]:
        layers: list[Layer] = [Linear(weight=f"{_LAST}.weight", bias=f"{_LAST}.bias")]
        layers += [LogSumExp(groups=self.groups)] if self.groups else []
        layers += (
            [Linear(weight=f"{_DIFFERENCE}.weight", bias=f"{_DIFFERENCE}.bias")]
            if self.groups and self.difference is not None
            else []
        )
        return layers

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors of `layers`."""
        arrays = {f"{_LAST}.weight": self.weight, f"{_LAST}.bias": self.bias}
        if self.difference is not None:
            arrays |= {f"{_DIFFERENCE}.weight": self.difference, f"{_DIFFERENCE}.bias": np.zeros(len(self.difference))}
        return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}

    def logits(self, embedding: np.ndarray) -> np.ndarray:
        """(n, embed_dim) → (n, L) float64."""
        values = embedding.astype(np.float64) @ self.weight.T + self.bias
        if self.groups:
            values = np.stack([logsumexp(values[:, group], axis=1) for group in self.groups], axis=1)
        return values if self.difference is None else values @ self.difference.T


def classifier_weights(head: Head, layer: ClassifierLayer) -> ClassifierWeights:
    """The weights for a recipe's head with `classifier`.

    Raises:
        StepError: the model has no labels, or others than the recipe, or was trained with another kind of output.
    """
    labels = _labels(head, layer)
    _check_task(head, layer)
    assert head.classifier is not None
    if head.classifier.combine:
        return _combined(head, layer, labels)
    names = head.class_names or labels
    if layer.classes == 1:
        return _of_one_output(head, layer, labels)
    if sorted(names) != sorted(labels):
        raise StepError(
            f"head {head.name}: its class_names are {names}, the model's {_shown(labels)}; give those in the order you "
            "want, add up several with classifier.combine, or leave class_names out"
        )
    rows = [labels.index(name) for name in names]
    weight, bias = layer.weight[rows].astype(np.float64), layer.bias[rows].astype(np.float64)
    if head.task != "binary":
        return ClassifierWeights(names, weight, bias, [], None, "sigmoid" if head.task == "multilabel" else "softmax")
    if len(names) != 2:
        raise StepError(
            f"head {head.name}: a binary head has two classes, the model {len(names)}: {_shown(names)}; say task: "
            "multiclass, or make two of them with class_names and classifier.combine"
        )
    if layer.description.multilabel:  # each output by itself: the last one's says it
        return ClassifierWeights(names, weight[1:], bias[1:], [], None, "sigmoid")
    return ClassifierWeights(names, weight[1:] - weight[:1], bias[1:] - bias[:1], [], None, "sigmoid")


def _of_one_output(head: Head, layer: ClassifierLayer, labels: list[str]) -> ClassifierWeights:
    """A binary head of one output with a sigmoid, whose label is the positive class, or the second of two."""
    names = head.class_names or labels
    if head.task != "binary" or len(names) != 2 or names[1] != labels[-1]:
        raise StepError(
            f"head {head.name}: the model has one output, {labels[-1]}; say task: binary and class_names: [other name, "
            f"{labels[-1]}]; found {head.task} and {names}"
        )
    return ClassifierWeights(names, layer.weight.astype(np.float64), layer.bias.astype(np.float64), [], None, "sigmoid")


def _combined(head: Head, layer: ClassifierLayer, labels: list[str]) -> ClassifierWeights:
    assert head.classifier is not None
    combine = head.classifier.combine
    if layer.description.multilabel:
        raise StepError(
            f"head {head.name}: classifier.combine adds probabilities of a softmax, and each output of this model was "
            "trained with a sigmoid by itself; take its labels as they are, with task: multilabel"
        )
    if unknown := [name for members in combine.values() for name in members if name not in labels]:
        raise StepError(
            f"head {head.name}: classifier.combine names {unknown[0]!r}, no class of the model: {_shown(labels)}"
        )
    members = {name: combine.get(name, [name] if name in labels else []) for name in head.class_names}
    if head.task != "multilabel":
        members = _partition(head, members, labels)
    elif lacking := [name for name, part in members.items() if not part or len(part) == len(labels)]:
        raise StepError(f"head {head.name}: {lacking[0]} is made of none, or of all, of the model's {_shown(labels)}")
    groups = [[labels.index(name) for name in part] for part in members.values()]
    weight, bias = layer.weight.astype(np.float64), layer.bias.astype(np.float64)
    if head.task == "multiclass":
        return ClassifierWeights(head.class_names, weight, bias, groups, None, "softmax")
    if head.task == "binary":
        return ClassifierWeights(head.class_names, weight, bias, groups, np.array([[-1.0, 1.0]]), "sigmoid")
    rest = [[at for at in range(len(labels)) if at not in group] for group in groups]
    difference = np.hstack([np.eye(len(groups)), -np.eye(len(groups))])
    return ClassifierWeights(head.class_names, weight, bias, groups + rest, difference, "sigmoid")


def _partition(head: Head, members: dict[str, list[str]], labels: list[str]) -> dict[str, list[str]]:
    """The members of each class, of a binary head's other class all that remain; StepError if a label is not in one."""
    used = [name for part in members.values() for name in part]
    unmade = [name for name, part in members.items() if not part]
    if head.task == "binary" and len(unmade) == 1:
        members = members | {unmade[0]: [name for name in labels if name not in used]}
        used = [name for part in members.values() for name in part]
    if empty := [name for name, part in members.items() if not part]:
        raise StepError(f"head {head.name}: {empty[0]} is made of no class of the model: {_shown(labels)}")
    if sorted(used) != sorted(labels):
        wrong = [name for name in labels if used.count(name) != 1]
        raise StepError(
            f"head {head.name}: every class of the model is in one of the head's, {wrong[0]} in {used.count(wrong[0])}"
        )
    return members


def _labels(head: Head, layer: ClassifierLayer) -> list[str]:
    """The names of the model's outputs; several of one name, as ImageNet's two cranes, with their numbers."""
    labels = layer.description.labels
    if labels is None:
        key = "id2label" if layer.description.library == "transformers" else "label_names"
        raise StepError(
            f"head {head.name}: the model's config.json has no names for its {layer.classes} outputs; add {key} to it "
            "in a local copy of the folder, name that as encoder.weights, and build the encoder again"
        )
    times = Counter(labels)
    return [name if times[name] == 1 else f"{name} ({at})" for at, name in enumerate(labels)]


def _check_task(head: Head, layer: ClassifierLayer) -> None:
    """Refuse a softmax where the model was trained with sigmoids, and the other way round; two classes are binary."""
    multilabel, combined = layer.description.multilabel, bool(head.classifier and head.classifier.combine)
    if multilabel is None or combined or head.task == "binary" or multilabel == (head.task == "multilabel"):
        return
    kind, task = ("a sigmoid of each output", "multilabel") if multilabel else ("a softmax", "multiclass")
    raise StepError(f"head {head.name}: the model was trained with {kind}, its task is {head.task}; say task: {task}")


def _shown(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", … ({len(names)})" if len(names) > 6 else "")
