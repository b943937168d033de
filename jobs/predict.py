"""Say the expression in photographs without labels."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import stages

    return stages.run_predict(config)


if __name__ == "__main__":
    job.main(run, __doc__)
