"""Score the best checkpoint on the test split and write the report."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import stages

    return stages.run_evaluate(config)


if __name__ == "__main__":
    job.main(run, __doc__)
