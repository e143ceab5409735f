"""What people look at: the page of many runs, with its tables and charts, and what every page of ours is made of.

May import `train.evaluate` and what is below it.
"""
