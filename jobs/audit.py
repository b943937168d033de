"""Audit a prepared set: who and what stands in more than one split, and which labels are doubtful (--labels)."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import stages
    import studies

    return studies.run_label_audit(config) if config.labels else stages.run_audit(config)


if __name__ == "__main__":
    job.main(run, __doc__)
