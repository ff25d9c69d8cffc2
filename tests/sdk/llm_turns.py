"""The command `llm`, unmodified: it cannot set a user, so the server has a default one (`http.default_user`)."""

import base64
import json
import os
from pathlib import Path

from checks import MODEL, PIXEL, URL, check, equal, get, run

HOME = Path("llm-home").absolute()
HOME.mkdir(exist_ok=True)
os.environ["LLM_USER_PATH"] = str(HOME)

from click.testing import CliRunner
from llm.cli import cli

KINDS = {"chat": {}, "whole": {"can_stream": False}, "responses": {"responses": True}}
# JSON is YAML, too.
(HOME / "extra-openai-models.yaml").write_text(json.dumps([
    {"model_id": name, "model_name": MODEL, "api_base": URL + "/v1", "supports_tools": True, "supports_schema": True,
     "vision": True, **more}
    for name, more in KINDS.items()]))
ADD = 'def add(a: int, b: int) -> str:\n    "Adds two numbers."\n    return str(a + b)\n'


def llm(*arguments):
    """The output of the command, which runs in this process: a start of it takes a second."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done.output.strip()


def children():
    return {session["pid"] for session in json.loads(get("/v1/sessions"))["sessions"] if session["pid"]}


def converses(kind):
    before = children()
    equal(llm("-m", kind, "-s", "be brief", f"one {kind}"), f"echo 1: one {kind}")
    # Goes on with the last conversation.
    equal(llm("-c", "two"), "echo 2: two")
    equal(llm("-c", "three"), "echo 3: three")
    equal(len(children() - before), 1)


def calls_tools(kind):
    before = children()
    asked = '[[tool:mcp__caller__add {"a":17,"b":25}]]'
    equal(llm("-m", kind, "--functions", ADD, asked), "TOOLS:ok 42")
    equal(len(children() - before), 1)


def is_structured(kind):
    answer = llm("-m", kind, "--schema", "name str, age int", '[[output:{"name":"Ada","age":36}]]')
    equal(json.loads(answer), {"name": "Ada", "age": 36})


def sees_pictures(kind):
    picture = HOME / "pixel.png"
    picture.write_bytes(base64.b64decode(PIXEL))
    equal(llm("-m", kind, "-a", str(picture), "[[blocks]]"), f"text image:image/png:{len(PIXEL)}")


@check
def chat_converses():
    converses("chat")


@check
def chat_without_streams_converses():
    converses("whole")


@check
def responses_converse():
    converses("responses")


@check
def chat_calls_tools():
    calls_tools("chat")


@check
def responses_call_tools():
    calls_tools("responses")


@check
def chat_is_structured():
    is_structured("chat")


@check
def responses_are_structured():
    is_structured("responses")


@check
def chat_sees_pictures():
    sees_pictures("chat")


@check
def responses_see_pictures():
    sees_pictures("responses")


@check
def an_endpoint_without_configuration_answers():
    equal(llm("openai", "endpoint", URL + "/v1", "-m", MODEL, "a question"), "echo 1: a question")


run()
