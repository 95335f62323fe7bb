"""Whether a Ray cluster may get more hosts by itself."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

#: Where Ray's monitor only reports hosts that people start, it names each host's type after the host.
UNTYPED = "node_"


def can_grow(ray: Any) -> bool:
    """Whether an autoscaler runs the cluster (``ray up``, KubeRay, a managed service): its hosts are then of types that
    it was configured with. False where Ray does not say."""
    return any(name and not name.startswith(UNTYPED) for name in _node_types(ray)) or _says_maximum()


def _node_types(ray: Any) -> set[str]:
    names: set[str] = set()
    with suppress(Exception):  # none of it is Ray's public API
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        names |= {one.ray_node_type_name for one in (*status.active_nodes, *status.idle_nodes)}
    with suppress(Exception):
        from ray.experimental.internal_kv import _internal_kv_get

        report = json.loads(_internal_kv_get(b"__autoscaling_status") or b"{}")["autoscaler_report"]
        names |= {str(one) for one in (report["node_type_mapping"] or {}).values()}
    return names


def _says_maximum() -> bool:
    with suppress(Exception):
        from ray._private.state import state

        return state.get_max_resources_from_cluster_config() is not None
    return False
