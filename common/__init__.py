"""Shared by the steps: the files they hand to one another, and code that several need; imports only recipes/ of ours.

Handed on: `manifest` describes the JSON beside every artefact (with `head_figures` and `head_training`) and writes
files whole or not at all, `paths` says where they lie, `plans` holds TensorRT plans against this machine, `proof` is
what a server must answer and `proof_file` where that lies; `head_parameters` and `score_edges` are facts about a head
for clients and for its watch, `score_watch`.
Needed by several: `pixels` loads the served preprocessing, so that training and building use the very same file;
`model_config` reads a config.pbtxt; `photos` finds photographs that ship with dependencies; `download`; `cpu` and
`gpu`, facts of the machine; and `preflight`, what is checked before a server starts.
"""
