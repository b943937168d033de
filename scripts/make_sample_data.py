"""Render the sample data: `python scripts/make_sample_data.py OUT [--subjects N] [--seed N]`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fer_ray.data.sample import write_sample  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write CK+/ and jaffe/ into")
    parser.add_argument("--subjects", type=int, default=60, help="people in CK+")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rendering")
    options = parser.parse_args()
    write_sample(options.out, options.subjects, options.seed)
    print(f"result: {options.out}")
