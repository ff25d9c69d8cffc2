"""LangChain, unmodified: `langchain-anthropic` and `langchain-openai`, in conversations, with tools and with structured answers."""

import anthropic
import openai
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from checks import KEY, MODEL, PIXEL, URL, check, equal, new_user, pids, raises, run


class Person(BaseModel):
    """A person."""

    name: str
    age: int


PERSON = {"name": "Ada", "age": 36}
DOCUMENT = '[[output:{"name":"Ada","age":36}]]'
CALLED = '[[tool:mcp__caller__Person {"name":"Ada","age":36}]]'
ADDS = '[[tool:mcp__caller__add {"a":17,"b":25}]]'


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def claude(user, tools="", **more):
    headers = {"x-pilotlight-user": user} | ({"x-pilotlight-tools": tools} if tools else {})
    return ChatAnthropic(model=MODEL, base_url=URL, api_key=KEY, default_headers=headers, **more)


def gpt(user, tools="", **more):
    headers = {"x-pilotlight-user": user} | ({"x-pilotlight-tools": tools} if tools else {})
    return ChatOpenAI(model=MODEL, base_url=URL + "/v1", api_key=KEY, default_headers=headers, **more)


def responses(user, **more):
    return gpt(user, use_responses_api=True, **more)


def converses(model):
    """Whole histories, as LangChain keeps them, stay with one warm child."""
    who = new_user()
    chat = model(who)
    messages = [SystemMessage("be brief"), HumanMessage("one")]
    messages.append(chat.invoke(messages))
    equal(messages[-1].text, "echo 1: one")
    usage = messages[-1].usage_metadata
    assert usage["input_tokens"] > 0 and usage["output_tokens"] > 0, usage
    messages.append(HumanMessage("two [[deltas:9]]"))
    pieces = list(chat.stream(messages))
    assert len(pieces) >= 9, pieces
    whole = sum_of(pieces)
    equal(whole.text, "".join(f"{number:03} " for number in range(9)))
    messages += [AIMessage(whole.text), HumanMessage("[[system]]")]
    equal(chat.invoke(messages).text, "be brief")
    equal(len(pids(who)), 1)


def calls_a_tool(model):
    """A call, its result and the answer are one turn of one child, whole and in pieces."""
    for is_whole in (True, False):
        who = new_user()
        chat = model(who).bind_tools([add])
        ask = chat.invoke if is_whole else lambda messages: sum_of(chat.stream(messages))
        messages = [HumanMessage(ADDS)]
        messages.append(ask(messages))
        [call] = messages[-1].tool_calls
        equal((call["name"], call["args"]), ("add", {"a": 17, "b": 25}))
        messages.append(add.invoke(call))
        assert isinstance(messages[-1], ToolMessage), messages
        equal(ask(messages).text, "TOOLS:ok 42")
        equal(len(pids(who)), 1)


def sum_of(pieces):
    whole = None
    for piece in pieces:
        whole = piece if whole is None else whole + piece
    return whole


def is_structured(model, methods):
    for method in methods:
        prompt = CALLED if method == "function_calling" else DOCUMENT
        for schema in (Person, Person.model_json_schema()):
            structured = model(new_user()).with_structured_output(schema, method=method)
            found = structured.invoke(prompt)
            *_, last = structured.stream(prompt)
            for found in (found, last):
                found = found.model_dump() if isinstance(found, Person) else found
                equal((method, found), (method, PERSON))


@check
def chat_anthropic_converses():
    converses(claude)


@check
def chat_openai_converses():
    converses(gpt)


@check
def chat_openai_converses_by_responses():
    converses(responses)


@check
def chat_anthropic_calls_tools():
    calls_a_tool(claude)


@check
def chat_openai_calls_tools():
    calls_a_tool(gpt)


@check
def chat_openai_calls_tools_by_responses():
    calls_a_tool(responses)


@check
def chat_anthropic_structures_by_every_method():
    is_structured(claude, ["function_calling", "json_schema"])


@check
def chat_openai_structures_by_every_method():
    is_structured(gpt, ["function_calling", "json_schema", "json_mode"])


@check
def chat_openai_structures_by_responses():
    is_structured(responses, ["function_calling", "json_schema", "json_mode"])


@check
def pictures_reach_the_child():
    picture = {"type": "image", "base64": PIXEL, "mime_type": "image/png"}
    message = HumanMessage([{"type": "text", "text": "[[blocks]]"}, picture])
    for model in (claude, gpt, responses):
        equal(model(new_user()).invoke([message]).text, f"text image:image/png:{len(PIXEL)}")


@check
def refusals_are_the_sdks_exceptions():
    refused = [(claude, anthropic.BadRequestError), (gpt, openai.BadRequestError), (responses, openai.BadRequestError)]
    for model, kind in refused:
        raises(kind, model(new_user(), tools="some", max_retries=0).invoke, "hello")


run()
