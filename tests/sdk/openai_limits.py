"""The official `openai` SDK, unmodified, on a server that takes sixty requests of a user in a minute: it shows what is
left, and after a refusal it waits as long as the refusal says.
"""

import openai
from openai_calls import asked, client_of
from checks import LIMIT, check, equal, new_user, refusal, run

@check
def what_is_left_is_in_raw_responses():
    client = client_of(new_user(), max_retries=0)
    calls = [
        lambda: client.chat.completions.with_raw_response.create(**asked("hello")),
        lambda: client.responses.with_raw_response.create(model="sonnet", input="hello"),
    ]
    for left, call in zip((59, 58), calls):
        raw = call()
        equal(raw.headers["x-ratelimit-limit-requests"], str(LIMIT))
        assert left <= int(raw.headers["x-ratelimit-remaining-requests"]) <= left + 1
        assert raw.headers["x-ratelimit-reset-requests"] in ("1s", "2s"), raw.headers
        assert raw.parse().id


@check
def the_sdk_waits_as_long_as_a_refusal_says():
    client = client_of(new_user(), max_retries=0)
    refused = refusal(openai.RateLimitError, lambda: client.models.list())
    equal(refused.response.headers["x-ratelimit-remaining-requests"], "0")
    assert 0 < int(refused.response.headers["retry-after-ms"]) <= 1000
    # Its own first pause is half a second at most, after which a request is refused again.
    client.with_options(max_retries=1).chat.completions.create(**asked("hello"))


run()
