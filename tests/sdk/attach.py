"""An Agent SDK whose CLI is a child of the server: tools, hooks, permissions, interrupt, resume."""

import os

import anyio
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookMatcher,
    PermissionResultAllow,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    create_sdk_mcp_server,
    query,
    tool,
)

seen = {"added": [], "asked": [], "hooked": []}


@tool("add", "adds two numbers", {"a": int, "b": int})
async def add(arguments):
    seen["added"].append(arguments["a"] + arguments["b"])
    return {"content": [{"type": "text", "text": str(arguments["a"] + arguments["b"])}]}


async def permit(name, given, context):
    seen["asked"].append(name)
    return PermissionResultAllow(updated_input=given)


async def hook(given, tool_use_id, context):
    seen["hooked"].append(given["tool_name"])
    return {}


def ok(what):
    """What has been seen; the table of docs/clients.md has these words."""
    print("ok", what, flush=True)


def options(**more):
    return ClaudeAgentOptions(cli_path=os.environ["AGENT_CLI"], **more)


async def turn(client, text):
    await client.query(text)
    pieces, result = [], None
    async for message in client.receive_response():
        if isinstance(message, StreamEvent):
            pieces.append(message)
        if isinstance(message, ResultMessage):
            result = message
    return result, pieces


async def main():
    everything = options(
        include_partial_messages=True,
        system_prompt="speak like a lighthouse keeper",
        can_use_tool=permit,
        hooks={"PreToolUse": [HookMatcher(hooks=[hook])]},
        mcp_servers={"me": create_sdk_mcp_server("me", tools=[add])},
        allowed_tools=["mcp__me__add"],
    )
    async with ClaudeSDKClient(options=everything) as client:
        result, pieces = await turn(client, "[[say:one]]")
        assert result.result == "one" and pieces, result
        session = result.session_id
        ok("answers come in pieces")
        result, _ = await turn(client, '[[tool:mcp__me__add {"a":1,"b":2}]]')
        assert result.result == "TOOLS:ok" and seen["added"] == [3], (result, seen)
        ok("an SDK MCP server answers")
        result, _ = await turn(client, '[[tool:Bash {"command":"touch made"}]]')
        assert result.result == "TOOLS:ok" and seen["asked"] == ["Bash"], (result, seen)
        ok("can_use_tool decides")
        assert seen["hooked"] == ["mcp__me__add", "Bash"], seen
        ok("hooks are called")
        await client.query("[[hang]]")
        async for message in client.receive_response():
            if isinstance(message, SystemMessage) and message.subtype == "init":
                await client.interrupt()
            if isinstance(message, ResultMessage):
                assert message.subtype == "error_during_execution", message
        result, _ = await turn(client, "[[say:two]]")
        assert result.result == "two", result
        ok("interrupt ends a turn")
    async with ClaudeSDKClient(options=options(resume=session)) as client:
        result, pieces = await turn(client, "[[recall]]")
        assert "[[say:one]]" in result.result and not pieces, result
        ok("resume goes on")
    said = []
    async for message in query(prompt="[[say:once]]", options=options()):
        if isinstance(message, AssistantMessage):
            said.append(message)
        if isinstance(message, ResultMessage):
            assert message.result == "once", message
    assert said
    ok("query without a client answers")
    print("done")


anyio.run(main)
