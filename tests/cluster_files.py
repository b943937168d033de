"""What the tests of cluster.yaml, jobs/rayjob.yaml, the policies and the image share. All of it is offline.

Each `..._problems` of those tests returns what is wrong as lines. The shipped files give none, and each mutation, which
breaks one property in memory, must give a line that names it: so a check that sees nothing cannot hide.
"""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import botocore.loaders
import botocore.model
import yaml

ROOT = Path(__file__).parents[1]
VERSION = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
VALUES = {"ACCOUNT_ID": "123456789012", "REGION": "eu-central-1", "BUCKET": "my-bucket", "PREFIX": "fer",
          "AMI_ID": "ami-0123456789abcdef0", "SECURITY_GROUP_ID": "sg-0123456789abcdef0", "SSH_CIDR": "198.51.100.7/32"}


def load(file: str):
    text = (ROOT / file).read_text()
    if file.endswith("rayjob.yaml"):
        return list(yaml.safe_load_all(text))
    return json.loads(text) if file.endswith(".json") else yaml.safe_load(text)


@functools.cache
def service_model(name: str) -> botocore.model.ServiceModel:
    return botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model(name, "service-2"), name)


def names_the_fault(problems: Callable[..., list[str]], mutation: tuple[Callable, str], *documents) -> None:
    """Break the documents by a mutation and look for a line that its pattern finds."""
    mutate, words = mutation
    mutate(*documents)
    found = problems(*documents)
    assert any(re.search(words, line) for line in found), found


def shape_problems(value, shape, path: str) -> list[str]:
    """Every key and every enumerated value of an AWS request that botocore does not know."""
    if shape.type_name == "structure":
        if not isinstance(value, dict):
            return [f"{path}: must be a map"]
        unknown = [f"{path}.{k}: unknown to AWS" for k in value if k not in shape.members]
        return unknown + [p for k, v in value.items() if k in shape.members
                          for p in shape_problems(v, shape.members[k], f"{path}.{k}")]
    if shape.type_name == "list":
        if not isinstance(value, list):
            return [f"{path}: must be a list"]
        return [p for i, v in enumerate(value) for p in shape_problems(v, shape.member, f"{path}[{i}]")]
    kinds = {"string": str, "integer": int, "boolean": bool}
    if shape.type_name in kinds and type(value) is not kinds[shape.type_name]:
        return [f"{path}: {value!r} is no {shape.type_name}"]
    if getattr(shape, "enum", None) and value not in shape.enum:
        return [f"{path}: {value!r} is none of AWS's values"]
    return []


def image_problems(image: str) -> list[str]:
    ours = f"ACCOUNT_ID.dkr.ecr.REGION.amazonaws.com/fer-ray:{VERSION}"
    return [] if image == ours else [f"image: {image} is not {ours}"]


def by_sid(document: dict, sid: str) -> dict:
    return next(s for s in document["Statement"] if s["Sid"] == sid)
