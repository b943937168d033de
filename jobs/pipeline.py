"""Prepare, train and evaluate: from a raw data set to a report."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import stages

    return stages.run_pipeline(config)


if __name__ == "__main__":
    job.main(run, __doc__)
