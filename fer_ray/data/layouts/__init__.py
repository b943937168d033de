"""One module for each layout on disk: a folder in, rows of the manifest out.

Each has `recognise(root)`, which returns what it found there, for people to read, or None, and `read(root, options)`,
which returns usable and rejected rows. `LOOKS` shows how such a folder looks. `PEOPLE` names whom the subjects belong
to, where several data sets show the same people; `NO_SUBJECTS` explains why there are none.
"""
