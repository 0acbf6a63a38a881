"""Placement groups: resources of one or more nodes, reserved all together or not at all."""

from __future__ import annotations

import json
import math
from typing import Any

import skate
from skate import _runtime, _skate
from skate._ids import NodeID, PlacementGroupID

VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}


class PlacementGroup:
    """A reservation of bundles of resources. May be passed to tasks and actors."""

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        return PlacementGroup(PlacementGroupID.nil())

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        if self.bundle_cache is None:
            if self.is_empty:
                return []
            bundles = placement_group_table(self)["bundles"]
            self.bundle_cache = [bundles[index] for index in sorted(bundles)]
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def ready(self) -> Any:
        """A ref that is ready when the bundles are reserved; its value is this group."""
        from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self)
        return _echo().options(scheduling_strategy=strategy).remote(self)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether the bundles were reserved within the time."""
        _runtime.ensure_connected()
        wait_ms = math.ceil(max(0.0, min(timeout_seconds, 1e9)) * 1000)
        # The answer comes when the group is there, or when the time is over.
        request = json.dumps({"id": self.id.hex(), "wait_ms": wait_ms})
        state = json.loads(_skate.control_call("pg_wait", request))["state"]
        if state == "REMOVED":
            raise ValueError(f"the placement group {self.id.hex()} was removed: make a new one")
        return bool(state == "CREATED")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


_echo_function: Any = None


def _echo() -> Any:
    global _echo_function
    if _echo_function is None:

        @skate.remote(num_cpus=0, max_calls=0)
        def placement_group_ready(group: Any) -> Any:
            return group  # runs in the group, and so not before it is there

        _echo_function = placement_group_ready
    return _echo_function


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> PlacementGroup:
    """Asks for a group; returns at once. `ready` and `wait` tell when it is there."""
    validate_placement_group(
        bundles, strategy, lifetime, _soft_target_node_id, bundle_label_selector, topology_strategy
    )
    bundles = _check_bundles(bundles)
    _runtime.ensure_connected()
    request = {
        "bundles": bundles,
        "strategy": strategy or "PACK",
        "name": name,
        "detached": lifetime == "detached",
        "soft_target_node_id": _soft_target_node_id or "",
        "bundle_label_selector": bundle_label_selector or [],
    }
    answer = json.loads(_skate.control_call("pg_create", json.dumps(request)))
    return PlacementGroup(PlacementGroupID(bytes.fromhex(answer["id"])), bundles)


def validate_placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> None:
    """ValueError where `placement_group` would raise it."""
    if topology_strategy:
        raise ValueError("topology_strategy is not supported: leave it out")
    strategy = strategy or "PACK"
    if strategy not in VALID_PLACEMENT_GROUP_STRATEGIES:
        raise ValueError(
            f"strategy must be one of {', '.join(sorted(VALID_PLACEMENT_GROUP_STRATEGIES))}, not {strategy!r}"
        )
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime must be None or 'detached', not {lifetime!r}")
    if _soft_target_node_id is not None and strategy != "STRICT_PACK":
        raise ValueError(f"_soft_target_node_id goes with STRICT_PACK only, not with {strategy}")
    if _soft_target_node_id and NodeID.from_hex(_soft_target_node_id).is_nil():
        raise ValueError("_soft_target_node_id is the nil id: pass a node's, or None")
    _check_bundles(bundles)
    if bundle_label_selector is not None:
        from skate._options import check_label_selector

        if len(bundle_label_selector) != len(bundles):
            raise ValueError(
                f"bundle_label_selector needs one element for each of the {len(bundles)} bundles, not "
                f"{len(bundle_label_selector)}"
            )
        for selector in bundle_label_selector:
            check_label_selector(selector)


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """ValueError unless the group has this bundle; -1 stands for any, and the empty group has no other."""
    count = placement_group.bundle_count
    if not -1 <= bundle_index < count:
        has = f"has the bundles 0 to {count - 1}" if count else "is empty"
        raise ValueError(f"there is no bundle {bundle_index}: the placement group {has}; pass -1 for any")


def _check_bundles(bundles: Any) -> list[dict[str, float]]:
    if not isinstance(bundles, list):
        raise ValueError(f"bundles takes a list of dicts, not {type(bundles).__name__}")
    if not bundles:
        raise ValueError('bundles needs at least one dict, for example [{"CPU": 1}]')
    checked = []
    for bundle in bundles:
        if not isinstance(bundle, dict):
            raise ValueError(f"bundles takes a list of dicts, and holds {bundle!r}")
        for resource, quantity in bundle.items():
            if not isinstance(resource, str) or not isinstance(quantity, (int, float)):
                raise ValueError(f"a bundle maps names to numbers, not {resource!r} to {quantity!r}")
            if quantity < 0 or not math.isfinite(quantity):
                raise ValueError(f"the quantity of {resource} cannot be {quantity}")
        filled = {resource: float(quantity) for resource, quantity in bundle.items() if quantity}
        if not filled:
            raise ValueError(f"the bundle {bundle} asks for nothing: leave it out, or give it a quantity")
        checked.append(filled)
    return checked


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives the reservation back at once. What runs in it is killed, what waits for it fails."""
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"this takes a PlacementGroup, not {type(placement_group).__name__}")
    _runtime.ensure_connected()
    _skate.control_call("pg_remove", json.dumps({"id": placement_group.id.hex()}))


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """Of one group: its bundles, nodes, strategy and state. Of all: the same by id."""
    _runtime.ensure_connected()
    wanted = placement_group.id.hex() if placement_group is not None else None
    rows = json.loads(_skate.control_call("placement_groups", json.dumps({"id": wanted})))
    table = {row["placement_group_id"]: _table_row(row) for row in rows}
    if wanted is None:
        return table
    return table.get(wanted, {})


def _table_row(row: dict[str, Any]) -> dict[str, Any]:
    for key in ("bundles", "bundles_to_node_id"):
        value = row.get(key) or {}
        items = value.items() if isinstance(value, dict) else enumerate(value)
        row[key] = {int(index): item for index, item in items}
    return row


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name in the job's namespace; ValueError if there is none."""
    if not placement_group_name:
        raise ValueError("the name of a placement group cannot be empty")
    _runtime.ensure_connected()
    found = json.loads(_skate.control_call("pg_get", json.dumps({"by_name": placement_group_name})))
    if found is not None:
        return PlacementGroup(PlacementGroupID(bytes.fromhex(found["id"])))
    raise ValueError(f"there is no placement group named {placement_group_name!r} in this namespace")


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the current task or actor runs."""
    _runtime.ensure_connected()
    group = _skate.context()["placement_group_id"]
    return PlacementGroup(PlacementGroupID(group)) if group else None
