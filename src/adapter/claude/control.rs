//! Control lines to the CLI: requests of the host, and responses to the CLI's requests.
//!
//! Every line goes through the serialiser and is exactly one line: the CLI exits at a line that it cannot parse.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::caller_tools::CALLER_SERVER;
use super::servers::replace_servers;
use crate::adapter::LaunchSettings;

/// The request `initialize`. Its response is the first output of a child and costs no tokens. The system prompt applies to
/// this process only: a resumed conversation needs it again.
pub(crate) fn handshake(request_id: &str, settings: &LaunchSettings) -> Vec<u8> {
    // The default of 2.1.332 keeps the first system prompt of a conversation.
    let mut request = json!({"subtype": "initialize", "systemPromptSnapshot": false});
    // An empty prompt would remove the default.
    if let Some(prompt) = settings.system_prompt.as_deref().filter(|prompt| !prompt.is_empty()) {
        request["systemPrompt"] = prompt.into();
    }
    if !settings.caller_tools.is_empty() {
        request["sdkMcpServers"] = json!([CALLER_SERVER]);
    }
    if let Some(schema) = &settings.output_schema {
        request["jsonSchema"] = schema.clone();
    }
    request_with(request_id, &request)
}

/// The request `mcp_set_servers`, sent after the handshake: a file would be writable for the child, and arguments are
/// public. Its response comes when each server is connected or has failed; the CLI answers nothing else before. It also works with `--strict-mcp-config`. Some versions (2.1.197) expand `${VARIABLE}`
/// in headers: callers must refuse it.
pub(crate) fn mcp_servers(request_id: &str, settings: &LaunchSettings) -> Vec<u8> {
    replace_servers(request_id, &settings.mcp_servers, !settings.caller_tools.is_empty())
}

/// Control request that interrupts the running turn.
pub(crate) fn interrupt(request_id: &str) -> Vec<u8> {
    request(request_id, "interrupt")
}

/// Control request that a living child answers at once, also during a turn.
pub(crate) fn ping(request_id: &str) -> Vec<u8> {
    request(request_id, "mcp_status")
}

/// A control request without fields.
fn request(request_id: &str, subtype: &str) -> Vec<u8> {
    request_with(request_id, &json!({"subtype": subtype}))
}

/// A control request with its fields, `subtype` among them.
pub(super) fn request_with(request_id: &str, request: &Value) -> Vec<u8> {
    line(&json!({"type": "control_request", "request_id": request_id, "request": request}))
}

/// What a successful response of the CLI says; `None` for an error, and where the fields are not those of `T`.
pub(super) fn response<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    #[derive(Deserialize)]
    struct Line<T> {
        response: Envelope<T>,
    }
    #[derive(Deserialize)]
    struct Envelope<T> {
        response: Option<T>,
    }
    serde_json::from_slice::<Line<T>>(line).ok()?.response.response
}

/// Error response to an unsupported request.
pub(crate) fn unsupported_response(request_id: &str, what: &str) -> Vec<u8> {
    let error = format!("this host does not support {what}");
    let response = json!({"subtype": "error", "request_id": request_id, "error": error});
    line(&json!({"type": "control_response", "response": response}))
}

/// One line with its LF, the only one: JSON escapes control characters in strings.
pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    // Values with text keys always serialise into memory; an empty object would be harmless.
    let mut bytes = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    pub(in crate::adapter::claude) fn parse(line: &[u8]) -> Value {
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert!(line.ends_with(b"\n"));
        serde_json::from_slice(line).unwrap()
    }

    #[test]
    fn handshake_has_the_system_prompt() {
        let handshake_request = |prompt: Option<&str>| {
            let settings =
                LaunchSettings { system_prompt: prompt.map(str::to_owned), ..LaunchSettings::default() };
            parse(&handshake("r1", &settings))["request"].clone()
        };
        assert_eq!(
            handshake_request(Some("be brief")),
            json!({"subtype": "initialize", "systemPrompt": "be brief", "systemPromptSnapshot": false})
        );
        assert_eq!(handshake_request(None), json!({"subtype": "initialize", "systemPromptSnapshot": false}));
        assert_eq!(handshake_request(Some("")), handshake_request(None));
    }

    #[test]
    fn refusal_is_an_error_response() {
        let refused = parse(&unsupported_response("r2", "hook_callback"))["response"].clone();
        assert_eq!((&refused["subtype"], &refused["request_id"]), (&json!("error"), &json!("r2")));
    }

    #[test]
    fn control_requests_have_their_fields() {
        assert_eq!(
            parse(&request("r", "interrupt")),
            json!({"type": "control_request", "request_id": "r", "request": {"subtype": "interrupt"}})
        );
        let servers = json!({"m": {"type": "stdio", "command": "serve\nit", "args": [], "env": {}}});
        let settings =
            LaunchSettings { mcp_servers: servers.as_object().unwrap().clone(), ..LaunchSettings::default() };
        assert_eq!(
            parse(&mcp_servers("r", &settings))["request"],
            json!({"subtype": "mcp_set_servers", "servers": servers})
        );
    }
}
