"""Search learning rate and momentum on a prepared set. The same name goes on with a search that was interrupted."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import studies

    return studies.run_tune(config)


if __name__ == "__main__":
    job.main(run, __doc__)
