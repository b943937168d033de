"""Put the names of your account into cluster.yaml, jobs/rayjob.yaml and the policies; results in cluster/filled/.

Reads ACCOUNT_ID, REGION, BUCKET, PREFIX, AMI_ID, SECURITY_GROUP_ID and SSH_CIDR from the environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ["cluster.yaml", "jobs/rayjob.yaml", "cluster/head.json", "cluster/worker.json", "cluster/trust.json",
         "cluster/ingress.json"]
FORMS = {"ACCOUNT_ID": r"\d{12}", "REGION": r"[a-z]{2}(-[a-z]+)+-\d", "BUCKET": r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
         "PREFIX": r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", "AMI_ID": r"ami-[0-9a-f]{8,17}",
         "SECURITY_GROUP_ID": r"sg-[0-9a-f]{8,17}", "SSH_CIDR": r"[0-9.]+/\d+"}


def wrong(values: dict[str, str]) -> list[str]:
    """What is wrong with the values, one line each."""
    lines = [f"{name}={values.get(name, '')!r} is not of the form {form}" for name, form in FORMS.items()
             if not re.fullmatch(form, values.get(name, ""))]
    try:
        if ipaddress.ip_network(values.get("SSH_CIDR", "")).prefixlen < 16:
            lines.append(f"SSH_CIDR={values['SSH_CIDR']!r} opens SSH to more than 65,536 addresses; give your own, as "
                         "A.B.C.D/32")
    except ValueError as error:
        lines.append(f"SSH_CIDR: {error}")
    return lines


def fill(text: str, values: dict[str, str]) -> str:
    """`text` with every placeholder, as a whole word, replaced."""
    return re.sub(r"\b(" + "|".join(FORMS) + r")\b", lambda found: values[found[1]], text)


def main() -> None:
    """Write cluster/filled/, or say what is wrong."""
    if lines := wrong(dict(os.environ)):
        sys.exit("\n".join(["error:", *lines]))
    values = {name: os.environ[name] for name in FORMS}
    out = ROOT / "cluster" / "filled"
    out.mkdir(exist_ok=True)
    for file in FILES:
        (out / Path(file).name).write_text(fill((ROOT / file).read_text(), values))
        print(out / Path(file).name)


if __name__ == "__main__":
    main()
