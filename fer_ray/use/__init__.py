"""A trained network in use: on photographs in Python, and on folders of them on a cluster."""
