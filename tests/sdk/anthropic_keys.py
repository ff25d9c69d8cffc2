"""The official `anthropic` SDK, unmodified, on a server that knows its callers by their keys."""

import os

import anthropic
from anthropic_calls import say
from checks import ADMIN_KEY, KEY, MODEL, URL, check, equal, new_user, pids, raises, run

USER_KEY = os.environ["PILOTLIGHT_USER_KEY"]


def refused(kind, client, **more):
    error = raises(anthropic.APIError, say, client, "hello", **more)
    assert isinstance(error, kind), repr(error)
    equal((error.body["type"], error.request_id), ("error", error.body["request_id"]))
    return error.body["error"]["type"]


@check
def the_key_of_a_user_is_enough():
    client = anthropic.Anthropic(base_url=URL, api_key=USER_KEY)
    child = int(say(client, "[[pid]]"))
    equal(pids("alice"), {child})
    bearer = anthropic.Anthropic(base_url=URL, auth_token=USER_KEY)
    assert say(bearer, "hello").endswith("hello")
    with client.messages.stream(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "on"}]) as stream:
        assert stream.get_final_text().endswith(": on")
    assert list(client.models.list())


@check
def nobody_else_is_named_with_it():
    client = anthropic.Anthropic(base_url=URL, api_key=USER_KEY)
    kind = refused(anthropic.PermissionDeniedError, client, extra_headers={"x-pilotlight-user": "bob"})
    equal(kind, "permission_error")
    equal(pids("bob"), set())


@check
def a_wrong_key_is_401():
    for key in ("wrong", USER_KEY + "x", USER_KEY[:-1]):
        kind = refused(anthropic.AuthenticationError, anthropic.Anthropic(base_url=URL, api_key=key))
        equal(kind, "authentication_error")


@check
def a_backend_names_the_user_of_each_request():
    client = anthropic.Anthropic(base_url=URL, api_key=KEY)
    who, other = new_user(), new_user()
    equal(pids(who), set())
    equal({int(say(client, "[[pid]]", metadata={"user_id": who}))}, pids(who))
    equal({int(say(client, "[[pid]]", extra_headers={"x-pilotlight-user": other}))}, pids(other))
    equal(refused(anthropic.BadRequestError, client), "invalid_request_error")


@check
def an_operator_has_no_conversations():
    client = anthropic.Anthropic(base_url=URL, api_key=ADMIN_KEY)
    refused(anthropic.PermissionDeniedError, client, extra_headers={"x-pilotlight-user": "alice"})


run()
