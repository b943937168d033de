"""One module for each layout on disk: a data set's listing in, rows of the manifest out.

Each has `recognise(files, data)`, which returns what it found there, for people to read, or None, and
`read(files, data)`, which returns a `ledger.Reading`: usable and rejected rows, the tables and labels that were read,
and files that are left out with their reason. `files` is a `listing.Listing`; a layout opens only tables and labels,
and only through it. `data` is the configuration, a `DataConfig`.
`LOOKS` shows how such a folder looks. `PEOPLE` names whom the subjects belong to, where several data sets show the same
people; `NO_SUBJECTS` explains why there are none.
"""
