"""A process that cannot open another zone's files, even as the same user or as root (Landlock, Linux 5.13).

On one machine the three services run as one user, so file modes alone do not part the zones. Each service therefore
gives up, before it starts a thread, every path but its own folder and the program itself. In a cluster containers do
this; there it does no harm.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# linux/landlock.h; the system call numbers are the same on every architecture
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_VERSION_FLAG = 1
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# rights known to each version of the interface: 13 at first, then rename across folders, truncate, device ioctl
_RIGHTS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_DEVICE_IOCTL = 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | _DEVICE_IOCTL

_libc = ctypes.CDLL(None, use_errno=True)


def _program_paths(packages: Iterable[str]) -> set[Path]:
    found = (importlib.util.find_spec(name) for name in packages)
    roots = {Path(root) for spec in found if spec for root in spec.submodule_search_locations or ()}
    fixed = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/opt")
    return {*map(Path, (sys.prefix, sys.base_prefix, *fixed)), *roots}


def confine(packages: Iterable[str], writable: Iterable[Path], readable: Iterable[Path] = ()) -> bool:
    """Give up every path but these, the program, and the system's libraries; for good.

    Args:
        packages: Python packages of the program that may lie outside the interpreter's folders.
        writable: folders the process may read and change; they must exist.
        readable: further files or folders it may read.

    Returns:
        Whether the kernel enforces it; False where it has no Landlock, or where a writable folder lies inside one
        that stays readable, so that nothing is parted.
    """
    writable = [path.resolve() for path in writable]
    readable = {*_program_paths(packages), *readable}
    if any(folder.is_relative_to(path) for folder in writable for path in readable):
        return False  # its folder, and so perhaps its neighbours', lies where every process may read
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    if version < 1:
        return False
    handled = (1 << _RIGHTS_BITS.get(version, 16)) - 1
    attributes = struct.pack("<Q", handled)
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(ruleset, path, _READ & handled)
        _allow(ruleset, Path("/dev"), (_READ | _WRITE_FILE | _DEVICE_IOCTL) & handled)
        for path in writable:
            _allow(ruleset, path, handled)
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")
        if _libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)) != 0:
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not path.is_dir():
            rights &= _FILE_RIGHTS
        rule = struct.pack("<Qi", rights, descriptor)
        if _libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_add_rule")
    finally:
        os.close(descriptor)
