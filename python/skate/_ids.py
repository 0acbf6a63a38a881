"""Identifiers: immutable byte strings of a fixed size. The nil value is all 0xFF.

JobID 4 bytes; ActorID = 12 unique + job; TaskID = 8 sequence + 12 origin + job; PlacementGroupID =
14 unique + job; the others 28 random bytes.
"""

import os
from typing import Any, ClassVar, TypeVar

_Id = TypeVar("_Id", bound="BaseID")


class BaseID:
    """Hashable, picklable, equal only to an id of the same class."""

    SIZE: ClassVar[int] = 28
    __slots__ = ("_bytes", "__weakref__")
    _bytes: bytes

    def __init__(self, id: bytes) -> None:
        if not isinstance(id, bytes):
            raise TypeError(f"{type(self).__name__} is made of bytes, not of {type(id).__name__}")
        if len(id) != self.SIZE:
            raise ValueError(f"{type(self).__name__} has {self.SIZE} bytes, not {len(id)}")
        self._bytes = id

    @classmethod
    def from_binary(cls: "type[_Id]", id_bytes: bytes) -> "_Id":
        return cls(id_bytes)

    @classmethod
    def from_hex(cls: "type[_Id]", hex_id: str) -> "_Id":
        return cls(bytes.fromhex(hex_id))

    @classmethod
    def nil(cls: "type[_Id]") -> "_Id":
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def size(cls) -> int:
        return cls.SIZE

    def binary(self) -> bytes:
        return self._bytes

    def hex(self) -> str:
        return self._bytes.hex()

    def is_nil(self) -> bool:
        return self._bytes == b"\xff" * self.SIZE

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __reduce__(self) -> "tuple[Any, ...]":
        return type(self), (self._bytes,)


class UniqueID(BaseID):
    __slots__ = ()

    @classmethod
    def from_random(cls: "type[_Id]") -> "_Id":
        return cls(os.urandom(cls.SIZE))


class NodeID(UniqueID):
    __slots__ = ()


class WorkerID(UniqueID):
    __slots__ = ()


class FunctionID(UniqueID):
    __slots__ = ()


class ActorClassID(UniqueID):
    __slots__ = ()


class JobID(BaseID):
    SIZE = 4
    __slots__ = ()

    @classmethod
    def from_int(cls, value: int) -> "JobID":
        return cls(value.to_bytes(4, "little"))

    def int(self) -> int:
        return int.from_bytes(self._bytes, "little")


class ActorID(BaseID):
    SIZE = 16
    __slots__ = ()

    @classmethod
    def of(cls, job_id: JobID, parent_task_id: "TaskID", parent_task_counter: int) -> "ActorID":
        """A value that depends on the arguments only."""
        return cls(_digest(12, job_id, parent_task_id, parent_task_counter) + job_id.binary())

    @classmethod
    def from_random(cls) -> "ActorID":
        return cls(os.urandom(cls.SIZE))

    @property
    def job_id(self) -> JobID:
        return JobID(self._bytes[12:])


class TaskID(BaseID):
    SIZE = 24
    __slots__ = ()

    @classmethod
    def for_driver_task(cls, job_id: JobID) -> "TaskID":
        return cls(b"\xff" * 20 + job_id.binary())

    @classmethod
    def for_fake_task(cls, job_id: JobID) -> "TaskID":
        return cls(os.urandom(20) + job_id.binary())

    @classmethod
    def for_actor_creation_task(cls, actor_id: ActorID) -> "TaskID":
        return cls(b"\xff" * 8 + actor_id.binary())

    @classmethod
    def for_actor_task(
        cls, job_id: JobID, parent_task_id: "TaskID", parent_task_counter: int, actor_id: ActorID
    ) -> "TaskID":
        return cls(_digest(8, job_id, parent_task_id, parent_task_counter) + actor_id.binary())

    @classmethod
    def for_normal_task(cls, job_id: JobID, parent_task_id: "TaskID", parent_task_counter: int) -> "TaskID":
        unique = _digest(8, job_id, parent_task_id, parent_task_counter)
        return cls(unique + b"\xff" * 12 + job_id.binary())

    def actor_id(self) -> ActorID:
        """Nil but for its job unless this task belongs to an actor."""
        if self._bytes[8] == 0xFF:
            return ActorID(b"\xff" * 12 + self._bytes[20:])
        return ActorID(self._bytes[8:])

    def job_id(self) -> JobID:
        return JobID(self._bytes[20:])


class PlacementGroupID(BaseID):
    SIZE = 18
    __slots__ = ()

    @classmethod
    def of(cls, job_id: JobID) -> "PlacementGroupID":
        return cls(os.urandom(14) + job_id.binary())

    @classmethod
    def from_random(cls) -> "PlacementGroupID":
        return cls(os.urandom(cls.SIZE))


def _digest(size: int, job_id: JobID, parent: TaskID, counter: int) -> bytes:
    import hashlib

    text = job_id.binary() + parent.binary() + counter.to_bytes(8, "little")
    return hashlib.blake2b(text, digest_size=size).digest()
