"""The official `openai` SDK, unmodified, with the Responses API."""

import asyncio
import json
import time

import openai
from openai_calls import client_of
from checks import KEY, MODEL, PIXEL, URL, check, equal, metric, new_user, pids, raises, run


def ask(client, content, **more):
    return client.responses.create(model=MODEL, input=content, **more)


def events_of(client, content, **more):
    return list(ask(client, content, stream=True, **more))


def context(response):
    """The messages that the simulated CLI knows."""
    return json.loads(response.output_text)


@check
def create_answers_with_a_whole_response():
    raw = client_of(new_user()).responses.with_raw_response.create(model=MODEL, input="[[usage:120,45]]hello")
    answer = raw.parse()
    equal((answer.object, answer.status, answer.error, answer.output_text), ("response", "completed", None, "echo 1: hello"))
    [item] = answer.output
    equal((item.type, item.role, item.status), ("message", "assistant", "completed"))
    usage = answer.usage
    equal((usage.input_tokens, usage.output_tokens, usage.total_tokens), (120, 45, 165))
    equal((usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens), (0, 0))
    equal(answer._request_id, raw.headers["x-request-id"])
    assert answer.id and answer.model and answer.created_at, answer
    assert raw.headers["x-pilotlight-session"], raw.headers


@check
def stream_has_all_events_in_order():
    events = events_of(client_of(new_user()), "[[think:let me see]][[deltas:20]]")
    equal([event.sequence_number for event in events], list(range(len(events))))
    equal([event.type for event in events[:2]], ["response.created", "response.in_progress"])
    done = events[-1]
    equal((done.type, done.response.id), ("response.completed", events[0].response.id))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    equal((text, text), (done.response.output_text, "".join(f"{number:03} " for number in range(20))))
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta")
    equal((thought, done.response.output[0].summary[0].text), ("let me see", "let me see"))
    ids = {item.id: index for index, item in enumerate(done.response.output)}
    for event in events:
        if hasattr(event, "item_id"):
            equal(event.output_index, ids[event.item_id])


@check
def the_streaming_helper_puts_the_response_together():
    client = client_of(new_user())
    with client.responses.stream(model=MODEL, input="[[think:hm]][[deltas:9]]") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        answer = stream.get_final_response()
    equal("".join(pieces), answer.output_text)
    equal(client.responses.retrieve(answer.id).output_text, answer.output_text)


@check
def previous_response_goes_on_in_one_warm_child():
    who = new_user()
    client = client_of(who)
    last = ask(client, "my cat is Mo")
    for turn in range(2, 5):
        last = ask(client, "on", previous_response_id=last.id)
        equal(last.output_text, f"echo {turn}: on")
    last = events_of(client, "[[context]]", previous_response_id=last.id)[-1].response
    equal(len(context(last)), 9)
    equal(len(pids(who)), 1)


@check
def an_earlier_response_is_a_fork():
    client = client_of(new_user())
    first = ask(client, "my cat is Mo")
    ask(client, "my dog is Rex", previous_response_id=first.id)
    fork = ask(client, "[[context]]", previous_response_id=first.id)
    equal(len(context(fork)), 3)
    assert "Mo" in fork.output_text and "Rex" not in fork.output_text, fork


@check
def items_of_the_output_are_history():
    who = new_user()
    client = client_of(who)
    items = [{"role": "user", "content": "[[think:hm]]a"}]
    for turn in range(1, 5):
        answer = ask(client, items, store=False)
        assert answer.output_text.startswith(f"echo {turn}: "), answer
        items += answer.output
        items.append({"role": "user", "content": [{"type": "input_text", "text": "b"}]})
    equal(len(pids(who)), 1)


@check
def instructions_are_those_of_the_request():
    client = client_of(new_user())
    first = ask(client, "[[system]]", instructions="be brief")
    equal((first.output_text, first.instructions), ("be brief", "be brief"))
    second = ask(client, "[[system]]", instructions="be kind", previous_response_id=first.id)
    equal(second.output_text, "be kind")


@check
def images_reach_the_child():
    image = {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PIXEL}"}
    content = [{"type": "input_text", "text": "[[blocks]]"}, image]
    answer = ask(client_of(new_user()), [{"role": "user", "content": content}])
    equal(answer.output_text, f"text image:image/png:{len(PIXEL)}")


@check
def responses_are_retrieved_and_deleted():
    client = client_of(new_user())
    answer = ask(client, "hello", metadata={"order": "4711"})
    equal(client.responses.retrieve(answer.id).to_dict(), answer.to_dict())
    equal(client.responses.retrieve(answer.id).metadata, {"order": "4711"})
    client.responses.delete(answer.id)
    for call in (client.responses.retrieve, client.responses.delete):
        error = raises(openai.NotFoundError, call, answer.id)
        equal(error.code, "response_not_found")


@check
def input_items_are_paged():
    client = client_of(new_user())
    answer = ask(client, [{"role": "user", "content": f"m{number}"} for number in range(25)])
    texts = lambda pages: [item.content[0].text for item in pages]
    wanted = [f"m{number}" for number in range(25)]
    equal(texts(client.responses.input_items.list(answer.id, order="asc", limit=10)), wanted)
    equal(texts(client.responses.input_items.list(answer.id)), wanted[::-1])


@check
def without_store_nothing_is_found():
    client = client_of(new_user())
    answer = ask(client, "hello", store=False)
    raises(openai.NotFoundError, client.responses.retrieve, answer.id)
    error = raises(openai.NotFoundError, lambda: ask(client, "on", previous_response_id=answer.id))
    equal((error.code, error.param), ("previous_response_not_found", "previous_response_id"))


@check
def nothing_of_another_user_is_found():
    answer = ask(client_of(new_user()), "hello")
    other = client_of(new_user())
    raises(openai.NotFoundError, other.responses.retrieve, answer.id)
    raises(openai.NotFoundError, other.responses.delete, answer.id)
    raises(openai.NotFoundError, lambda: ask(other, "on", previous_response_id=answer.id))
    raises(openai.NotFoundError, lambda: list(other.responses.input_items.list(answer.id)))


@check
def what_is_not_there_is_refused():
    client = client_of(new_user())
    error = raises(openai.BadRequestError, lambda: ask(client, "hello", background=True, store=False))
    equal(error.param, "background")
    answer = ask(client, "hello")
    raises(openai.BadRequestError, client.responses.cancel, answer.id)


def ended(client, answer):
    """Polls a response in the background, as the guide of the API has it."""
    while answer.status in ("queued", "in_progress"):
        time.sleep(0.05)
        answer = client.responses.retrieve(answer.id)
    return answer


@check
def response_in_the_background_is_polled():
    client = client_of(new_user())
    answer = ask(client, "[[sleep:200]]hello", background=True)
    assert answer.status in ("queued", "in_progress") and answer.background, answer
    answer = ended(client, answer)
    equal((answer.status, answer.output_text, answer.background), ("completed", "echo 1: hello", True))
    more = ended(client, ask(client, "more", background=True, previous_response_id=answer.id))
    equal(more.output_text, "echo 2: more")
    failed = ended(client, ask(client, "[[api_error:429]]", background=True))
    equal((failed.status, failed.error.code), ("failed", "rate_limit"))
    raises(openai.NotFoundError, client_of(new_user()).responses.retrieve, answer.id)


@check
def response_in_the_background_is_cancelled():
    client = client_of(new_user())
    answer = ask(client, "[[deltas:2000]] [[delay:50]]", background=True)
    equal(ended(client, client.responses.cancel(answer.id)).status, "cancelled")
    equal(client.responses.cancel(answer.id).status, "cancelled")
    client.responses.delete(answer.id)
    raises(openai.NotFoundError, client.responses.retrieve, answer.id)


@check
def stream_in_the_background_is_resumed():
    client = client_of(new_user())
    seen = []
    with ask(client, "[[deltas:60]] [[delay:5]]", background=True, stream=True) as stream:
        for event in stream:
            seen.append(event)
            if len(seen) == 10:
                break
    id, last = seen[0].response.id, seen[-1].sequence_number
    seen += list(client.responses.retrieve(id, stream=True, starting_after=last))
    equal([event.sequence_number for event in seen], list(range(len(seen))))
    equal(seen[-1].type, "response.completed")
    equal(client.responses.retrieve(id).output_text, seen[-1].response.output_text)
    whole = list(client.responses.retrieve(id, stream=True))
    equal([event.type for event in whole], [event.type for event in seen])


@check
def failures_are_exceptions_before_and_within_a_stream():
    client = client_of(new_user())
    for stream in (False, True):
        call = lambda: list(ask(client, "[[api_error:429]]", stream=stream))
        equal(raises(openai.RateLimitError, call).code, "rate_limit")
    deaths, came = metric("exits_total"), []

    def read():
        for event in ask(client, "[[deltas:50]] [[delay:10]] [[fault:crash-mid]]", stream=True):
            came.append(event)

    error = raises(openai.APIError, read)
    equal((error.code, came[-1].type, came[-1].response.status), ("session_lost", "response.failed", "failed"))
    equal(metric("exits_total"), deaths + 1)


@check
def the_field_user_names_the_user():
    who = new_user()
    client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY)
    equal({int(ask(client, "[[pid]]", user=who).output_text)}, pids(who))


@check
def the_asynchronous_client_serves_users_side_by_side():
    async def converse(client):
        first = await client.responses.create(model=MODEL, input="[[sleep:200]] one")
        stream = await client.responses.create(model=MODEL, input="two", previous_response_id=first.id, stream=True)
        last = [event async for event in stream][-1]
        return first.output_text, last.response.output_text

    async def all_of_them():
        clients = [client_of(new_user(), openai.AsyncOpenAI) for _ in range(4)]
        answers = await asyncio.gather(*map(converse, clients))
        await asyncio.gather(*(client.close() for client in clients))
        return answers

    equal(asyncio.run(all_of_them()), [("echo 1: one", "echo 2: two")] * 4)


run()
