"""`toklab submit`: starts `toklab train` somewhere, on one host or many, and again whenever it can go on.

`job.py` says what a job is; the other files are one place each where it can run.
"""
