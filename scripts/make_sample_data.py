"""Draw the sample data: `python scripts/make_sample_data.py FOLDER [--subjects N] [--seed N]`."""

import argparse
from pathlib import Path

from fer_ray.data.sample import write_sample


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write CK+/ and jaffe/ into")
    parser.add_argument("--subjects", type=int, default=60, help="number of people in CK+")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawing")
    options = parser.parse_args()
    write_sample(options.folder, options.subjects, options.seed)
    print(f"result: {options.folder}")


if __name__ == "__main__":
    main()
