"""The official `anthropic` SDK, unmodified: which exception comes of what, and that no turn is asked for twice."""

import anthropic
from anthropic_calls import asked, client_of, say
from checks import check, equal, metric, new_user, pids, raises, run

# A failure that came as a status, and with it the words of this API.
KINDS = {
    400: ("BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "authentication_error"),
    403: ("PermissionDeniedError", "permission_error"),
    404: ("NotFoundError", "not_found_error"),
    413: ("RequestTooLargeError", "request_too_large"),
    429: ("RateLimitError", "rate_limit_error"),
    500: ("InternalServerError", "api_error"),
    529: ("OverloadedError", "overloaded_error"),
}


def judge(error, status):
    """The exception is the one of this status, with all that the SDK takes from the answer."""
    # Some versions keep the name among their exceptions alone.
    name, kind = KINDS[status]
    wanted = getattr(anthropic, name, None) or getattr(anthropic._exceptions, name)
    assert isinstance(error, wanted), f"{error!r} is no {name}"
    equal(error.status_code, status)
    equal((error.body["type"], error.body["error"]["type"]), ("error", kind))
    assert error.body["error"]["message"], error.body
    equal(error.body["request_id"], error.request_id)
    return error


@check
def failures_of_the_api_keep_their_status_and_are_not_repeated():
    who = new_user()
    client = client_of(who, session="only")
    say(client, "hello")
    child = pids(who)
    for number, status in enumerate(KINDS):
        judge(raises(anthropic.APIError, say, client, f"[[api_error:{status}]]"), status)
        # A turn for each failure and for each question after it, and no more.
        equal(say(client, "fine"), f"echo {2 * number + 3}: fine")
    equal(pids(who), child)


@check
def the_same_for_streams_that_have_not_begun():
    client = client_of(new_user(), session="only")
    for number, status in enumerate(KINDS):
        call = lambda: list(client.messages.create(**asked(f"[[api_error:{status}]]"), stream=True))
        judge(raises(anthropic.APIError, call), status)
        equal(say(client, "fine"), f"echo {2 * number + 2}: fine")


@check
def a_full_context_is_a_bad_request_with_a_code_and_a_way_out():
    client = client_of(new_user(), session="only")
    calls = [
        lambda: say(client, "[[context_full]]"),
        lambda: list(client.messages.create(**asked("[[context_full]]"), stream=True)),
    ]
    for call in calls:
        error = judge(raises(anthropic.APIError, call), 400)
        equal(error.body["error"]["code"], "context_full")
        message = error.body["error"]["message"]
        assert message.startswith("prompt is too long") and "/compact" in message, message
    equal(say(client, "fine"), "echo 3: fine")


@check
def a_stream_that_has_begun_with_silence_ends_in_words_or_an_exception():
    client = client_of(new_user(), session="only")
    with client.messages.stream(**asked("[[sleep:800]] late")) as stream:
        equal(stream.get_final_text(), "echo 1: late")
    call = lambda: list(client.messages.create(**asked("[[sleep:800]] [[api_error:429]]"), stream=True))
    equal(raises(anthropic.APIError, call).body["error"]["type"], "rate_limit_error")
    equal(say(client, "fine"), "echo 3: fine")


@check
def wrong_requests_are_400():
    client = client_of(new_user(), session="only")
    create = client.messages.create
    wrong = [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": [{"text": "no type"}]}]},
        {"max_tokens": 0},
        # What the SDK itself would stumble over.
        {"extra_body": {"max_tokens": "many"}},
        {"model": "--help"},
        {"system": 7},
    ]
    for change in wrong:
        error = raises(anthropic.APIError, lambda: create(**{**asked("a"), **change}))
        judge(error, 400)
    equal(say(client, "still"), "echo 1: still")


@check
def a_body_that_is_too_long_is_413():
    client = client_of(new_user(), session="only")
    judge(raises(anthropic.APIError, say, client, "x" * 20_000_000), 413)
    equal(say(client, "still"), "echo 1: still")


@check
def an_unknown_path_is_404():
    client = client_of(new_user(), session="only")
    judge(raises(anthropic.APIError, lambda: client.get("/v1/nothing", cast_to=object)), 404)


@check
def a_child_that_dies_in_mid_stream_is_an_exception_and_the_conversation_goes_on():
    client = client_of(new_user(), session="only")
    equal(say(client, "remember me"), "echo 1: remember me")
    deaths = metric("exits_total")
    came = []

    def read():
        with client.messages.stream(**asked("[[deltas:50]] [[delay:10]] [[fault:crash-mid]]")) as stream:
            came.extend(stream.text_stream)

    error = raises(anthropic.APIError, read)
    assert came, "the exception came before any text"
    assert "error" in error.body, error.body
    equal(error.body["error"]["type"], "api_error")
    # What a dying child has not written down is lost with it, so only that it answers is sure.
    assert say(client, "next").endswith(": next")
    equal(metric("exits_total"), deaths + 1)


@check
def a_child_that_dies_in_a_whole_answer_is_an_exception_and_no_second_turn():
    client = client_of(new_user(), session="only")
    deaths = metric("exits_total")
    error = raises(anthropic.APIError, say, client, "[[deltas:50]] [[fault:crash-mid]]")
    assert isinstance(error, anthropic.InternalServerError), repr(error)
    equal(error.response.headers["x-should-retry"], "false")
    assert say(client, "next").endswith(": next")
    equal(metric("exits_total"), deaths + 1)


run()
