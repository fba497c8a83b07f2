"""Labelled images in, a trained head out. Each step is run from the root, in this order:

    python -m training.draw /tmp/shapes                          # optional: draws a labelled set to try it on
    python -m training.embed --recipe demo --data /tmp/shapes/train
    python -m training.fit --recipe demo
    python -m training.evaluate --recipe demo --out report       # the artefact itself, measured again

Embeddings that exist already come in by `ingest`, published heads by `import_head`, the last layer of a whole image
classifier by `import_classifier`. `audit` lists labels that are likely wrong and `relabel` applies the corrections;
`thresholds` changes where a head decides, without training.
Steps meet `build` and `serving` only through files: embeddings in a store, a head beside its manifest.
"""
