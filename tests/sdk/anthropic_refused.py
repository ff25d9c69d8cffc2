"""The official `anthropic` SDK, unmodified, on a server that takes one turn of a conversation at a time and has room for
one child, which leaves soon: refusals made before any child has seen the prompt may be repeated, and the SDK does.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anthropic
from anthropic_calls import asked, client_of, say
from checks import check, equal, new_user, raises, run


@contextmanager
def busy(user, milliseconds):
    """While it is open, a turn of the user runs; its answer must come."""
    with ThreadPoolExecutor(1) as threads:
        client = client_of(user, session="only", max_retries=5)
        slow = asked(f"[[deltas:20]] [[delay:{milliseconds // 20}]]")
        stream = client.messages.create(**slow, stream=True)
        next(iter(stream))
        yield
        rest = threads.submit(lambda: [event.type for event in stream])
        equal(rest.result()[-1], "message_stop")


@check
def a_busy_conversation_is_429():
    who = new_user()
    with busy(who, 1000):
        error = raises(anthropic.APIError, say, client_of(who, max_retries=0, session="only"), "too many")
    assert isinstance(error, anthropic.RateLimitError), repr(error)
    equal(error.body["error"]["type"], "rate_limit_error")
    assert int(error.response.headers["retry-after"]) >= 1
    assert error.response.headers.get("x-should-retry") != "false"


@check
def the_sdk_comes_again_after_a_429():
    who = new_user()
    with busy(who, 1000):
        equal(say(client_of(who, session="only", max_retries=5), "later"), "echo 2: later")


@check
def no_room_for_another_child_is_529():
    with busy(new_user(), 2000):
        error = raises(anthropic.APIError, say, client_of(new_user(), max_retries=0, session="only"), "too many")
    equal((type(error).__name__, error.status_code), ("OverloadedError", 529))
    equal(error.body["error"]["type"], "overloaded_error")
    assert int(error.response.headers["retry-after"]) >= 1


@check
def the_sdk_comes_again_when_there_was_no_room():
    with busy(new_user(), 1000):
        equal(say(client_of(new_user(), session="only", max_retries=5), "later"), "echo 1: later")


run()
