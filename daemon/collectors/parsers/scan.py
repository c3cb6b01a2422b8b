# cython: initializedcheck=False
# mypy: disable-error-code="untyped-decorator,valid-type,misc,no-any-return,type-arg"
"""The compiled hot loop of the log parsers: bytes of a chunk in, columns of an `AuthBatch` out.

It knows the grammar of syslog and access-log lines, how addresses, times and keyed hashes are made, and how a field
is taken from a message by its fixed ends; which message means what stands in the tables of `sshd.py`. It must never
take a field from the middle of text that somebody else can write, never index outside of the line, and give the same
columns whether it is compiled or not.
"""

from __future__ import annotations

from typing import Any

import cython
import numpy as np

if cython.compiled:
    from cython.cimports.libc.string import memchr

MASK = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
SIP0 = cython.declare(cython.ulonglong, 0x736F6D6570736575)
SIP1 = cython.declare(cython.ulonglong, 0x646F72616E646F6D)
SIP2 = cython.declare(cython.ulonglong, 0x6C7967656E657261)
SIP3 = cython.declare(cython.ulonglong, 0x7465646279746573)
NO_TIME = cython.declare(cython.longlong, -(1 << 63))

# How fields are taken from a message after its prefix; the tables of `sshd.py` name these by `KINDS`.
NOTHING = cython.declare(cython.int, 0)
ATTEMPT = cython.declare(cython.int, 1)  # METHOD for [invalid user ]USER from ADDRESS port N[ ssh2[: KEY]]
USER_FROM = cython.declare(cython.int, 2)  # USER from ADDRESS[ port N][ ssh2]
USER_ADDRESS = cython.declare(cython.int, 3)  # [[authenticating |invalid ]user USER ]ADDRESS[ port N]
ADDRESS = cython.declare(cython.int, 4)  # ADDRESS, and then anything
LAST_ADDRESS = cython.declare(cython.int, 5)  # anything, and then ` from ADDRESS[ port N]`
BRACKET = cython.declare(
    cython.int, 6
)  # anything, and then ` [ADDRESS] failed`, of which nothing after the bracket is anybody's
USER = cython.declare(cython.int, 7)  # USER
PAM = cython.declare(cython.int, 8)  # logname=... ruser=... rhost=HOST[  user=USER]
SESSION = cython.declare(cython.int, 9)  # USER[(uid=N)][ by ...]
NOT_ALLOWED = cython.declare(cython.int, 10)  # USER[ from HOST] not allowed because ...
DISCONNECTING = cython.declare(cython.int, 11)  # [authenticating |invalid ]user USER ADDRESS port N: anything
SUDO = cython.declare(cython.int, 12)  # USER : what[ ; ...]
SU_TO = cython.declare(cython.int, 13)  # USER) WHO on TTY
SU_FOR = cython.declare(cython.int, 14)  # USER by WHO
LOGIND = cython.declare(cython.int, 15)  # [']N['] of user [']USER['], with more or a full stop
LOGIN_FOR = cython.declare(cython.int, 16)  # anything, and then ` FOR USER, ...`
LOGIN_BY = cython.declare(cython.int, 17)  # TTY BY USER
CLIENT = cython.declare(cython.int, 18)  # USER] ... LOGIN: Client "ADDRESS"
DROP = cython.declare(cython.int, 19)  # N from [ADDRESS]:PORT, and then anything
ROOT_LOGIN = cython.declare(cython.int, 21)  # the prefix is `ROOT LOGIN`
MORE = cython.declare(cython.int, 20)  # N more authentication failures; logname=... as PAM
DUO = cython.declare(cython.int, 22)  # USER'[ from ADDRESS][: anything]
CODE = cython.declare(cython.int, 23)  # USER, of the PAM module that speaks

KINDS = {
    "nothing": NOTHING,
    "attempt": ATTEMPT,
    "user_from": USER_FROM,
    "user_address": USER_ADDRESS,
    "address": ADDRESS,
    "last_address": LAST_ADDRESS,
    "bracket": BRACKET,
    "user": USER,
    "pam": PAM,
    "session": SESSION,
    "not_allowed": NOT_ALLOWED,
    "disconnecting": DISCONNECTING,
    "sudo": SUDO,
    "su_to": SU_TO,
    "su_for": SU_FOR,
    "logind": LOGIND,
    "login_for": LOGIN_FOR,
    "login_by": LOGIN_BY,
    "client": CLIENT,
    "drop": DROP,
    "more": MORE,
    "root_login": ROOT_LOGIN,
    "duo": DUO,
    "code": CODE,
}

OTHER = cython.declare(cython.int, 0)
SUCCESS = cython.declare(cython.int, 1)
FAILURE = cython.declare(cython.int, 2)
INVALID_USER = cython.declare(cython.int, 3)
PAM_FAILURE = cython.declare(cython.int, 4)

USER_TEXT = cython.declare(cython.int, 1)
SERVICE_TEXT = cython.declare(cython.int, 2)
METHOD_TEXT = cython.declare(cython.int, 3)
KEY_TEXT = cython.declare(cython.int, 4)
HOST_TEXT = cython.declare(cython.int, 5)
PATH_TEXT = cython.declare(cython.int, 6)

SSHD_PROGRAM = cython.declare(cython.int, 1)
FACTOR_PROGRAM = cython.declare(cython.int, 10)
MOST = cython.declare(cython.longlong, 0xFFFFFFFF)
SLOTS = cython.declare(cython.int, 32)
PREAUTH_ONLY = cython.declare(cython.int, 16)
"""Added to an outcome in a table: it holds only for messages that end in ` [preauth]`, others are OTHER."""

LONG_MESSAGE = cython.declare(cython.int, 1000)
"""sshd cuts a message at 1,023 bytes (log.c, MSGBUFSIZ): from about here on the end may not be the end."""

LONG_DUO = cython.declare(cython.int, 500)
"""Duo cuts a message at 511 bytes (duo_unix, util.c: `duo_log()`)."""


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _rotate(x: cython.ulonglong, by: cython.int) -> cython.ulonglong:
    return ((x << by) | (x >> (64 - by))) & MASK


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _word(p: cython.p_const_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.ulonglong:
    """The up to eight bytes p[start:end], little-endian."""
    m: cython.ulonglong = 0
    i: cython.Py_ssize_t
    if start + 8 <= end:
        return (
            cython.cast(cython.ulonglong, p[start])
            | (cython.cast(cython.ulonglong, p[start + 1]) << 8)
            | (cython.cast(cython.ulonglong, p[start + 2]) << 16)
            | (cython.cast(cython.ulonglong, p[start + 3]) << 24)
            | (cython.cast(cython.ulonglong, p[start + 4]) << 32)
            | (cython.cast(cython.ulonglong, p[start + 5]) << 40)
            | (cython.cast(cython.ulonglong, p[start + 6]) << 48)
            | (cython.cast(cython.ulonglong, p[start + 7]) << 56)
        )
    for i in range(end - start):
        m |= cython.cast(cython.ulonglong, p[start + i]) << (8 * i)
    return m


@cython.cfunc
@cython.exceptval(check=False)
def _siphash(
    k0: cython.ulonglong,
    k1: cython.ulonglong,
    p: cython.p_const_uchar,
    start: cython.Py_ssize_t,
    end: cython.Py_ssize_t,
) -> cython.ulonglong:
    """SipHash-1-3 (Aumasson and Bernstein, INDOCRYPT 2012) of p[start:end]; 0 stands for 'absent' and becomes 1."""
    v0: cython.ulonglong = k0 ^ SIP0
    v1: cython.ulonglong = k1 ^ SIP1
    v2: cython.ulonglong = k0 ^ SIP2
    v3: cython.ulonglong = k1 ^ SIP3
    m: cython.ulonglong
    whole: cython.Py_ssize_t = (end - start) // 8
    step: cython.Py_ssize_t
    for step in range(whole + 4):
        m = 0
        if step < whole:
            m = _word(p, start + 8 * step, end)
        elif step == whole:
            m = _word(p, start + 8 * step, end) | (cython.cast(cython.ulonglong, (end - start) & 0xFF) << 56)
        elif step == whole + 1:
            v2 ^= 0xFF
        v3 ^= m
        v0 = (v0 + v1) & MASK
        v1 = _rotate(v1, 13) ^ v0
        v0 = _rotate(v0, 32)
        v2 = (v2 + v3) & MASK
        v3 = _rotate(v3, 16) ^ v2
        v0 = (v0 + v3) & MASK
        v3 = _rotate(v3, 21) ^ v0
        v2 = (v2 + v1) & MASK
        v1 = _rotate(v1, 17) ^ v2
        v2 = _rotate(v2, 32)
        v0 ^= m
    m = v0 ^ v1 ^ v2 ^ v3
    return m if m != 0 else 1


def keyed_hash(data: bytes, key: bytes) -> int:
    """The keyed 64-bit hash of text that the columns of a batch hold: SipHash-1-3 of `data` under the 16 bytes `key`.

    Never 0, which means 'absent'. Raises ValueError where `key` has not 16 bytes.
    """
    if len(key) != 16:
        raise ValueError("the key of the hash must have 16 bytes")
    k0: cython.ulonglong = int.from_bytes(key[:8], "little")
    k1: cython.ulonglong = int.from_bytes(key[8:], "little")
    return _siphash(k0, k1, data, 0, len(data))


def count_lines(chunk: bytes) -> int:
    """How many lines there are in a chunk, of which the last may lack its newline."""
    p: cython.p_const_uchar = chunk
    size: cython.Py_ssize_t = len(chunk)
    found: cython.Py_ssize_t = 0
    block: cython.Py_ssize_t
    i: cython.Py_ssize_t
    few: cython.uchar
    if not cython.compiled:
        return chunk.count(b"\n") + (size > 0 and chunk[-1] != 10)
    block = 0
    while block + 128 <= size:
        few = 0
        for i in range(128):  # 128 ones fit in a byte, so that the compiler can add sixteen at once
            few += p[block + i] == 10
        found += few
        block += 128
    while block < size:
        found += p[block] == 10
        block += 1
    return found + 1 if size > 0 and p[size - 1] != 10 else found


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _days(year: cython.longlong, month: cython.int, day: cython.int) -> cython.longlong:
    """Days from 1970-01-01 to a date of the Gregorian calendar, year 1 or later (Hinnant, days_from_civil)."""
    y: cython.longlong = year - 1 if month <= 2 else year
    era: cython.longlong = y // 400
    of_era: cython.longlong = y - era * 400
    of_year: cython.longlong = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _digits(p: cython.p_const_uchar, at: cython.Py_ssize_t, n: cython.int) -> cython.int:
    """The number that exactly n digits at `at` make, or -1. The caller knows that they are within the line."""
    value: cython.int = 0
    i: cython.int
    for i in range(n):
        if p[at + i] < 48 or p[at + i] > 57:
            return -1
        value = value * 10 + p[at + i] - 48
    return value


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _month(p: cython.p_const_uchar, at: cython.Py_ssize_t) -> cython.int:
    """1 to 12 for `Jan` to `Dec`, else 0. The caller knows that three bytes are there."""
    a: cython.int = p[at]
    b: cython.int = p[at + 1]
    c: cython.int = p[at + 2]
    code: cython.int = (a << 16) | (b << 8) | c
    if code == 0x4A616E:
        return 1
    if code == 0x466562:
        return 2
    if code == 0x4D6172:
        return 3
    if code == 0x417072:
        return 4
    if code == 0x4D6179:
        return 5
    if code == 0x4A756E:
        return 6
    if code == 0x4A756C:
        return 7
    if code == 0x417567:
        return 8
    if code == 0x536570:
        return 9
    if code == 0x4F6374:
        return 10
    if code == 0x4E6F76:
        return 11
    return 12 if code == 0x446563 else 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _starts(
    p: cython.p_const_uchar, at: cython.Py_ssize_t, end: cython.Py_ssize_t, literal: cython.p_const_char
) -> cython.bint:
    """Whether p[at:end] starts with `literal`."""
    i: cython.Py_ssize_t
    n: cython.Py_ssize_t = len(literal)
    if end - at < n:
        return False
    i = 0
    while i < n and p[at + i] == literal[i]:
        i += 1
    return i == n


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _ends(
    p: cython.p_const_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t, literal: cython.p_const_char
) -> cython.bint:
    """Whether p[start:end] ends with `literal`."""
    return end - start >= len(literal) and _starts(p, end - len(literal), end, literal)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _find(
    p: cython.p_const_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t, literal: cython.p_const_char
) -> cython.Py_ssize_t:
    """Where `literal` first stands in p[start:end], or -1."""
    i: cython.Py_ssize_t
    for i in range(start, end - len(literal) + 1):
        if p[i] == literal[0] and _starts(p, i, end, literal):
            return i
    return -1


@cython.cfunc
@cython.exceptval(check=False)
def _find_last(
    p: cython.p_const_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t, literal: cython.p_const_char
) -> cython.Py_ssize_t:
    """Where `literal` last stands in p[start:end], or -1."""
    i: cython.Py_ssize_t = end - len(literal)
    while i >= start:
        if p[i] == literal[0] and _starts(p, i, end, literal):
            return i
        i -= 1
    return -1


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _newline(p: cython.p_const_uchar, at: cython.Py_ssize_t, size: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Where the first newline stands in p[at:size], or `size`."""
    if cython.compiled:
        found: cython.p_const_uchar = cython.cast(cython.p_const_uchar, memchr(p + at, 10, size - at))
        return size if found == cython.NULL else found - p
    i: cython.Py_ssize_t = p.find(b"\n", at)
    return size if i < 0 else i


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _space(p: cython.p_const_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Where the first space stands in p[start:end], or `end`."""
    i: cython.Py_ssize_t = start
    while i < end and p[i] != 32:
        i += 1
    return i


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _space_before(
    p: cython.p_const_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """Where the last space stands in p[start:end], or `start - 1`."""
    i: cython.Py_ssize_t = end - 1
    while i >= start and p[i] != 32:
        i -= 1
    return i


@cython.cfunc
@cython.exceptval(check=False)
def _ipv4(p: cython.p_const_uchar, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.longlong:
    """The number of a dotted IPv4 address without leading zeros that fills p[start:end], or -1."""
    value: cython.longlong = 0
    octet: cython.int = -1
    dots: cython.int = 0
    i: cython.Py_ssize_t
    for i in range(start, end):
        if 48 <= p[i] <= 57:
            if octet == 0 or octet > 25:
                return -1
            octet = p[i] - 48 if octet < 0 else octet * 10 + p[i] - 48
            if octet > 255:
                return -1
        elif p[i] == 46 and octet >= 0 and dots < 3:
            value = value * 256 + octet
            octet = -1
            dots += 1
        else:
            return -1
    return value * 256 + octet if dots == 3 and octet >= 0 else -1


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _hex(c: cython.int) -> cython.int:
    """The value of a hexadecimal digit, or -1."""
    if 48 <= c <= 57:
        return c - 48
    if 97 <= c <= 102:
        return c - 87
    return c - 55 if 65 <= c <= 70 else -1


@cython.final
@cython.cclass
class Scanner:
    """Scans chunks of lines. One scanner belongs to one parser and is not shared between threads.

    Parameters
    ----------
    key : the 16 bytes under which text is hashed
    clock : gives the time of an hour or a second of local time, with or without a year (`clock.Clock`)
    programs : the class of each program that is known, by name; 0 for none
    classes : the class of the messages of PAM modules, and that of `login`
    modules : names of PAM modules whose messages of an unknown shape say nothing of a login
    strict : for each class, whether a message of an unknown shape is 'not understood'
    shapes : (class, prefix, kind of `KINDS`, outcome); the first that fits counts
    """

    p: cython.p_const_uchar
    chunk: bytes
    k0: cython.ulonglong
    k1: cython.ulonglong
    clock: Any
    programs: dict
    modules: frozenset
    strict: bytes
    prefixes: bytes
    q: cython.p_const_uchar
    pam_class: cython.int
    login: cython.int
    first: cython.longlong[::1]
    order: cython.longlong[::1]
    lengths: cython.longlong[::1]
    offsets: cython.int[::1]
    kinds: cython.uchar[::1]
    outcomes: cython.uchar[::1]
    slots: cython.longlong[:, ::1]
    slot_hash: cython.ulonglong[::1]
    now_ns: cython.longlong
    last_ns: cython.longlong
    hour_key: cython.longlong
    hour_ns: cython.longlong
    host_hash: cython.ulonglong
    sshd_hash: cython.ulonglong
    module_from: cython.Py_ssize_t
    module_to: cython.Py_ssize_t
    host_from: cython.Py_ssize_t
    host_to: cython.Py_ssize_t
    time: cython.longlong
    outcome: cython.int
    count: cython.longlong
    family: cython.int
    high: cython.ulonglong
    low: cython.ulonglong
    user_from: cython.Py_ssize_t
    user_to: cython.Py_ssize_t
    method_from: cython.Py_ssize_t
    method_to: cython.Py_ssize_t
    key_from: cython.Py_ssize_t
    key_to: cython.Py_ssize_t
    program_from: cython.Py_ssize_t
    program_to: cython.Py_ssize_t
    service: cython.ulonglong
    session: cython.ulonglong
    tail_from: cython.Py_ssize_t
    tail_address: cython.Py_ssize_t
    tail_end: cython.Py_ssize_t
    path_from: cython.Py_ssize_t
    path_to: cython.Py_ssize_t
    forwarded_from: cython.Py_ssize_t
    forwarded_to: cython.Py_ssize_t
    status: cython.int
    preauth: cython.bint
    hosted: cython.bint

    def __init__(
        self,
        key: bytes,
        clock: Any,
        programs: dict[bytes, int],
        classes: tuple[int, int],
        modules: frozenset[bytes],
        strict: bytes,
        shapes: list[tuple[int, bytes, int, int]],
    ) -> None:
        self.k0 = int.from_bytes(key[:8], "little")
        self.k1 = int.from_bytes(key[8:16], "little")
        self.sshd_hash = _siphash(self.k0, self.k1, b"sshd", 0, 4)
        self.clock = clock
        self.programs = programs
        self.pam_class, self.login = classes
        self.modules = modules
        self.strict = strict
        self.prefixes = b"".join([shape[1] for shape in shapes])
        self.q = self.prefixes
        self.lengths = np.array([len(shape[1]) for shape in shapes], np.int64)
        self.offsets = np.cumsum([0] + [len(shape[1]) for shape in shapes]).astype(np.int32)
        self.kinds = np.array([shape[2] for shape in shapes], np.uint8)
        self.outcomes = np.array([shape[3] for shape in shapes], np.uint8)
        first = np.full(len(strict) * 256, -1, np.int64)
        order: list[int] = []
        for program in range(len(strict)):
            mine = [i for i, shape in enumerate(shapes) if shape[0] == program]
            leads = range(256) if any(not shapes[i][1] for i in mine) else {shapes[i][1][0] for i in mine}
            for lead in leads:
                first[program * 256 + lead] = len(order)
                order += [i for i in mine if shapes[i][1][:1] in (b"", bytes((lead,)))] + [-1]
        self.first = first
        self.order = np.array(order + [-1], np.int64)
        self.slots = np.zeros((SLOTS, 3), np.int64)
        self.slot_hash = np.zeros(SLOTS, np.uint64)
        self.hour_key = -1
        self.hour_ns = 0
        self.now_ns = 0
        self.last_ns = NO_TIME

    def last(self) -> int:
        """The last time that had no offset, or the least int64."""
        return self.last_ns

    def set_last(self, last_ns: int) -> None:
        self.last_ns = last_ns
        self.hour_key = -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _address(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Take p[start:end] as the row's address, if it is one; else the row's address is unknown."""
        number: cython.longlong
        i: cython.Py_ssize_t
        self.family = 0
        self.high = 0
        self.low = 0
        if end - start < 2 or end - start > 64:
            return False
        for i in range(start, min(end, start + 5)):
            if self.p[i] == 58:
                return self._address6(start, end)
        number = _ipv4(self.p, start, end)
        if number < 0:
            return False
        self.low = cython.cast(cython.ulonglong, number)
        self.family = 4
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _address6(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """IPv6 (RFC 4291, section 2.2), with or without a zone; IPv4-mapped becomes IPv4."""
        p: cython.p_const_uchar = self.p
        high: cython.ulonglong = 0
        low: cython.ulonglong = 0
        head_high: cython.ulonglong = 0
        head_low: cython.ulonglong = 0
        head: cython.int = -1
        groups: cython.int = 0
        group: cython.longlong
        digits: cython.int
        i: cython.Py_ssize_t = start
        for i in range(start, end):
            if p[i] == 37:
                end = i
                break
        i = start
        if end - start >= 2 and p[start] == 58 and p[start + 1] == 58:
            head = 0
            i = start + 2
        while i < end:
            group = 0
            digits = 0
            while i < end and digits < 5 and _hex(p[i]) >= 0:
                group = group * 16 + _hex(p[i])
                digits += 1
                i += 1
            if digits == 0 or digits > 4 or groups > 7:
                return False
            if i < end and p[i] == 46:
                group = _ipv4(p, i - digits, end)
                if group < 0:
                    return False
                high = ((high << 16) | (low >> 48)) & MASK
                low = ((low << 16) | cython.cast(cython.ulonglong, group >> 16)) & MASK
                group &= 0xFFFF
                groups += 1
                i = end
            high = ((high << 16) | (low >> 48)) & MASK
            low = ((low << 16) | cython.cast(cython.ulonglong, group)) & MASK
            groups += 1
            if i == end:
                break
            if p[i] != 58 or i + 1 == end:
                return False
            i += 1
            if p[i] == 58:
                if head >= 0:
                    return False
                head = groups
                head_high = high
                head_low = low
                high = 0
                low = 0
                i += 1
        if head < 0:
            if groups != 8:
                return False
        else:
            if groups > 7:
                return False
            while head < 8:
                head += 1
                head_high = ((head_high << 16) | (head_low >> 48)) & MASK
                head_low = (head_low << 16) & MASK
            high |= head_high
            low |= head_low
        self.high = high
        self.low = low
        self.family = 6
        if high == 0 and (low >> 32) == 0xFFFF:
            self.low = low & MASK32
            self.family = 4
        return True

    @cython.cfunc
    @cython.exceptval(-1)
    def _local(
        self,
        year: cython.int,
        month: cython.int,
        day: cython.int,
        hour: cython.int,
        minute: cython.int,
        second: cython.int,
    ) -> cython.longlong:
        """The time of a local time without an offset (year 0: unknown); NO_TIME where there is no such date."""
        key: cython.longlong = ((cython.cast(cython.longlong, year) * 16 + month) * 32 + day) * 32 + hour
        found: cython.longlong
        if key != self.hour_key:
            self.hour_key = -1
            found = self.clock.hour(year, month, day, hour, self.last_ns)
            if found == NO_TIME:
                found = self.clock.second(year, month, day, hour, minute, second, self.last_ns)
                if found != NO_TIME:
                    self.last_ns = found
                return found
            self.hour_key = key
            self.hour_ns = found
        self.last_ns = self.hour_ns + (minute * 60 + second) * cython.cast(cython.longlong, 1000000000)
        return self.last_ns

    @cython.cfunc
    @cython.exceptval(-1)
    def _time(self, at: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Take the time at `at` as the row's; where the rest of the line begins, or -2 where no time stands there."""
        p: cython.p_const_uchar = self.p
        year: cython.int = 0
        month: cython.int
        day: cython.int
        hour: cython.int
        minute: cython.int
        second: cython.int
        sign: cython.int = 0
        offset: cython.longlong = 0
        fraction: cython.longlong = 0
        unit: cython.longlong = 100000000
        i: cython.Py_ssize_t
        if end - at < 16:
            return -2
        if p[at] >= 65:
            month = _month(p, at)
            if month == 0 or p[at + 3] != 32 or p[at + 6] != 32:
                return -2
            day = p[at + 5] - 48 if p[at + 4] == 32 else _digits(p, at + 4, 2)
            i = at + 7
        else:
            if end - at < 20 or p[at + 4] != 45 or p[at + 7] != 45 or (p[at + 10] != 84 and p[at + 10] != 32):
                return -2
            year = _digits(p, at, 4)
            month = _digits(p, at + 5, 2)
            day = _digits(p, at + 8, 2)
            if year < 1970 or year > 2261:
                return -2
            i = at + 11
        if p[i + 2] != 58 or p[i + 5] != 58:
            return -2
        hour = _digits(p, i, 2)
        minute = _digits(p, i + 3, 2)
        second = _digits(p, i + 6, 2)
        i += 8
        if month < 1 or month > 12 or day < 1 or day > 31:
            return -2
        if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 60:
            return -2
        if i < end and (p[i] == 46 or p[i] == 44):
            i += 1
            while i < end and 48 <= p[i] <= 57:
                fraction += (p[i] - 48) * unit
                unit //= 10
                i += 1
        if year > 0 and i < end and p[i] == 90:
            sign = 1
            i += 1
        elif year > 0 and i + 5 <= end and (p[i] == 43 or p[i] == 45):
            sign = 1 if p[i] == 43 else -1
            hours: cython.int = _digits(p, i + 1, 2)
            i += 4 if p[i + 3] == 58 else 3
            minutes: cython.int = _digits(p, i, 2) if i + 2 <= end else -1
            if hours < 0 or minutes < 0:
                return -2
            offset = (hours * 3600 + minutes * 60) * sign
            i += 2
        if i >= end or p[i] != 32:
            return -2
        if sign == 0:
            self.time = self._local(year, month, day, hour, minute, second)
            if self.time == NO_TIME:
                return -2
            self.time += fraction
        else:
            self.time = (
                _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset
            ) * cython.cast(cython.longlong, 1000000000) + fraction
        return i + 1

    @cython.cfunc
    @cython.exceptval(-1)
    def _program(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """The class of the program named p[start:end]; its hash becomes the row's service."""
        p: cython.p_const_uchar = self.p
        length: cython.Py_ssize_t = end - start
        slot: cython.int
        at: cython.Py_ssize_t
        i: cython.Py_ssize_t
        if length == 0:
            return 0
        slot = (length * 5 + p[start] * 3 + p[end - 1]) % SLOTS
        if self.slots[slot, 1] == length:
            at = self.slots[slot, 0]
            i = 0
            while i < length and p[at + i] == p[start + i]:
                i += 1
            if i == length:
                self.service = cython.cast(cython.ulonglong, self.slot_hash[slot])
                return self.slots[slot, 2]
        name: bytes = self.chunk[start:end]
        self.slots[slot, 0] = start
        self.slots[slot, 1] = length
        self.slots[slot, 2] = self.programs.get(name, 0)
        if (
            name == b"sshd-session" or name == b"sshd-auth"
        ):  # OpenSSH 9.8 and 10.0 split sshd in two and three
            end = start + 4
        self.service = _siphash(self.k0, self.k1, p, start, end)
        self.slot_hash[slot] = self.service
        return self.slots[slot, 2]

    @cython.cfunc
    @cython.exceptval(-1)
    def _line(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Take one syslog line (RFC 3164 as it is met, or RFC 5424) as the row; whether it was understood."""
        p: cython.p_const_uchar = self.p
        at: cython.Py_ssize_t = start
        i: cython.Py_ssize_t
        self.outcome = OTHER
        self.count = 1
        self.family = 0
        self.high = 0
        self.low = 0
        self.user_from = -1
        self.method_from = -1
        self.key_from = -1
        self.program_from = -1
        self.module_from = -1
        self.service = 0
        self.session = 0
        self.hosted = False
        self.preauth = False
        modern: cython.bint = False
        if at < end and p[at] == 60:
            i = at + 1
            while i < end and i < at + 5 and 48 <= p[i] <= 57:
                i += 1
            if i < end and p[i] == 62 and i > at + 1:
                at = i + 1
                if at + 2 < end and p[at] == 49 and p[at + 1] == 32:
                    modern = True
                    at += 2
        i = self._time(at, end)
        if i == -2:
            self.time = self.now_ns
            if modern and _starts(p, at, end, b"- "):
                i = at + 2
            else:
                return not modern and self._tagged(at, end, False)
        at = i
        i = _space(p, at, end)
        if i >= end:
            return False
        if not modern and i > at and p[i - 1] == 58:
            return self._tagged(at, end, True)
        if (
            not self.host_from < 0
            and i - at == self.host_to - self.host_from
            and self._same(at, self.host_from, i - at)
        ):
            self.host_from = at
            self.host_to = i
        else:
            self.host_from = at
            self.host_to = i
            self.host_hash = _siphash(self.k0, self.k1, p, at, i)
        self.hosted = True
        return self._modern(i + 1, end) if modern else self._tagged(i + 1, end, True)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _same(self, at: cython.Py_ssize_t, other: cython.Py_ssize_t, n: cython.Py_ssize_t) -> cython.bint:
        i: cython.Py_ssize_t = 0
        while i < n and self.p[at + i] == self.p[other + i]:
            i += 1
        return i == n

    @cython.cfunc
    @cython.exceptval(-1)
    def _tagged(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t, timed: cython.bint) -> cython.bint:
        """`PROGRAM[(MODULE)][[PID]]: MESSAGE`. Without a time before it only a known program is believed."""
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = start
        program: cython.int
        pid_from: cython.Py_ssize_t = 0
        pid_to: cython.Py_ssize_t = 0
        module_from: cython.Py_ssize_t = 0
        module_to: cython.Py_ssize_t = 0
        if _starts(p, start, end, b" -- "):  # what Red Hat's login once called itself: ` -- USER[PID]`
            i += 4
        while i < end and p[i] != 58 and p[i] != 91 and p[i] != 40 and p[i] != 32 and p[i] != 93:
            i += 1
        self.program_from = start
        self.program_to = i
        program = self._program(start, i)
        if program == SSHD_PROGRAM:
            self.program_to = start + 4
        if start < end and p[start] == 32:
            program = self.login
        if i < end and p[i] == 40:
            module_from = i + 1
            while i < end and p[i] != 41 and p[i] != 32:
                i += 1
            module_to = i
            i += 1
        if i < end and p[i] == 93:  # `gdm-password][123]:`
            i += 1
        if i < end and p[i] == 91:
            i += 1
            pid_from = i
            while i < end and 48 <= p[i] <= 57:
                i += 1
            pid_to = i
            while i < end and p[i] != 93 and p[i] != 32:
                i += 1
            i += 1
        if i >= end or p[i] != 58:
            return timed
        if program == 0:
            return timed
        if pid_to > pid_from:
            self._join(program, pid_from, pid_to)
        i += 1
        if i < end and p[i] == 32:
            i += 1
        if module_from > 0:
            self.module_from = module_from
            self.module_to = module_to
            return self._shape(self.pam_class, i, end) or self._quiet(module_from, module_to)
        return self._message(program, i, end)

    @cython.cfunc
    @cython.exceptval(-1)
    def _modern(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """What follows the host in RFC 5424: `PROGRAM PROCID MSGID STRUCTURED-DATA MESSAGE`."""
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = _space(p, start, end)
        at: cython.Py_ssize_t = i + 1
        program: cython.int
        quoted: cython.bint = False
        self.program_from = start
        self.program_to = i
        program = self._program(start, i)
        if program == SSHD_PROGRAM:
            self.program_to = start + 4
        i = _space(p, at, end)
        pid_from: cython.Py_ssize_t = at
        pid_to: cython.Py_ssize_t = i
        i = _space(p, i + 1, end) + 1
        if i >= end:
            return False
        if p[i] == 45:
            i += 1
        else:
            while i < end and p[i] == 91:
                while i < end and (quoted or p[i] != 93):
                    if p[i] == 34:
                        quoted = not quoted
                    elif p[i] == 92 and quoted:
                        i += 1
                    i += 1
                i += 1
        if program == 0 or i >= end:
            return i <= end
        if pid_to > pid_from and p[pid_from] != 45:
            self._join(program, pid_from, pid_to)
        if p[i] != 32:
            return False
        i += 1
        if end - i >= 3 and p[i] == 0xEF and p[i + 1] == 0xBB and p[i + 2] == 0xBF:
            i += 3
        return self._message(program, i, end)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _join(self, program: cython.int, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.void:
        """Give the row the session of its host, program and process, whose number is p[start:end].

        A second factor that writes under a name of its own is part of sshd's process.
        """
        host: cython.ulonglong = self.host_hash if self.hosted else 0
        name: cython.ulonglong = self.sshd_hash if program == FACTOR_PROGRAM else self.service
        self.session = _siphash(self.k0 ^ host, self.k1 ^ name, self.p, start, end)

    @cython.cfunc
    @cython.exceptval(-1)
    def _quiet(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Whether the PAM module p[start:end] is one whose other messages say nothing of a login."""
        name: bytes = self.chunk[start:end]
        return name in self.modules

    @cython.cfunc
    @cython.exceptval(-1)
    def _message(self, program: cython.int, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Take a message of a known program; whether it was understood."""
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t
        count: cython.longlong = 0
        failing: cython.bint = False
        if _starts(p, start, end, b"message repeated "):
            i = start + 17
            while i < end and 48 <= p[i] <= 57 and count < 1000000000:
                count = count * 10 + p[i] - 48
                i += 1
            if not _starts(p, i, end, b" times: [ ") or p[end - 1] != 93 or count < 1:
                return False
            self.count = count
            start = i + 10
            end -= 1
            if start >= end:
                return False
        if _starts(p, start, end, b"pam_"):
            i = start + 4
            while i < end and p[i] != 40 and p[i] != 32 and p[i] != 58:
                i += 1
            count = i
            while i < end and p[i] != 41 and p[i] != 32:
                i += 1
            if count < end and p[count] == 40:
                if not _starts(p, i, end, b"): "):
                    return False
                self.module_from = start
                self.module_to = count
                return self._shape(self.pam_class, i + 3, end) or self._quiet(start, count)
        if program == SSHD_PROGRAM:
            if _ends(p, start, end, b" [preauth]"):
                self.preauth = True
                end -= 10
            if _starts(p, start, end, b"error: ") or _starts(p, start, end, b"fatal: "):
                start += 7
                failing = True
        if self._shape(program, start, end):
            return True
        return failing or self.strict[program] == 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _shape(self, program: cython.int, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Find the first shape of the class `program` that the message has, and take its fields."""
        p: cython.p_const_uchar = self.p
        at: cython.Py_ssize_t
        i: cython.Py_ssize_t
        n: cython.Py_ssize_t
        shape: cython.int
        offset: cython.Py_ssize_t
        q: cython.p_const_uchar = self.q
        if start >= end:
            return False
        at = self.first[program * 256 + p[start]]
        if at < 0:
            return False
        while self.order[at] >= 0:
            shape = self.order[at]
            at += 1
            n = self.lengths[shape]
            if end - start < n:
                continue
            offset = self.offsets[shape]
            i = 0
            while i < n and p[start + i] == q[offset + i]:
                i += 1
            if i < n:
                continue
            self.outcome = self.outcomes[shape]
            if self.outcome >= PREAUTH_ONLY:
                self.outcome = self.outcome - PREAUTH_ONLY if self.preauth else OTHER
            if self._fields(self.kinds[shape], start + n, end):
                return True
            self.outcome = OTHER
            self.family = 0
            self.user_from = -1
            self.method_from = -1
            self.key_from = -1
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def _tail(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t, port: cython.bint) -> cython.bint:
        """Whether p[start:end] ends in ` from TOKEN[ port N][ ssh2]`: the fixed end, which nobody else writes.

        `port`: the port must be there. Sets where ` from` begins and where TOKEN stands.
        """
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = end
        if _ends(p, start, end, b" ssh2") or _ends(p, start, end, b" ssh1"):
            i -= 5
            end = i
        while i > start and 48 <= p[i - 1] <= 57:
            i -= 1
        if i < end and _ends(p, start, i, b" port "):
            end = i - 6
        elif port:
            return False
        i = _space_before(p, start, end) + 1
        if i == end or not _ends(p, start, i, b" from "):
            return False
        self.tail_from = i - 6
        self.tail_address = i
        self.tail_end = end
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _user(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Take p[start:end] as the user; nothing is no user."""
        if start < end:
            self.user_from = start
            self.user_to = end
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _attempt(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """`METHOD for [invalid user ]USER from ADDRESS port N[ ssh2[: KEY]]`.

        Without a KEY the address is at the very end. With one, the end may be a certificate's name, which the
        peer chose: then the address is believed only if no second place says another. So it is where sshd may
        have cut a certificate's name short.
        """
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = _space(p, start, end)
        at: cython.Py_ssize_t
        word: cython.Py_ssize_t
        found: cython.int = 0
        from_at: cython.Py_ssize_t
        address_at: cython.Py_ssize_t
        address_to: cython.Py_ssize_t
        loose: cython.bint
        if i == start or not _starts(p, i, end, b" for "):
            return False
        self.method_from = start
        self.method_to = i
        loose = _starts(p, start, i, b"gssapi") or (
            end - start >= LONG_MESSAGE
            and (_starts(p, start, i, b"publickey") or _starts(p, start, i, b"hostbased"))
        )
        start = i + 5
        word = _space_before(p, start, end) + 1
        at = _space_before(p, start, word - 1) + 1
        if not loose and self._tail(start, end, True):
            found = 1
        elif not loose and at > start and _ends(p, start, at, b" ssh2: ") and self._tail(start, at - 2, True):
            found = 1
            self.key_from = word
            self.key_to = end
        if found == 0:
            from_at = address_at = address_to = -1
            i = start
            while i < end:
                i = _find(p, i, end, b" ssh2")
                if i < 0:
                    break
                i += 5
                if (i == end or p[i] == 58) and self._tail(start, i, True):
                    found += 1
                    if found == 1 or not self._equal(address_at, address_to):
                        if found > 1:
                            found = 100
                        from_at, address_at, address_to = self.tail_from, self.tail_address, self.tail_end
                        at = i
            if found == 0:
                return False
            if found >= 100:
                return self._outcome_of_none(False)
            self.tail_from, self.tail_address, self.tail_end = from_at, address_at, address_to
            if found == 1 and at < end and p[at] == 58:
                at = _space(p, at + 2, end) + 1
                if at < end:
                    self.key_from = at
                    self.key_to = _space(p, at, end)
                    if p[self.key_to - 1] == 44:
                        self.key_to -= 1
        self._address(self.tail_address, self.tail_end)
        i = self.tail_from
        if _starts(p, start, i, b"invalid user ") or _starts(p, start, i, b"illegal user "):
            self._user(start + 13, i)
            return self._outcome_of_none(True)
        self._user(start, i)
        return self._outcome_of_none(False)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _equal(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        return end - start == self.tail_end - self.tail_address and self._same(
            start, self.tail_address, end - start
        )

    @cython.cfunc
    @cython.exceptval(check=False)
    def _outcome_of_none(self, invalid: cython.bint) -> cython.bint:
        """The method `none` is how a client asks for the methods there are, not an attempt with a credential."""
        if (
            self.outcome == FAILURE
            and self.method_to - self.method_from == 4
            and _starts(self.p, self.method_from, self.method_to, b"none")
        ):
            self.outcome = INVALID_USER if invalid else OTHER
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _user_address(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """`[[authenticating |invalid ]user USER ]ADDRESS[ port N]`, from the end."""
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = end
        port: cython.bint = False
        while i > start and 48 <= p[i - 1] <= 57:
            i -= 1
        if i < end and _ends(p, start, i, b" port "):
            end = i - 6
            port = True
        i = _space_before(p, start, end) + 1
        if i == end:
            return False
        self._address(i, end)
        end = i - 1
        if i == start:
            if not port and not self.preauth:
                self.outcome = OTHER
        elif _starts(p, start, end, b"user "):
            self.outcome = OTHER
            return self._user(start + 5, end)
        elif _starts(p, start, end, b"invalid user "):
            return self._user(start + 13, end)
        elif _starts(p, start, end, b"authenticating user "):
            return self._user(start + 20, end)
        else:
            self.family = 0
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _disconnecting(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """`: REASON`, or ` [authenticating |invalid ]user USER ADDRESS port N: REASON`.

        Both USER and REASON can be the peer's words, so the address is believed only if there is one place for it.
        """
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t
        at: cython.Py_ssize_t
        stop: cython.Py_ssize_t = -1
        if _starts(p, start, end, b": Too many authentication failures for "):
            return self._user(start + 39, end)
        if _starts(p, start, end, b" invalid user "):
            start += 14
        elif _starts(p, start, end, b" authenticating user "):
            start += 21
        elif _starts(p, start, end, b" user "):
            start += 6
            self.outcome = OTHER
        elif _starts(p, start, end, b" "):
            self._address(start + 1, _space(p, start + 1, end))
            return True
        else:
            return True
        if end - start >= LONG_MESSAGE:
            return True
        if _ends(p, start, end, b": Too many authentication failures"):
            i = end - 34
            while i > start and 48 <= p[i - 1] <= 57:
                i -= 1
            if _ends(p, start, i, b" port "):
                stop = i - 6
        else:
            i = start
            while i >= 0:
                i = _find(p, i, end, b" port ")
                if i >= 0:
                    at = i
                    i += 6
                    while i < end and 48 <= p[i] <= 57:
                        i += 1
                    if i < end and i > at + 6 and p[i] == 58:
                        if stop >= 0:
                            return True
                        stop = at
        if stop < 0:
            return False
        i = _space_before(p, start, stop) + 1
        if i > start:
            self._address(i, stop)
            self._user(start, i - 1)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _pam(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """`logname= uid=0 euid=0 tty=ssh ruser= rhost=HOST[  user=USER]`.

        Where a remote user stands before it, `rhost=` is believed only if it stands there once.
        """
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = _find(p, start, end, b" ruser=")
        if i < 0:
            return True
        i += 7
        if not _starts(p, i, end, b" rhost="):
            i = _find(p, i, end, b" rhost=")
            if i < 0 or _find(p, i + 1, end, b" rhost=") >= 0:
                return True
        i += 7
        start = i
        i = _space(p, i, end)
        self._address(start, i)
        while i < end and p[i] == 32:
            i += 1
        if _starts(p, i, end, b"user="):
            while end > i and p[end - 1] == 32:
                end -= 1
            self._user(i + 5, end)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _sudo(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """`USER : what ; TTY=... ; PWD=... ; USER=... ; COMMAND=...`, from the start: the end is the user's words."""
        p: cython.p_const_uchar = self.p
        count: cython.longlong = 0
        i: cython.Py_ssize_t
        while start < end and p[start] == 32:
            start += 1
        i = _find(p, start, end, b" : ")
        if i <= start or _space(p, start, i) < i:
            return False
        self._user(start, i)
        i += 3
        start = i
        if _starts(p, i, end, b"TTY=") or _starts(p, i, end, b"PWD=") or _starts(p, i, end, b"HOST="):
            self.outcome = SUCCESS
        elif (
            _starts(p, i, end, b"user NOT ")
            or _starts(p, i, end, b"command not allowed")
            or _starts(p, i, end, b"user not allowed")
        ):
            self.outcome = FAILURE
        else:
            while i < end and 48 <= p[i] <= 57 and count < 1000000:
                count = count * 10 + p[i] - 48
                i += 1
            if count > 0 and _starts(p, i, end, b" incorrect password attempt"):
                self.outcome = FAILURE
                self.count *= count
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unquoted(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Take p[start:end], or what is in its single quotes, as the user."""
        if end - start >= 2 and self.p[start] == 39 and self.p[end - 1] == 39:
            return self._user(start + 1, end - 1)
        return self._user(start, end)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _module(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.void:
        """Take the PAM module that speaks as the method, without its `pam_`."""
        if self.module_from >= 0:
            self.method_from = self.module_from
            self.method_to = self.module_to
            if _starts(self.p, self.module_from, self.module_to, b"pam_"):
                self.method_from += 4

    @cython.cfunc
    @cython.exceptval(check=False)
    def _duo(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """`USER'[ from ADDRESS][: REASON]`, behind `Duo login for '`.

        USER can hold all of it, and REASON is the service's: user and address are believed only if there is one
        place for them, and no address where it may have been cut short.
        """
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = _find(p, start, end, b"' from ")
        stop: cython.Py_ssize_t
        self.method_from = start - 15
        self.method_to = start - 12
        if self.module_from >= 0:
            self.method_from = self.module_from
            self.method_to = self.module_to
        elif self.program_to - self.program_from > 4:
            self.method_from = self.program_from
            self.method_to = self.program_to
        if self.outcome == PAM_FAILURE and _ends(p, start, end, b": Error gathering user response"):
            self.outcome = OTHER
        if i < 0:
            i = _find(p, start, end, b"': ")
            if i < 0 and p[end - 1] == 39:
                i = end - 1
            if i >= start and _find(p, i + 1, end, b"': ") < 0:
                self._user(start, i)
            return True
        if _find(p, i + 1, end, b"' from ") >= 0:
            return True
        self._user(start, i)
        i += 7
        stop = _space(p, i, end)
        if stop < end:
            if p[stop - 1] == 58:
                self._address(i, stop - 1)
        elif end - start < LONG_DUO - 26:
            self._address(i, stop)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _fields(self, kind: cython.int, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Take the fields of a message whose prefix ends at `start`; whether it has the form that `kind` says."""
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t
        count: cython.longlong = 0
        if kind == ATTEMPT:
            return self._attempt(start, end)
        if kind == PAM:
            return self._pam(start, end)
        if kind == ADDRESS:
            i = _space(p, start, end)
            if i > start and (p[i - 1] == 58 or p[i - 1] == 44):
                i -= 1
            self._address(start, i)
            return True
        if kind == USER_ADDRESS:
            return self._user_address(start, end)
        if kind == USER_FROM:
            if not self._tail(start, end, False):
                return False
            self._address(self.tail_address, self.tail_end)
            return self._user(start, self.tail_from)
        if kind == NOTHING:
            return True
        if kind == USER:
            return self._user(start, end)
        if kind == BRACKET:
            end = _find_last(p, start, end, b"] failed")
            i = _find_last(p, start, end, b"[") if end >= 0 else -1
            if i < 0:
                return False
            self._address(i + 1, end)
            return True
        if kind == SESSION:
            i = _find_last(p, start, end, b" by ")
            if i >= 0:
                end = i
            while end > start and p[end - 1] == 32:
                end -= 1
            if end > start and p[end - 1] == 41:
                i = _find_last(p, start, end, b"(uid=")
                if i > start:
                    end = i
            return self._user(start, end)
        if kind == LAST_ADDRESS:
            if not self._tail(start, end, False):
                return False
            self._address(self.tail_address, self.tail_end)
            return True
        if kind == MORE:
            i = start - 1
            while i < end and 48 <= p[i] <= 57 and count < 1000000:
                count = count * 10 + p[i] - 48
                i += 1
            if count == 0 or not _starts(p, i, end, b" more authentication failure"):
                return False
            self.count *= count
            return self._pam(i, end)
        if kind == NOT_ALLOWED:
            i = _find_last(p, start, end, b" not allowed because ")
            if i < 0:
                if not _ends(p, start, end, b" bypassed Duo 2FA due to user's UNIX group"):
                    return False
                self.outcome = OTHER
                return self._user(start, end - 42)
            end = i
            if self._tail(start, end, False):
                self._address(self.tail_address, self.tail_end)
                end = self.tail_from
            return self._user(start, end)
        if kind == DISCONNECTING:
            return self._disconnecting(start, end)
        if kind == SUDO:
            return self._sudo(start, end)
        if kind == SU_TO:
            i = _find(p, start, end, b")")
            return i >= 0 and self._user(start, i)
        if kind == SU_FOR:
            i = _find_last(p, start, end, b" by ")
            return i >= 0 and self._user(start, i)
        if kind == LOGIND:
            i = _find(p, start, end, b" of user ")
            if i < 0:
                return False
            start = i + 9
            if start < end and p[start] == 39:
                i = _find(p, start + 1, end, b"'")
                return i >= 0 and self._user(start + 1, i)
            if p[end - 1] == 46:
                end -= 1
            return self._user(start, end)
        if kind == LOGIN_FOR:
            i = _find(p, start, end, b" FOR ")
            if i < 0:
                return False
            count = _find(p, start, i, b" FROM ")
            if count >= 0:
                self._address(count + 6, i)
            start = i + 5
            i = _find_last(p, start, end, b", ")
            return self._unquoted(start, end if i < 0 else i)
        if kind == LOGIN_BY:
            i = _find(p, start, end, b" BY ")
            return i >= 0 and self._user(i + 4, _space(p, i + 4, end))
        if kind == CLIENT:
            i = _find_last(p, start, end, b'] FAIL LOGIN: Client "')
            if i < 0 or p[end - 1] != 34:
                return False
            self._address(i + 22, end - 1)
            return self._user(start, i)
        if kind == DROP:
            start = _find(p, start, end, b" from [")
            i = _find(p, start, end, b"]") if start >= 0 else -1
            if i < 0:
                return False
            self._address(start + 7, i)
            return True
        if kind == ROOT_LOGIN:
            return self._user(start - 10, start - 6)
        if kind == DUO:
            return self._duo(start, end)
        if kind == CODE:
            self._module(start, end)
            return self._user(start, end)
        return False

    def syslog(
        self, chunk: bytes, first_line: int, now_ns: int, batch: Any, unparsed: Any
    ) -> tuple[int, int, int]:
        """Scan whole lines of a syslog authentication log.

        `batch` is a blank `AuthBatch` with at least as many rows as `chunk` has lines, `unparsed` int64 of that
        length; both are filled from the front. Returns how many rows, how many numbers in `unparsed`, how many lines.
        """
        p: cython.p_const_uchar = chunk
        size: cython.Py_ssize_t = len(chunk)
        at: cython.Py_ssize_t = 0
        end: cython.Py_ssize_t
        stop: cython.Py_ssize_t
        row: cython.Py_ssize_t = 0
        missed: cython.Py_ssize_t = 0
        line: cython.longlong = first_line
        time_ns: cython.longlong[::1] = batch.time_ns
        outcome: cython.uchar[::1] = batch.outcome
        count: cython.uint[::1] = batch.count
        peer: cython.ulonglong[:, ::1] = batch.peer
        peer_family: cython.uchar[::1] = batch.peer_family
        client: cython.ulonglong[:, ::1] = batch.client
        client_family: cython.uchar[::1] = batch.client_family
        user: cython.ulonglong[::1] = batch.user
        service: cython.ulonglong[::1] = batch.service
        key: cython.ulonglong[::1] = batch.key
        session: cython.ulonglong[::1] = batch.session
        lines: cython.longlong[::1] = batch.line
        spans: cython.int[:, :, ::1] = batch.spans
        misses: cython.longlong[::1] = unparsed
        self.chunk = chunk
        self.p = p
        self.host_from = -1
        self.slots[:, 1] = 0
        if now_ns != self.now_ns:
            self.now_ns = now_ns
            self.hour_key = -1
        while at < size:
            end = _newline(p, at, size)
            stop = end
            if stop > at and p[stop - 1] == 13:
                stop -= 1
            if self._line(at, stop):
                time_ns[row] = self.time
                outcome[row] = self.outcome
                count[row] = self.count if self.count < MOST else MOST
                lines[row] = line
                service[row] = self.service
                session[row] = self.session
                if self.family != 0:
                    peer[row, 0] = self.high
                    peer[row, 1] = self.low
                    peer_family[row] = self.family
                    client[row, 0] = self.high
                    client[row, 1] = self.low
                    client_family[row] = self.family
                spans[row, 0, 0] = at
                spans[row, 0, 1] = stop
                if self.user_from >= 0:
                    user[row] = _siphash(self.k0, self.k1, p, self.user_from, self.user_to)
                    spans[row, USER_TEXT, 0] = self.user_from
                    spans[row, USER_TEXT, 1] = self.user_to
                if self.program_from >= 0 and self.program_to > self.program_from:
                    spans[row, SERVICE_TEXT, 0] = self.program_from
                    spans[row, SERVICE_TEXT, 1] = self.program_to
                if self.method_from >= 0:
                    spans[row, METHOD_TEXT, 0] = self.method_from
                    spans[row, METHOD_TEXT, 1] = self.method_to
                if self.key_from >= 0:
                    key[row] = _siphash(self.k0, self.k1, p, self.key_from, self.key_to)
                    spans[row, KEY_TEXT, 0] = self.key_from
                    spans[row, KEY_TEXT, 1] = self.key_to
                if self.hosted:
                    spans[row, HOST_TEXT, 0] = self.host_from
                    spans[row, HOST_TEXT, 1] = self.host_to
                row += 1
            else:
                misses[missed] = line
                missed += 1
            line += 1
            at = end + 1
        self.chunk = b""
        return row, missed, line - first_line

    @cython.cfunc
    @cython.exceptval(check=False)
    def _quoted(self, at: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Where the quoted text that begins before `at` ends: at its first quote that no backslash escapes, or -1."""
        while at < end and self.p[at] != 34:
            at += 2 if self.p[at] == 92 else 1
        return at if at < end else -1

    @cython.cfunc
    @cython.exceptval(-1)
    def _access(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Take one line of an access log in `combined`, with or without what the `gateway` format adds.

        The server escapes quotes, so the first quote is the one before the request, and what stands before it is
        taken from both ends: the user can hold anything but a quote.
        """
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = _space(p, start, end)
        at: cython.Py_ssize_t
        quote: cython.Py_ssize_t
        second: cython.int
        offset: cython.int
        self.user_from = -1
        self.key_from = -1
        self.method_from = -1
        self.path_from = -1
        self.forwarded_from = -1
        self.status = 0
        self._address(start, i)
        if not _starts(p, i, end, b" - "):
            return False
        at = i + 3
        quote = at
        while quote < end and p[quote] != 34:
            quote += 1
        i = quote - 30
        if (
            quote >= end
            or i < at
            or not _starts(p, i, end, b" [")
            or p[quote - 1] != 32
            or p[quote - 2] != 93
        ):
            return False
        if i > at + 1 or p[at] != 45:
            self._user(at, i)
        i += 2
        day: cython.int = _digits(p, i, 2)
        month: cython.int = _month(p, i + 3)
        year: cython.int = _digits(p, i + 7, 4)
        hour: cython.int = _digits(p, i + 12, 2)
        minute: cython.int = _digits(p, i + 15, 2)
        second = _digits(p, i + 18, 2)
        offset = _digits(p, i + 22, 2) * 60 + _digits(p, i + 24, 2)
        if (
            day < 1
            or month < 1
            or year < 1970
            or year > 2261
            or hour < 0
            or minute < 0
            or second < 0
            or offset < 0
        ):
            return False
        if p[i + 21] == 45:
            offset = -offset
        self.time = (
            _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset * 60
        ) * cython.cast(cython.longlong, 1000000000)
        at = quote + 1
        quote = self._quoted(at, end)
        if quote < 0 or quote + 5 >= end:
            return False
        self._request(at, quote)
        self.status = _digits(p, quote + 2, 3)
        i = _space(p, quote + 2, end)
        if self.status < 0 or i != quote + 5:
            return False
        i = _space(p, i + 1, end)
        offset = 0
        while offset < 2:
            offset += 1
            if i + 1 >= end or p[i + 1] != 34:
                return False
            i = self._quoted(i + 2, end) + 1
            if i == 0:
                return False
        if _starts(p, i, end, b" rt="):
            i = _space(p, i + 4, end)
            if _starts(p, i, end, b" key="):
                at = i + 5
                i = _space(p, at, end)
                if i > at and (i > at + 1 or p[at] != 45):
                    self.key_from = at
                    self.key_to = i
        if i < end and p[end - 1] == 34:
            i = _find_last(p, i, end - 1, b' fwd="')
            if i >= 0:
                self.forwarded_from = i + 6
                self.forwarded_to = end - 1
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _request(self, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.void:
        """`METHOD PATH[?QUERY][ HTTP/x]`: a request line may be any garbage, which then has no method and no path."""
        p: cython.p_const_uchar = self.p
        i: cython.Py_ssize_t = start
        while i < end and 65 <= p[i] <= 90:
            i += 1
        if i == start or i + 1 >= end or p[i] != 32:
            return
        self.method_from = start
        self.method_to = i
        start = i + 1
        i = _space_before(p, start, end)
        if i > start and _starts(p, i, end, b" HTTP/"):
            end = i
        i = start
        while i < end and p[i] != 63:
            i += 1
        self.path_from = start
        self.path_to = i

    def access(
        self, chunk: bytes, first_line: int, batch: Any, unparsed: Any, extra: Any
    ) -> tuple[int, int, int]:
        """Scan whole lines of an access log; as `syslog`, but a line that begins with a brace gets a row to be filled.

        `extra` is int32[n, 2] of -1: the span of the forwarded-for text of each row, or (-2, 0) for a line of JSON.
        """
        p: cython.p_const_uchar = chunk
        size: cython.Py_ssize_t = len(chunk)
        at: cython.Py_ssize_t = 0
        end: cython.Py_ssize_t
        stop: cython.Py_ssize_t
        row: cython.Py_ssize_t = 0
        missed: cython.Py_ssize_t = 0
        line: cython.longlong = first_line
        time_ns: cython.longlong[::1] = batch.time_ns
        outcome: cython.uchar[::1] = batch.outcome
        status: cython.ushort[::1] = batch.status
        peer: cython.ulonglong[:, ::1] = batch.peer
        peer_family: cython.uchar[::1] = batch.peer_family
        user: cython.ulonglong[::1] = batch.user
        key: cython.ulonglong[::1] = batch.key
        lines: cython.longlong[::1] = batch.line
        spans: cython.int[:, :, ::1] = batch.spans
        misses: cython.longlong[::1] = unparsed
        forwarded: cython.int[:, ::1] = extra
        self.chunk = chunk
        self.p = p
        while at < size:
            end = _newline(p, at, size)
            stop = end
            if stop > at and p[stop - 1] == 13:
                stop -= 1
            if stop > at and p[at] == 123:
                forwarded[row, 0] = -2
            elif self._access(at, stop):
                time_ns[row] = self.time
                status[row] = self.status
                if self.status == 401 or self.status == 403:
                    outcome[row] = FAILURE
                elif (self.user_from >= 0 or self.key_from >= 0) and 100 <= self.status < 400:
                    outcome[row] = SUCCESS
                if self.family != 0:
                    peer[row, 0] = self.high
                    peer[row, 1] = self.low
                    peer_family[row] = self.family
                if self.user_from >= 0:
                    user[row] = _siphash(self.k0, self.k1, p, self.user_from, self.user_to)
                    spans[row, USER_TEXT, 0] = self.user_from
                    spans[row, USER_TEXT, 1] = self.user_to
                if self.key_from >= 0:
                    key[row] = _siphash(self.k0, self.k1, p, self.key_from, self.key_to)
                    spans[row, KEY_TEXT, 0] = self.key_from
                    spans[row, KEY_TEXT, 1] = self.key_to
                if self.method_from >= 0:
                    spans[row, METHOD_TEXT, 0] = self.method_from
                    spans[row, METHOD_TEXT, 1] = self.method_to
                    spans[row, PATH_TEXT, 0] = self.path_from
                    spans[row, PATH_TEXT, 1] = self.path_to
                if self.forwarded_from >= 0:
                    forwarded[row, 0] = self.forwarded_from
                    forwarded[row, 1] = self.forwarded_to
            else:
                misses[missed] = line
                missed += 1
                line += 1
                at = end + 1
                continue
            spans[row, 0, 0] = at
            spans[row, 0, 1] = stop
            lines[row] = line
            row += 1
            line += 1
            at = end + 1
        self.chunk = b""
        return row, missed, line - first_line
