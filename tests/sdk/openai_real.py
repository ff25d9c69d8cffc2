"""The official `openai` SDK, unmodified, with the real CLI behind the server and a scripted API behind the CLI."""

import openai
from openai_calls import KINDS, asked, client_of, say, user
from checks import PIXEL, check, equal, new_user, pids, raises, run


@check
def whole_history_each_time_stays_with_one_warm_child():
    who = new_user()
    client = client_of(who)
    messages, processes = [], set()
    for turn in range(1, 4):
        messages.append(user(f"[[say:whole {turn}]]"))
        message = client.chat.completions.create(**asked(messages)).choices[0].message
        equal(message.content, f"whole {turn}")
        messages += [message, user(f"[[think:hm]][[say:piece {turn}]]")]
        chunks = list(client.chat.completions.create(**asked(messages, stream=True)))
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        equal(text, f"piece {turn}")
        messages.append({"role": "assistant", "content": text})
        processes |= pids(who)
    equal(len(processes), 1)


@check
def usage_is_what_the_api_reported():
    client = client_of(new_user())
    whole = client.chat.completions.create(**asked("[[say:a]]")).usage
    call = asked("[[say:b]]", stream=True, stream_options={"include_usage": True})
    streamed = list(client.chat.completions.create(**call))[-1].usage
    for usage in (whole, streamed):
        # This API counts what was cached among the prompt's tokens, the other one beside them.
        equal((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (35, 29, 64))


@check
def the_system_prompt_and_pictures_reach_the_api():
    instruction = {"role": "developer", "content": "speak like a lighthouse keeper"}
    equal(say(client_of(new_user()), [instruction, user("instructed [[say:aye]]")]), "aye")
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    content = [image, {"type": "text", "text": "a picture [[say:seen]]"}]
    equal(say(client_of(new_user()), [user(content)]), "seen")


@check
def failures_of_the_api_keep_their_status():
    client = client_of(new_user())
    for status, kind in KINDS.items():
        error = raises(openai.APIError, say, client, f"[[error:{status}]]")
        assert isinstance(error, kind) and error.status_code == status, repr(error)
        equal(say(client, "[[say:fine]]"), "fine")


run()
