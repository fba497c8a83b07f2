"""Shared by the steps: the files they hand to one another, and code that several need; imports only recipes/ of ours.

Handed on: `manifest` describes the JSON beside every artefact and writes files whole or not at all, `paths` says where
they lie, `plans` holds TensorRT plans against this machine, `proof` is what a server must answer and `proof_file` where
that lies, `head_parameters`, `score_edges` and `watched_training` are the facts about a head for clients and watches.
Needed by several: `pixels` loads the served preprocessing, so that training and building use the very same file;
`model_config` reads a config.pbtxt; `photos` finds photographs that ship with dependencies; `download`; `cpu` and
`gpu`, facts of the machine; and `preflight`, what is checked before a server starts.
"""
