"""Names that look like typed passwords, and what people and sinks see in their place.

Whoever is one prompt ahead types the password where the user is asked for, and it stands in the log for all who
read it. What is shown or sent hides such a name; what is held for correlation does not. A name by which somebody
has logged in is a user's, whatever it looks like.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from itertools import pairwise

GATEWAYS = frozenset({"nginx"})
"""Services whose requests name the id of a key where others name a user."""
_LEAST, _MOST = 6, 128
_KEY_ID = re.compile(r"[A-Za-z0-9_.:-]+")
_LEET = str.maketrans("013457@$!", "oieastasi")
_SHAPES = re.compile(
    r"[A-Za-z0-9._+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}"  # a mail address, a UPN
    r"|[a-z][a-z0-9._-]*@[a-z][a-z0-9.-]*|[a-z][a-z0-9._-]*@[\d.]+\.\d+"  # user@host
    r"|[A-Za-z][A-Za-z0-9._-]*@[A-Z][A-Z0-9.-]+"  # user@REALM
    r"|[A-Za-z0-9.-]{1,64}\\{1,2}[A-Za-z0-9._ -]+\$?"  # DOMAIN\user
    r"|[a-z]+/[a-z0-9.-]+(?:@[A-Z0-9.-]+)?"  # a Kerberos principal
    r"|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[0-9a-f]{16,}"  # a UUID, a digest
    r"|\[masked(?::[0-9a-f]{8})?\]"  # hidden already
    r"|(?:[a-z0-9-]+\.)+[a-z]{2,}|(?:\d{1,3}\.){3}\d{1,3}|[A-Za-z0-9-]+\$"  # a host, a machine's account
)
"""Names that are composed and yet no secret."""
_ATTACKS = re.compile(
    r"\$[({]|://|\.\./|%[sn]|HTTP/\d|SSH-\d|\b(?:from|port) \S*\d|\\[0-7x]|\A-|--\s*\Z|[\x00-\x1f\x7f-\x9f]"
)
"""What an attacker writes to whoever reads the log: to be seen."""
_PASSWORDS = re.compile(r"(?:password|passwort|letmein|changeme|qwerty|iloveyou|trustnoi|trustno|welcome)")
_SEASONS = re.compile(
    r"(?:Spring|Summer|Autumn|Winter|January|February|March|April|June|July|August|September|October|November|"
    r"December)[-_@.]?(?:\d\d){1,2}"
)
_IN_LEET = re.compile(r"(?:[a-z]|\A[A-Z])[013457][a-z]")
_PLACES = re.compile(
    r"(?P<before>\b(?:[Ii]nvalid user|user|for)[ =:]+'?|\bUSER=|\buser=)(?P<name>[^\s',]{6,128})"
)

_BEFORE = ("user", "for", "USER")
"""One of these is in every text in which there is such a place."""


@lru_cache(maxsize=4096)
def looks_like_password(name: str) -> bool:
    """Whether a name is more likely a typed password than anybody's user name.

    Of 6 characters or more, it is one where
    - punctuation that user names do not have (all but `. _ - + '`, and a `$` at the end) meets two of capitals,
      small letters and digits: `Sommer#24`, `P@ssw0rd`, `hunter2!`;
    - capitals, small letters and digits are mixed as no name is, in 8 characters: from letters to digits and back
      again and again (`kX9vQ2mLp7`), or a digit for a letter within a word (`Passw0rd`);
    - it is a common password, or a season or month and a year: `qwerty123`, `Summer2026`.

    Mail addresses, UPNs, `DOMAIN\\user`, principals, UUIDs, digests, hosts and machine accounts are none, nor is
    what is written to attack the reader. A password of small letters and digits alone (`hunter2`) looks like a name
    and is taken for one; a name such as `Db1Srv2Ops3` is taken for a password until somebody has logged in by it.
    """
    if not _LEAST <= len(name) <= _MOST or _ATTACKS.search(name):
        return False
    plain = name.rstrip("0123456789!.?#*$&_-+=")
    spelt = plain.lower().translate(_LEET)
    if _PASSWORDS.fullmatch(spelt) and (spelt != name or spelt == "password"):
        return True
    if _SEASONS.fullmatch(name):
        return True
    if _SHAPES.fullmatch(name):
        return False
    upper, lower, digit = (any(map(test, name)) for test in (str.isupper, str.islower, str.isdigit))
    classes = upper + lower + digit
    marks = [c for c in name.removesuffix("$") if not (c.isalnum() or c.isspace() or c in "._-+'’\\")]
    if marks and classes >= 2:
        return True
    if classes < 3 or len(name) < 8:
        return False
    letters = [c.isdigit() for c in name if c.isalnum()]
    return sum(a != b for a, b in pairwise(letters)) >= 3 or bool(_IN_LEET.search(name))


class Mask:
    """Hides names that look like passwords.

    Parameters
    ----------
    key : secret bytes of the site; with it one name is hidden alike everywhere, and can be followed through
        incidents and sinks. None: nothing of the name is left, for output whose key would be no secret.
    known : whether somebody has logged in by a name.
    """

    def __init__(self, key: bytes | None = None, known: Callable[[str], bool] = lambda name: False) -> None:
        self._key = key
        self._known = known

    def hides(self, name: str) -> bool:
        return looks_like_password(name) and not self._known(name)

    def for_targets(self, targets: Collection[str]) -> Mask:
        """The mask for what was tried at these: at a gateway alone, it leaves the ids of keys as they are."""
        if targets and all(target.partition("@")[0] in GATEWAYS for target in targets):
            return _KeyMask(self._key, self._known)
        return self

    def __call__(self, name: str) -> str:
        """The name, or `[masked:1f3a9c02]`: no character of it, nor its length, only a keyed digest of 32 bits."""
        if not self.hides(name):
            return name
        if self._key is None:
            return "[masked]"
        said = name.encode("utf-8", "surrogatepass")
        return (
            f"[masked:{hashlib.blake2b(said, digest_size=4, key=self._key, person=b'gw-masked').hexdigest()}]"
        )

    def all(self, names: Iterable[str]) -> list[str]:
        """Each name once, masked where it must be, in order."""
        each = list(dict.fromkeys(names))
        return list(dict.fromkeys(map(self, each))) if any(map(looks_like_password, each)) else each

    def text(self, text: str, names: Iterable[str]) -> str:
        """`text`, such as a line of a log, with those of `names` hidden that must be, and other users it names."""
        for name in sorted(set(names), key=len, reverse=True):
            if name in text and self.hides(name):
                text = text.replace(name, self(name))
            elif name.endswith("…") and self.hides(name):
                text = re.sub(re.escape(name[:-1]) + r"\S*", self(name).replace("\\", r"\\"), text)
        if not any(map(text.__contains__, _BEFORE)):
            return text
        return _PLACES.sub(lambda found: found["before"] + self(found["name"]), text)


class _KeyMask(Mask):
    """For requests whose users are ids of keys: opaque, made up by a machine, and no secret."""

    def hides(self, name: str) -> bool:
        return super().hides(name) and not _KEY_ID.fullmatch(name)


class OpenMask(Mask):
    """Hides nothing: for whoever asks to see the names."""

    def hides(self, name: str) -> bool:
        return False

    def for_targets(self, targets: Collection[str]) -> Mask:
        return self


BLIND = Mask()
"""The mask where no site's key is known."""
OPEN = OpenMask()
