"""One checker per family of cases of ``jukebox verify``: arrays of the original in, rows of a report out.

The original's names for things are used here, as in ``checkpoint/openai.py``: they are the names in the cases.
"""
