"""What representations do to a text, before any model: metrics, and the text as each cuts it, on a page.

May import `train.report` and what is below it.
"""
