"""Calls of the official `anthropic` SDK, as the scripts here make them."""

import anthropic
from checks import KEY, MODEL, URL


def client_of(user, kind=anthropic.Anthropic, session=None, **options):
    """A client of this user; all its calls are of one conversation if that is named."""
    headers = {"x-pilotlight-user": user}
    if session:
        headers["x-pilotlight-session"] = session
    return kind(base_url=URL, api_key=KEY, default_headers=headers, **options)


def user(content):
    return {"role": "user", "content": content}


def asked(content, **more):
    """The arguments of a call with one message, or with these messages."""
    messages = content if isinstance(content, list) else [user(content)]
    return {"model": MODEL, "max_tokens": 1000, "messages": messages, **more}


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def say(client, content, **more):
    return text_of(client.messages.create(**asked(content, **more)))
