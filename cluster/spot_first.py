"""Ray's AWS node provider that starts an on-demand instance where no spot instance is to be had.

Needed because Ray 2.60 does not do so: a launch that AWS refuses (InsufficientInstanceCapacity) ends as
ALLOCATION_FAILED, but only ALLOCATION_TIMEOUT lowers a node type in the autoscaler's order: it asks for the same spot
type again and again. One type for both keeps Ray's bookkeeping as it is, and every launch tries spot first again.
"""

from __future__ import annotations

import logging

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

# AWS's codes for "no spot instance now"; a wrong configuration has others, and must stay an error
NO_SPOT = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow",
           "UnfulfillableCapacity"}


class SpotFirstNodeProvider(AWSNodeProvider):
    """`provider.module` of cluster.yaml."""

    def _create_node(self, node_config: dict, tags: dict, count: int) -> dict:
        """Start `count` nodes: spot in any of the subnets, else on-demand. Raises: NodeLaunchException."""
        try:
            return super()._create_node(node_config, dict(tags), count)
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in NO_SPOT:
                raise
            logger.warning("No spot %s (%s): starting on-demand", node_config.get("InstanceType"), error.category)
        on_demand = {k: v for k, v in node_config.items() if k != "InstanceMarketOptions"}
        return super()._create_node(on_demand, dict(tags), count)
