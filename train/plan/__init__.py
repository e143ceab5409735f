"""Pods that are not here: what a training step takes on them, by compiling it ahead of time.

May import the spine and what is below it.
"""
