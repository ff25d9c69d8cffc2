"""An agent's own tools by the Agent SDK: one in this process, and the shell of its CLI; then a turn without any."""

import os

import anyio
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage, create_sdk_mcp_server, tool

PROMPTS = [
    '[[tool:mcp__caller__mcp__calc__add {"a":17,"b":25}]]',
    '[[tool:mcp__caller__Bash {"command":"echo shell > proof","description":"writes"}]]',
    "[[say:done]]",
]


@tool("add", "Adds two numbers.", {"a": int, "b": int})
async def add(arguments):
    total = arguments["a"] + arguments["b"]
    print("added:", total)
    return {"content": [{"type": "text", "text": str(total)}]}


async def main():
    options = ClaudeAgentOptions(
        cli_path=os.environ["AGENT_CLI"],
        mcp_servers={"calc": create_sdk_mcp_server("calc", tools=[add])},
        allowed_tools=["mcp__calc__add", "Bash(echo:*)"],
        permission_mode="acceptEdits",
    )
    async with ClaudeSDKClient(options=options) as client:
        for prompt in PROMPTS:
            await client.query(prompt)
            async for message in client.receive_response():
                if isinstance(message, ResultMessage):
                    assert not message.is_error, message
                    print("result:", message.result)


anyio.run(main)
