"""The languages that take part."""

import enum


class Language(enum.IntEnum):
    PYTHON = 0
    JAVA = 1
    CPP = 2
