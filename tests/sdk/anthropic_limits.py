"""The official `anthropic` SDK, unmodified, on a server that takes sixty requests of a user in a minute: it shows what is
left, and after a refusal it waits as long as the refusal says.
"""

from datetime import datetime, timezone

import anthropic
from anthropic_calls import asked, client_of
from checks import LIMIT, check, equal, new_user, refusal, run

@check
def what_is_left_is_in_raw_responses():
    client = client_of(new_user(), max_retries=0)
    for left in (59, 58):
        raw = client.messages.with_raw_response.create(**asked("hello"))
        equal(raw.headers["anthropic-ratelimit-requests-limit"], str(LIMIT))
        assert left <= int(raw.headers["anthropic-ratelimit-requests-remaining"]) <= left + 1
        reset = datetime.fromisoformat(raw.headers["anthropic-ratelimit-requests-reset"].replace("Z", "+00:00"))
        assert -2 < (reset - datetime.now(timezone.utc)).total_seconds() < 5, reset
        assert raw.parse().content


@check
def the_sdk_waits_as_long_as_a_refusal_says():
    client = client_of(new_user(), max_retries=0)
    refused = refusal(anthropic.RateLimitError, lambda: client.messages.count_tokens(model="sonnet", messages=[{"role": "user", "content": "hello"}]))
    equal(refused.response.headers["anthropic-ratelimit-requests-remaining"], "0")
    assert 0 < int(refused.response.headers["retry-after-ms"]) <= 1000
    # Its own first pause is half a second at most, after which a request is refused again.
    client.with_options(max_retries=1).messages.create(**asked("hello"))


run()
