"""kube-proxy's settings on one node, which the last part of `init` and of `join` applies.

`init` uploads a changed configuration, but a running kube-proxy doesn't read it. The script `proxy` restarts
it, cleans up after the previous mode and checks that the node serves requests. `components/workers.py` limits
how many workers do so at a time.
"""

from __future__ import annotations

from model import kubeadm
from model.settings import Host, Settings


def values(settings: Settings, host: Host) -> dict[str, str]:
    """The values of the script `proxy` for a host."""
    return {
        "PROXY": kubeadm.proxy_config(settings),
        "MODE": settings.proxy.mode,
        "SCHEDULER": settings.proxy.scheduler,
        "SERVICE_ADDRESS": settings.service_address,
        "NODE_ENDPOINT": f"{host.address}:{settings.nginx.node_port}",
        "READY_SECONDS": str(settings.step_timeouts.rollout - 60),
    }
