//! The caller's tools as an MCP server of this host, spoken to over control lines. Pure.
//!
//! The CLI asks for the list of tools once, and for each call of the model with the id of the call. It repeats the
//! name of the server in the model's names of the tools.

use serde_json::{Value, json};

use super::amounts::Amounts;
use super::control::line;
use super::fields::with_fields;
use super::read::ID_LIMIT;
use crate::adapter::{HostRequest, McpMessage, MessageEdge};
use crate::model::{Block, CallerTool, History, ToolCall, ToolResult};

/// Name of the server.
pub(crate) const CALLER_SERVER: &str = "caller";
/// Prefix of the model's names of its tools.
const PREFIX: &str = "mcp__caller__";

/// Newest version of the protocol whose messages these are; that of the CLI counts if it names one.
const PROTOCOL_VERSION: &str = "2025-06-18";

/// What a message for the caller's tools asks for; `None` for one for another server.
pub(super) fn request(request_id: &str, server: &str, message: Value) -> Option<HostRequest> {
    let message_id = message.get("id").cloned().unwrap_or_default();
    let is_id = match &message_id {
        Value::Null | Value::Number(_) => true,
        Value::String(id) => id.len() <= ID_LIMIT,
        _ => false,
    };
    if server != CALLER_SERVER || !is_id {
        return None;
    }
    let request_id = request_id.to_owned();
    let params = message.get("params").unwrap_or(&Value::Null);
    let asked = match message.get("method").and_then(Value::as_str).unwrap_or_default() {
        "initialize" => {
            let version = params.get("protocolVersion").and_then(Value::as_str);
            let version = version.filter(|it| it.len() <= ID_LIMIT).unwrap_or(PROTOCOL_VERSION);
            McpMessage::Initialize { version: version.to_owned() }
        }
        "tools/list" => McpMessage::List,
        "tools/call" => {
            let id = params.get("_meta").and_then(|meta| meta.get("claudecode/toolUseId"));
            let id = id.and_then(Value::as_str).filter(|id| id.len() <= ID_LIMIT).unwrap_or_default();
            McpMessage::Call { id: id.to_owned() }
        }
        "ping" => McpMessage::Ping,
        method if method.starts_with("notifications/") => McpMessage::Notification,
        _ => McpMessage::Unknown,
    };
    Some(HostRequest::Tools { request_id, message_id, asked })
}

/// Response to anything but a call.
pub(crate) fn tools_response(
    request_id: &str,
    message_id: &Value,
    asked: &McpMessage,
    tools: &[CallerTool],
) -> Vec<u8> {
    let result = match asked {
        McpMessage::Initialize { version } => json!({
            "protocolVersion": version,
            "capabilities": { "tools": {} },
            "serverInfo": { "name": CALLER_SERVER, "version": "1" },
        }),
        McpMessage::List => json!({ "tools": tools.iter().map(listed).collect::<Vec<_>>() }),
        McpMessage::Ping | McpMessage::Notification => json!({}),
        McpMessage::Call { .. } | McpMessage::Unknown => {
            let error = json!({ "code": -32601, "message": "not supported" });
            return response(request_id, &json!({ "jsonrpc": "2.0", "id": message_id, "error": error }));
        }
    };
    // A notification has no id, and the CLI waits for an answer all the same.
    let message_id = if message_id.is_null() { &Value::from(0) } else { message_id };
    response(request_id, &json!({ "jsonrpc": "2.0", "id": message_id, "result": result }))
}

fn listed(tool: &CallerTool) -> Value {
    let mut listed = json!({
        "name": tool.name(),
        "inputSchema": tool.input_schema(),
        // Otherwise newer versions (2.1.332) hide the tool behind a search.
        "_meta": { "anthropic/alwaysLoad": true },
        // The CLI runs calls of such tools side by side: the caller gets all of a message at once and decides itself.
        "annotations": { "readOnlyHint": true },
    });
    if let Some(description) = tool.description() {
        listed["description"] = description.into();
    }
    listed
}

/// Response to a call.
pub(crate) fn call_response(request_id: &str, message_id: &Value, result: &ToolResult) -> Vec<u8> {
    let content: Vec<Value> = result.content.iter().map(content).collect();
    let result = json!({ "content": content, "isError": result.is_error });
    response(request_id, &json!({ "jsonrpc": "2.0", "id": message_id, "result": result }))
}

fn response(request_id: &str, message: &Value) -> Vec<u8> {
    let response =
        json!({ "subtype": "success", "request_id": request_id, "response": { "mcp_response": message } });
    line(&json!({ "type": "control_response", "response": response }))
}

/// A block of the model's API in the words of MCP.
fn content(block: &Value) -> Value {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let source = block.get("source").unwrap_or(&Value::Null);
    match (text(block, "type").as_deref(), text(source, "type").as_deref()) {
        (Some("text"), _) => json!({ "type": "text", "text": text(block, "text").unwrap_or_default() }),
        (Some("image"), Some("base64")) => json!({
            "type": "image",
            "data": text(source, "data").unwrap_or_default(),
            "mimeType": text(source, "media_type").unwrap_or_default(),
        }),
        (Some("document"), Some("text")) => {
            json!({ "type": "text", "text": text(source, "data").unwrap_or_default() })
        }
        _ => json!({ "type": "text", "text": block.to_string() }),
    }
}

/// Calls of the caller's tools in a message of the model.
pub(crate) fn tool_calls(line: &[u8]) -> Vec<ToolCall> {
    if memchr::memmem::find(line, PREFIX.as_bytes()).is_none() {
        return Vec::new();
    }
    let blocks: Option<Vec<Value>> = with_fields(line, |fields| {
        if fields.text("type")? != "assistant" || fields.has("parent_tool_use_id") {
            return None;
        }
        fields.object("message")?.get("content")
    });
    blocks.into_iter().flatten().filter_map(tool_call).collect()
}

fn tool_call(mut block: Value) -> Option<ToolCall> {
    if block.get("type")? != "tool_use" {
        return None;
    }
    let name = block.get("name")?.as_str()?.strip_prefix(PREFIX)?.to_owned();
    let id = block.get("id")?.as_str().filter(|id| id.len() <= ID_LIMIT)?.to_owned();
    // The API knows objects only.
    let input = block.get_mut("input").map(Value::take).filter(Value::is_object);
    Some(ToolCall::new(id, name, input.unwrap_or_else(|| json!({}))))
}

/// Begin or end of a message of the model, if the line is one of these events.
pub(crate) fn message_edge(line: &[u8]) -> Option<MessageEdge> {
    let named = |name: &str| memchr::memmem::find(line, name.as_bytes()).is_some();
    if !named("\"message_start\"") && !named("\"message_delta\"") {
        return None;
    }
    with_fields(line, |fields| {
        if fields.text("type")? != "stream_event" || fields.has("parent_tool_use_id") {
            return None;
        }
        let event = fields.object("event")?;
        match event.text("type")?.as_str() {
            "message_start" => Some(MessageEdge::Begin),
            "message_delta" => {
                let usage = event.object("usage").map(|usage| Amounts::default().usage(&usage));
                Some(MessageEdge::End(usage.unwrap_or_default()))
            }
            _ => None,
        }
    })
}

/// A history in which calls of these tools have the names that the model sees.
pub(crate) fn as_called(history: History, tools: &[CallerTool]) -> History {
    if tools.is_empty() {
        return history;
    }
    let mut messages = history.into_messages();
    for block in messages.iter_mut().flat_map(|message| &mut message.content) {
        if let Block::ToolUse { name, .. } = block
            && tools.iter().any(|tool| tool.name() == name)
        {
            name.insert_str(0, PREFIX);
        }
    }
    History::new(messages)
}

/// Gives a call of a caller's tool the name under which the caller has offered it.
pub(super) fn as_offered(block: &mut Value) {
    if block.get("type").is_some_and(|kind| kind == "tool_use")
        && let Some(Value::String(name)) = block.get_mut("name")
        && let Some(own) = name.strip_prefix(PREFIX)
    {
        *name = own.to_owned();
    }
}

/// The results of calls as a message, for a process that does not wait for them.
pub(super) fn as_message(results: &[ToolResult]) -> Vec<Value> {
    let text = |text: String| json!({ "type": "text", "text": text });
    let mut blocks = vec![text(ARRIVED.to_owned())];
    for ToolResult { id, content, is_error } in results {
        let what = if *is_error { "failed" } else { "returned" };
        blocks.push(text(format!("The call {id} {what}:")));
        blocks.extend(content.iter().map(|block| match block.get("type").and_then(Value::as_str) {
            Some("text" | "image" | "document") => block.clone(),
            _ => text(block.to_string()),
        }));
    }
    blocks
}

const ARRIVED: &str =
    "The results of your tool calls have arrived. Go on with them, and do not make the same calls again.";

/// What follows an imported history that ends with the results.
pub(crate) const CONTINUATION: &str = "Go on with the results of your tool calls.";

#[cfg(test)]
mod tests {
    use super::super::control::tests::parse;
    use super::*;
    use crate::model::Usage;

    #[test]
    fn messages_of_the_server_are_known() {
        let asked = |message: Value| match request("r", CALLER_SERVER, message) {
            Some(HostRequest::Tools { message_id, asked, .. }) => (message_id, asked),
            other => panic!("{other:?}"),
        };
        let call = json!({ "id": 2, "method": "tools/call",
            "params": { "name": "add", "arguments": {}, "_meta": { "claudecode/toolUseId": "toolu_1" } } });
        assert_eq!(asked(call), (json!(2), McpMessage::Call { id: "toolu_1".into() }));
        let version = json!({ "id": 0, "method": "initialize", "params": { "protocolVersion": "x" } });
        assert_eq!(asked(version), (json!(0), McpMessage::Initialize { version: "x".into() }));
        assert_eq!(
            asked(json!({ "method": "notifications/initialized" })),
            (Value::Null, McpMessage::Notification)
        );
        assert_eq!(asked(json!({ "id": 1, "method": "resources/list" })).1, McpMessage::Unknown);
        assert_eq!(asked(json!(7)).1, McpMessage::Unknown);
        // They are kept and repeated.
        let long = "x".repeat(ID_LIMIT + 1);
        for id in [json!(long), json!([1])] {
            assert!(request("r", CALLER_SERVER, json!({ "id": id, "method": "tools/list" })).is_none());
        }
        let meta = json!({ "_meta": { "claudecode/toolUseId": long }, "protocolVersion": long });
        let call = asked(json!({ "id": 1, "method": "tools/call", "params": meta })).1;
        assert_eq!(call, McpMessage::Call { id: String::new() });
        let version = asked(json!({ "id": 1, "method": "initialize", "params": meta })).1;
        assert_eq!(version, McpMessage::Initialize { version: PROTOCOL_VERSION.into() });
        assert!(request("r", "other", json!({ "method": "tools/list" })).is_none());
    }

    #[test]
    fn list_and_results_are_in_the_words_of_mcp() {
        let schema = json!({ "type": "object" }).as_object().unwrap().clone();
        let tools = [CallerTool::new("add", Some("adds".into()), schema).unwrap()];
        let answer = |line: Vec<u8>| parse(&line)["response"]["response"]["mcp_response"].clone();
        let list = answer(tools_response("r", &json!(1), &McpMessage::List, &tools));
        assert_eq!((&list["id"], &list["result"]["tools"][0]["name"]), (&json!(1), &json!("add")));
        assert_eq!(list["result"]["tools"][0]["_meta"]["anthropic/alwaysLoad"], true);
        let unknown = answer(tools_response("r", &json!(1), &McpMessage::Unknown, &tools));
        assert_eq!(unknown["error"]["code"], -32601);
        let image = json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AA==" } });
        let mut result = ToolResult::text("t", "3").failed();
        result.content.push(image);
        result.content.push(json!({ "type": "odd" }));
        let result = answer(call_response("r", &json!(5), &result));
        assert_eq!((&result["id"], &result["result"]["isError"]), (&json!(5), &json!(true)));
        assert_eq!(result["result"]["content"][0], json!({ "type": "text", "text": "3" }));
        assert_eq!(
            result["result"]["content"][1],
            json!({ "type": "image", "data": "AA==", "mimeType": "image/png" })
        );
        assert_eq!(result["result"]["content"][2]["text"], r#"{"type":"odd"}"#);
    }

    #[test]
    fn calls_of_a_message_are_found() {
        let line = |name: &str, parent: Value| {
            json!({ "type": "assistant", "message": { "content": [
                { "type": "text", "text": "mcp__caller__add" },
                { "type": "tool_use", "id": "t1", "name": name, "input": { "a": 1 } },
            ] }, "parent_tool_use_id": parent, "uuid": "u" })
            .to_string()
        };
        let calls = tool_calls(line("mcp__caller__add", Value::Null).as_bytes());
        assert_eq!(calls, [ToolCall::new("t1".into(), "add".into(), json!({ "a": 1 }))]);
        assert!(tool_calls(line("mcp__other__add", Value::Null).as_bytes()).is_empty());
        assert!(
            tool_calls(line("mcp__caller__add", json!("toolu_9")).as_bytes()).is_empty(),
            "of a subagent"
        );
    }

    #[test]
    fn edges_of_a_message_are_found() {
        let line = |event: Value, parent: Value| {
            json!({ "type": "stream_event", "event": event, "parent_tool_use_id": parent }).to_string()
        };
        let end = json!({ "type": "message_delta", "delta": {}, "usage": { "output_tokens": 7, "more": 1 } });
        let usage = Usage { output_tokens: 7, ..Usage::default() };
        assert_eq!(message_edge(line(end.clone(), Value::Null).as_bytes()), Some(MessageEdge::End(usage)));
        assert_eq!(message_edge(line(end, json!("t")).as_bytes()), None, "of a subagent");
        let much = json!({ "type": "message_delta", "usage": { "output_tokens": u64::MAX } });
        let none = MessageEdge::End(Usage::default());
        assert_eq!(message_edge(line(much, Value::Null).as_bytes()), Some(none), "as no turn can use");
        let begin = json!({ "type": "message_start", "message": {} });
        assert_eq!(message_edge(line(begin, Value::Null).as_bytes()), Some(MessageEdge::Begin));
        let text = json!({ "type": "content_block_delta", "delta": { "text": "\"message_start\"" } });
        assert_eq!(message_edge(line(text, Value::Null).as_bytes()), None);
    }
}
