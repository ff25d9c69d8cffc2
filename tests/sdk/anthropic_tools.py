"""Tools of the caller and structured answers by the helpers of the official `anthropic` SDK, unmodified."""

from anthropic import beta_tool
from anthropic_calls import asked, client_of, text_of, user
from checks import check, equal, new_user, pids, run
from pydantic import BaseModel

ADD = {"name": "add", "description": "Adds.", "input_schema": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}
CALL = '[[tool:mcp__caller__add {"a":17,"b":25}]]'
DOCUMENT = '[[output:{"name":"Ada","age":36}]]'


class Person(BaseModel):
    name: str
    age: int


def created(client, messages, **more):
    return client.messages.create(**asked(messages, **more))


def streamed(client, messages, **more):
    with client.messages.stream(**asked(messages, **more)) as stream:
        inputs = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    equal(bool(inputs), message.stop_reason == "tool_use")
    return message


def round_trip(ask):
    who = new_user()
    client = client_of(who)
    messages = [user("[[say:let me]]" + CALL + CALL)]
    message = ask(client, messages, tools=[ADD])
    equal(message.stop_reason, "tool_use")
    calls = [block for block in message.content if block.type == "tool_use"]
    equal([(call.name, call.input) for call in calls], [("add", {"a": 17, "b": 25})] * 2)
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "42"} for call in calls]
    messages += [{"role": "assistant", "content": message.content}, user(results)]
    message = ask(client, messages, tools=[ADD])
    equal((message.stop_reason, text_of(message)), ("end_turn", "let me"))
    messages += [{"role": "assistant", "content": message.content}, user("and on")]
    equal(text_of(ask(client, messages, tools=[ADD])), "echo 2: and on")
    equal(len(pids(who)), 1)


@check
def tools_are_called_and_answered():
    round_trip(created)


@check
def tools_are_called_and_answered_in_streams():
    round_trip(streamed)


@check
def tool_runner_runs_functions():
    for in_pieces in (False, True):
        who, sums = new_user(), []

        @beta_tool
        def add(a: int, b: int) -> str:
            """Adds two numbers."""
            sums.append(a + b)
            return str(a + b)

        runner = client_of(who).beta.messages.tool_runner(**asked(CALL), tools=[add], stream=in_pieces)
        message = None
        for answer in runner:
            message = answer.get_final_message() if in_pieces else answer
        equal((text_of(message), sums), ("TOOLS:ok 42", [42]))
        equal(len(pids(who)), 1)


@check
def parse_gives_an_object():
    client = client_of(new_user())
    # A year ago among the betas only, by the older of the two fields.
    ways = [client.beta.messages] + ([client.messages] if hasattr(client.messages, "parse") else [])
    for messages in ways:
        message = messages.parse(**asked(DOCUMENT), output_format=Person)
        equal(message.parsed_output, Person(name="Ada", age=36))


@check
def stream_gives_an_object():
    with client_of(new_user()).beta.messages.stream(**asked(DOCUMENT), output_format=Person) as stream:
        stream.until_done()
        equal(stream.get_final_message().parsed_output, Person(name="Ada", age=36))


run()
