"""The official `anthropic` SDK, unmodified, in conversations."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import anthropic
from anthropic_calls import asked, client_of, say, text_of, user
from checks import KEY, MODEL, PIXEL, URL, check, equal, new_user, pids, raises, run, sessions


@check
def create_answers_with_a_whole_message():
    client = client_of(new_user())
    raw = client.messages.with_raw_response.create(**asked("hello"))
    message = raw.parse()
    equal((message.type, message.role, message.stop_reason), ("message", "assistant", "end_turn"))
    equal([(block.type, block.text) for block in message.content], [("text", "echo 1: hello")])
    assert message.id and message.model and message.stop_sequence is None, message
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0, message.usage
    assert message.cost_usd > 0, message
    assert message._request_id and message._request_id == raw.headers["x-request-id"], raw.headers
    assert raw.headers["x-pilotlight-session"], raw.headers


@check
def stream_gives_the_text_in_pieces_and_the_whole_message():
    with client_of(new_user()).messages.stream(**asked("[[deltas:20]]")) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) >= 20, pieces
    equal("".join(pieces), text_of(message))
    equal((message.role, message.stop_reason), ("assistant", "end_turn"))
    assert message.usage.output_tokens > 0, message.usage


@check
def events_have_one_beginning_one_end_and_blocks_without_gaps():
    client = client_of(new_user())
    tool = '[[tool:Bash {"command":"true"}]]'
    for content in ("[[think:hm]] [[deltas:5]]", tool, tool + "[[think:hm]][[say:done]]", "[[fallback]][[deltas:9]]"):
        events = list(client.messages.create(**asked(content), stream=True))
        kinds = [event.type for event in events]
        equal((kinds[0], kinds[-1]), ("message_start", "message_stop"))
        for once in ("message_start", "message_delta", "message_stop"):
            equal((once, kinds.count(once)), (once, 1))
        starts = [event for event in events if event.type == "content_block_start"]
        equal([event.index for event in starts], list(range(len(starts))))
        ends = [event.index for event in events if event.type == "content_block_stop"]
        equal(ends, list(range(len(starts))))
        # What the CLI does by itself is not the caller's to carry out.
        assert not {event.content_block.type for event in starts} - {"text", "thinking"}, starts
        equal(events[-2].delta.stop_reason, "end_turn")
        deltas = [event.delta for event in events if event.type == "content_block_delta"]
        assert "".join(delta.text for delta in deltas if delta.type == "text_delta"), events


@check
def whole_history_each_time_stays_with_one_warm_child():
    ways = {
        "blocks": lambda message: message.content,
        "text": text_of,
        "dumped": lambda message: [block.model_dump() for block in message.content],
    }
    for name, kept in ways.items():
        who = new_user()
        client = client_of(who)
        messages, processes = [], set()
        for turn in range(1, 6):
            messages.append(user(f"as {name}"))
            message = client.messages.create(**asked(messages))
            equal(text_of(message), f"echo {2 * turn - 1}: as {name}")
            messages.append({"role": "assistant", "content": kept(message)})
            messages.append(user([{"type": "text", "text": "[[pid]]"}]))
            with client.messages.stream(**asked(messages)) as stream:
                message = stream.get_final_message()
            messages.append({"role": "assistant", "content": kept(message)})
            processes.add(int(text_of(message)))
        equal(len(processes), 1)
        equal(pids(who), processes)


@check
def thinking_blocks_may_be_sent_back():
    client = client_of(new_user())
    messages = [user("[[think:let me see]][[say:seen]]")]
    message = client.messages.create(**asked(messages))
    equal([block.type for block in message.content], ["thinking", "text"])
    messages += [{"role": "assistant", "content": message.content}, user("on")]
    equal(say(client, messages), "echo 2: on")


@check
def the_system_prompt_reaches_the_child():
    client = client_of(new_user())
    equal(say(client, "[[system]]", system="be brief"), "be brief")
    blocks = [{"type": "text", "text": "be kind"}, {"type": "text", "text": "be quick"}]
    answer = say(client, "[[system]]", system=blocks)
    assert "be kind" in answer and "be quick" in answer, answer
    # Another one in the middle: what was said stays known.
    history = [user("my cat is Mo"), {"role": "assistant", "content": "echo 1: my cat is Mo"}]
    client = client_of(new_user())
    equal(say(client, "my cat is Mo", system="be brief"), "echo 1: my cat is Mo")
    equal(say(client, history + [user("[[system]]")], system="be loud"), "be loud")


@check
def images_and_documents_reach_the_child():
    client = client_of(new_user())
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "[[blocks]]"}]
    equal(say(client, [user(content)]), f"image:image/png:{len(PIXEL)} text")
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQKJSVFT0YK"}
    content = [{"type": "document", "source": source}, {"type": "text", "text": "[[blocks]]"}]
    equal(say(client, [user(content)]), "document:application/pdf:20 text")


@check
def what_the_cli_cannot_do_is_said_in_a_header():
    tool = {"name": "clock", "description": "the time", "input_schema": {"type": "object", "properties": {}}}
    call = client_of(new_user()).messages.with_raw_response.create
    # Not among the arguments of every version of the SDK.
    raw = call(**asked("hello", tools=[tool], extra_body={"temperature": 0.5}))
    equal(set(raw.headers["x-pilotlight-ignored"].split(",")), {"max_tokens", "temperature"})
    equal(text_of(raw.parse()), "echo 1: hello")


@check
def usage_is_what_the_api_reported():
    client = client_of(new_user())
    # With a tool it takes two messages of the API.
    cases = {"[[usage:120,45]]": (120, 45), '[[usage:7,5]][[tool:Bash {"command":"true"}]]': (14, 10)}
    for content, usage in cases.items():
        whole = client.messages.create(**asked(content)).usage
        with client.messages.stream(**asked(content)) as stream:
            streamed = stream.get_final_message().usage
        equal((whole.input_tokens, whole.output_tokens), usage)
        equal((streamed.input_tokens, streamed.output_tokens), usage)


@check
def models_are_listed():
    models = list(client_of(new_user()).models.list())
    assert models and all(model.id and model.type == "model" and model.display_name for model in models), models
    model = client_of(new_user()).models.retrieve(models[0].id)
    equal((model.id, model.type), (models[0].id, "model"))


@check
def tokens_are_counted():
    client = client_of(new_user())
    count = lambda text: client.messages.count_tokens(model=MODEL, messages=[user(text)]).input_tokens
    assert 0 < count("hello") < 100 < count("hello " * 1000), (count("hello"), count("hello " * 1000))


@check
def a_header_names_the_conversation():
    who = new_user()
    client = client_of(who)
    ask = lambda name, text: client.messages.with_raw_response.create(
        **asked(text), extra_headers={"x-pilotlight-session": name}
    )
    equal(text_of(ask("work", "a").parse()), "echo 1: a")
    raw = ask("work", "b")
    equal((text_of(raw.parse()), raw.headers["x-pilotlight-session"]), ("echo 2: b", "work"))
    equal(text_of(ask("play", "c").parse()), "echo 1: c")
    assert {"work", "play"} <= set(sessions(who)), sessions(who)


@check
def histories_of_one_user_at_the_same_time_do_not_meet():
    client = client_of(new_user())

    def converse(name):
        messages = []
        processes = set()
        for turn in range(1, 5):
            messages.append(user(f"[[sleep:50]] {name} {turn}"))
            answer = say(client, messages)
            equal(answer, f"echo {2 * turn - 1}: {name} {turn}")
            messages += [{"role": "assistant", "content": answer}, user("[[pid]]")]
            answer = say(client, messages)
            messages.append({"role": "assistant", "content": answer})
            processes.add(answer)
        equal(len(processes), 1)
        return processes.pop()

    with ThreadPoolExecutor(3) as threads:
        processes = list(threads.map(converse, ["apples", "pears", "plums"]))
    equal(len(set(processes)), 3)


@check
def an_edited_history_is_a_new_conversation_that_knows_it():
    client = client_of(new_user())
    equal(say(client, "my cat is Mo"), "echo 1: my cat is Mo")
    said = [user("my cat is Mo"), {"role": "assistant", "content": "echo 1: my cat is Mo"}]
    edited = [user("my dog is Rex"), {"role": "assistant", "content": "echo 1: my dog is Rex"}]
    # The simulated CLI answers with the messages that it knows.
    answer = say(client, edited + [user("[[context]]")])
    equal(len(json.loads(answer)), 3)
    assert "my dog is Rex" in answer and "Mo" not in answer, answer
    again = edited + [user("[[context]]"), {"role": "assistant", "content": answer}]
    equal(say(client, again + [user("still?")]), "echo 3: still?")
    equal(say(client, said + [user("and the cat?")]), "echo 2: and the cat?")


@check
def leaving_in_mid_answer_keeps_the_child():
    who = new_user()
    client = client_of(who)
    named = {"extra_headers": {"x-pilotlight-session": "only"}}
    child = int(say(client, "[[pid]]", **named))
    endless = asked("[[deltas:1000]] [[delay:50]]", **named)
    with client.messages.stream(**endless) as stream:
        next(iter(stream.text_stream))
    # Closed at the end of the block: a stream that is only left alone keeps its connection until it is collected.
    with client.messages.create(**endless, stream=True) as events:
        next(event for event in events if event.type == "content_block_delta")
    hasty = client.with_options(timeout=0.5, max_retries=0)
    raises(anthropic.APITimeoutError, lambda: hasty.messages.create(**endless))
    equal(int(say(client, "[[pid]]", **named)), child)


@check
def metadata_names_the_user():
    who = new_user()
    client = anthropic.Anthropic(base_url=URL, api_key=KEY)
    pid = say(client, "[[pid]]", metadata={"user_id": who})
    equal(pids(who), {int(pid)})


@check
def the_asynchronous_client_serves_users_side_by_side():
    async def converse(client):
        first = await client.messages.create(**asked("[[sleep:200]] one"))
        messages = [user("[[sleep:200]] one"), {"role": "assistant", "content": first.content}, user("two")]
        async with client.messages.stream(**asked(messages)) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        return text_of(first), text

    async def all_of_them():
        clients = [client_of(new_user(), anthropic.AsyncAnthropic) for _ in range(4)]
        answers = await asyncio.gather(*map(converse, clients))
        await asyncio.gather(*(client.close() for client in clients))
        return answers

    equal(asyncio.run(all_of_them()), [("echo 1: one", "echo 2: two")] * 4)


run()
