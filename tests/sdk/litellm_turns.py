"""LiteLLM, unmodified, as a client of the OpenAI and the Anthropic dialect."""

import json
import os

# Else it asks a host of its own for the prices of models and for names of betas.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS"] = "True"

import litellm

from checks import KEY, MODEL, URL, check, equal, new_user, pids, raises, run

WAYS = {"openai": URL + "/v1", "anthropic": URL}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": False}


def ask(way, who, messages, headers=None, **more):
    return litellm.completion(
        model=f"{way}/{MODEL}", api_base=WAYS[way], api_key=KEY, messages=messages,
        extra_headers={"x-pilotlight-user": who, **(headers or {})}, **more)


def user(content):
    return {"role": "user", "content": content}


def converses(way):
    who = new_user()
    messages = [{"role": "system", "content": "be brief"}, user("one")]
    messages.append(ask(way, who, messages).choices[0].message)
    equal(messages[-1].content, "echo 1: one")
    messages.append(user("[[deltas:9]]"))
    chunks = list(ask(way, who, messages, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    equal(text, "".join(f"{number:03} " for number in range(9)))
    messages += [{"role": "assistant", "content": text}, user("[[system]]")]
    equal(ask(way, who, messages).choices[0].message.content, "be brief")
    equal(len(pids(who)), 1)


def calls_a_tool(way):
    who = new_user()
    messages = [user('[[tool:mcp__caller__add {"a":17,"b":25}]]')]
    choice = ask(way, who, messages, tools=TOOLS).choices[0]
    equal(choice.finish_reason, "tool_calls")
    [call] = choice.message.tool_calls
    equal((call.function.name, json.loads(call.function.arguments)), ("add", {"a": 17, "b": 25}))
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    equal(ask(way, who, messages, tools=TOOLS).choices[0].message.content, "TOOLS:ok 42")
    equal(len(pids(who)), 1)


def is_structured(way):
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = ask(way, new_user(), [user('[[output:{"name":"Ada"}]]')], response_format=wanted)
    equal(json.loads(answer.choices[0].message.content), {"name": "Ada"})


@check
def openai_way_converses():
    converses("openai")


@check
def anthropic_way_converses():
    converses("anthropic")


@check
def openai_way_calls_tools():
    calls_a_tool("openai")


@check
def anthropic_way_calls_tools():
    calls_a_tool("anthropic")


@check
def openai_way_is_structured():
    is_structured("openai")


@check
def anthropic_way_is_structured():
    is_structured("anthropic")


@check
def responses_converse():
    who = new_user()
    named = {"model": f"openai/{MODEL}", "api_base": WAYS["openai"], "api_key": KEY, "extra_headers": {"x-pilotlight-user": who}}
    first = litellm.responses(input="one", **named)
    equal(first.output[0].content[0].text, "echo 1: one")
    second = litellm.responses(input="two", previous_response_id=first.id, **named)
    equal(second.output[0].content[0].text, "echo 2: two")
    equal(len(pids(who)), 1)


@check
def refusals_are_its_exceptions():
    for way in WAYS:
        wrong = {"x-pilotlight-tools": "some"}
        raises(litellm.BadRequestError, ask, way, new_user(), [user("hello")], headers=wrong, num_retries=0)


run()
