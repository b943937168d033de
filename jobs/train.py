"""Fine-tune a backbone on a prepared set. The same name resumes."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import stages

    return stages.run_train(config)


if __name__ == "__main__":
    job.main(run, __doc__)
