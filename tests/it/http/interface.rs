//! What `/openapi.json` says is so: examples fit their schemas, the service answers them, and its answers fit.

use reqwest::Method;
use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually_some};

/// One method of one path.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    described: &'a Value,
}

impl Operation<'_> {
    /// Sends it as alice, about her default conversation, this stored response or this turn.
    async fn send(&self, site: &Site, body: Option<&Value>, (response, turn): (&str, &str)) -> Answer {
        let ids = [("models", "sonnet"), ("responses", response), ("turns", turn)];
        let id = ids.into_iter().find(|(kind, _)| self.path.contains(kind)).map_or("default", |(_, id)| id);
        let path = self.path.replace("{id}", id).replace("{file}", "app.js").replace("{path}", "notes.txt");
        let method: Method = self.method.to_uppercase().parse().unwrap();
        let request = site.web().request(method, format!("{}{path}", site.http));
        let request = request.header("x-pilotlight-user", "alice");
        Answer::of(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(move |(method, described)| Operation { method, path, described })
    });
    all.collect()
}

/// All places where a schema stands beside examples: bodies of requests and of answers.
fn media<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("schema") && fields.contains_key("examples") {
                found.push(value);
            }
            fields.values().for_each(|field| media(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| media(item, found)),
        _ => {}
    }
}

fn examples(media: &Value) -> impl Iterator<Item = &Value> {
    media["examples"].as_object().into_iter().flat_map(|all| all.values()).map(|example| &example["value"])
}

/// What a value lacks to fit a schema; the document is what its references point into.
fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut rooted = schema.clone();
    rooted["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&rooted).unwrap();
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_fits_its_schema() {
    let place = place();
    let (_program, site) = Program::serve(&place, "").await;
    let answer = site.get("/openapi.json").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut places = Vec::new();
    media(&document, &mut places);
    let mut seen = 0;
    for place in places {
        for example in examples(place) {
            let faults = faults(&document, &place["schema"], example);
            assert!(faults.is_empty(), "{example} does not fit: {faults:#?}");
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} examples were found");
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let wrong = json!({ "messages": [{ "role": "robot", "content": "a" }] });
    assert!(!faults(&document, &schema("OriginalRequest"), &wrong).is_empty(), "something is wrong by it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_document_lists_the_same() {
    let place = place();
    let (_program, site) = Program::serve(&place, "").await;
    let document = site.get("/openapi.json").await.json();
    let service = site.get("/").await.json();
    let listed: Vec<_> = service["endpoints"].as_array().unwrap().iter().collect();
    let described = operations(&document);
    assert_eq!(listed.len(), described.len());
    for (listed, described) in listed.into_iter().zip(described) {
        let expected = json!({
            "method": described.method.to_uppercase(),
            "path": described.path,
            "description": described.described["summary"],
        });
        assert_eq!(*listed, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_a_turn_is_answered() {
    let place = place();
    let servers =
        "[mcp.servers.files]\ncommand = \"true\"\n[mcp.servers.search]\nurl = \"http://127.0.0.1:9/\"\n";
    let (_program, site) = Program::ready(&place, servers).await;
    let document = site.get("/openapi.json").await.json();
    let mut answered = 0;
    for operation in operations(&document) {
        let body = &operation.described["requestBody"]["content"]["application/json"];
        // Their answers need a question, a message, a running turn or a server: the tests of those have that.
        if ["/permissions", "/fork", "/rewind", "/steer", "/mcp"].iter().any(|it| operation.path.contains(it))
        {
            continue;
        }
        for example in examples(body) {
            let answer = operation.send(&site, Some(example), ("", "")).await;
            assert_eq!(answer.status, 200, "{example} gave {answer:?}");
            fits(&document, &operation, &answer);
            answered += 1;
        }
    }
    assert!(answered >= 4, "only {answered} examples were sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_fits_its_schema() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    let file = site.of("PUT", "/v1/workspace/files/notes.txt", "alice").body("hello");
    assert_eq!(Answer::of(file).await.status, 200);
    let asked = json!({ "model": "sonnet", "input": "hello" });
    let response = Answer::of(site.of("POST", "/v1/responses", "alice").json(&asked)).await.json();
    let later = site.of("POST", "/v1/responses", "alice").header("prefer", "respond-async").json(&asked);
    let turn = Answer::of(later).await.json();
    let turn = turn["id"].as_str().unwrap();
    let ended = async || {
        let turn = Answer::of(site.of("GET", &format!("/v1/turns/{turn}"), "alice")).await.json();
        (turn["status"] == "completed").then_some(())
    };
    eventually_some("the turn ends", SOON, ended).await;
    let document = site.get("/openapi.json").await.json();
    for operation in operations(&document) {
        // Event streams do not end by themselves; without a turn there is nothing to attach to.
        let streams = ["/v1/events/stream", "/v1/happenings"];
        let endless = ["/events", "/live"].iter().any(|end| operation.path.ends_with(end))
            || streams.contains(&operation.path);
        let asks = operation.method == "get" && !endless;
        if asks {
            let answer = operation.send(&site, None, (response["id"].as_str().unwrap(), turn)).await;
            assert_eq!(answer.status, 200, "{} gave {answer:?}", operation.path);
            fits(&document, &operation, &answer);
        }
    }
    let refused = Answer::of(site.post().json(&json!({ "messages": [] }))).await;
    let schema = json!({ "$ref": "#/components/schemas/Error" });
    let faults = faults(&document, &schema, &refused.json());
    assert!(faults.is_empty(), "{refused:?} does not fit: {faults:#?}");
}

/// An answer is of a kind that is described for its status, and fits.
fn fits(document: &Value, operation: &Operation<'_>, answer: &Answer) {
    let kinds = &operation.described["responses"][answer.status.to_string()]["content"];
    let kind = answer.header("content-type").split(';').next().unwrap();
    let media = &kinds[kind];
    assert!(media.is_object(), "{kind} is not described for {} {}", operation.path, answer.status);
    if kind == "application/json" {
        let faults = faults(document, &media["schema"], &answer.json());
        assert!(faults.is_empty(), "{} gave {answer:?}, which does not fit: {faults:#?}", operation.path);
    }
}
