"""The score watch: a step after each head that counts its scores and decisions for Prometheus.

`model/` is the template of the model `<head>_watch`, copied into a repository; `steps` puts the watches into a recipe's
configs, and `parameters` are the facts about a head that its watch is given, which a rollout gives it anew
(`serving.watched_head`).
"""
