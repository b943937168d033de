"""Train on each data set of data.sources and test on every other."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import studies

    return studies.run_crossdata(config)


if __name__ == "__main__":
    job.main(run, __doc__)
