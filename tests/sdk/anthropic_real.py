"""The official `anthropic` SDK, unmodified, with the real CLI behind the server and a scripted API behind the CLI."""

import anthropic
from anthropic_calls import asked, client_of, text_of, user
from checks import PIXEL, check, equal, new_user, pids, raises, run


@check
def whole_history_each_time_stays_with_one_warm_child():
    who = new_user()
    client = client_of(who)
    messages, processes = [], set()
    for turn in range(1, 4):
        messages.append(user(f"[[say:whole {turn}]]"))
        message = client.messages.create(**asked(messages))
        equal(text_of(message), f"whole {turn}")
        messages += [{"role": "assistant", "content": message.content}, user(f"[[think:hm]][[say:piece {turn}]]")]
        with client.messages.stream(**asked(messages)) as stream:
            equal("".join(stream.text_stream), f"piece {turn}")
            message = stream.get_final_message()
        messages.append({"role": "assistant", "content": message.content})
        processes |= pids(who)
    equal(len(processes), 1)


@check
def usage_is_what_the_api_reported():
    client = client_of(new_user())
    whole = client.messages.create(**asked("[[say:a]]"))
    with client.messages.stream(**asked("[[say:b]]")) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        usage = message.usage
        equal((usage.input_tokens, usage.output_tokens), (17, 29))
        equal((usage.cache_creation_input_tokens, usage.cache_read_input_tokens), (11, 7))
        equal((message.stop_reason, message.type, message.role), ("end_turn", "message", "assistant"))


@check
def tools_of_the_cli_are_not_the_answer():
    call = asked('[[tool:Bash {"command":"true","description":"nothing"}]]')
    with client_of(new_user()).messages.stream(**call) as stream:
        kinds = [event.content_block.type for event in stream if event.type == "content_block_start"]
        message = stream.get_final_message()
    equal(kinds, ["text"])
    assert text_of(message).startswith("TOOLS:"), message


@check
def the_system_prompt_and_pictures_reach_the_api():
    client = client_of(new_user())
    equal(text_of(client.messages.create(**asked("instructed [[say:aye]]", system="speak like a lighthouse keeper"))), "aye")
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "a picture [[say:seen]]"}]
    equal(text_of(client_of(new_user()).messages.create(**asked([user(content)]))), "seen")


@check
def failures_of_the_api_keep_their_status():
    client = client_of(new_user())
    kinds = {
        400: anthropic.BadRequestError,
        401: anthropic.AuthenticationError,
        403: anthropic.PermissionDeniedError,
        404: anthropic.NotFoundError,
        413: anthropic.APIStatusError,
        429: anthropic.RateLimitError,
        500: anthropic.InternalServerError,
        529: anthropic._exceptions.OverloadedError,
    }
    for status, kind in kinds.items():
        error = raises(anthropic.APIError, lambda: client.messages.create(**asked(f"[[error:{status}]]")))
        assert isinstance(error, kind) and error.status_code == status, repr(error)
        equal(text_of(client.messages.create(**asked("[[say:fine]]"))), "fine")


run()
