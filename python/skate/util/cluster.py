"""Facts about the cluster."""

from __future__ import annotations

from skate import _runtime, _skate


def list_named_actors(all_namespaces: bool = False) -> list[str] | list[dict[str, str]]:
    """The names of the live named actors of this namespace, or of all as name and namespace."""
    _runtime.ensure_connected()
    pairs = _skate.list_named_actors(all_namespaces)
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in pairs]
    return [name for _, name in pairs]


def get_node_ip_address(address: str | None = None) -> str:
    """The address of this machine, as `address` (by default the outside) sees it; loopback if none does."""
    import socket

    host = address.rsplit(":", 1)[0] if address else ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: only the route is looked up. The default is reserved for documentation.
            probe.connect((host or "192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def get_node_instance_id() -> str:
    """The cloud provider's name of this machine, if the environment tells it."""
    from skate import _config

    return _config.env("CLOUD_INSTANCE_ID") or ""
