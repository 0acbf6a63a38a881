"""Where a task or an actor is placed; passed as the option scheduling_strategy.

Each class has `to_plan`, what the scheduler is told, as plain JSON values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate import _skate

if TYPE_CHECKING:
    from skate.util.placement_group import PlacementGroup


class PlacementGroupSchedulingStrategy:
    """In a placement group: in one bundle, or with index -1 in any."""

    def __init__(
        self,
        placement_group: PlacementGroup,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks

    def to_plan(self) -> dict[str, Any]:
        group, index = self.placement_group, self.placement_group_bundle_index
        if group is None or group.is_empty:
            if index != -1:
                raise ValueError(f"without a placement group there is no bundle {index}: leave it at -1")
            return {"strategy": "none"}
        captures = self.placement_group_capture_child_tasks
        if captures is None:  # as what runs here was told
            captures = _skate.is_connected() and _skate.context()["should_capture"]
        count = group.bundle_count
        if index < -1 or index >= count:
            raise ValueError(
                f"the placement group has the bundles 0 to {count - 1}, or -1 for any, not {index}"
            )
        return {
            "strategy": "placement_group",
            "id": group.id.hex(),
            "bundle_index": index,
            "capture_child_tasks": bool(captures),
        }


class NodeAffinitySchedulingStrategy:
    """On one node; with `soft` elsewhere if that node is gone or can never hold it."""

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        if hasattr(node_id, "hex") and not isinstance(node_id, str):
            node_id = node_id.hex()
        try:
            valid = isinstance(node_id, str) and len(bytes.fromhex(node_id)) == 28
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"{node_id!r} is no node id: skate.nodes() lists them as NodeID")
        self.node_id = node_id
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable

    def to_plan(self) -> dict[str, Any]:
        return {
            "strategy": "node_affinity",
            "node_id": self.node_id,
            "soft": bool(self.soft),
            "spill_on_unavailable": self._spill_on_unavailable,
            "fail_on_unavailable": self._fail_on_unavailable,
        }


class In:
    """The label has one of these values."""

    def __init__(self, *values: str) -> None:
        self.values = _strings("In", values)


class NotIn:
    """The label is absent or has none of these values."""

    def __init__(self, *values: str) -> None:
        self.values = _strings("NotIn", values)


class Exists:
    """The label is there."""


class DoesNotExist:
    """The label is not there."""


def _strings(name: str, values: tuple[Any, ...]) -> list[str]:
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{name} takes strings, not {value!r}")
    return list(values)


LabelMatch = In | NotIn | Exists | DoesNotExist


class NodeLabelSchedulingStrategy:
    """On a node whose labels match all of `hard`, and all of `soft` if there is such a one."""

    def __init__(self, hard: dict[str, LabelMatch], *, soft: dict[str, LabelMatch] | None = None) -> None:
        self.hard = _expressions("hard", hard)
        self.soft = _expressions("soft", soft or {})
        if not self.hard and not self.soft:
            raise ValueError("a NodeLabelSchedulingStrategy needs at least one expression in hard or soft")

    def to_plan(self) -> dict[str, Any]:
        return {"strategy": "node_label", "hard": _plain(self.hard), "soft": _plain(self.soft)}


def _expressions(name: str, value: Any) -> dict[str, LabelMatch]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} maps label keys to In, NotIn, Exists or DoesNotExist, and is not {value!r}")
    for key, match in value.items():
        if not isinstance(key, str):
            raise ValueError(f"the label keys in {name} must be strings, not {key!r}")
        if not isinstance(match, (In, NotIn, Exists, DoesNotExist)):
            raise ValueError(f"{name}[{key!r}] must be In, NotIn, Exists or DoesNotExist, not {match!r}")
    return dict(value)


def _plain(expressions: dict[str, LabelMatch]) -> dict[str, Any]:
    words = {In: "in", NotIn: "not_in", Exists: "exists", DoesNotExist: "does_not_exist"}
    return {
        key: {"op": words[type(match)], "values": getattr(match, "values", [])}
        for key, match in expressions.items()
    }


SchedulingStrategyT = (
    str
    | PlacementGroupSchedulingStrategy
    | NodeAffinitySchedulingStrategy
    | NodeLabelSchedulingStrategy
    | None
)
