"""Find and crop the faces of a data set, split it and audit the split."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import stages

    return stages.run_prepare(config)


if __name__ == "__main__":
    job.main(run, __doc__)
