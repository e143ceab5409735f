"""What keeps a run alive on its machines: several processes as one, deadlines, memory, what chips can do.

May import `train.exits`, and nothing else of `train`.
"""
