"""jobs/rayjob.yaml: KubeRay's and Kubernetes' fields, and what keeps the job closed, cheap and whole."""

import json
import re

import jsonschema
import pytest
from cluster_files import VERSION, image_problems, load, names_the_fault

from fer_ray import options

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
    if given.get("--train.device") != "cuda":
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
    "no GPU asked for": (lambda d: entry(d, "--train.device cuda", ""), "asks for no GPUs"),
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
    documents = json.loads(json.dumps(load("jobs/rayjob.yaml")))  # without YAML's anchors, which tie parts together
    names_the_fault(rayjob_problems, RAYJOB_MUTATIONS[name], documents)
