"""A trained run as something else: a folder of Hugging Face transformers (docs/export.md), or the byte model of a
compressor.

May import `train.evaluate` and what is below it.
"""
