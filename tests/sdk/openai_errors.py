"""The official `openai` SDK, unmodified: which exception comes of what, and that no turn is asked for twice."""

import openai
from openai_calls import KINDS, asked, client_of, say
from checks import check, equal, metric, new_user, pids, raises, run

def judge(error, status):
    """The exception is the one of this status, with all that the SDK takes from the answer."""
    assert isinstance(error, KINDS[status]), repr(error)
    equal(error.status_code, status)
    # The SDK hands over what is inside of `error`.
    equal(set(error.body) - {"message", "type", "param", "code"}, set())
    assert error.body["message"] and error.type, error.body
    assert error.request_id, error.response.headers
    return error


@check
def failures_of_the_api_keep_their_status_and_are_not_repeated():
    who = new_user()
    client = client_of(who, session="only")
    say(client, "hello")
    child = pids(who)
    for number, status in enumerate(KINDS):
        judge(raises(openai.APIError, say, client, f"[[api_error:{status}]]"), status)
        # A turn for each failure and for each question after it, and no more.
        equal(say(client, "fine"), f"echo {2 * number + 3}: fine")
    equal(pids(who), child)


@check
def the_same_for_streams_that_have_not_begun():
    client = client_of(new_user(), session="only")
    for number, status in enumerate(KINDS):
        call = lambda: list(client.chat.completions.create(**asked(f"[[api_error:{status}]]"), stream=True))
        judge(raises(openai.APIError, call), status)
        equal(say(client, "fine"), f"echo {2 * number + 2}: fine")


@check
def a_full_context_is_a_bad_request_with_a_code_and_a_way_out():
    client = client_of(new_user(), session="only")
    calls = [
        lambda: say(client, "[[context_full]]"),
        lambda: list(client.chat.completions.create(**asked("[[context_full]]"), stream=True)),
    ]
    for call in calls:
        error = judge(raises(openai.APIError, call), 400)
        equal(error.code, "context_full")
        assert "/compact" in error.body["message"], error.body
    equal(say(client, "fine"), "echo 3: fine")


@check
def a_stream_that_has_begun_with_silence_ends_in_words_or_an_exception():
    client = client_of(new_user(), session="only")
    call = lambda text: list(client.chat.completions.create(**asked(text), stream=True))
    answer = call("[[sleep:800]] late")
    equal("".join(chunk.choices[0].delta.content or "" for chunk in answer), "echo 1: late")
    error = raises(openai.APIError, call, "[[sleep:800]] [[api_error:429]]")
    equal(error.type, "rate_limit_error")
    equal(say(client, "fine"), "echo 3: fine")


@check
def wrong_requests_are_400():
    client = client_of(new_user(), session="only")
    create = client.chat.completions.create
    wrong = [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "system", "content": "alone"}]},
        {"messages": [{"role": "user", "content": [{"text": "no type"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
        {"model": "--help"},
        {"n": 2},
    ]
    for change in wrong:
        judge(raises(openai.APIError, lambda: create(**{**asked("a"), **change})), 400)
    equal(say(client, "still"), "echo 1: still")


@check
def a_body_that_is_too_long_is_413():
    client = client_of(new_user(), session="only")
    judge(raises(openai.APIError, say, client, "x" * 20_000_000), 413)
    equal(say(client, "still"), "echo 1: still")


@check
def an_unknown_path_is_404():
    judge(raises(openai.APIError, lambda: client_of(new_user(), session="only").get("/nothing", cast_to=object)), 404)


@check
def a_child_that_dies_in_mid_stream_is_an_exception_and_the_conversation_goes_on():
    client = client_of(new_user(), session="only")
    equal(say(client, "remember me"), "echo 1: remember me")
    deaths = metric("exits_total")
    came = []

    def read():
        call = asked("[[deltas:50]] [[delay:10]] [[fault:crash-mid]]")
        for chunk in client.chat.completions.create(**call, stream=True):
            came.append(chunk)

    raises(openai.APIError, read)
    assert len(came) > 1, "the exception came before any text"
    # What a dying child has not written down is lost with it, so only that it answers is sure.
    assert say(client, "next").endswith(": next")
    equal(metric("exits_total"), deaths + 1)


@check
def a_child_that_dies_in_a_whole_answer_is_an_exception_and_no_second_turn():
    client = client_of(new_user(), session="only")
    deaths = metric("exits_total")
    error = raises(openai.APIError, say, client, "[[deltas:50]] [[fault:crash-mid]]")
    assert isinstance(error, openai.InternalServerError), repr(error)
    equal(error.response.headers["x-should-retry"], "false")
    assert say(client, "next").endswith(": next")
    equal(metric("exits_total"), deaths + 1)


run()
