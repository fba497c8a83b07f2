"""Origin of a head in head.json: the data and the run that trained it, or the file it was published in.

A new fact about the training is a new optional field here; a file without it is read as before.
"""

from __future__ import annotations

from common.manifest_parts import GrowingPart


class Duplicates(GrowingPart):
    """Duplicates among the labelled rows; those of one group are in the same part of the split."""

    exact_duplicate_groups: int
    """Contents that several rows have."""
    exact_duplicate_rows: int
    near_duplicate_groups: int
    """Groups of contents whose embeddings are nearer than the recipe's `near_duplicate_cosine`."""
    near_duplicate_rows: int


class KerasCheck(GrowingPart):
    """Comparison of an imported Keras head with its original graph, on random vectors of several kinds."""

    vectors_of_each_kind: int
    max_difference: dict[str, float]
    """Largest difference of a score, for each kind of vectors."""
    tensorflow: str
    """Version that ran the original graph."""


class VariantDifference(GrowingPart):
    """Distance of one variant's scores from the original graph's."""

    max_difference: float
    flipped: float
    """Share of vectors that fall on the other side of 0.5."""


class PublishedSource(GrowingPart):
    """The published file that a head was imported from."""

    name: str
    """The head's name in `training.published`."""
    file: str
    sha256: str
    url: str
    variant: str | None = None
    """The variant of a Keras head that was taken; `published` for other heads."""
    verified: KerasCheck | None = None
    """The check that a Keras head passed."""
    variants: dict[str, dict[str, VariantDifference]] | None = None
    """Of a Keras head each variant's difference from the original, for each kind of vectors."""


class ClassifierSource(GrowingPart):
    """The image classifier whose last layer a head is."""

    library: str
    file: str | None
    """Name of the file, or of the checkpoint in the folder, that it was loaded from."""
    sha256: str | None = None
    """Sum of that file, when the recipe gives one."""
    hub: str | None = None
    revision: str | None = None
    """The hub's repository and its commit, if it was taken from there."""
    labels: list[str]
    """Its own classes, in the order of its outputs."""
    pictures: int
    """How many the pair of encoder and head was compared on with the whole model."""
    max_difference: float
    """Largest difference of a logit there."""
    largest_logit: float


class Words(GrowingPart):
    """The texts that a head was made of, and how the checkpoint makes logits of their cosines with a picture."""

    texts: dict[str, list[str]]
    """Sentences of each class, whose embeddings are averaged."""
    negatives: dict[str, list[str]]
    """Sentences that a label of a multilabel head is held against."""
    neutral: list[str]
    """Sentences that its other labels are held against; none with a `logit_bias`, which stands for them."""
    cut: list[str]
    """Sentences that the tower could not read to their ends."""
    logit_scale: float
    logit_bias: float | None
    weights: str
    """`texts`: the weights are those of the texts; `trained`: they were trained from them on labelled pictures."""


class Refit(GrowingPart):
    """The rows that the final weights were fitted to."""

    folds: int
    """Parts held out in turn to choose epochs, calibration and thresholds; 0 where the validation part was."""
    rows: int


class HeadTraining(GrowingPart):
    """The making of a head.

    A published head has `published` and nothing else; one from words, or of an image classifier, without labelled
    pictures has `words` or `classifier` and the reason why it is not calibrated.
    """

    data_sha256: str | None = None
    """Fingerprint of the labelled images: their contents and labels."""
    counts: dict[str, dict[str, int]] | None = None
    """Rows of each class in each part of the split (`train`, `validation`, `test`)."""
    duplicates: Duplicates | None = None
    left_out: int | None = None
    """Labelled rows that are in no part of the split."""
    seed: int | None = None
    loss: str | None = None
    """The loss that was minimised, such as `bce`."""
    best_epoch: int | None = None
    """The epoch of least held-out loss; None where the solution is exact and `weight_decay` was chosen instead."""
    weight_decay: float | None = None
    """The weight decay of least held-out loss, of a linear head that was solved exactly."""
    accuracy_divider: float | None = None
    """The grade from which on a picture is good."""
    layer_weights: list[float] | None = None
    """Of `merge_layers: weighted` each layer's share, in the order of the recipe's `layers`; they add up to 1."""
    choices: int | None = None
    """Choices between pictures that the weights were fitted to; of a head that learned from grades none."""
    refit: Refit | None = None
    """None in files of older versions, whose weights never saw the validation part."""
    calibration: str | None = None
    """Why the head is not calibrated, or not in all labels."""
    warnings: list[str] | None = None
    """What a user must not miss, such as a head that may be no better than chance."""
    device: str | None = None
    """`cpu` or `cuda`."""
    mlflow_run_id: str | None = None
    """The run in MLflow, if it was tracked."""
    mlflow_tracking_uri: str | None = None
    """The tracking server; `local` for a database on the machine that trained it."""
    published: PublishedSource | None = None
    classifier: ClassifierSource | None = None
    """The classifier that an imported layer is of; None of every other head."""
    words: Words | None = None
    """The texts of a head from words; None of every other head."""
