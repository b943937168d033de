"""cluster.yaml, jobs/rayjob.yaml, the policies, the image and the spot scripts, all offline.

Each `..._problems` returns what is wrong as lines; the shipped files give none, and each mutation, which breaks one
property in memory, must give a line that names it. So a check that sees nothing cannot hide.
"""

import copy
import datetime
import fcntl
import functools
import http.server
import json
import re
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import botocore.loaders
import botocore.model
import jsonschema
import pytest
import yaml

from cluster import fill, spot_watcher
from fer_ray import options

ROOT = Path(__file__).parents[2]
VERSION = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
WORLD = {"0.0.0.0/0", "::/0"}
VALUES = {"ACCOUNT_ID": "123456789012", "REGION": "eu-central-1", "BUCKET": "my-bucket", "PREFIX": "fer",
          "AMI_ID": "ami-0123456789abcdef0", "SECURITY_GROUP_ID": "sg-0123456789abcdef0", "SSH_CIDR": "198.51.100.7/32"}


def test_what_is_submitted_is_every_source_file_and_nothing_else(tmp_path):
    from ray._private.runtime_env.packaging import create_package  # what `ray job submit` calls

    def git(*words: str) -> list[str]:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")

    # tracked, or new and not ignored: git's own reading of .gitignore
    sources = {f for f in git("ls-files", "--cached", "--others", "--exclude-standard") if f and (ROOT / f).is_file()}
    left = ["fer_ray_output/runs/x/metrics.jsonl", "sample_data/a.png", "cluster/filled/cluster.yaml", ".venv/bin/ray",
            "fer_ray/__pycache__/a.pyc", ".git/config", ".pytest_cache/a", "fer_ray.egg-info/PKG-INFO"]
    tree = tmp_path / "tree"
    for name in [*sources, *left]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes() if name in sources else b"stays")
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        assert {name for name in package.namelist() if not name.endswith("/")} == sources
    assert (tmp_path / "package.zip").stat().st_size < 10 * 2**20  # the limit is 100 MiB


def load(file: str):
    text = (ROOT / file).read_text()
    if file.endswith("rayjob.yaml"):
        return list(yaml.safe_load_all(text))
    return json.loads(text) if file.endswith(".json") else yaml.safe_load(text)


@functools.cache
def service_model(name: str) -> botocore.model.ServiceModel:
    return botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model(name, "service-2"), name)


EC2 = service_model("ec2")


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


# -- cluster.yaml --------------------------------------------------------------------------------------------------


def cluster_problems(config: dict) -> list[str]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    lines = []
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # noqa: BLE001 - Ray raises several kinds
        return [f"schema: {str(error).splitlines()[0]}"]
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    workers = {n: t for n, t in types.items() if n != config["head_node_type"]}
    start = by_sid(load("cluster/head.json"), "StartWorkersOfThisCluster")["Condition"]["StringEquals"]
    for name, kind in types.items():
        node, path = kind["node_config"], f"{name}.node_config"
        lines += shape_problems(node, EC2.operation_model("RunInstances").input_shape, path)
        if not node.get("SecurityGroupIds"):
            lines.append(f"{path}: without SecurityGroupIds Ray makes a group that opens SSH to the world")
        role = "head" if kind is head else "worker"
        if node.get("IamInstanceProfile", {}).get("Arn", "").split("/")[-1] != f"fer-ray-{role}":
            lines.append(f"{path}: IamInstanceProfile is not that of the {role}")
        metadata = node.get("MetadataOptions", {})
        if metadata.get("HttpTokens") != "required" or metadata.get("HttpPutResponseHopLimit") != 1:
            lines.append(f"{path}: IMDSv2 is not required, or its answers leave the host")
        disks = [d.get("Ebs", {}) for d in node.get("BlockDeviceMappings", [])]
        if not disks or not all(d.get("Encrypted") and d.get("DeleteOnTermination") for d in disks):
            lines.append(f"{path}: a disk is not encrypted or outlives its node")
        if not node.get("ImageId"):
            lines.append(f"{path}: no ImageId; Ray's default is years old")
        if kind is not head and node.get("InstanceType") not in start["ec2:InstanceType"]:
            lines.append(f"{path}: cluster/head.json does not let the head start {node.get('InstanceType')}")
    if head["resources"].get("CPU") != 0 or head["resources"].get("GPU"):
        lines.append("head: jobs may run on it")
    if "InstanceMarketOptions" in head["node_config"]:
        lines.append("head: must not be a spot instance")
    for name, kind in workers.items():
        if kind.get("min_workers", 0) != 0:
            lines.append(f"{name}: does not go back to zero")
        if kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") != "spot":
            lines.append(f"{name}: not spot first")
    if not any(t["resources"].get("GPU") for t in workers.values()):
        lines.append("no worker has a GPU")
    if not any(not t["resources"].get("GPU") for t in workers.values()):
        lines.append("no CPU worker for Ray Data")
    provider = config["provider"]
    if (provider["type"], provider.get("module")) != ("external", "cluster.spot_first.SpotFirstNodeProvider"):
        lines.append("provider: no on-demand instance where there is no spot instance")
    if provider.get("cache_stopped_nodes", True):
        lines.append("provider: stopped nodes keep their disks")
    if "security_group" in provider:
        lines.append("provider: a security_group of Ray's making opens SSH to the world")
    if not 0 < config.get("idle_timeout_minutes", 0) <= 15:
        lines.append("idle_timeout_minutes: idle nodes cost money")
    if config.get("file_mounts", {}).get("~/.ray/auth_token") != "~/.ray/auth_token":
        lines.append("file_mounts: the token does not reach the nodes")
    lines += start_problems(config)
    lines += image_problems(config["docker"]["image"])
    lines += [f"docker.run_options: {o}" for o in config["docker"].get("run_options", [])
              if re.search(r"--privileged|-p |--publish|SECRET|TOKEN|KEY", o)]
    return lines


def start_problems(config: dict) -> list[str]:
    lines = []
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(key, [])
        lines += [f"{key}: no RAY_AUTH_MODE=token in {c!r}" for c in commands
                  if re.search(r"\bray (start|stop)\b|spot_watcher", c) and "RAY_AUTH_MODE=token" not in c]
        if sum("ray start" in c for c in commands) != 1:
            lines.append(f"{key}: must start Ray once")
    head = " ".join(config.get("head_start_ray_commands", []))
    hosts = re.findall(r"--dashboard-host[= ](\S+)", head)
    if hosts != ["127.0.0.1"]:
        lines.append(f"head_start_ray_commands: dashboard on {hosts or 'the default host'}")
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in head:
        lines.append("head_start_ray_commands: no autoscaler")
    if not any("/cluster/spot_watcher.py" in c and c.rstrip().endswith("&") and "setsid" in c
               for c in config.get("worker_start_ray_commands", [])):
        lines.append("worker_start_ray_commands: no spot watcher in the background")
    return lines


def image_problems(image: str) -> list[str]:
    ours = f"ACCOUNT_ID.dkr.ecr.REGION.amazonaws.com/fer-ray:{VERSION}"
    return [] if image == ours else [f"image: {image} is not {ours}"]


def node(config: dict, name: str) -> dict:
    """The node_config of a type, apart from the others that YAML's anchors tie it to."""
    config["available_node_types"][name]["node_config"] = mine = copy.deepcopy(
        config["available_node_types"][name]["node_config"])
    return mine


CLUSTER_MUTATIONS = {
    "top level typo": (lambda c: c.update(idle_timeout_minuts=5), "schema: .*idle_timeout_minuts"),
    "fractional CPU": (lambda c: c["available_node_types"]["cpu"]["resources"].update(CPU=1.5), "schema"),
    "unknown head type": (lambda c: c.update(head_node_type="hed"), "schema: .*head_node_type"),
    "typo in node_config": (lambda c: node(c, "gpu").update(InstanceTyp="x"), r"gpu.*InstanceTyp: unknown to AWS"),
    "typo below": (lambda c: node(c, "cpu")["MetadataOptions"].update(HttpToken="x"), "HttpToken: unknown"),
    "typo in a disk": (lambda c: node(c, "head")["BlockDeviceMappings"][0]["Ebs"].update(Size=9), "Ebs.Size: unknown"),
    "no such instance": (lambda c: node(c, "gpu").update(InstanceType="g6.2xlarg"), "none of AWS's values"),
    "text for a number": (lambda c: node(c, "gpu")["MetadataOptions"].update(HttpPutResponseHopLimit="1"),
                          "no integer"),
    "work on the head": (lambda c: c["available_node_types"]["head"].update(resources={"CPU": 4}), "head: jobs may"),
    "head's CPUs unset": (lambda c: c["available_node_types"]["head"].update(resources={}), "head: jobs may"),
    "head on spot": (lambda c: node(c, "head").update(InstanceMarketOptions={"MarketType": "spot"}), "head: must not"),
    "GPU never idle": (lambda c: c["available_node_types"]["gpu"].update(min_workers=1), "gpu: does not go back"),
    "GPU on-demand": (lambda c: node(c, "gpu").pop("InstanceMarketOptions"), "gpu: not spot first"),
    "no fallback": (lambda c: [c["provider"].pop("module"), c["provider"].update(type="aws")], "no on-demand"),
    "no GPU": (lambda c: c["available_node_types"].pop("gpu"), "no worker has a GPU"),
    "no CPU workers": (lambda c: c["available_node_types"].pop("cpu"), "no CPU worker"),
    "Ray's own group": (lambda c: node(c, "head").pop("SecurityGroupIds"), "SSH to the world"),
    "group by the launcher": (lambda c: c["provider"].update(security_group={"GroupName": "x"}), "SSH to the world"),
    "worker without role": (lambda c: node(c, "cpu").pop("IamInstanceProfile"), "cpu.*not that of the worker"),
    "worker as the head": (lambda c: node(c, "gpu").update(IamInstanceProfile={"Arn": "a/fer-ray-head"}),
                           "gpu.*worker"),
    "head without role": (lambda c: node(c, "head").pop("IamInstanceProfile"), "head.*not that of the head"),
    "IMDSv1": (lambda c: node(c, "gpu")["MetadataOptions"].update(HttpTokens="optional"), "gpu.*IMDSv2"),
    "IMDS by default": (lambda c: node(c, "cpu").pop("MetadataOptions"), "cpu.*IMDSv2"),
    "IMDS one hop on": (lambda c: node(c, "cpu")["MetadataOptions"].update(HttpPutResponseHopLimit=2), "cpu.*IMDSv2"),
    "plain disk": (lambda c: node(c, "cpu")["BlockDeviceMappings"][0]["Ebs"].update(Encrypted=False), "encrypted"),
    "disk that stays": (lambda c: node(c, "gpu")["BlockDeviceMappings"][0]["Ebs"].pop("DeleteOnTermination"),
                        "outlives"),
    "no image id": (lambda c: node(c, "gpu").pop("ImageId"), "no ImageId"),
    "not in the policy": (lambda c: node(c, "gpu").update(InstanceType="p5.48xlarge"), "does not let the head start"),
    "stopped, not ended": (lambda c: c["provider"].pop("cache_stopped_nodes"), "stopped nodes"),
    "never idle": (lambda c: c.update(idle_timeout_minutes=600), "idle_timeout"),
    "no token file": (lambda c: c.update(file_mounts={}), "the token does not reach"),
    "head without token": (lambda c: c.update(head_start_ray_commands=[
        x.replace("RAY_AUTH_MODE=token", "") for x in c["head_start_ray_commands"]]), "head.*no RAY_AUTH_MODE"),
    "worker without token": (lambda c: c["worker_start_ray_commands"].__setitem__(
        1, "ray start --address=$RAY_HEAD_IP:6379"), "worker.*no RAY_AUTH_MODE"),
    "open dashboard": (lambda c: c.update(head_start_ray_commands=[
        x.replace("127.0.0.1", "0.0.0.0") for x in c["head_start_ray_commands"]]), "dashboard on .*0.0.0.0"),
    "dashboard by default": (lambda c: c.update(head_start_ray_commands=[
        x.replace("--dashboard-host=127.0.0.1", "") for x in c["head_start_ray_commands"]]), "dashboard on the def"),
    "no autoscaler": (lambda c: c.update(head_start_ray_commands=[
        x.split("--autoscaling")[0] for x in c["head_start_ray_commands"]]), "no autoscaler"),
    "no watcher": (lambda c: c["worker_start_ray_commands"].pop(), "no spot watcher"),
    "watcher that blocks": (lambda c: c["worker_start_ray_commands"].__setitem__(
        2, c["worker_start_ray_commands"][2].rstrip(" &")), "no spot watcher in the background"),
    "another Ray": (lambda c: c["docker"].update(image="rayproject/ray:latest"), "image"),
    "privileged": (lambda c: c["docker"]["run_options"].append("--privileged"), "run_options"),
    "key in the options": (lambda c: c["docker"]["run_options"].append("--env AWS_SECRET_ACCESS_KEY=x"), "run_options"),
}


def test_cluster_yaml_is_right():
    assert cluster_problems(load("cluster.yaml")) == []


@pytest.mark.parametrize("name", CLUSTER_MUTATIONS)
def test_cluster_yaml_broken(name):
    mutate, words = CLUSTER_MUTATIONS[name]
    config = load("cluster.yaml")
    mutate(config)
    found = cluster_problems(config)
    assert any(re.search(words, line) for line in found), found


# -- who may reach the nodes, and what they may do -----------------------------------------------------------------


def ingress_problems(rules: list) -> list[str]:
    shape = EC2.operation_model("AuthorizeSecurityGroupIngress").input_shape.members["IpPermissions"]
    lines = shape_problems(rules, shape, "ingress")
    for rule in rules:
        ranges = [r.get("CidrIp") or r.get("CidrIpv6") for k in ("IpRanges", "Ipv6Ranges") for r in rule.get(k, [])]
        groups = [g.get("GroupId") for g in rule.get("UserIdGroupPairs", [])]
        if WORLD & set(ranges):
            lines.append(f"ingress: open to the world: {rule}")
        if ranges and (rule.get("IpProtocol"), rule.get("FromPort"), rule.get("ToPort")) != ("tcp", 22, 22):
            lines.append(f"ingress: more than SSH from outside: {rule}")
        if set(ranges) - WORLD - {"SSH_CIDR"}:
            lines.append(f"ingress: not the user's own address: {ranges}")
        if set(groups) - {"SECURITY_GROUP_ID"} or not ranges and not groups or rule.get("PrefixListIds"):
            lines.append(f"ingress: somebody else: {rule}")
    if not any(r.get("IpProtocol") == "-1" and r.get("UserIdGroupPairs") for r in rules):
        lines.append("ingress: the nodes do not reach each other")
    return lines


def policy_problems(head: dict, worker: dict, trust: dict) -> list[str]:
    lines = [f"trust: {s}" for s in trust["Statement"]
             if s != {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]
    for name, document in (("head", head), ("worker", worker)):
        for s in document["Statement"]:
            lines += [f"{name}: {line} in {s.get('Sid')}" for line in statement_problems(s)]
    for s in worker["Statement"]:
        lines += [f"worker: {a} is not for workers" for a in listed(s, "Action")
                  if a.split(":")[0] not in ("s3", "ecr")]
    for s in head["Statement"]:
        lines += [f"head: {a} belongs to worker.json" for a in listed(s, "Action")
                  if a.split(":")[0] not in ("ec2", "iam")]
    instance = [s for s in head["Statement"] if "ec2:RunInstances" in listed(s, "Action")
                and any(":instance/" in r for r in listed(s, "Resource"))]
    wanted = {"aws:RequestTag/ray-cluster-name": "fer-ray", "ec2:MetadataHttpTokens": "required"}
    if not instance or any(not wanted.items() <= s.get("Condition", {}).get("StringEquals", {}).items()
                           or "ec2:InstanceType" not in s["Condition"]["StringEquals"]
                           or "ec2:InstanceProfile" not in s["Condition"].get("ArnEquals", {}) for s in instance):
        lines.append("head: may start instances that are not this cluster's workers")
    return lines


def listed(statement: dict, key: str) -> list[str]:
    value = statement.get(key, [])
    return [value] if isinstance(value, str) else value


def statement_problems(s: dict) -> list[str]:
    lines, actions, resources = [], listed(s, "Action"), listed(s, "Resource")
    equals = s.get("Condition", {}).get("StringEquals", {})
    if s.get("Effect") != "Allow" or set(s) - {"Sid", "Effect", "Action", "Resource", "Condition"}:
        lines.append("a form that was not thought of")
    for action in actions:
        service, _, operation = action.partition(":")
        if "*" in action:
            lines.append(f"wildcard action {action}")
        # three actions have other names than the operations they allow
        elif action not in ("iam:PassRole", "s3:ListBucket", "s3:ListMultipartUploadParts") and (
                operation not in service_model(service).operation_names):
            lines.append(f"unknown action {action}")
    whole = [r for r in resources if r == "*" or not re.match(r"arn:aws:[a-z0-9]+:", r)]
    unbound = {"ec2:DescribeInstances", "ecr:GetAuthorizationToken"}  # AWS knows no resource for these two
    if not resources or whole and (set(actions) - unbound or equals.get("aws:RequestedRegion") != "REGION"):
        lines.append("any resource")
    for r in resources:
        if r.startswith("arn:aws:s3:") and r not in ("arn:aws:s3:::BUCKET/PREFIX/*", "arn:aws:s3:::BUCKET"):
            lines.append(f"bucket outside the prefix {r}")
        if r.startswith("arn:aws:ec2:") and not re.match(r"arn:aws:ec2:REGION:(ACCOUNT_ID)?:[a-z-]+/", r):
            lines.append(f"another region or account {r}")
    if any(a.startswith("s3:") and a not in ("s3:ListBucket",) for a in actions) and any(
            r == "arn:aws:s3:::BUCKET" for r in resources):
        lines.append("objects of the whole bucket")
    if "s3:ListBucket" in actions and s.get("Condition", {}).get("StringLikeIfExists", {}).get("s3:prefix") != [
            "PREFIX", "PREFIX/*"]:
        lines.append("lists other prefixes")
    if "iam:PassRole" in actions and (resources != ["arn:aws:iam::ACCOUNT_ID:role/fer-ray-worker"]
                                      or equals.get("iam:PassedToService") != "ec2.amazonaws.com"):
        lines.append("passes another role")
    if "ec2:TerminateInstances" in actions and equals.get("aws:ResourceTag/ray-cluster-name") != "fer-ray":
        lines.append("ends others' instances")
    if "ec2:CreateTags" in actions and not (
            equals.get("ec2:CreateAction") == "RunInstances"
            or equals.get("aws:ResourceTag/ray-cluster-name") == "fer-ray"
            and "aws:TagKeys" in s["Condition"].get("ForAllValues:StringEquals", {})):
        lines.append("tags others' instances")
    if "ec2:RunInstances" in actions and any("volume" in r for r in resources) and s.get("Condition") != {
            "Bool": {"ec2:Encrypted": "true"}}:
        lines.append("plain disks")
    return lines


def by_sid(document: dict, sid: str) -> dict:
    return next(s for s in document["Statement"] if s["Sid"] == sid)


INGRESS_MUTATIONS = {
    "SSH from anywhere": (lambda r: r[1]["IpRanges"][0].update(CidrIp="0.0.0.0/0"), "open to the world"),
    "SSH from anywhere (IPv6)": (lambda r: r[1].update(Ipv6Ranges=[{"CidrIpv6": "::/0"}]), "open to the world"),
    "dashboard": (lambda r: r.append({"IpProtocol": "tcp", "FromPort": 8265, "ToPort": 8265,
                                      "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}), "more than SSH"),
    "GCS for the user": (lambda r: r[1].update(ToPort=6379), "more than SSH"),
    "a fixed address": (lambda r: r[1]["IpRanges"][0].update(CidrIp="10.0.0.0/8"), "not the user's own"),
    "another group": (lambda r: r[0]["UserIdGroupPairs"].append({"GroupId": "sg-1"}), "somebody else"),
    "no source": (lambda r: r.append({"IpProtocol": "-1"}), "somebody else"),
    "typo": (lambda r: r[1].update(FromPrt=22), "FromPrt: unknown"),
    "nodes apart": (lambda r: r.pop(0), "do not reach each other"),
}

POLICY_MUTATIONS = {
    "all of EC2": (lambda h, w, t: h["Statement"][1].update(Action="ec2:*"), "wildcard action"),
    "typo in an action": (lambda h, w, t: h["Statement"][1].update(Action="ec2:RunInstance"), "unknown action"),
    "end any instance": (lambda h, w, t: by_sid(h, "StopItsNodes").pop("Condition"), "ends others'"),
    "end anywhere": (lambda h, w, t: by_sid(h, "StopItsNodes").update(Resource="*"), "any resource"),
    "start anything": (lambda h, w, t: by_sid(h, "StartWorkersOfThisCluster").pop("Condition"), "not this cluster's"),
    "start as any role": (lambda h, w, t: by_sid(h, "StartWorkersOfThisCluster")["Condition"].pop("ArnEquals"),
                          "not this cluster's"),
    "start any type": (lambda h, w, t: by_sid(h, "StartWorkersOfThisCluster")["Condition"]["StringEquals"].pop(
        "ec2:InstanceType"), "not this cluster's"),
    "start with IMDSv1": (lambda h, w, t: by_sid(h, "StartWorkersOfThisCluster")["Condition"]["StringEquals"].pop(
        "ec2:MetadataHttpTokens"), "not this cluster's"),
    "plain disks": (lambda h, w, t: by_sid(h, "WithEncryptedDisks").pop("Condition"), "plain disks"),
    "another region": (lambda h, w, t: by_sid(h, "StopItsNodes").update(
        Resource="arn:aws:ec2:*:ACCOUNT_ID:instance/*"), "another region"),
    "describe everywhere": (lambda h, w, t: by_sid(h, "SeeInstances").pop("Condition"), "any resource"),
    "pass any role": (lambda h, w, t: by_sid(h, "GiveWorkersTheirRoleAndNoOther").update(
        Resource="arn:aws:iam::ACCOUNT_ID:role/*"), "passes another role"),
    "pass to any service": (lambda h, w, t: by_sid(h, "GiveWorkersTheirRoleAndNoOther").pop("Condition"), "passes"),
    "tag anything": (lambda h, w, t: by_sid(h, "NoteTheStateOfItsNodes").pop("Condition"), "tags others'"),
    "rename nodes": (lambda h, w, t: by_sid(h, "NoteTheStateOfItsNodes")["Condition"].pop(
        "ForAllValues:StringEquals"), "tags others'"),
    "worker starts nodes": (lambda h, w, t: w["Statement"].append(by_sid(h, "StopItsNodes")), "not for workers"),
    "all buckets": (lambda h, w, t: w["Statement"][0].update(Resource="arn:aws:s3:::*/*"), "outside the prefix"),
    "the whole bucket": (lambda h, w, t: w["Statement"][0].update(Resource="arn:aws:s3:::BUCKET/*"), "outside the pre"),
    "bucket itself": (lambda h, w, t: w["Statement"][1].update(Action=["s3:ListBucket", "s3:DeleteBucket"]),
                      "objects of the whole bucket"),
    "list all": (lambda h, w, t: by_sid(w, "ListThePrefix").pop("Condition"), "lists other prefixes"),
    "denies by NotAction": (lambda h, w, t: w["Statement"][0].update(NotAction="s3:Get"), "not thought of"),
    "anyone's role": (lambda h, w, t: t["Statement"][0].update(Principal={"AWS": "*"}), "trust"),
}


def test_policies_are_right():
    assert ingress_problems(load("cluster/ingress.json")) == []
    assert policy_problems(*(load(f"cluster/{n}.json") for n in ("head", "worker", "trust"))) == []


@pytest.mark.parametrize("name", INGRESS_MUTATIONS)
def test_ingress_broken(name):
    mutate, words = INGRESS_MUTATIONS[name]
    rules = load("cluster/ingress.json")
    mutate(rules)
    found = ingress_problems(rules)
    assert any(re.search(words, line) for line in found), found


@pytest.mark.parametrize("name", POLICY_MUTATIONS)
def test_policies_broken(name):
    mutate, words = POLICY_MUTATIONS[name]
    documents = [load(f"cluster/{n}.json") for n in ("head", "worker", "trust")]
    mutate(*documents)
    found = policy_problems(*documents)
    assert any(re.search(words, line) for line in found), found


# -- jobs/rayjob.yaml ----------------------------------------------------------------------------------------------

SCHEMA = load("tests/data/rayjob_schema.json")
VALIDATORS = {kind: jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{kind}"})
              for kind in ("RayJob", "NetworkPolicy", "ServiceAccount")}
PODS = {"app.kubernetes.io/name": "fer-ray"}
OPERATOR = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}


def rayjob_problems(documents: list[dict]) -> list[str]:
    lines = []
    for d in documents:
        if d.get("kind") not in VALIDATORS:
            lines.append(f"schema: kind {d.get('kind')}")
            continue
        for e in VALIDATORS[d["kind"]].iter_errors(d):
            lines.append(f"schema: {d['kind']}.{'.'.join(map(str, e.absolute_path))}: {e.message[:200]}")
    if lines:
        return lines
    kinds = {k: [d for d in documents if d["kind"] == k] for k in VALIDATORS}
    if [len(kinds["RayJob"]), len(kinds["NetworkPolicy"])] != [1, 1]:
        return ["one RayJob and one NetworkPolicy are needed"]
    spec = kinds["RayJob"][0]["spec"]
    cluster, entry = spec["rayClusterSpec"], spec["entrypoint"].split()
    given = dict(zip(entry, entry[1:], strict=False))
    if not re.fullmatch(r"[a-z0-9-]+", given.get("--name", "")):
        lines.append("entrypoint: no fixed run name, so a retry would begin anew")
    if not given.get("--storage", "").startswith("s3://BUCKET/PREFIX"):
        lines.append("entrypoint: storage that a retry does not see")
    if not 1 <= int(given.get("--train.min_workers", 0)) < int(given.get("--train.num_workers", 0)):
        lines.append("entrypoint: not elastic")
    if given.get("--train.use_gpu") != "true":
        lines.append("entrypoint: asks for no GPUs")
    if spec.get("backoffLimit", 0) < 1:
        lines.append("backoffLimit: no retry")
    if not spec.get("activeDeadlineSeconds"):
        lines.append("activeDeadlineSeconds: no end to the cost")
    if not spec.get("shutdownAfterJobFinishes") or not spec.get("ttlSecondsAfterFinished"):
        lines.append("the cluster stays after the job, or goes before anyone can look")
    if cluster.get("authOptions", {}).get("mode") != "token":
        lines.append("authOptions: no token")
    if not cluster.get("enableInTreeAutoscaling") or cluster.get("autoscalerOptions", {}).get("version") != "v2":
        lines.append("no autoscaling (v2)")
    if cluster.get("rayVersion") != VERSION:
        lines.append(f"rayVersion: {cluster.get('rayVersion')}, the image has {VERSION}")
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        lines.append("head: jobs may run on it")
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        lines.append("head: reached from outside of Kubernetes")
    lines += [f"{g['groupName']}: does not go back to zero" for g in workers if g["minReplicas"] or g.get("replicas")]
    lines += group_problems(workers)
    accounts = {a["metadata"]["name"]: a for a in kinds["ServiceAccount"]}
    for name, template in [("submitter", spec["submitterPodTemplate"]), ("head", head["template"]),
                           *((g["groupName"], g["template"]) for g in workers)]:
        lines += [f"{name}: {line}" for line in pod_problems(template, accounts, name == "head")]
    if not secured(cluster["autoscalerOptions"].get("securityContext", {})):
        lines.append("autoscaler: may gain rights")
    return lines + network_problems(kinds["NetworkPolicy"][0]["spec"])


def group_problems(workers: list[dict]) -> list[str]:
    """GPU groups, spot before on-demand, and a CPU group."""
    gpu = [g for g in workers if any("nvidia.com/gpu" in c.get("resources", {}).get("limits", {})
                                     for c in g["template"]["spec"]["containers"])]
    order = [g["template"]["spec"].get("nodeSelector", {}).get("eks.amazonaws.com/capacityType")
             for g in sorted(gpu, key=lambda g: -g.get("priority", 0))]
    tied = len({g.get("priority", 0) for g in gpu}) < len(gpu)
    return (["GPU workers: not spot first and on-demand then"] if order != ["SPOT", "ON_DEMAND"] or tied else []) + (
        ["no CPU workers"] if len(gpu) == len(workers) else [])


def secured(context: dict) -> bool:
    return (context.get("allowPrivilegeEscalation") is False and not context.get("privileged")
            and context.get("capabilities") == {"drop": ["ALL"]})


def pod_problems(template: dict, accounts: dict, is_head: bool) -> list[str]:
    pod, lines = template["spec"], []
    if not PODS.items() <= template.get("metadata", {}).get("labels", {}).items():
        lines.append("not under the network policy")
    context = pod.get("securityContext", {})
    if (not context.get("runAsNonRoot") or not context.get("runAsUser")
            or context.get("seccompProfile", {}).get("type") != "RuntimeDefault"):
        lines.append("may run as root")
    if pod.get("hostNetwork") or pod.get("hostPID") or any("hostPath" in v for v in pod.get("volumes", [])):
        lines.append("reaches into its host")
    account = accounts.get(pod.get("serviceAccountName"))
    if not account or "eks.amazonaws.com/role-arn" not in account["metadata"].get("annotations", {}):
        lines.append("no service account with a role for S3")
    if not is_head and (pod.get("automountServiceAccountToken") is not False
                        or pod.get("serviceAccountName") == "fer-ray-head"):
        lines.append("may speak with Kubernetes")
    for c in pod["containers"]:
        if not secured(c.get("securityContext", {})):
            lines.append(f"{c['name']} may gain rights")
        resources = c.get("resources", {})
        if any(not {"cpu", "memory"} <= set(resources.get(k, {})) for k in ("requests", "limits")):
            lines.append(f"{c['name']} without bounds of cpu and memory")
        if any(re.search("KEY|TOKEN|SECRET|PASSWORD", e["name"]) for e in c.get("env", [])):
            lines.append(f"{c['name']} holds a secret in its environment")
        lines += image_problems(c["image"])
    return lines


def network_problems(policy: dict) -> list[str]:
    lines = []
    if policy["podSelector"] != {"matchLabels": PODS} or set(policy.get("policyTypes", [])) != {"Ingress", "Egress"}:
        lines.append("network: does not hold for the cluster's pods in both directions")
    own = {"podSelector": {"matchLabels": PODS}}
    for rule in policy.get("ingress", []):
        for peer in rule.get("from", []) or [{}]:
            if peer != own and (peer != OPERATOR or [p["port"] for p in rule.get("ports", [])] != [8265]):
                lines.append(f"network: others may come in: {rule}")
    if {"from": [own]} not in policy.get("ingress", []) or {"to": [own]} not in policy.get("egress", []):
        lines.append("network: the pods do not reach each other")
    for rule in policy.get("egress", []):
        for peer in rule.get("to", []) or [{}]:
            if peer == own:
                continue
            ports = {p["port"] for p in rule.get("ports", [])}
            if "ipBlock" in peer and "169.254.0.0/16" not in peer["ipBlock"].get("except", []):
                lines.append("network: the node's metadata can be read")
            if not ports or not ports <= {53, 443} or not peer:
                lines.append(f"network: pods may go anywhere: {rule}")
    return lines


def job(documents: list[dict]) -> dict:
    return next(d for d in documents if d["kind"] == "RayJob")["spec"]


def group(documents: list[dict], index: int) -> dict:
    return job(documents)["rayClusterSpec"]["workerGroupSpecs"][index]


def container(documents: list[dict], index: int) -> dict:
    return group(documents, index)["template"]["spec"]["containers"][0]


def policy_of(documents: list[dict]) -> dict:
    return next(d for d in documents if d["kind"] == "NetworkPolicy")["spec"]


def entry(documents: list[dict], old: str, new: str) -> None:
    assert old in job(documents)["entrypoint"]
    job(documents)["entrypoint"] = job(documents)["entrypoint"].replace(old, new)


RAYJOB_MUTATIONS = {
    "typo in the job": (lambda d: job(d).update(backofLimit=1), "schema.*backofLimit"),
    "typo in the cluster": (lambda d: job(d)["rayClusterSpec"].update(authOption={}), "schema.*authOption"),
    "typo in a group": (lambda d: group(d, 0).update(maxReplica=1), "schema.*maxReplica"),
    "typo in a pod": (lambda d: group(d, 0)["template"]["spec"].update(serviceAcountName="x"), "schema.*serviceAcount"),
    "typo in a container": (lambda d: container(d, 1).update(securitycontext={}), "schema.*securitycontext"),
    "typo in the policy": (lambda d: policy_of(d).update(ingres=[]), "schema.*ingres"),
    "number for text": (lambda d: group(d, 0).update(rayStartParams={"num-cpus": 0}), "schema.*is not of type"),
    "no such mode": (lambda d: job(d).update(submissionMode="Job"), "schema.*submissionMode"),
    "group without name": (lambda d: group(d, 0).pop("groupName"), "schema.*groupName"),
    "another API": (lambda d: d[-1].update(apiVersion="ray.io/v1alpha1"), "schema.*apiVersion"),
    "new name each time": (lambda d: entry(d, "--name fer-ray", "--name $(date)"), "no fixed run name"),
    "no name": (lambda d: entry(d, "--name fer-ray", ""), "no fixed run name"),
    "local storage": (lambda d: entry(d, "s3://BUCKET/PREFIX", "/tmp/out"), "storage that a retry"),
    "not elastic": (lambda d: entry(d, "--train.min_workers 1", ""), "not elastic"),
    "no GPU asked for": (lambda d: entry(d, "--train.use_gpu true", ""), "asks for no GPUs"),
    "no retry": (lambda d: job(d).pop("backoffLimit"), "no retry"),
    "no deadline": (lambda d: job(d).pop("activeDeadlineSeconds"), "no end to the cost"),
    "cluster stays": (lambda d: job(d).update(shutdownAfterJobFinishes=False), "cluster stays"),
    "no time to live": (lambda d: job(d).pop("ttlSecondsAfterFinished"), "cluster stays"),
    "no token": (lambda d: job(d)["rayClusterSpec"].pop("authOptions"), "no token"),
    "token disabled": (lambda d: job(d)["rayClusterSpec"].update(authOptions={"mode": "disabled"}), "no token"),
    "no autoscaling": (lambda d: job(d)["rayClusterSpec"].update(enableInTreeAutoscaling=False), "no autoscaling"),
    "another Ray": (lambda d: job(d)["rayClusterSpec"].update(rayVersion="2.40.0"), "rayVersion"),
    "another image": (lambda d: container(d, 1).update(image="rayproject/ray:latest"), "gpu-spot: image"),
    "work on the head": (lambda d: job(d)["rayClusterSpec"]["headGroupSpec"].update(rayStartParams={}),
                         "head: jobs may"),
    "head to the world": (lambda d: job(d)["rayClusterSpec"]["headGroupSpec"].update(serviceType="LoadBalancer"),
                          "reached from outside"),
    "ingress": (lambda d: job(d)["rayClusterSpec"]["headGroupSpec"].update(enableIngress=True), "reached from outside"),
    "never zero": (lambda d: group(d, 1).update(minReplicas=1), "gpu-spot: does not go back"),
    "on-demand first": (lambda d: group(d, 2).update(priority=20), "not spot first"),
    "no order": (lambda d: group(d, 1).update(priority=0), "not spot first"),
    "no CPU workers": (lambda d: job(d)["rayClusterSpec"]["workerGroupSpecs"].pop(0), "no CPU workers"),
    "root": (lambda d: group(d, 0)["template"]["spec"]["securityContext"].update(runAsNonRoot=False), "run as root"),
    "no seccomp": (lambda d: group(d, 0)["template"]["spec"]["securityContext"].pop("seccompProfile"), "run as root"),
    "privileged": (lambda d: container(d, 1).update(securityContext={"privileged": True}), "ray-worker may gain"),
    "autoscaler gains rights": (lambda d: job(d)["rayClusterSpec"]["autoscalerOptions"].pop("securityContext"),
                                "autoscaler: may gain"),
    "host network": (lambda d: group(d, 1)["template"]["spec"].update(hostNetwork=True), "into its host"),
    "host folder": (lambda d: group(d, 1)["template"]["spec"].update(
        volumes=[{"name": "x", "hostPath": {"path": "/"}}]), "into its host"),
    "no account": (lambda d: group(d, 0)["template"]["spec"].pop("serviceAccountName"), "no service account"),
    "worker as head": (lambda d: group(d, 0)["template"]["spec"].update(serviceAccountName="fer-ray-head"),
                       "may speak with Kubernetes"),
    "Kubernetes token": (lambda d: group(d, 0)["template"]["spec"].pop("automountServiceAccountToken"), "may speak"),
    "no role": (lambda d: d[1]["metadata"].pop("annotations"), "no service account with a role"),
    "keys": (lambda d: container(d, 1).update(env=[{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]), "holds a secret"),
    "no bounds": (lambda d: container(d, 0).pop("resources"), "without bounds"),
    "out of the policy": (lambda d: group(d, 1)["template"]["metadata"].update(labels={"app": "x"}), "not under"),
    "no policy": (lambda d: d.remove(next(x for x in d if x["kind"] == "NetworkPolicy")), "one NetworkPolicy"),
    "policy for others": (lambda d: policy_of(d).update(podSelector={"matchLabels": {"app": "x"}}), "does not hold"),
    "all may come in": (lambda d: policy_of(d)["ingress"].append({}), "others may come in"),
    "namespace may come in": (lambda d: policy_of(d)["ingress"][0]["from"].append({"podSelector": {}}), "others may"),
    "operator on all ports": (lambda d: policy_of(d)["ingress"][1].pop("ports"), "others may come in"),
    "any namespace": (lambda d: policy_of(d)["ingress"][1]["from"][0].update(namespaceSelector={}), "others may"),
    "pods apart": (lambda d: policy_of(d)["ingress"].pop(0), "do not reach each other"),
    "go anywhere": (lambda d: policy_of(d)["egress"].append({}), "may go anywhere"),
    "node's metadata": (lambda d: policy_of(d)["egress"][2]["to"][0]["ipBlock"].pop("except"), "metadata can be read"),
}


def test_rayjob_is_right():
    assert rayjob_problems(load("jobs/rayjob.yaml")) == []


def test_the_job_knows_the_options_it_is_started_with():
    words = job(load("jobs/rayjob.yaml"))["entrypoint"].split()
    config = options.load(words[words.index("/home/ray/app/jobs/train.py") + 1 :])
    assert (config.name, config.train.num_workers, config.train.min_workers) == ("fer-ray", 4, 1)


@pytest.mark.parametrize("name", RAYJOB_MUTATIONS)
def test_rayjob_broken(name):
    mutate, words = RAYJOB_MUTATIONS[name]
    documents = json.loads(json.dumps(load("jobs/rayjob.yaml")))  # without YAML's anchors, which tie parts together
    mutate(documents)
    found = rayjob_problems(documents)
    assert any(re.search(words, line) for line in found), found


# -- the image -----------------------------------------------------------------------------------------------------


def image_file_problems(dockerfile: str, ignore: str) -> list[str]:
    steps = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.M)).splitlines()
    lines = []
    bases = [s.split()[1] for s in steps if s.startswith("FROM ")]
    if bases != [f"rayproject/ray:{VERSION}-py311-gpu"]:
        lines.append(f"FROM {bases} is not Ray {VERSION}, that of constraints.txt")
    if any("pip install" in s and "-c constraints.txt" not in s for s in steps) or not any(
            "pip install" in s for s in steps):
        lines.append("installs without constraints.txt")
    if not any(f"ray.__version__ == '{VERSION}'" in s for s in steps):
        lines.append("does not check Ray's version")
    users = [s.split()[1] for s in steps if s.startswith("USER ")]
    if not users or users[-1] in ("0", "root"):
        lines.append("runs as root")
    if not any(s.startswith("ENV ") and "RAY_AUTH_MODE=token" in s for s in steps):
        lines.append("no token mode")
    allowed = {x[1:] for x in ignore.split() if x.startswith("!")}
    if "*" not in ignore.split() or allowed - {"pyproject.toml", "constraints.txt", "fer_ray", "jobs", "cluster"}:
        lines.append(".dockerignore: lets more in than is copied")
    for s in steps:
        if s.startswith(("COPY ", "ADD ")):
            sources = [w.removeprefix("./") for w in s.split()[1:-1] if not w.startswith("--")]
            lines += [f"copies {w}, which .dockerignore keeps out" for w in sources if w not in allowed]
    return lines


IMAGE_MUTATIONS = {
    "newer Ray": (("2.60.0-py311", "2.61.0-py311"), "is not Ray"),
    "latest": (("ray:2.60.0-py311-gpu", "ray:latest-gpu"), "is not Ray"),
    "no constraints": ((" -c constraints.txt", ""), "without constraints"),
    "version unchecked": (("assert ray.__version__ == '2.60.0'", "assert ray.__version__"), "does not check"),
    "root": (("USER 1000", "USER root"), "runs as root"),
    "no token": (("RAY_AUTH_MODE=token ", ""), "no token mode"),
    "copies all": (("COPY --chown=ray:users fer_ray ./fer_ray", "COPY . ."), r"copies \., which"),
    "all goes in": (("\n*\n", "\n"), "lets more in"),
    "git goes in": (("!jobs", "!jobs\n!.git"), "lets more in"),
}


def test_image_is_right():
    assert image_file_problems((ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text()) == []


@pytest.mark.parametrize("name", IMAGE_MUTATIONS)
def test_image_broken(name):
    (old, new), words = IMAGE_MUTATIONS[name]
    texts = [(ROOT / f).read_text() for f in ("Dockerfile", ".dockerignore")]
    assert any(old in t for t in texts)
    found = image_file_problems(*(t.replace(old, new) for t in texts))
    assert any(re.search(words, line) for line in found), found


# -- the launcher against a stand-in for AWS -----------------------------------------------------------------------


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """The account after docs/cluster.md's commands, with moto for AWS: client, Ray's resolved config, its provider."""
    moto = pytest.importorskip("moto")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair there
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    import boto3
    from ray.autoscaler._private import providers
    from ray.autoscaler._private.aws import utils
    from ray.autoscaler._private.util import prepare_config, validate_config

    with moto.mock_aws():
        for cached in (utils.resource_cache, utils.client_cache):
            cached.cache_clear()
        ec2, iam = boto3.client("ec2", VALUES["REGION"]), boto3.client("iam", VALUES["REGION"])
        group = ec2.create_security_group(GroupName="fer-ray", Description="x")["GroupId"]
        values = VALUES | {"SECURITY_GROUP_ID": group, "AMI_ID": ec2.describe_images()["Images"][0]["ImageId"]}

        def filled(file: str):
            return json.loads(fill.fill((ROOT / file).read_text(), values))

        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=filled("cluster/ingress.json"))
        for role, documents in (("fer-ray-head", ["head", "worker"]), ("fer-ray-worker", ["worker"])):
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(filled("cluster/trust.json")))
            iam.create_instance_profile(InstanceProfileName=role)
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
            for name in documents:  # moto checks the grammar of a policy as AWS does
                iam.put_role_policy(RoleName=role, PolicyName=name,
                                    PolicyDocument=json.dumps(filled(f"cluster/{name}.json")))
        config = prepare_config(yaml.safe_load(fill.fill((ROOT / "cluster.yaml").read_text(), values)))
        validate_config(config)
        config = providers._get_node_provider_cls(config["provider"]).bootstrap_config(config)
        yield ec2, config, providers._get_node_provider(config["provider"], "fer-ray", use_cache=False)


def launch(config: dict, provider, kind: str) -> list[str]:
    from ray.autoscaler import tags

    node_kind = tags.NODE_KIND_HEAD if kind == "head" else tags.NODE_KIND_WORKER
    return list(provider.create_node(copy.deepcopy(config["available_node_types"][kind]["node_config"]), {
        tags.TAG_RAY_NODE_NAME: f"ray-{kind}", tags.TAG_RAY_NODE_KIND: node_kind,
        tags.TAG_RAY_USER_NODE_TYPE: kind}, 1))


def instances(ec2, ids: list[str]) -> list[dict]:
    return [i for r in ec2.describe_instances(InstanceIds=ids)["Reservations"] for i in r["Instances"]]


def test_ray_launches_the_nodes_as_written(aws):
    ec2, config, provider = aws
    for kind, role in (("head", "head"), ("cpu", "worker"), ("gpu", "worker")):
        (described,) = instances(ec2, launch(config, provider, kind))
        assert described["InstanceType"] == config["available_node_types"][kind]["node_config"]["InstanceType"]
        assert described["IamInstanceProfile"]["Arn"].endswith(f"instance-profile/fer-ray-{role}")
        assert (described.get("InstanceLifecycle") == "spot") is (kind != "head")
        assert {"Key": "ray-cluster-name", "Value": "fer-ray"} in described["Tags"]
        disk = ec2.describe_volumes(VolumeIds=[described["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]])["Volumes"][0]
        assert disk["Encrypted"] and disk["Size"] == 150
        rules = ec2.describe_security_groups(GroupIds=[g["GroupId"] for g in described["SecurityGroups"]])
        ranges = [r["CidrIp"] for g in rules["SecurityGroups"] for p in g["IpPermissions"] for r in p["IpRanges"]]
        assert ranges == [VALUES["SSH_CIDR"]]
    assert len(provider.non_terminated_nodes({})) == 3
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    assert provider.non_terminated_nodes({}) == []


def without_spot(provider, monkeypatch, code: str) -> list[bool]:
    """AWS that refuses every spot instance; whether each request was one."""
    import botocore.exceptions

    asked, create = [], provider.ec2_fail_fast.create_instances

    def refuse(**request):
        asked.append("InstanceMarketOptions" in request)
        if asked[-1]:
            raise botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "no"}}, "RunInstances")
        return create(**request)

    monkeypatch.setattr(provider, "ec2_fail_fast", type("Client", (), {"create_instances": staticmethod(refuse)}))
    return asked


def test_on_demand_where_there_is_no_spot(aws, monkeypatch):
    ec2, config, provider = aws
    asked = without_spot(provider, monkeypatch, "InsufficientInstanceCapacity")
    nodes = launch(config, provider, "gpu")
    assert asked[0] and asked[-1] is False and asked.count(False) == 1
    found = instances(ec2, nodes)
    assert len(found) == 1 and "InstanceLifecycle" not in found[0]
    # Ray counts them as the type that it asked for
    assert {provider.node_tags(n)["ray-user-node-type"] for n in provider.non_terminated_nodes({})} == {"gpu"}


def test_a_wrong_configuration_stays_an_error(aws, monkeypatch):
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    _, config, provider = aws
    asked = without_spot(provider, monkeypatch, "UnauthorizedOperation")
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        launch(config, provider, "gpu")
    assert all(asked)


def test_ray_itself_has_no_such_fallback():
    """When this fails, Ray has learnt it, and cluster/spot_first.py can go."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    monitor = CloudResourceMonitor()
    monitor.notify([InstanceUpdateEvent(instance_type="gpu", new_instance_status=Instance.ALLOCATION_FAILED)])
    assert monitor.get_recoverable_resource_availabilities() == {}
    monitor.notify([InstanceUpdateEvent(instance_type="gpu", new_instance_status=Instance.ALLOCATION_TIMEOUT)])
    assert monitor.get_recoverable_resource_availabilities() == {"gpu": 0.0}


# -- filling in ----------------------------------------------------------------------------------------------------


def test_nothing_stays_to_be_filled_in():
    for file in fill.FILES:
        text = fill.fill((ROOT / file).read_text(), VALUES)
        code = "\n".join(line.split("#")[0] for line in text.splitlines())
        assert not re.search(r"\b(ACCOUNT_ID|REGION|BUCKET|PREFIX|AMI_ID|SECURITY_GROUP_ID|SSH_CIDR)\b", code), file
    assert fill.wrong(VALUES) == []


@pytest.mark.parametrize(("name", "value"), [
    ("SSH_CIDR", "0.0.0.0/0"), ("SSH_CIDR", ""), ("SSH_CIDR", "10.0.0.0/8"), ("SSH_CIDR", "198.51.100.7/33"),
    ("ACCOUNT_ID", "1"), ("BUCKET", "My Bucket"), ("PREFIX", "/a"), ("PREFIX", ""), ("PREFIX", "*"), ("AMI_ID", "x"),
    ("SECURITY_GROUP_ID", "default"), ("REGION", "Frankfurt")])
def test_wrong_values_are_refused(name, value):
    assert any(name in line for line in fill.wrong(VALUES | {name: value}))


# -- the spot watcher against a stand-in for the metadata service --------------------------------------------------


class Imds(http.server.BaseHTTPRequestHandler):
    """IMDSv2: no answer without a token; a token is good for `uses` requests."""

    def do_PUT(self):
        s = self.server
        if self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            return self.reply(400, "")
        s.tokens.append(f"token-{len(s.tokens)}")
        s.left = s.uses
        self.reply(200, s.tokens[-1])

    def do_GET(self):
        s = self.server
        if not s.tokens or self.headers.get("X-aws-ec2-metadata-token") != s.tokens[-1] or s.left == 0:
            return self.reply(401, "")
        s.left -= 1
        s.seen.append(self.path)
        if self.path == "/latest/meta-data/instance-life-cycle":
            return self.reply(200, s.life_cycle)
        assert self.path == "/latest/meta-data/spot/instance-action"
        answer = s.answers.pop(0) if len(s.answers) > 1 else s.answers[0]
        self.reply(*answer)

    def reply(self, code: int, text: str):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def imds():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Imds)
    server.tokens, server.seen, server.left, server.uses = [], [], 0, 1000
    server.life_cycle, server.answers = "spot", [(404, "")]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run_watcher(imds, tmp_path, ray: str, timeout: float = 20) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """The script as a node runs it, with a `ray` that notes its arguments and then does what `ray` says."""
    calls = tmp_path / "calls"
    program = tmp_path / "ray"
    note = 'printf "%s\\n" "$@" "RAY_ADDRESS=$RAY_ADDRESS" "MODE=$RAY_AUTH_MODE" --'
    program.write_text(f"#!/bin/sh\n{note} >> {calls}\n{ray}\n")
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "http_proxy": "http://127.0.0.1:9",  # a proxy must not be asked
           "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{imds.server_address[1]}"}
    done = subprocess.run([sys.executable, ROOT / "cluster" / "spot_watcher.py", "--every", "0.02", "--address",
                           "10.0.0.1:6379", "--lock", tmp_path / "lock"], env=env, capture_output=True, text=True,
                          timeout=timeout)
    text = calls.read_text() if calls.exists() else ""
    return done, [c.strip("\n").splitlines() for c in text.split("--\n") if c.strip()]


def notice(seconds: float) -> str:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_watcher_drains_its_node_once_the_notice_comes(imds, tmp_path):
    imds.answers = [(404, ""), (404, ""), (500, ""), (404, ""), (200, notice(115))]
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0, done.stderr
    assert len(imds.tokens) == 1 and len(imds.seen) == 6
    (arguments,) = calls
    assert arguments[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    given = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    assert 100 <= int(given["--deadline-remaining-seconds"]) <= 115
    assert given["--address"] == "10.0.0.1:6379" and "terminate" in given["--reason-message"]
    assert {"RAY_ADDRESS=10.0.0.1:6379", "MODE=token"} <= set(arguments)


def test_watcher_takes_a_new_token_when_the_old_one_is_over(imds, tmp_path):
    imds.uses, imds.answers = 2, [(404, "")] * 5 + [(200, notice(60))]
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0 and len(calls) == 1 and len(imds.tokens) == 4


def test_watcher_tries_again_when_ray_does_not_answer(imds, tmp_path):
    imds.answers = [(200, notice(60))]
    done, calls = run_watcher(imds, tmp_path, f"[ $(grep -c ^drain-node {tmp_path}/calls) -ge 3 ]")
    assert done.returncode == 0 and len(calls) == 3


def test_watcher_ends_on_an_on_demand_instance(imds, tmp_path):
    imds.life_cycle = "on-demand"
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0 and calls == [] and "nothing to watch" in done.stdout
    assert imds.seen == ["/latest/meta-data/instance-life-cycle"]


def test_a_second_watcher_leaves(imds, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, _ = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0 and "runs already" in done.stdout and imds.seen == []


def test_watcher_lives_through_a_service_that_is_away(imds, tmp_path):
    port = imds.server_address[1]
    imds.shutdown()
    imds.server_close()
    later = []

    def come_back():
        time.sleep(0.5)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Imds)
        server.tokens, server.seen, server.left, server.uses = [], [], 0, 1000
        server.life_cycle, server.answers = "spot", [(200, notice(30))]
        later.append(server)
        server.serve_forever()

    thread = threading.Thread(target=come_back, daemon=True)
    thread.start()
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    later[0].shutdown()
    later[0].server_close()
    assert done.returncode == 0 and len(calls) == 1 and "no metadata" in done.stdout


@pytest.mark.parametrize(("text", "left"), [
    ('{"action": "terminate", "time": "2026-01-01T00:01:30Z"}', 90),
    ('{"action": "terminate", "time": "2025-12-31T23:00:00Z"}', 0),
    ('{"action": "terminate"}', 120), ("nonsense", 120), ("[]", 120), ('{"time": 5}', 120),
    ('{"action": "stop", "time": "tomorrow"}', 120), ('{"time": "2026-01-01T00:00:10"}', 120)])
def test_seconds_left(text, left):
    assert spot_watcher.seconds_left(text, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) == left


def test_the_command_line_that_the_watcher_uses_exists():
    """`ray drain-node` is hidden and not part of Ray's stable interface: look at each upgrade."""
    from ray.scripts.scripts import cli

    command = cli.commands["drain-node"]
    names = {o for p in command.params for o in p.opts}
    assert {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= names
    reason = next(p for p in command.params if "--reason" in p.opts)
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices
