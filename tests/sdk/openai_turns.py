"""The official `openai` SDK, unmodified, in conversations."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import openai
from openai_calls import asked, client_of, say, streamed, text_of, user
from checks import KEY, PIXEL, URL, check, equal, new_user, pids, raises, run, sessions


def assistant(content):
    return {"role": "assistant", "content": content}


@check
def create_answers_with_a_whole_completion():
    raw = client_of(new_user()).chat.completions.with_raw_response.create(**asked("hello"))
    answer = raw.parse()
    equal(answer.object, "chat.completion")
    assert answer.id and answer.model and isinstance(answer.created, int), answer
    [choice] = answer.choices
    equal((choice.index, choice.finish_reason, choice.message.role), (0, "stop", "assistant"))
    equal(choice.message.content, "echo 1: hello")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    equal(answer._request_id, raw.headers["x-request-id"])
    assert raw.headers["x-pilotlight-session"], raw.headers


@check
def stream_begins_with_the_role_and_ends_with_the_reason():
    chunks = streamed(client_of(new_user()), "[[deltas:20]]")
    assert len(chunks) >= 20, chunks
    equal(chunks[0].choices[0].delta.role, "assistant")
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    equal((reasons[-1], set(reasons[:-1])), ("stop", {None}))
    equal({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
    equal(len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}), 1)
    equal(text_of(chunks), "".join(f"{number:03} " for number in range(20)))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks), chunks


@check
def usage_comes_when_asked_for_and_is_what_the_api_reported():
    client = client_of(new_user())
    usage = client.chat.completions.create(**asked("[[usage:120,45]]")).usage
    equal((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (120, 45, 165))
    chunks = streamed(client, "[[usage:120,45]]", stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks[:-1]), chunks
    equal(chunks[-1].choices, [])
    usage = chunks[-1].usage
    equal((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (120, 45, 165))


@check
def the_streaming_helper_puts_the_answer_together():
    with client_of(new_user()).chat.completions.stream(**asked("[[deltas:9]]")) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion()
    equal("".join(pieces), answer.choices[0].message.content)


@check
def thinking_and_tools_are_not_the_answer():
    client = client_of(new_user())
    thought = streamed(client, "[[think:let me see]][[say:seen]]")
    equal(text_of(thought), "seen")
    reasons = [getattr(choice.delta, "reasoning_content", None) for chunk in thought for choice in chunk.choices]
    equal("".join(filter(None, reasons)), "let me see")
    tooled = streamed(client, '[[tool:Bash {"command":"true"}]]')
    assert text_of(tooled).startswith("TOOLS:"), tooled
    assert not any(choice.delta.tool_calls for chunk in tooled for choice in chunk.choices), tooled


@check
def whole_history_each_time_stays_with_one_warm_child():
    ways = {
        "message": lambda message: message,
        "text": lambda message: assistant(message.content),
        # With every field that the SDK knows, most of them null.
        "dumped": lambda message: message.model_dump(),
    }
    for name, kept in ways.items():
        who = new_user()
        client = client_of(who)
        messages, processes = [], set()
        for turn in range(1, 6):
            messages.append(user(f"as {name}"))
            message = client.chat.completions.create(**asked(messages)).choices[0].message
            equal(message.content, f"echo {2 * turn - 1}: as {name}")
            messages += [kept(message), user([{"type": "text", "text": "[[pid]]"}])]
            text = text_of(streamed(client, messages))
            messages.append(assistant(text))
            processes.add(int(text))
        equal(len(processes), 1)
        equal(pids(who), processes)


@check
def system_and_developer_messages_reach_the_child():
    for role in ("system", "developer"):
        who = new_user()
        client = client_of(who)
        messages = [{"role": role, "content": "be brief"}, user("[[system]]")]
        equal(say(client, messages), "be brief")
        first = pids(who)
        # The instruction stands in front every time; it is no part of what was said.
        equal(say(client, messages + [assistant("be brief"), user("on")]), "echo 2: on")
        equal(pids(who), first)


@check
def images_reach_the_child():
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    content = [{"type": "text", "text": "[[blocks]]"}, image]
    equal(say(client_of(new_user()), [user(content)]), f"text image:image/png:{len(PIXEL)}")


@check
def what_the_cli_cannot_do_is_said_in_a_header():
    call = client_of(new_user()).chat.completions.with_raw_response.create
    raw = call(**asked("hello", temperature=0.5, top_p=0.5))
    equal(set(raw.headers["x-pilotlight-ignored"].split(",")), {"temperature", "top_p"})
    equal(raw.parse().choices[0].message.content, "echo 1: hello")


@check
def models_are_listed():
    models = list(client_of(new_user()).models.list())
    assert models and all(model.id and model.object == "model" for model in models), models
    assert all(isinstance(model.created, int) and model.owned_by for model in models), models
    model = client_of(new_user()).models.retrieve(models[0].id)
    equal((model.id, model.object), (models[0].id, "model"))


@check
def a_header_names_the_conversation():
    who = new_user()
    client = client_of(who)
    ask = lambda name, text: say(client, text, extra_headers={"x-pilotlight-session": name})
    equal([ask("work", "a"), ask("work", "b"), ask("play", "c")], ["echo 1: a", "echo 2: b", "echo 1: c"])
    assert {"work", "play"} <= set(sessions(who)), sessions(who)


@check
def leaving_in_mid_answer_keeps_the_child():
    client = client_of(new_user())
    named = {"extra_headers": {"x-pilotlight-session": "only"}}
    child = int(say(client, "[[pid]]", **named))
    endless = asked("[[deltas:1000]] [[delay:50]]", **named)
    with client.chat.completions.create(**endless, stream=True) as chunks:
        assert any(chunk.choices[0].delta.content for chunk in chunks)
    hasty = client.with_options(timeout=0.5, max_retries=0)
    raises(openai.APITimeoutError, lambda: hasty.chat.completions.create(**endless))
    equal(int(say(client, "[[pid]]", **named)), child)


@check
def the_field_user_names_the_user():
    who = new_user()
    client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY)
    equal(pids(who), set())
    equal({int(say(client, "[[pid]]", user=who))}, pids(who))


@check
def histories_of_one_user_at_the_same_time_do_not_meet():
    client = client_of(new_user())

    def converse(name):
        messages = []
        for turn in range(1, 6):
            messages.append(user(f"[[sleep:50]] {name} {turn}"))
            answer = say(client, messages)
            equal(answer, f"echo {turn}: {name} {turn}")
            messages.append(assistant(answer))
        return say(client, messages + [user("[[pid]]")])

    with ThreadPoolExecutor(3) as threads:
        processes = list(threads.map(converse, ["apples", "pears", "plums"]))
    equal(len(set(processes)), 3)


@check
def the_same_conversation_twice_is_two():
    client = client_of(new_user())
    same = [user("same")]
    with ThreadPoolExecutor(4) as threads:
        for turn in range(1, 4):
            answers = list(threads.map(lambda _: say(client, same), range(4)))
            equal(answers, [f"echo {turn}: same"] * 4)
            same += [assistant(answers[0]), user("same")]


@check
def an_answer_that_is_asked_for_again_is_given_without_the_first_one():
    client = client_of(new_user())
    said = [user("my cat is Mo"), assistant(say(client, "my cat is Mo"))]
    # The simulated CLI answers with the messages that it knows.
    for answer in [say(client, said + [user("[[context]]")]) for _ in range(2)]:
        equal(len(json.loads(answer)), 3)
        assert answer.count("[[context]]") == 1 and "my cat is Mo" in answer, answer


@check
def an_edited_history_is_a_new_conversation_that_knows_it():
    client = client_of(new_user())
    equal(say(client, "my cat is Mo"), "echo 1: my cat is Mo")
    answer = say(client, [user("my dog is Rex"), assistant("echo 1: my dog is Rex"), user("[[context]]")])
    equal(len(json.loads(answer)), 3)
    assert "my dog is Rex" in answer and "Mo" not in answer, answer
    said = [user("my cat is Mo"), assistant("echo 1: my cat is Mo")]
    equal(say(client, said + [user("and the cat?")]), "echo 2: and the cat?")


@check
def the_asynchronous_client_serves_users_side_by_side():
    async def converse(client):
        first = await client.chat.completions.create(**asked("[[sleep:200]] one"))
        messages = [user("[[sleep:200]] one"), first.choices[0].message, user("two")]
        chunks = await client.chat.completions.create(**asked(messages), stream=True)
        return first.choices[0].message.content, text_of([chunk async for chunk in chunks])

    async def all_of_them():
        clients = [client_of(new_user(), openai.AsyncOpenAI) for _ in range(4)]
        answers = await asyncio.gather(*map(converse, clients))
        await asyncio.gather(*(client.close() for client in clients))
        return answers

    equal(asyncio.run(all_of_them()), [("echo 1: one", "echo 2: two")] * 4)


run()
