"""A trained run as a folder of Hugging Face transformers (docs/export.md).

May import `train.evaluate` and what is below it.
"""
