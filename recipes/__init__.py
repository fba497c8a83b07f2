"""Recipes and the contracts between steps: what a deployment is, and what each step leaves behind.

`schema` reads the YAML files in this folder, `manifest` describes the JSON beside every artefact,
`paths` says where artefacts live, `pixels` loads the served preprocessing code so that training and
building use the very same file, `photos` finds real photographs that ship with dependencies,
`gpu` asks what TensorRT plans this machine can run, and `plans` holds installed plans against it. `proof` is what
a server must answer, `proof_file` where that lies, `cpu` the processor, and `preflight` what is checked before a start.
Nothing here imports training, build or serving.
"""
