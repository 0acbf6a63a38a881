"""The options of tasks, actors and methods: which there are, what they accept, what they come to."""

from __future__ import annotations

import json
from typing import Any

from skate import _signature

_NONE = type(None)
_NUMBER = (int, float, _NONE)

_COMMON: dict[str, tuple[type, ...]] = {
    "accelerator_type": (str, _NONE),
    "enable_task_events": (bool,),
    "fallback_strategy": (list, _NONE),
    "label_selector": (dict, _NONE),
    "memory": _NUMBER,
    "name": (str, _NONE),
    "num_cpus": _NUMBER,
    "num_gpus": _NUMBER,
    "object_store_memory": (int, _NONE),
    "placement_group": (object,),
    "placement_group_bundle_index": (int,),
    "placement_group_capture_child_tasks": (bool, _NONE),
    "resources": (dict, _NONE),
    "runtime_env": (dict, _NONE),
    "scheduling_strategy": (object,),
    "_labels": (dict, _NONE),
}
_TASK: dict[str, tuple[type, ...]] = {
    **_COMMON,
    "max_calls": (int, _NONE),
    "max_retries": (int, _NONE),
    "num_returns": (int, str, _NONE),
    "retry_exceptions": (bool, list, tuple),
    "_generator_backpressure_num_objects": (int, _NONE),
    "_num_objects_per_yield": (int,),
}
_ACTOR: dict[str, tuple[type, ...]] = {
    **_COMMON,
    "allow_out_of_order_execution": (bool, _NONE),
    "concurrency_groups": (dict, list, _NONE),
    "enable_tensor_transport": (bool, _NONE),
    "get_if_exists": (bool,),
    "lifetime": (str, _NONE),
    "max_concurrency": (int, _NONE),
    "max_pending_calls": (int, _NONE),
    "max_restarts": (int, _NONE),
    "max_task_retries": (int, _NONE),
    "namespace": (str, _NONE),
    "_actor_generator_backpressure_num_objects": (int, _NONE),
}
_METHOD: dict[str, tuple[type, ...]] = {
    "name": (str, _NONE),
    "num_returns": (int, str, _NONE),
    "concurrency_group": (str, _NONE),
    "max_task_retries": (int, _NONE),
    "retry_exceptions": (bool, list, tuple, _NONE),
    "enable_task_events": (bool, _NONE),
    "tensor_transport": (str, _NONE),
    "_generator_backpressure_num_objects": (int, _NONE),
    "_num_objects_per_yield": (int, _NONE),
    "_labels": (dict, _NONE),
}

#: Quantities travel as 64-bit counts of ten-thousandths.
_QUANTITY_MAX = 10**14
_PRECISION = 0.0001
_RETURNS_MAX = 10**6

TASK_OPTIONS = tuple(_TASK)
ACTOR_OPTIONS = tuple(_ACTOR)
REMOTE_OPTIONS = tuple(dict.fromkeys(TASK_OPTIONS + ACTOR_OPTIONS))


def validate_task(options: dict[str, Any], in_options: bool) -> None:
    _check_names(options, _TASK, "remote functions")
    if in_options and "max_calls" in options:
        raise ValueError(
            "max_calls belongs to the function, not to one call: move it from .options() to @skate.remote"
        )
    _check_common(options)
    if options.get("object_store_memory") is not None:
        raise ValueError("object_store_memory is not an option of tasks: use memory, or leave it out")
    _check_count(options, "max_calls", 0)
    _check_count(options, "max_retries", -1)
    check_num_returns(options.get("num_returns"))
    check_retry_exceptions(options.get("retry_exceptions"))
    _check_backpressure(options, "_generator_backpressure_num_objects")
    _refuse_num_objects_per_yield(options)


def validate_actor(options: dict[str, Any], in_options: bool) -> None:
    _check_names(options, _ACTOR, "actors")
    if in_options and "concurrency_groups" in options:
        raise ValueError("concurrency_groups belong to the class: move them from .options() to @skate.remote")
    _check_common(options)
    _check_count(options, "max_restarts", -1)
    _check_count(options, "max_task_retries", -1)
    _check_count(options, "max_pending_calls", -1)
    _check_count(options, "max_concurrency", 0)
    if options.get("lifetime") not in (None, "detached", "non_detached"):
        raise ValueError(f"lifetime must be 'detached', 'non_detached' or None, not {options['lifetime']!r}")
    if options.get("get_if_exists") and not options.get("name"):
        raise ValueError("get_if_exists needs a name to look for: pass name as well")
    if options.get("enable_tensor_transport"):
        raise ValueError("enable_tensor_transport is not supported: values travel through the store")
    _check_backpressure(options, "_actor_generator_backpressure_num_objects")
    concurrency_groups(options.get("concurrency_groups"))


def cache_key(options: dict[str, Any]) -> tuple[Any, ...] | None:
    """Equal for options that mean the same; None for those that are not plain values."""
    plain = (int, float, str, bool, _NONE)
    if any(type(value) not in plain for value in options.values()):
        return None
    return tuple((name, type(value), value) for name, value in options.items())


def validate_method(options: dict[str, Any]) -> None:
    for name, value in options.items():
        accepted = _METHOD.get(name)
        if accepted is None:
            raise ValueError(f"{name!r} is no option of actor methods: they are {_listing(_METHOD)}")
        _check_type(name, value, accepted)
    _check_count(options, "max_task_retries", -1)
    check_num_returns(options.get("num_returns"))
    check_retry_exceptions(options.get("retry_exceptions"))
    _check_backpressure(options, "_generator_backpressure_num_objects")
    _refuse_num_objects_per_yield(options)
    if options.get("tensor_transport") not in (None, "object_store", "OBJECT_STORE"):
        raise ValueError("tensor_transport is not supported: values travel through the object store")


def _listing(names: Any) -> str:
    return ", ".join(sorted(name for name in names if not name.startswith("_")))


def _check_names(options: dict[str, Any], known: dict[str, tuple[type, ...]], what: str) -> None:
    for name, value in options.items():
        accepted = known.get(name)
        if accepted is None:
            raise ValueError(f"{name!r} is no option of {what}: they are {_listing(known)}")
        _check_type(name, value, accepted)


def _check_type(name: str, value: Any, accepted: tuple[type, ...]) -> None:
    if isinstance(value, accepted):
        if isinstance(value, str):
            check_text(f"the option {name!r}", value)
        return
    names = " or ".join("None" if t is _NONE else t.__name__ for t in accepted)
    raise TypeError(f"the option {name!r} takes {names}, not {type(value).__name__} ({value!r})")


def check_text(name: str, value: str) -> None:
    """Text that travels: file names and the like may hold what is no character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} cannot be {value!r}: {value[error.start]!r} at index {error.start} is half of a surrogate "
            "pair and no character. Pass text that can be encoded in UTF-8."
        ) from None


def _check_count(options: dict[str, Any], name: str, low: int, high: int = 2**31 - 1) -> None:
    value = options.get(name)
    if value is not None and not low <= value <= high:
        endless = " (-1 means without end)" if low == -1 else ""
        raise ValueError(f"{name} must be from {low}{endless} to {high} or None, not {value}")


def _check_backpressure(options: dict[str, Any], name: str) -> None:
    value = options.get(name)
    if value is not None and value != -1 and value <= 0:
        raise ValueError(f"{name} must be positive, -1 or None, not {value}")


def _refuse_num_objects_per_yield(options: dict[str, Any]) -> None:
    if options.get("_num_objects_per_yield") not in (None, 1):
        raise ValueError("_num_objects_per_yield other than 1 is not supported: yield a list instead")


def check_num_returns(value: Any) -> None:
    if value is None or value in ("streaming", "dynamic"):
        return
    if isinstance(value, str) or value < 0:
        raise ValueError(
            f"num_returns must be None, an integer from 0 on, 'streaming' or 'dynamic', not {value!r}"
        )
    if value > _RETURNS_MAX:
        raise ValueError(
            f"num_returns={value} is too many (the most is {_RETURNS_MAX}): return a list, or yield the values"
        )


def check_returns_fit(value: Any, function: Any) -> None:
    if value in ("streaming", "dynamic") and not _signature.is_generator(function):
        raise ValueError(
            f"num_returns={value!r} needs a generator function, and "
            f"{getattr(function, '__qualname__', function)} has no yield. Leave num_returns out, or yield."
        )


def check_retry_exceptions(value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        return
    for item in value:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ValueError(
                f"retry_exceptions must be a bool or a list of exception classes, but holds {item!r}"
            )


def _check_common(options: dict[str, Any]) -> None:
    for name in ("num_cpus", "num_gpus", "memory"):
        check_quantity(name, options.get(name))
    gpus = options.get("num_gpus")
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError(f"num_gpus above 1 must be a whole number, not {gpus}")
    _check_count(options, "object_store_memory", 0, _QUANTITY_MAX)
    for name, quantity in (options.get("resources") or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"the names in resources must be strings, not {name!r}")
        if name in ("CPU", "GPU"):
            raise ValueError(f"{name} does not belong into resources: use num_{name.lower()}s")
        if not isinstance(quantity, (int, float)):
            raise TypeError(f"the quantity of {name!r} in resources must be a number, not {quantity!r}")
        check_quantity(name, quantity)
    check_label_selector(options.get("label_selector"))
    for choice in options.get("fallback_strategy") or ():
        if not isinstance(choice, dict) or set(choice) != {"label_selector"}:
            raise ValueError(
                f"each element of fallback_strategy must be {{'label_selector': ...}}, not {choice!r}"
            )
        check_label_selector(choice["label_selector"])
    if options.get("runtime_env"):
        from skate import runtime_env

        runtime_env.validate(options["runtime_env"])
    if options.keys() & {"scheduling_strategy", "placement_group", "placement_group_bundle_index"}:
        scheduling_json(options)


def check_quantity(name: str, quantity: Any) -> None:
    if quantity is None:
        return
    if quantity != quantity or quantity in (float("inf"), float("-inf")):
        raise ValueError(f"the quantity of {name} must be finite, not {quantity}")
    if quantity < 0:
        raise ValueError(f"the quantity of {name} cannot be negative, but is {quantity}")
    if quantity > _QUANTITY_MAX:
        raise ValueError(f"the quantity of {name} is at most {_QUANTITY_MAX}, and cannot be {quantity}")
    if 0 < quantity < _PRECISION:
        raise ValueError(
            f"the quantity of {name} is counted in steps of {_PRECISION}, and cannot be {quantity}"
        )


def check_label_selector(selector: Any) -> None:
    if selector is None:
        return
    if not isinstance(selector, dict):
        raise TypeError(f"a label selector is a dict of strings, not {selector!r}")
    import re

    word = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
    pattern = re.compile(rf"(?:!?{word})?|!?in\(\s*{word}(?:\s*,\s*{word})*\s*\)")
    keys = re.compile(rf"(?:{word}(?:\.{word})*/)?{word}")
    for key, value in selector.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"a label selector maps strings to strings, not {key!r} to {value!r}")
        if not keys.fullmatch(key):
            raise ValueError(
                f"{key!r} is no key of a label: it has at most 63 letters, digits, dashes, dots and "
                "underscores, after an optional prefix (a domain name) and a slash"
            )
        if not pattern.fullmatch(value):
            raise ValueError(
                f"the label selector {key}={value!r} is malformed: write 'value', '!value', 'in(a, b)' or "
                "'!in(a, b)'; a value has at most 63 letters, digits, dashes, dots and underscores"
            )


def concurrency_groups(value: Any) -> dict[str, int]:
    if value is None:
        return {}
    if isinstance(value, list):
        pairs = [(g.get("name"), g.get("max_concurrency")) for g in value if isinstance(g, dict)]
        if len(pairs) != len(value):
            raise TypeError(f"concurrency_groups maps names to numbers of calls, and is not {value!r}")
        value = dict(pairs)
    for name, limit in value.items():
        if not isinstance(name, str) or not isinstance(limit, int):
            raise TypeError(f"concurrency_groups maps names to numbers of calls, not {name!r} to {limit!r}")
        if limit < 1:
            raise ValueError(f"the concurrency group {name!r} needs room for at least 1 call, not {limit}")
    return dict(value)


# --- what they come to ------------------------------------------------------------------------


def resources(options: dict[str, Any], default_cpus: float) -> dict[str, float]:
    """The complete demand, without zeros."""
    cpus = options.get("num_cpus")
    demand: dict[str, float] = {"CPU": default_cpus if cpus is None else cpus}
    demand["GPU"] = options.get("num_gpus") or 0
    demand["memory"] = int(options.get("memory") or 0)
    demand.update(options.get("resources") or {})
    if options.get("accelerator_type"):
        demand[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    return {name: float(quantity) for name, quantity in demand.items() if quantity}


def actor_resources(options: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """(held while alive, needed to be placed): an actor that asks for nothing but memory holds no CPU,
    yet is placed where one is free."""
    unasked = options.get("num_cpus") is None and options.get("num_gpus") is None
    if unasked and not options.get("resources") and options.get("accelerator_type") is None:
        held = resources(options, default_cpus=0)  # memory alone, if any
        return held, {"CPU": 1.0, **held}
    held = resources(options, default_cpus=1)
    return held, held


def returns(num_returns: Any, function_is_generator: bool) -> tuple[int, str]:
    """(num_returns, mode) of the template."""
    if num_returns is None:
        num_returns = "streaming" if function_is_generator else 1
    if num_returns == "streaming":
        return 1, "streaming"
    if num_returns == "dynamic":
        import warnings

        warnings.warn(
            "num_returns='dynamic' is deprecated: use num_returns='streaming'",
            DeprecationWarning,
            stacklevel=4,
        )
        return 1, "dynamic"
    return num_returns, "static"


def scheduling_json(options: dict[str, Any]) -> str:
    """Strategy, selector and labels as JSON; "" for the default."""
    plan: dict[str, Any] = {}
    strategy = _chosen_strategy(options)
    if strategy is None and options.get("placement_group", "default") is None:
        plan["strategy"] = "none"  # not even the placement group of the submitting task
    if strategy is not None:
        plan.update(_strategy(strategy))
    if options.get("label_selector"):
        plan["label_selector"] = options["label_selector"]
    if options.get("fallback_strategy"):
        plan["fallback"] = [choice["label_selector"] for choice in options["fallback_strategy"]]
    if options.get("_labels"):
        plan["labels"] = options["_labels"]
    return json.dumps(plan) if plan else ""


def _chosen_strategy(options: dict[str, Any]) -> Any:
    strategy = options.get("scheduling_strategy")
    group = options.get("placement_group", "default")
    if group in ("default", None):
        if options.get("placement_group_bundle_index", -1) != -1:
            raise ValueError(
                "placement_group_bundle_index names a bundle of placement_group: pass that as well"
            )
        return strategy
    from skate.util.placement_group import PlacementGroup
    from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if not isinstance(group, PlacementGroup):
        raise TypeError(f"placement_group takes a PlacementGroup, not {type(group).__name__}")
    if strategy is not None:
        raise ValueError("pass either scheduling_strategy or placement_group, not both")
    return PlacementGroupSchedulingStrategy(
        group,
        options.get("placement_group_bundle_index", -1),
        options.get("placement_group_capture_child_tasks"),
    )


def check_bundles(options: dict[str, Any], name: str, *demands: dict[str, float]) -> None:
    """Whether the placement group could hold each of the demands, once it is there and empty."""
    from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = _chosen_strategy(options)
    if not isinstance(strategy, PlacementGroupSchedulingStrategy) or strategy.placement_group is None:
        return
    index, bundles = strategy.placement_group_bundle_index, strategy.placement_group.bundle_specs
    meant = bundles if index == -1 else bundles[index : index + 1]
    for demand in demands:
        if meant and not any(all(b.get(r, 0) >= q for r, q in demand.items()) for b in meant):
            where = "no bundle" if index == -1 else f"not bundle {index}"
            raise ValueError(
                f"{name} asks for {demand}, and {where} of its placement group can ever hold that. The "
                f"bundles are {bundles}: ask for less, or make a group with larger ones."
            )


def _strategy(strategy: Any) -> dict[str, Any]:
    if strategy == "SPREAD":
        return {"strategy": "spread"}
    if strategy == "DEFAULT":
        return {"strategy": "default"}  # named, and so not the group of the submitting task
    if not isinstance(strategy, str):
        to_plan = getattr(strategy, "to_plan", None)
        if to_plan is None:
            raise TypeError(
                "scheduling_strategy takes 'DEFAULT', 'SPREAD' or one of the classes of "
                f"skate.util.scheduling_strategies, not {type(strategy).__name__}"
            )
        plan: dict[str, Any] = to_plan()
        return plan
    raise ValueError(
        f"scheduling_strategy {strategy!r} is unknown: use 'DEFAULT', 'SPREAD' or one of the classes of "
        "skate.util.scheduling_strategies"
    )
