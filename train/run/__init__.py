"""What a run leaves on disk: its folder, checkpoints with checksums, logs, profiles, where its time went, what its rows
have read.

May import `train.hosts` and `train.exits`.
"""
