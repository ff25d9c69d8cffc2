use super::*;

fn anthropic(tools: Value, choice: Value) -> Result<Offer, String> {
    let tools = serde_json::from_value(tools).unwrap();
    let offer = Offer::of_anthropic(tools, serde_json::from_value(choice).unwrap());
    offer.map_err(|error| error.message().to_owned())
}

fn openai(tools: Value, choice: Value) -> Result<Offer, String> {
    let offer = Offer::of_openai(serde_json::from_value(tools).unwrap(), Some(choice));
    offer.map_err(|error| error.message().to_owned())
}

#[test]
fn both_forms_offer_the_same() {
    let schema = json!({ "type": "object", "properties": { "a": { "type": "number" } } });
    let one = json!([
        { "name": "add", "description": "adds", "input_schema": schema, "strict": true },
        { "type": "web_search_20250305", "name": "web_search" },
    ]);
    let other = json!([
        { "type": "function", "function": { "name": "add", "description": "adds", "parameters": schema, "strict": true } },
        { "type": "web_search_20250305" },
    ]);
    let (one, other) = (anthropic(one, Value::Null).unwrap(), openai(other, Value::Null).unwrap());
    assert_eq!(one.tools, other.tools);
    assert_eq!(one.tools[0].name(), "add");
    for offer in [one, other] {
        assert_eq!(
            (offer.left_out, offer.strict, offer.choice),
            (vec!["tools.web_search_20250305".into()], vec!["add".into()], Choice::Free)
        );
    }
}

/// What is not checked is not silently taken.
#[test]
fn strict_tools_beyond_the_limits_are_named() {
    let tool = |name: &str, schema: Value| json!({ "name": name, "input_schema": schema, "strict": true });
    let tree = json!({ "properties": { "children": { "items": { "$ref": "#" } } } });
    let elsewhere = json!({ "properties": { "a": { "$ref": "http://127.0.0.1/x" } } });
    for schema in [tree, elsewhere] {
        let offer = anthropic(json!([tool("odd", schema), tool("add", json!({}))]), Value::Null).unwrap();
        assert_eq!((offer.left_out, offer.strict), (vec!["tools.strict".into()], vec!["add".into()]));
    }
    let large = || json!({ "allOf": vec![json!({}); 4000] });
    let many = (0..8).map(|number| tool(&number.to_string(), large())).collect();
    let offer = anthropic(many, Value::Null).unwrap();
    assert_eq!((offer.left_out, offer.strict.len()), (vec!["tools.strict".into()], 4));
    let none = anthropic(json!([tool("add", json!({}))]), json!({ "type": "none" })).unwrap();
    assert!(none.strict.is_empty());
}

#[test]
fn choices_are_read_in_both_forms() {
    let tools = || json!([{ "name": "add", "input_schema": {} }]);
    let functions = || json!([{ "type": "function", "function": { "name": "add" } }]);
    let one = Choice::One("add".into());
    for (sent, expected) in [
        (json!({ "type": "auto" }), Choice::Free),
        (json!({ "type": "any" }), Choice::Any),
        (json!({ "type": "tool", "name": "add" }), one.clone()),
    ] {
        assert_eq!(anthropic(tools(), sent).unwrap().choice, expected);
    }
    let named = json!({ "type": "function", "function": { "name": "add" } });
    for (sent, expected) in [(json!("auto"), Choice::Free), (json!("required"), Choice::Any), (named, one)] {
        assert_eq!(openai(functions(), sent).unwrap().choice, expected);
    }
    assert!(anthropic(tools(), json!({ "type": "none" })).unwrap().tools.is_empty());
    assert!(openai(functions(), json!("none")).unwrap().tools.is_empty());
    assert!(anthropic(tools(), json!({ "type": "tool", "name": "sub" })).is_err());
    assert!(openai(json!([]), json!("required")).is_err());
    assert!(openai(functions(), json!("sometimes")).is_err());
}

#[test]
fn wrong_tools_are_named() {
    for (tools, named) in [
        (json!([{ "name": "a" }]), "tools[0].input_schema"),
        (json!([{ "input_schema": {} }]), "tools[0].name"),
        (json!([{ "name": "a b", "input_schema": {} }]), "tools[0].name"),
        (json!([{ "name": "a", "input_schema": { "type": "string" } }]), "tools[0].input_schema"),
    ] {
        let problem = anthropic(tools, Value::Null).err().unwrap();
        assert!(problem.contains(named), "{problem}");
    }
}

#[test]
fn results_of_all_calls_are_needed() {
    let calls = |ids: &[&str]| {
        let calls = ids.iter().map(|id| json!({ "type": "tool_use", "id": id, "name": "add", "input": {} }));
        vec![Message { role: Role::Assistant, content: Content::Blocks(calls.collect()) }]
    };
    let sent = Content::Blocks(vec![
        json!({ "type": "tool_result", "tool_use_id": "a", "content": "1" }),
        json!({ "type": "tool_result", "tool_use_id": "b", "is_error": true, "content": [{ "type": "text", "text": "2" }] }),
        json!({ "type": "text", "text": "and?" }),
    ]);
    let read = results(&calls(&["a", "b"]), &sent, "m").unwrap().unwrap();
    assert_eq!(read[0], ToolResult::text("a", "1"));
    assert!(read[1].is_error && read[1].content.len() == 2, "the text follows");
    assert!(results(&calls(&["a", "c"]), &sent, "m").unwrap_err().message().contains("the call c"));
    let text = Content::Text("none".into());
    assert!(results(&calls(&["a"]), &text, "m").unwrap().is_none(), "another message ends the wait");
}
