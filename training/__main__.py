"""`python -m training` explains the folder; the steps are modules of their own."""

import sys

print(
    """clipsieve's training steps, in order (each: python -m training.<step> --help):
  draw         a labelled set of pictures to try everything on, without a download
  embed        labelled images → embedding store, through the exported encoder and the served preprocessing
  ingest       embeddings that exist already → embedding store
  finetune     labelled images → a whole model of your own, whose backbone is then an encoder and last layer a head
  fit          embedding store → artifacts/<recipe>/heads/<name>/: trained, calibrated, thresholds chosen, measured
  evaluate     metrics with intervals, plots and a model card of a head
  scores       a table of a head's scores of the store's pictures, for `clipsieve report` and `review`
  audit        labels that are likely wrong, contradictions and outliers, as a table to mark in
  relabel      corrections, and marks exported from `clipsieve report`, of known and of new pictures → embedding store
  thresholds   other thresholds for a head that is there, in seconds: nothing is trained or imported again
  prompts      scores of a folder for texts typed now, in the terminal: the wording of a head from words
  text_head    the texts of a recipe's prompts → a head before there is a single label
  import_head  a published head, checked against what its authors published, in place of a trained one
  import_classifier  the last layer of the encoder's own image classifier, checked against the whole model
`make train RECIPE=<name> DATA=<folder or table>` exports the encoder, embeds and fits. Then `make engines` builds what
is served.""",
    file=sys.stderr,
)
