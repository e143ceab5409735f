"""Many runs, one verdict: an experiment's plan, its runs, and the decision its report begins with.

May import `train.submit`, `train.report` and what is below them.
"""
