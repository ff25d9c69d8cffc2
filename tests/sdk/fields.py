"""Prints, as a JSON document, the fields of the bodies that an SDK sends: those of its own types of a request.

The argument is the SDK, with the API where it has several. A field of the type that the SDK sends as a header is left out: the SDK itself is asked.
"""

import http.server
import importlib
import json
import sys
import threading
import typing

# Per API: the module and name of each type of a request, and the resource that sends it.
TYPES = {
    "anthropic": {
        "anthropic.types.message_create_params": ("MessageCreateParams", ("messages",)),
        "anthropic.types.beta.message_create_params": ("MessageCreateParams", ("beta", "messages")),
    },
    "openai": {
        "openai.types.chat.completion_create_params": ("CompletionCreateParams", ("chat", "completions")),
    },
    "openai-responses": {
        "openai.types.responses.response_create_params": ("ResponseCreateParams", ("responses",)),
    },
}
REQUIRED = {
    "anthropic": {"model": "m", "messages": [], "max_tokens": 1},
    "openai": {"model": "m", "messages": []},
    "openai-responses": {"model": "m", "input": []},
}
# Objects whose fields are judged one by one.
INNER = {"metadata", "output_config", "stream_options", "text"}


def members(kind):
    """The typed dictionaries of a union, or of an optional one."""
    if hasattr(kind, "__annotations__") and hasattr(kind, "__required_keys__"):
        yield kind
    for argument in typing.get_args(kind):
        yield from members(argument)


def annotations(kind):
    """The fields of a type with their own types."""
    found = {}
    for member in members(kind):
        found.update(typing.get_type_hints(member))
    return found


class Api(http.server.BaseHTTPRequestHandler):
    """Keeps the bodies that it gets, and answers none."""

    bodies = []

    def do_POST(self):
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_error(400)

    def log_message(self, *_):
        pass


def is_in_body(api, resource, name):
    """Whether the SDK sends a field in the body."""
    package = importlib.import_module(api.split("-")[0])
    kind = package.Anthropic if api == "anthropic" else package.OpenAI
    client = kind(api_key="unused", base_url=URL, max_retries=0)
    for part in resource:
        client = getattr(client, part)
    # Types of headers are texts and lists of texts.
    arguments = {name: ["a"] if name == "betas" else "a", **REQUIRED[api]}
    Api.bodies.clear()
    try:
        client.create(**arguments)
    except package.APIStatusError:
        pass
    assert len(Api.bodies) == 1, name
    return name in Api.bodies[0]


def fields(api):
    found = set()
    for module, (name, resource) in TYPES[api].items():
        for field, kind in annotations(getattr(importlib.import_module(module), name)).items():
            # With a text in it the SDK would expect events.
            if field == "stream" or is_in_body(api, resource, field):
                found.add(field)
            inner = annotations(kind) if field in INNER else ()
            found.update(f"{field}.{name}" for name in inner)
    return found


api = http.server.HTTPServer(("127.0.0.1", 0), Api)
URL = f"http://127.0.0.1:{api.server_port}"
threading.Thread(target=api.serve_forever, daemon=True).start()
print(json.dumps(sorted(fields(sys.argv[1]))))
