//! Lines of clients and children, judged.

use super::*;

fn gate(policy: PermissionPolicy, asks: bool) -> Gate {
    let rules = AttachRules {
        policy,
        models: Some(["sonnet".to_owned()].into()),
        commands: SlashCommands::Text,
        prompt_limit: 1000,
    };
    Gate::new(rules, Map::new(), asks, (false, false))
}

fn request(request: &Value) -> String {
    json!({ "type": "control_request", "request_id": "r", "request": request }).to_string()
}

fn response(body: &Value) -> String {
    let response = json!({ "subtype": "success", "request_id": "r", "response": body });
    json!({ "type": "control_response", "response": response }).to_string()
}

#[test]
fn lines_pass_unchanged() {
    let mut gate = gate(PermissionPolicy::Ask, true);
    for text in [
        r#"{ "type":"user", "message":{"role":"user","content":"a \u2028 b"}, "x":1.50 }"#.to_owned(),
        request(&json!({ "subtype": "interrupt" })),
        request(&json!({ "subtype": "set_permission_mode", "mode": "acceptEdits" })),
        request(&json!({ "subtype": "set_model", "model": "sonnet" })),
        response(&json!({ "behavior": "allow", "updatedInput": { "mode": "bypassPermissions" } })),
        response(&json!({ "mcp_response": { "decision": "approve" } })),
        response(&json!({ "action": "accept", "content": { "destination": "Paris", "mode": "fast" } })),
    ] {
        let FromClient::Pass { lines, is_message } = gate.judge_client(text.as_bytes()) else {
            panic!("{text}")
        };
        assert_eq!(lines, [Bytes::from(format!("{text}\n"))]);
        assert_eq!(is_message, text.contains(r#""user""#));
    }
}

#[test]
fn requests_that_undo_a_policy_are_refused() {
    let mut gate = gate(PermissionPolicy::Deny, false);
    for asked in [
        json!({ "subtype": "set_permission_mode", "mode": "bypassPermissions" }),
        json!({ "subtype": "set_permission_mode", "mode": "acceptEdits" }),
        json!({ "subtype": "set_permission_mode" }),
        json!({ "subtype": "set_model", "model": "opus" }),
        json!({ "subtype": "set_model" }),
        json!({ "subtype": "mcp_set_servers", "servers": { "x": { "command": "sh" } } }),
        json!({ "subtype": "apply_flag_settings", "settings": {} }),
        json!({ "subtype": "claim_session" }),
        json!({ "subtype": "get_settings" }),
        json!({ "subtype": "initialize", "agents": { "a": { "prompt": "x", "model": "opus" } } }),
        json!({}),
    ] {
        let FromClient::Reply(reply) = gate.judge_client(request(&asked).as_bytes()) else {
            panic!("{asked}")
        };
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        assert_eq!(
            (&reply["response"]["subtype"], &reply["response"]["request_id"]),
            (&json!("error"), &json!("r"))
        );
    }
    // The last of two equal keys counts, as it does for the CLI.
    let twice = r#"{"type":"keep_alive","type":"control_request","request_id":"r","request":{"subtype":"interrupt","subtype":"bogus"}}"#;
    assert!(matches!(gate.judge_client(twice.as_bytes()), FromClient::Reply(_)));
    let variables = r#"{"type":"update_environment_variables","variables":{}}"#;
    assert_eq!(gate.judge_client(variables.as_bytes()), FromClient::Drop);
}

#[test]
fn answers_that_undo_a_policy_become_errors() {
    let (deny, ask) = (PermissionPolicy::Deny, PermissionPolicy::Ask);
    let updated = |one: Value| json!({ "behavior": "allow", "updatedPermissions": [one] });
    let mode = json!({ "behavior": "allow", "updatedPermissions": [{ "type": "setMode", "mode": "bypassPermissions" }] });
    for (policy, body) in [
        (deny, json!({ "behavior": "allow" })),
        (deny, json!({ "hookSpecificOutput": { "permissionDecision": "allow" } })),
        (deny, json!({ "hookSpecificOutput": { "decision": { "behavior": "allow" } } })),
        (deny, json!({ "mcp_response": {}, "decision": "approve" })),
        (ask, mode),
        (ask, updated(json!({ "type": "addDirectories", "directories": ["/"], "destination": "session" }))),
        (ask, updated(json!({ "type": "addRules", "rules": [], "destination": "localSettings" }))),
    ] {
        let FromClient::Pass { lines, .. } =
            gate(policy, policy == ask).judge_client(response(&body).as_bytes())
        else {
            panic!("{body}")
        };
        let answer: Value = serde_json::from_slice(&lines[0]).unwrap();
        assert_eq!(answer["response"]["subtype"], "error", "{body}");
    }
}

#[test]
fn handshake_has_the_flags_and_no_more_than_is_known() {
    let opening = json!({ "systemPrompt": "be brief", "jsonSchema": { "a": 1 } });
    let mut gate = gate(PermissionPolicy::Deny, false);
    gate.opening = opening.as_object().unwrap().clone();
    let asked = json!({
        "subtype": "initialize", "hooks": null, "forwardSubagentText": true, "jsonSchema": { "b": 1 }, "plugins": ["/x"],
        "agents": { "a": { "description": "d", "prompt": "p", "mcpServers": ["x"], "permissionMode": "bypassPermissions" } },
    });
    let mut asked = asked;
    asked["hooks"] =
        json!({ "Stop": [{ "hookCallbackIds": ["h"], "hooks": [{ "type": "command", "command": "id" }] }] });
    let FromClient::Pass { lines, .. } = gate.judge_client(request(&asked).as_bytes()) else { panic!() };
    let sent: Value = serde_json::from_slice(&lines[0]).unwrap();
    let expected = json!({
        "subtype": "initialize", "systemPrompt": "be brief", "forwardSubagentText": true, "jsonSchema": { "b": 1 }, "systemPromptSnapshot": false,
        "agents": { "a": { "description": "d", "prompt": "p" } }, "hooks": { "Stop": [{ "hookCallbackIds": ["h"] }] },
    });
    assert_eq!(sent, json!({ "type": "control_request", "request_id": "r", "request": expected }));
}

#[test]
fn first_message_without_handshake_brings_the_flags() {
    let mut gate = gate(PermissionPolicy::Deny, false);
    gate.opening.insert("systemPrompt".into(), "x".into());
    let text = r#"{"type":"user","message":{"role":"user","content":"/model opus"}}"#;
    let FromClient::Pass { lines, is_message: true } = gate.judge_client(text.as_bytes()) else { panic!() };
    assert_eq!(lines.len(), 2);
    let sent: Value = serde_json::from_slice(&lines[1]).unwrap();
    assert_eq!(sent["message"]["content"], " /model opus");
    let own =
        br#"{"type":"control_response","response":{"subtype":"success","request_id":"pilotlight-open"}}"#;
    assert_eq!(gate.judge_child(own), FromChild::Drop);
}

#[test]
fn agents_are_judged_without_a_handshake() {
    let text = r#"{"type":"user","message":{"role":"user","content":"hello"}}"#;
    let opened = |agent: Value| {
        let mut gate = gate(PermissionPolicy::Deny, false);
        gate.opening.insert("agents".into(), json!({ "a": agent }));
        gate.judge_client(text.as_bytes())
    };
    let lenient =
        json!({ "prompt": "p", "permissionMode": "bypassPermissions", "mcpServers": [{ "x": {} }] });
    let FromClient::Pass { lines, .. } = opened(lenient) else { panic!() };
    let sent: Value = serde_json::from_slice(&lines[0]).unwrap();
    assert_eq!(sent["request"]["agents"], json!({ "a": { "prompt": "p" } }));
    assert!(matches!(opened(json!({ "model": "opus" })), FromClient::Broken(_)));
}

#[test]
fn servers_follow_the_handshake() {
    let program = json!({ "type": "stdio", "command": "serve" });
    let servers = || [("x".to_owned(), program.clone())].into_iter().collect();
    let expected = json!({ "x": program, "me": { "type": "sdk", "name": "me" } });
    let initialize = request(&json!({ "subtype": "initialize", "sdkMcpServers": ["me"] }));
    let message = r#"{"type":"user","message":{"role":"user","content":"hello"}}"#.to_owned();
    for (text, own, count) in [(initialize, vec![], 2), (message, vec!["me".to_owned()], 3)] {
        let mut gate = gate(PermissionPolicy::Deny, false).with_servers(servers(), &own);
        let FromClient::Pass { lines, .. } = gate.judge_client(text.as_bytes()) else { panic!("{text}") };
        assert_eq!(lines.len(), count, "{text}");
        let sent: Value = serde_json::from_slice(&lines[1]).unwrap();
        assert_eq!(sent["request"], json!({ "subtype": "mcp_set_servers", "servers": expected }));
        assert!(sent["request_id"].as_str().unwrap().starts_with(OWN), "its response is not for the client");
    }
    let without = gate(PermissionPolicy::Deny, false).with_servers(Map::new(), &["me".to_owned()]);
    assert!(without.servers.is_empty(), "the command line has them");
}

#[test]
fn lines_that_end_the_child_are_not_sent() {
    let mut gate = gate(PermissionPolicy::Deny, false);
    for text in [
        "x",
        "null",
        "[]",
        r#"{"type":"user"}"#,
        r#"{"type":"user","message":{"role":"assistant","content":"x"}}"#,
        r#"{"type":"user","message":{"role":"user","content":5}}"#,
        r#"{"type":"control_request"}"#,
        "{\"type\":\"keep_alive\",\r\"a\":1}",
    ] {
        assert!(matches!(gate.judge_client(text.as_bytes()), FromClient::Broken(_)), "{text}");
    }
    let long =
        json!({ "type": "user", "message": { "role": "user", "content": "x".repeat(1000) } }).to_string();
    assert!(matches!(gate.judge_client(long.as_bytes()), FromClient::Broken(_)));
    assert_eq!(gate.judge_client(b" "), FromClient::Drop);
}

#[test]
fn child_lines_are_for_the_client_that_asked_for_them() {
    let gate = gate(PermissionPolicy::Allow, false);
    let asks = r#"{"type":"control_request","request_id":"q","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{}}}"#;
    assert!(matches!(gate.judge_child(asks.as_bytes()), FromChild::Permission(_)));
    for (text, expected) in [
        (r#"{"type":"stream_event","event":{}}"#, FromChild::Drop),
        (r#"{"type":"transcript_mirror","filePath":"x","entries":[]}"#, FromChild::Drop),
        (r#"{"type":"system","subtype":"session_state_changed","state":"running"}"#, FromChild::Drop),
        (r#"{"type":"system","subtype":"session_state_changed","state":"idle"}"#, FromChild::Drop),
        (r#"{"type":"result","subtype":"success"}"#, FromChild::Pass),
        (r#"{"type":"control_response","response":{"subtype":"success","request_id":"r"}}"#, FromChild::Pass),
    ] {
        assert_eq!(gate.judge_child(text.as_bytes()), expected, "{text}");
    }
}
