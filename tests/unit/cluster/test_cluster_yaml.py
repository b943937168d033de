"""cluster.yaml: Ray's schema, AWS's request, and what keeps a cluster closed, cheap and whole."""

import copy
import re

import pytest
from cluster_files import by_sid, image_problems, load, names_the_fault, service_model, shape_problems


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
        lines += shape_problems(node, service_model("ec2").operation_model("RunInstances").input_shape, path)
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
    names_the_fault(cluster_problems, CLUSTER_MUTATIONS[name], load("cluster.yaml"))
