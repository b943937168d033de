"""One file per layout on disk: folder in, manifest rows out.

Each adapter has `recognise(root)`, which says what it saw or None, and `read(root, options)`, which returns rows and
rejected rows. `PEOPLE` names whom its subjects belong to, `NO_SUBJECTS` explains why there are none.
"""
