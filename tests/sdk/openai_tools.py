"""Tools of the caller and structured answers by the helpers of the official `openai` SDK, unmodified."""

import json

import openai
from openai_calls import asked, client_of, user
from checks import check, equal, new_user, pids, run
from pydantic import BaseModel

CALL = '[[tool:mcp__caller__Add {"a":17,"b":25}]]'
DOCUMENT = '[[output:{"name":"Ada","age":36}]]'


class Add(BaseModel):
    a: int
    b: int


class Person(BaseModel):
    name: str
    age: int


TOOLS = [openai.pydantic_function_tool(Add)]


def created(client, messages):
    return client.chat.completions.create(**asked(messages), tools=TOOLS).choices[0]


def parsed(client, messages):
    return client.chat.completions.parse(**asked(messages), tools=TOOLS).choices[0]


def streamed(client, messages):
    with client.chat.completions.stream(**asked(messages), tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        choice = stream.get_final_completion().choices[0]
    equal(len(done), len(choice.message.tool_calls or []))
    return choice


def round_trip(ask):
    who = new_user()
    client = client_of(who)
    messages = [user("[[say:let me]]" + CALL + CALL)]
    choice = ask(client, messages)
    equal(choice.finish_reason, "tool_calls")
    calls = choice.message.tool_calls
    equal([(call.function.name, json.loads(call.function.arguments)) for call in calls], [("Add", {"a": 17, "b": 25})] * 2)
    messages.append(choice.message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "42"} for call in calls]
    choice = ask(client, messages)
    equal((choice.finish_reason, choice.message.content), ("stop", "let me"))
    messages += [choice.message, user("and on")]
    equal(ask(client, messages).message.content, "echo 2: and on")
    equal(len(pids(who)), 1)


@check
def tools_are_called_and_answered():
    round_trip(created)


@check
def tools_are_called_and_answered_in_streams():
    round_trip(streamed)


@check
def arguments_are_parsed():
    round_trip(parsed)
    choice = parsed(client_of(new_user()), [user(CALL)])
    equal(choice.message.tool_calls[0].function.parsed_arguments, Add(a=17, b=25))


@check
def parse_gives_an_object():
    client = client_of(new_user())
    answer = client.chat.completions.parse(**asked(DOCUMENT), response_format=Person)
    equal(answer.choices[0].message.parsed, Person(name="Ada", age=36))
    answer = client.beta.chat.completions.parse(**asked(DOCUMENT), response_format=Person)
    equal(answer.choices[0].message.parsed, Person(name="Ada", age=36))


@check
def stream_gives_an_object():
    with client_of(new_user()).chat.completions.stream(**asked(DOCUMENT), response_format=Person) as stream:
        stream.until_done()
        equal(stream.get_final_completion().choices[0].message.parsed, Person(name="Ada", age=36))


run()
