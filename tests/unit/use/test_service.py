"""How many processes the service has on which machines; no Ray is started."""

import pytest

from fer_ray.config import ConfigError
from fer_ray.use.service import Processes, processes


@pytest.mark.parametrize("cluster, replicas, device, expected", [
    ({"CPU": 1}, 0, "cpu", Processes(1, 1)),
    ({"CPU": 2}, 0, "cpu", Processes(1, 1.5)),
    ({"CPU": 16}, 0, "cpu", Processes(8, 1.5)),
    ({"CPU": 2}, 3, "cpu", Processes(3, 0.666)),  # more than there is room for share what there is
    ({"CPU": 16, "GPU": 2}, 0, "cpu", Processes(8, 1.5)),
    ({"CPU": 16, "GPU": 2}, 0, "cuda", Processes(8, 0.5, 2, 1)),
    ({"CPU": 16, "GPU": 2}, 1, "cuda", Processes(8, 0.5, 1, 1)),
    ({"CPU": 2, "GPU": 2}, 0, "cuda", Processes(1, 0.5, 2, 0.75))])
def test_each_cluster_has_room_for_what_is_started(cluster, replicas, device, expected):
    assert processes(cluster, replicas, device, grows=False) == expected
    assert expected.services * expected.cpus + expected.networks * expected.network_cpus <= cluster["CPU"]


def test_more_networks_than_gpus_only_where_nodes_come():
    with pytest.raises(ConfigError, match="3 processes need 3 GPUs, the cluster has 2"):
        processes({"CPU": 4, "GPU": 2}, 3, "cuda", grows=False)
    assert processes({"CPU": 4, "GPU": 2}, 3, "cuda", grows=True) == Processes(2, 0.5, 3, 1)
