"""Train several backbones alike, on the same split, and compare them."""

import job


def run(config):
    """Import what is heavy only after the options are read."""
    import studies

    return studies.run_compare(config)


if __name__ == "__main__":
    job.main(run, __doc__)
