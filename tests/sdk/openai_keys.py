"""The official `openai` SDK, unmodified, on a server that knows its callers by their keys."""

import os

import openai
from openai_calls import say
from checks import ADMIN_KEY, KEY, URL, check, equal, new_user, pids, raises, run

USER_KEY = os.environ["PILOTLIGHT_USER_KEY"]


def client_of(key):
    return openai.OpenAI(base_url=URL + "/v1", api_key=key)


def refused(kind, client, **more):
    error = raises(openai.APIError, say, client, "hello", **more)
    assert isinstance(error, kind) and error.body["message"] and error.request_id, repr(error)


@check
def the_key_of_a_user_is_enough():
    client = client_of(USER_KEY)
    equal({int(say(client, "[[pid]]"))}, pids("alice"))
    assert list(client.models.list())


@check
def nobody_else_is_named_with_it():
    refused(openai.PermissionDeniedError, client_of(USER_KEY), user="bob")
    equal(pids("bob"), set())


@check
def a_wrong_key_is_401():
    for key in ("wrong", USER_KEY + "x", USER_KEY[:-1]):
        refused(openai.AuthenticationError, client_of(key))


@check
def a_backend_names_the_user_of_each_request():
    who = new_user()
    equal({int(say(client_of(KEY), "[[pid]]", user=who))}, pids(who))
    refused(openai.BadRequestError, client_of(KEY))


@check
def an_operator_has_no_conversations():
    refused(openai.PermissionDeniedError, client_of(ADMIN_KEY), user="alice")


run()
