"""Several runs for one score: folds, seeds, or the paper's split beside an honest one."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import studies

    return studies.run_crossval(config)


if __name__ == "__main__":
    job.main(run, __doc__)
