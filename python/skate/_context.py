"""What `init` returns."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any


class Context(Mapping[str, Any]):
    """Addresses of the cluster, as attributes and as a mapping. As a context manager it shuts down."""

    dashboard_url = ""

    def __init__(self, result: Any) -> None:
        from skate import __version__

        self.python_version = "{}.{}.{}".format(*sys.version_info[:3])
        self.skate_version = __version__
        self.address_info: dict[str, Any] = {
            "node_ip_address": result["node_ip_address"],
            "session_dir": result["session_dir"],
            "session_name": result["session_name"],
            "gcs_address": result["gcs_address"],
            "address": result["gcs_address"],
            "node_id": result["node_id"],
            "object_store_memory": result["object_store_bytes"],
            "webui_url": "",
        }

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __len__(self) -> int:
        return len(self.address_info)

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        from skate import _runtime

        _runtime.shutdown()

    def __repr__(self) -> str:
        return (
            f"Context(address={self.address_info['address']!r}, "
            f"session_dir={self.address_info['session_dir']!r}, version={self.skate_version!r})"
        )
