"""What the scripts here share: a list of named checks, and a look at the server from beside the SDK.

A script decorates its checks and calls `run`. The tests in Rust start it with a server's address and key in the
environment; with names of checks as arguments it carries out only these. It never retries and never waits for nothing:
its caller bounds its time.
"""

import json
import os
import re
import sys
import time
import traceback
import urllib.request

URL = os.environ["PILOTLIGHT_URL"]
ADMIN_URL = os.environ["PILOTLIGHT_ADMIN_URL"]
# Of a trusted backend, which names its users; any where the server has no keys.
KEY = os.environ.get("PILOTLIGHT_SERVICE_KEY", "unused")
# None where the server has no keys.
ADMIN_KEY = os.environ.get("PILOTLIGHT_ADMIN_KEY")
MODEL = "claude-opus-4-8"
# Requests of a user in a minute, where the server of a script has a limit.
LIMIT = 60

# The smallest picture that is one: a pixel, as PNG in base64.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

_checks = []
_users = 0


def check(function):
    _checks.append(function)
    return function


def run():
    """Carries out the checks in their order and ends the process."""
    wanted = sys.argv[1:]
    chosen = [one for one in _checks if not wanted or one.__name__ in wanted]
    failed = []
    for one in chosen:
        begin = time.monotonic()
        try:
            one()
        except Exception:
            failed.append(one.__name__)
            print(f"FAILED {one.__name__}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {one.__name__} ({time.monotonic() - begin:.2f} s)", flush=True)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} checks passed; failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed or not chosen else 0)


def refusal(kind, request):
    """Sends requests until one is refused: that exception, of this kind. A few are free again meanwhile."""
    for _ in range(2 * LIMIT):
        try:
            request()
        except kind as error:
            return error
    raise AssertionError("nothing was refused")


def new_user():
    """A user nobody else has; its first characters alone distinguish it from the others."""
    global _users
    _users += 1
    return f"{_users:06d}-user"


def get(path, base=URL):
    headers = {"x-api-key": ADMIN_KEY} if ADMIN_KEY else {}
    request = urllib.request.Request(base + path, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def sessions(user):
    """The conversations of a user that have a child or had one, by name."""
    entries = json.loads(get("/v1/pool/stats"))["active_users"]
    return {entry["session"]: entry for entry in entries if entry["user_id"] == user[:8] + "..."}


def pids(user):
    """The children that serve a user."""
    return {entry["pid"] for entry in sessions(user).values() if entry["alive"]}


def metric(name):
    """Sum of a metric of the server over all its labels; 0 before the first count."""
    lines = re.findall(rf"^pilotlight_{name}(?:{{.*}})? (\S+)$", get("/metrics", ADMIN_URL), re.MULTILINE)
    return sum(map(float, lines))


def equal(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"


def raises(kinds, function, *arguments, **named):
    """The exception of one of these kinds that a call must raise."""
    try:
        answer = function(*arguments, **named)
    except kinds as error:
        return error
    raise AssertionError(f"no exception, but {answer!r}")
