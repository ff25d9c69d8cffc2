"""Calls of the official `openai` SDK, as the scripts here make them."""

import openai
from checks import KEY, MODEL, URL

# The exception of each status; this SDK has none of their own for 413 and 529.
KINDS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    413: openai.APIStatusError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    529: openai.InternalServerError,
}


def client_of(user, kind=openai.OpenAI, session=None, **options):
    """A client of this user; all its calls are of one conversation if that is named."""
    headers = {"x-pilotlight-user": user}
    if session:
        headers["x-pilotlight-session"] = session
    return kind(base_url=URL + "/v1", api_key=KEY, default_headers=headers, **options)


def user(content):
    return {"role": "user", "content": content}


def asked(content, **more):
    """The arguments of a call with one message, or with these messages."""
    return {"model": MODEL, "messages": content if isinstance(content, list) else [user(content)], **more}


def say(client, content, **more):
    return client.chat.completions.create(**asked(content, **more)).choices[0].message.content


def streamed(client, content, **more):
    return list(client.chat.completions.create(**asked(content, **more), stream=True))


def text_of(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
