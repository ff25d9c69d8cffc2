"""Three turns of one conversation by the Agent SDK, with the answers in pieces."""

import os

import anyio
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage, StreamEvent


async def main():
    options = ClaudeAgentOptions(cli_path=os.environ["AGENT_CLI"], include_partial_messages=True)
    async with ClaudeSDKClient(options=options) as client:
        for word in ["one", "two", "three"]:
            await client.query(f"[[say:{word}]]")
            async for message in client.receive_response():
                if isinstance(message, StreamEvent):
                    text = message.event.get("delta", {}).get("text")
                    if text:
                        print("delta:", text)
                if isinstance(message, ResultMessage):
                    assert not message.is_error, message
                    print("result:", message.result)


anyio.run(main)
