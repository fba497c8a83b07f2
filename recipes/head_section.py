"""A recipe's heads: what they tell apart, and how they are trained, searched for, imported or made of words."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recipes.classifiers import check_classifier
from recipes.prompts import check_prompts
from recipes.section import Section, Sha256, Texts, is_unset

Task = Literal["binary", "multiclass", "multilabel", "regression", "ranking"]
Loss = Literal["bce", "mse", "cross_entropy", "ab", "nll"]
ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=48)]
_OF_STEPS = ("learning_rate", "weight_decay", "warmup_epochs", "schedule", "batch_size", "patience")
_EXACT_LOSSES = ("bce", "cross_entropy", "mse", "ab")
GRADED = ("regression", "ranking")
"""Tasks whose labels are numbers, and whose scores are."""


class Fit(Section):
    """Settings of `training.fit`."""

    architecture: Literal["mlp", "laion-h14", "laion-aesthetic", "laion-aesthetic-relu"] = "mlp"
    """`mlp` has the `hidden_sizes`; the others have the layers of the published heads of those names."""
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = []
    """The width of each hidden layer of `mlp` (ReLU and dropout after each); empty means one linear layer."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """The share of hidden values that are left out in training."""
    input_dropout: float = Field(default=0, ge=0, lt=1)
    """The share of the embedding's values that are left out in training."""
    output_dropout: float | None = Field(default=None, ge=0, lt=1)
    """The share of the last hidden layer's values that are left out in training; by default `dropout`."""
    merge_layers: Literal["concatenate", "weighted"] = "concatenate"
    """What a head sees of an encoder's several `layers`: all of them side by side, or their sum by one learned weight
    each, which is folded into the first layer of the served head. A sum is of layers of one width."""
    loss: Loss | None = None
    """Loss; by default bce (binary, multilabel), cross_entropy (multiclass), mse (regression) or ab (ranking). For
    grades `mse` learns the value, `ab` the order of pairs of pictures, by a margin: those of the choices if there are
    some, else drawn from the grades; `nll` the value and its standard deviation, which the served head gives too."""
    class_weights: bool = False
    """Weigh classes by the inverse of their frequency (bce's pos_weight). The scores then overstate rare classes until
    they are calibrated, and rank no better."""
    optimizer: Literal["lbfgs", "adamw", "adam"] = "lbfgs"
    """`lbfgs` solves one linear layer exactly, with the weight decay of the least held-out loss. By default it does so
    for a head of one layer, unless the recipe has settings of the other two (learning_rate, weight_decay,
    warmup_epochs, schedule, batch_size, patience or input_dropout), the loss nll, or weighted layers."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The learning rate of adamw and adam after warm-up."""
    weight_decay: float | None = Field(default=None, ge=0)
    """The weight decay: by default 1e-4 of adamw and adam, of lbfgs the one of the least held-out loss."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs of linear warm-up of the learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after warm-up."""
    batch_size: int = Field(default=256, ge=1)
    """Embeddings in one step."""
    max_epochs: int = Field(default=200, ge=1)
    """The most passes over the training rows, of lbfgs at each weight decay."""
    patience: int = Field(default=20, ge=1)
    """Stop after this many epochs without a better validation loss; the best epoch is kept."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Held out for the metrics, the operating points' check and nothing else."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for early stopping, calibration and the choice of thresholds where there are no folds."""
    folds: int = Field(default=5, ge=0, le=20)
    """Parts of all rows but the test part, each held out once: what they show chooses the epochs, the calibration and
    the thresholds, and the final weights are fitted to all of them. Of more than 20,000 rows the validation part does
    it, and only the exact solution of lbfgs is fitted to it too. With 0 it does it and the weights never see it."""
    near_duplicate_cosine: float | None = Field(default=0.97, gt=0, le=1)
    """Embeddings at least this close share a side of the split; null looks at exact duplicates only."""
    seed: int = 0
    """The seed of the split, the first weights and the order of batches."""
    precision: Literal["fp32", "bf16"] | None = Field(default=None, exclude_if=is_unset)
    """Precision of the matrix products of adamw and adam; weights, sums and the held-out loss are fp32 always. By
    default bf16 on a GPU that multiplies in it, and fp32 on a CPU, of which those with AMX are faster at bf16."""
    start: Literal["prompts"] | None = Field(default=None, exclude_if=is_unset)
    """`prompts` trains one linear layer from the weights of the head's `prompts`, pulled towards them as much as
    held-out rows want (`weight_decay`, if it is given). A head with prompts and without this keeps their weights, which
    labelled pictures only calibrate."""

    @model_validator(mode="before")
    @classmethod
    def _default_optimizer(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("optimizer") is not None:
            return data
        linear = data.get("architecture", "mlp") == "mlp" and not data.get("hidden_sizes")
        stepped = [key for key in _OF_STEPS if data.get(key) is not None]
        stepped += ["input_dropout"] if data.get("input_dropout") else []
        stepped += ["loss"] if data.get("loss") not in (None, *_EXACT_LOSSES) else []
        stepped += ["merge_layers"] if data.get("merge_layers") == "weighted" else []
        return {**data, "optimizer": "lbfgs" if linear and not stepped else "adamw"}

    @model_validator(mode="after")
    def _exact_optimizer(self) -> Fit:
        if self.optimizer == "lbfgs" and self.precision == "bf16":
            raise ValueError("optimizer: lbfgs solves in fp32; for precision bf16 take adamw or adam")
        if self.folds == 1:
            raise ValueError("folds must be 0 or at least 2, found 1")
        if self.optimizer == "lbfgs" and (self.hidden_sizes or self.architecture != "mlp"):
            raise ValueError("optimizer: lbfgs solves one linear layer; with hidden layers take adamw or adam")
        if self.optimizer == "lbfgs" and (self.input_dropout or self.loss == "nll" or self.merge_layers == "weighted"):
            raise ValueError(
                "optimizer: lbfgs is for no input_dropout, loss nll or merge_layers weighted; take adamw or adam"
            )
        return self


"""One text, or several."""


class Between(Section):
    """A range of a search, with both its ends."""

    low: float
    """The least value."""
    high: float
    """The greatest value."""

    @model_validator(mode="after")
    def _ascending(self) -> Between:
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high, found {self.low} and {self.high}")
        return self


Integers = int | list[int] | Between
Numbers = float | list[float] | Between
SearchSet = Literal["train", "validation", "evaluation", "all"]
SearchMetric = Literal["spearman", "ab", "pearson", "mse", "mae", "accuracy", "auroc", "average_precision"]


class Search(Section):
    """Settings of `training.search`: which ones it tries. Each is a value, a list of values, or a range (low, high)."""

    trials: int = Field(default=100, ge=1)
    """Heads that are trained to compare settings."""
    metric: SearchMetric | None = None
    """The figure that is the best: by default spearman of grades, auroc of two classes."""
    set: SearchSet = "validation"
    """The rows it is measured on, by weights fitted to the training part. Who searches on `evaluation`, the test part,
    can no longer tell how good the winner is."""
    sampler: Literal["tpe", "gp", "nsgaii", "random"] = "tpe"
    """Optuna's sampler, which chooses what to try next."""
    pruner: Literal["median", "halving", "hyperband", "none"] = "median"
    """Optuna's pruner, which ends trials that fall behind."""
    hidden_layers: Integers = Between(low=0, high=2)
    """Number of hidden layers."""
    hidden_size: Integers = Between(low=16, high=256)
    """Width of each hidden layer; a range is searched by its logarithm."""
    dropout: Numbers = Between(low=0, high=0.6)
    """As `fit.dropout`."""
    input_dropout: Numbers = Between(low=0, high=0.4)
    """As `fit.input_dropout`."""
    output_dropout: Numbers = Between(low=0, high=0.6)
    """As `fit.output_dropout`."""
    learning_rate: Numbers = Between(low=1e-4, high=1e-2)
    """As `fit.learning_rate`; a range is searched by its logarithm."""
    weight_decay: Numbers = Between(low=1e-5, high=1)
    """As `fit.weight_decay`; a range is searched by its logarithm."""
    warmup_epochs: Integers = Between(low=0, high=5)
    """As `fit.warmup_epochs`."""
    max_epochs: Integers = Between(low=8, high=40)
    """As `fit.max_epochs`."""
    batch_size: Integers = [128, 256, 512]
    """As `fit.batch_size`."""
    loss: Loss | list[Loss] | None = None
    """As `fit.loss`; by default all that fit a ranking or a regression, and otherwise the head's own."""

    @model_validator(mode="after")
    def _fits(self) -> Search:
        for name in ("hidden_layers", "hidden_size", "max_epochs", "batch_size", "warmup_epochs"):
            least = 1 if name in ("hidden_size", "max_epochs", "batch_size") else 0
            _check_choice(name, getattr(self, name), least, math.inf)
        for name in ("dropout", "input_dropout", "output_dropout"):
            _check_choice(name, getattr(self, name), 0, 1 - 1e-9)
        for name in ("learning_rate", "weight_decay"):
            _check_choice(name, getattr(self, name), 1e-12, math.inf)
        return self


def _check_choice(name: str, choice: Any, least: float, most: float) -> None:
    """Refuse a value, a list or a range that is empty or goes beyond what the setting can be."""
    values = (
        [choice.low, choice.high] if isinstance(choice, Between) else choice if isinstance(choice, list) else [choice]
    )
    if not values or any(not least <= value <= most for value in values):
        limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to below 1"
        raise ValueError(f"search.{name} must be {limits}, found {values}")


class Published(Section):
    """A published head that `training.import_head` imports, instead of training one."""

    name: str
    """Such as `laion-nsfw-l14`; `python -m training.import_head --list` shows them."""
    file: Path | None = None
    """A local copy, for machines without a network; its sha256 is checked all the same."""
    sha256: Sha256 | None = None
    """The sha256 of the file, for the heads whose sum is not known here; for the others it must be the known one."""
    variant: Literal["published", "float16", "numeric"] = "published"
    """Reading of the two Keras heads, whose few categorical columns are looked up in a vocabulary of float16 values:
    `published` as the original graph does (a value that is no float16 is nearly always unknown), `float16` with
    those columns rounded first, as the embeddings it was trained on were, `numeric` all left unknown."""


class Classifier(Section):
    """The last layer of the encoder's own image classifier, which `training.import_classifier` makes the head of.

    Its classes are those of the model's config. The head's `class_names` may put them in another order: of a binary
    head the score is that of the last. `task: multilabel` takes a sigmoid of each output, the others a softmax.
    """

    combine: dict[str, Texts] = {}
    """Classes of the head made of several of the model's, whose probabilities are added: `{nsfw: [medium, high]}`. A
    binary head's other class is all that remains; each label of a multilabel one is held against all others."""


class Head(Section):
    """One classifier on the embedding, served as the model `<name>_head`."""

    name: ModelName
    """The name of the head, of its output of image_score, and of its model `<name>_head`."""
    task: Task = "binary"
    """Meaning of a score: one probability, one of several classes, several labels that may all hold, or a value: the
    grade itself (`regression`), or what puts pictures in the right order (`ranking`)."""
    class_names: list[str]
    """Binary: what 0 and 1 mean, `[safe, nsfw]`. Multiclass: one per class. Multilabel: one per label.
    Regression and ranking: the name of the one value. With `classifier` they may be left out: those of the model."""
    thresholds: list[float] = []
    """Fixed thresholds, ascending; a score at or above one passes it. By default 0.5, and for grades the
    `accuracy_divider`."""
    accuracy_divider: Literal["median", "none"] | float = "median"
    """Of grades: pictures at or above it are good, those below bad. Accuracy is measured by it, and it is the served
    threshold where `thresholds` gives no other. `median` is that of the grades it is trained on; `none` divides
    nothing."""
    operating_points: list[str] = []
    """Instead of fixed thresholds, chosen on held-out data: `recall>=0.99`, `precision>=0.95`, `fpr<=0.001`, `f1`.
    Two of them make the bands allow, review and block."""
    calibration: Literal["platt", "temperature", "none"] = "platt"
    """Method that turns logits into probabilities, fitted on data that the head's weights never saw."""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of the positive class where the head will be used; probabilities are corrected for it."""
    published: Published | None = None
    """A published head to import instead of training one."""
    classifier: Classifier | None = Field(default=None, exclude_if=is_unset)
    """The last layer of the encoder's own classifier, instead of training one: `classifier: {}`. The encoder is one of
    timm's or transformers' with `normalize: false`."""
    source: Path | None = None
    """Folder with head.json, such as another recipe's; by default artifacts/<recipe>/heads/<name>, where training.fit
    writes."""
    prompts: dict[str, Texts] = Field(default={}, exclude_if=is_unset)
    """Texts of each class, instead of training data: the head compares a picture with them. A binary head's score is
    that of the second class against the first. Most towers know English alone."""
    templates: list[str] | None = Field(default=None, exclude_if=is_unset)
    """Sentences with {} for each text of `prompts`, whose embeddings are averaged: by default a photo, a picture and an
    image `of {}.`; with `[]` the texts are taken as they are."""
    negatives: dict[str, Texts] = Field(default={}, exclude_if=is_unset)
    """Texts that a multilabel head's label is held against; by default neutral ones, `a photo.`, and with SigLIP none
    at all, whose bias stands for them."""
    shadow: ModelName | None = None
    """Another head of the recipe, a candidate for this one's place: whenever this head scores, the candidate does
    beside it, and metrics compare the two. It is no output of `image_score`. Needs `serving: {watch: true}`."""
    fit: Fit = Fit()
    """Training of the head."""
    search: Search | None = None
    """Search of better settings than those of `fit`, by `training.search`; with its defaults where this is left out."""

    def settings(self) -> dict[str, Any]:
        """What the recipe says of the head itself, for its manifest: without how its settings were searched."""
        return self.model_dump(mode="json", exclude={"search"})

    @property
    def labels(self) -> list[str]:
        """One per score column; a binary head has one, its positive class."""
        return self.class_names[1:] if self.task == "binary" else self.class_names

    @property
    def fixed_thresholds(self) -> list[float]:
        """`thresholds`, or their default; of grades that is found in training."""
        return self.thresholds or ([] if self.is_graded else [0.5])

    @property
    def is_graded(self) -> bool:
        """True where labels and scores are numbers."""
        return self.task in GRADED

    @model_validator(mode="before")
    @classmethod
    def _classes_of_the_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("classifier") is not None:
            return {"class_names": [], **data}
        return data

    @model_validator(mode="after")
    def _classes(self) -> Head:
        if self.classifier is not None and not self.class_names:
            return self
        limits = {"binary": (2, 2), "multiclass": (2, 10_000), "multilabel": (1, 10_000)}
        low, high = limits.get(self.task, (1, 1))
        if not low <= len(self.class_names) <= high:
            count = str(low) if low == high else f"{low} or more"
            raise ValueError(
                f"a {self.task} head has {count} class_names, found {len(self.class_names)}: {self.class_names}"
            )
        if len({unicodedata.normalize("NFC", name).strip() for name in self.class_names}) != len(self.class_names):
            raise ValueError(f"class_names must differ, found {self.class_names}")
        if not all(name.strip() for name in self.class_names):
            raise ValueError(f"class_names must not be empty, found {self.class_names}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _calibration_of_given_weights(cls, data: Any) -> Any:
        """One number for all classes, where few labels are what there is."""
        given = isinstance(data, dict) and (data.get("prompts") or data.get("classifier") is not None)
        if given and data.get("task", "binary") != "binary":
            return {"calibration": "temperature", **data}
        return data

    @model_validator(mode="after")
    def _prompts(self) -> Head:
        check_prompts(self)
        check_classifier(self)
        return self

    @model_validator(mode="after")
    def _decisions(self) -> Head:
        if self.thresholds and self.operating_points:
            raise ValueError("give thresholds or operating_points, not both")
        if self.thresholds != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds must ascend, found {self.thresholds}")
        if not self.is_graded and any(not 0 < value < 1 for value in self.thresholds):
            raise ValueError(f"thresholds of probabilities lie between 0 and 1, found {self.thresholds}")
        if self.prevalence is not None and self.task != "binary":
            raise ValueError(f"prevalence is for binary heads, this one is {self.task}")
        if not self.is_graded and self.accuracy_divider != "median":
            raise ValueError(f"accuracy_divider is for regression and ranking heads, this one is {self.task}")
        return self
