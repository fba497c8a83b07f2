"""Recipes: what a deployment is, one YAML file each, and their schema; and the root of all expected errors.

Nothing here imports another folder.
"""
