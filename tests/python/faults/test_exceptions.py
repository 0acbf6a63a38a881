"""What users raise arrives as what it was."""

import builtins
import logging

import pytest
import skate
from skate.exceptions import TaskError

CLUSTER = {"num_cpus": 4, "log_to_driver": False}
pytestmark = pytest.mark.usefixtures("cluster")

BUILTIN = sorted(
    (cls for cls in vars(builtins).values() if isinstance(cls, type) and issubclass(cls, Exception)),
    key=lambda cls: cls.__name__,
)
ARGUMENTS = {
    "UnicodeDecodeError": ("utf-8", b"x", 0, 1, "why"),
    "UnicodeEncodeError": ("utf-8", "x", 0, 1, "why"),
    "UnicodeTranslateError": ("x", 0, 1, "why"),
    "ExceptionGroup": ("several", [ValueError(1), MemoryError(2)]),
}


@skate.remote(max_retries=0)
def raises(box):
    raise box[0]


def error_of(ref):
    with pytest.raises(TaskError) as info:
        skate.get(ref, timeout=50)
    return info.value


# --- types ------------------------------------------------------------------------------------


def test_every_builtin_exception_arrives_as_itself():
    assert MemoryError in BUILTIN and OSError in BUILTIN and len(BUILTIN) > 50
    made = [cls(*ARGUMENTS.get(cls.__name__, ("x",))) for cls in dict.fromkeys(BUILTIN)]
    refs = [raises.remote([error]) for error in made]
    for error, ref in zip(made, refs, strict=True):
        raised = error_of(ref)
        assert isinstance(raised, type(error)), type(error)
        assert type(raised.cause) is type(error)
        assert [str(arg) for arg in raised.cause.args] == [str(arg) for arg in error.args]


def test_running_out_of_memory_is_caught_as_that():
    with pytest.raises(MemoryError) as info:
        skate.get(skate.remote(max_retries=0)(lambda: bytearray(10**15)).remote())
    assert isinstance(info.value, TaskError)


class Final(Exception):
    def __init_subclass__(cls, **kwargs):
        raise RuntimeError("no children")


def test_a_class_that_cannot_be_derived_from_is_warned_of():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("skate")
    logger.addHandler(handler)
    try:
        raised = error_of(raises.remote([Final("f")]))
    finally:
        logger.removeHandler(handler)
    assert type(raised) is TaskError and type(raised.cause) is Final and raised.cause.args == ("f",)
    assert len(said) == 1
    for word in ("Final", "no children", "TaskError", "cause"):
        assert word in said[0], said


class FixedArgs(Exception):
    @property
    def args(self):
        return ("fixed",)


def test_a_class_with_args_of_its_own():
    raised = error_of(raises.remote([FixedArgs()]))
    assert isinstance(raised, FixedArgs) and raised.args == ("fixed",)
