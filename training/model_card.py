"""The model card: what a head is, what it was trained on, how good it is and what it must not be used for."""

from __future__ import annotations

from typing import Any

from common.manifest import HeadManifest

_FIGURES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "recall": "recall at the first threshold",
    "precision": "precision at the first threshold",
    "fpr": "false positive rate at the first threshold",
    "recall_at_precision_0.95": "recall at precision 0.95",
    "fpr_at_recall_0.99": "false positive rate at recall 0.99",
    "ece": "ECE",
    "brier": "Brier score",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "ab": "AB, the share of pairs in the right order",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
_DECISIONS = {0: "every image is allowed", 1: "0 allow, 1 block", 2: "0 allow, 1 review, 2 block"}


def model_card(manifest: HeadManifest, report: dict[str, Any], pictures: list[str]) -> str:
    """Markdown; `report` as training.evaluate writes it, `pictures` are files beside the card."""
    sections = [
        _title(manifest, report),
        _data(manifest, report),
        _metrics(report),
        _operating_points(manifest, report),
        _calibration(manifest, report),
        _slices(report),
        _limits(manifest, report),
        "\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _title(manifest: HeadManifest, report: dict[str, Any]) -> str:
    rows = [
        ("task", manifest.task),
        ("labels", ", ".join(manifest.labels)),
        ("score", _score_text(manifest)),
        ("revision", f"`{report['revision']}`"),
        ("encoder", f"`{manifest.encoder.id}`, {manifest.encoder.embed_dim} values"),
        ("input", f"embedding, {'L2-normalised' if manifest.encoder.normalize else 'not normalised'}"),
        ("layers", ", ".join(layer.type for layer in manifest.layers)),
        ("weights", f"sha256 `{manifest.weights_sha256}`"),
        ("licence", manifest.licence or "not stated"),
    ]
    if run := manifest.training.mlflow_run_id:
        rows.append(("MLflow run", f"`{run}`"))
    return f"# Head `{manifest.name}`\n\n" + _table(["", ""], rows)


def _score_text(manifest: HeadManifest) -> str:
    if manifest.activation == "none":
        return "the raw value, no probability"
    return "a calibrated probability" if manifest.calibrated else f"a {manifest.activation}, not calibrated"


def _data(manifest: HeadManifest, report: dict[str, Any]) -> str:
    rows, counts = report["rows"], manifest.training.counts
    lines = [f"Measured on {rows['n']} labelled images ({rows['which']} of the store, data `{rows['data_sha256']}`)."]
    if counts is None and manifest.training.words is not None:
        texts = "; ".join(f"{name}: {', '.join(part)}" for name, part in manifest.training.words.texts.items())
        return f"## Data\n\n{lines[0]} The head was made from words alone, without pictures. {texts}"
    if counts is None:
        return "## Data\n\n" + lines[0] + " The head was trained elsewhere; its training data is not known here."
    if rows["which"] == "all":
        lines.append("These include images that the head was trained on: the figures flatter it.")
    if not report["same_data_as_trained"]:
        lines.append(f"The store has changed since the training, which used data `{manifest.training.data_sha256}`.")
    names = list(next(iter(counts.values())))
    body = [(part, *(row[name] for name in names)) for part, row in counts.items()]
    return "## Data\n\n" + "\n".join(lines) + "\n\n" + _table(["trained with", *names], body)


def _metrics(report: dict[str, Any]) -> str:
    metrics = report["metrics"]
    parts = {name: metrics[name] for name in ("macro",) if name in metrics} | metrics.get("labels", {})
    overall = _figure_rows(metrics)
    text = "## Metrics\n\nWith bootstrap 95 % intervals.\n\n"
    if overall:
        text += _table(["all", "value", "95 % interval"], overall)
    for name, figures in parts.items():
        rows = _figure_rows(figures) or [("none", figures.get("reason", ""), "")]
        text += "\n\n" + _table([name, "value", "95 % interval"], rows)
    return text


def _figure_rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (shown, f"{figures[name]:.4f}", _interval(figures.get(f"{name}_95_interval")))
        for name, shown in _FIGURES.items()
        if figures.get(name) is not None
    ]


def _operating_points(manifest: HeadManifest, report: dict[str, Any]) -> str:
    rows = [
        (label, point["operating_point"], f"{point['threshold']:.6g}", *map(_with_interval, _of(point)))
        for label, points in report["operating_points"].items()
        for point in points
    ]
    if not rows:
        return ""
    most = max(len(row) for row in manifest.thresholds)
    meaning = _DECISIONS.get(most, "how many thresholds the score passed")
    head = ["label", "operating point", "score at least", "recall", "precision", "false positive rate"]
    return f"## Operating points\n\nServed as `decision`: {meaning}. On the rows measured:\n\n" + _table(head, rows)


def _of(point: dict[str, Any]) -> list[dict[str, Any] | None]:
    return [point["recall"], point["precision"], point["fpr"]]


def _with_interval(figure: dict[str, Any] | None) -> str:
    return "none" if figure is None else f"{figure['value']:.4f} ({_interval(figure['interval_95'])})"


def _calibration(manifest: HeadManifest, report: dict[str, Any]) -> str:
    stages = report["calibration"]
    if stages is None or manifest.calibration is None:
        return ""
    rows = [(name, f"{figures['ece']:.4f}", f"{figures['brier']:.4f}") for name, figures in stages.items()]
    text = f"## Calibration\n\nBy {manifest.calibration.method}, on images the weights were not trained on.\n\n"
    text += _table(["", "ECE", "Brier score"], rows)
    if manifest.prevalence is not None:
        text += (
            f"\n\nScores, precision and F1 are those of a stream with {manifest.prevalence.target:.3g} positives; "
            f"the training data had {manifest.prevalence.training:.3g}."
        )
    return text


def _slices(report: dict[str, Any]) -> str:
    rows = []
    for name, figures in report["slices"].items():
        macro = figures.get("macro") or figures
        main = next((key for key in ("auroc", "spearman") if macro.get(key) is not None), None)
        shown = macro.get("reason", "none") if main is None else f"{macro[main]:.4f}"
        rows.append((name, figures["n"], shown, _interval(macro.get(f"{main}_95_interval"))))
    return "## Slices\n\n" + _table(["slice", "images", "AUROC or Spearman", "95 % interval"], rows) if rows else ""


def _limits(manifest: HeadManifest, report: dict[str, Any]) -> str:
    lines = [
        f"It reads embeddings of `{manifest.encoder.id}` made with preprocessing `{manifest.encoder.preprocessing}`, "
        "and of nothing else.",
        "The figures hold for images like those it was measured on; measure again on your own.",
    ]
    if manifest.prevalence is None and report["operating_points"]:
        lines.append("Precision depends on how common positives are; state `prevalence` in the recipe to correct it.")
    if manifest.notice:
        lines.append(manifest.notice)
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _interval(pair: list[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.4f} to {pair[1]:.4f}"


def _table(head: list[str], rows: list[tuple]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
