"""Names of what a fine-tuning leaves in a classifier's folder beside config.json and its weights."""

from __future__ import annotations

RECORD = "finetune.json"
"""Settings, data and figures; a folder that has it is of a fine-tuned encoder."""
PICTURES = "pictures.parquet"
"""Content, path, label, split and group of each picture that it was made with."""
EXTRA = "make lightning"
"""What installs the packages that fine-tuning needs."""
