"""cluster/*.json: who may reach the nodes, and what they may do."""

import re

import pytest
from cluster_files import by_sid, load, names_the_fault, service_model, shape_problems

WORLD = {"0.0.0.0/0", "::/0"}


def ingress_problems(rules: list) -> list[str]:
    shape = service_model("ec2").operation_model("AuthorizeSecurityGroupIngress").input_shape.members["IpPermissions"]
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
    names_the_fault(ingress_problems, INGRESS_MUTATIONS[name], load("cluster/ingress.json"))


@pytest.mark.parametrize("name", POLICY_MUTATIONS)
def test_policies_broken(name):
    names_the_fault(policy_problems, POLICY_MUTATIONS[name],
                    *(load(f"cluster/{n}.json") for n in ("head", "worker", "trust")))
