"""Recipes: what a deployment is, one YAML file each, and their schema. Nothing here imports another folder."""
