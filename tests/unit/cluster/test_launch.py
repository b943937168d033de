"""cluster/fill.py and cluster/spot_first.py: Ray's real launcher against moto, a stand-in for AWS."""

import copy
import json
import re

import pytest
import yaml
from cluster_files import ROOT, VALUES

from cluster import fill


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """The account after docs/cluster.md's commands, with moto for AWS: client, Ray's resolved config, its provider."""
    import boto3
    import moto
    from ray.autoscaler._private import providers
    from ray.autoscaler._private.aws import utils
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(key, "testing")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray writes the key pair there
        patch.delenv("AWS_PROFILE", raising=False)
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


@pytest.mark.parametrize(("kind", "role"), [("head", "head"), ("cpu", "worker"), ("gpu", "worker")])
def test_ray_launches_the_nodes_as_written(aws, kind, role):
    ec2, config, provider = aws
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


def test_ray_ends_what_it_launched(aws):
    _, config, provider = aws
    launch(config, provider, "cpu")
    assert provider.non_terminated_nodes({})
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
    assert nodes[0] in provider.non_terminated_nodes({})
    assert provider.node_tags(nodes[0])["ray-user-node-type"] == "gpu"


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
    from ray.core.generated import instance_manager_pb2 as messages

    monitor = CloudResourceMonitor()
    for status, known in (("ALLOCATION_FAILED", {}), ("ALLOCATION_TIMEOUT", {"gpu": 0.0})):
        monitor.notify([messages.InstanceUpdateEvent(instance_type="gpu",
                                                     new_instance_status=getattr(messages.Instance, status))])
        assert monitor.get_recoverable_resource_availabilities() == known, status


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
