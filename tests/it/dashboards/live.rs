//! Prometheus watches a live server while [`traffic`] is done to it; then it is asked everything that the dashboards and
//! rules ask.

use std::time::Duration;

use super::expression::{selectors, unknown};
use super::prometheus::{self, Prometheus, Sample};
use super::questions::{EMPTY_IN_PEACE, Question, all, filled_in};
use super::traffic;
use crate::common::eventually_some;
use crate::common::program::{Program, place};

/// The whole script is within it.
const INTERVAL: &str = "5m";
/// How long Prometheus may take to have fetched what has been done.
const FETCHED_WITHIN: Duration = Duration::from_secs(30);

/// Prometheus answers every panel and rule, with the values of the load that the test produced.
#[tokio::test(flavor = "multi_thread")]
async fn panels_and_rules_show_the_known_load() {
    let Some(program) = prometheus::program("prometheus") else { return };
    let place = place();
    let (_server, site) = Program::ready(&place, &traffic::configuration(&place)).await;
    let prometheus = Prometheus::start(&program, &place, &site.admin).await;
    // Increases are seen from what was there before.
    let turns = "sum(pilotlight_turns_total)";
    eventually_some("the first metrics", FETCHED_WITHIN, async || {
        prometheus.ask(turns).await.ok().filter(|answer| !answer.is_empty())
    })
    .await;

    let done = traffic::run(&site).await;
    let ended = site.metric("turns_total", &[]).await;
    eventually_some("everything is fetched", FETCHED_WITHIN, async || {
        (prometheus.number(turns).await == ended && prometheus.number("sum(pilotlight_sessions)").await > 0.0)
            .then_some(())
    })
    .await;

    // What was done is more than enough for these; they wait for nothing.
    for alert in ["PilotlightTurnErrorsFast", "PilotlightHangs"] {
        let fires = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\",job=\"pilotlight\"}}");
        eventually_some(&format!("{alert} fires"), FETCHED_WITHIN, async || {
            prometheus.ask(&fires).await.ok().filter(|answer| !answer.is_empty())
        })
        .await;
    }

    let mut wrong = metrics_that_differ(&prometheus, &done).await;
    let questions = all();
    for question in questions.iter().filter(|question| !is_of_cluster(&question.expression)) {
        wrong.extend(faults(&prometheus, question).await);
    }
    wrong.extend(rules_that_fail(&prometheus).await);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // It can fail: each of these is found.
    let good =
        questions.iter().find(|question| question.title == "Turns by outcome").expect("a panel").clone();
    for (from, to) in [
        ("turns_total", "turn_total"),
        ("by (outcome)", "by (outcom)"),
        ("job=~", "jobb=~\"pilotlight\",job=~"),
        ("rate(", "rat("),
    ] {
        let planted = Question { expression: good.expression.replace(from, to), ..good.clone() };
        assert!(!faults(&prometheus, &planted).await.is_empty(), "{to} is not noticed");
    }
}

/// What was done against what Prometheus says.
async fn metrics_that_differ(prometheus: &Prometheus, done: &traffic::Ledger) -> Vec<String> {
    let mut differ = Vec::new();
    for (series, expected) in &done.0 {
        let found = prometheus.number(&format!("sum({series})")).await;
        if found != *expected {
            differ.push(format!("{series} is {found}, and {expected} were done"));
        }
    }
    // A graph adds up to what happened, as nearly as a graph can.
    let drawn = prometheus.number(&format!("sum(increase(pilotlight_turns_total[{INTERVAL}]))")).await;
    let counted = prometheus.number("sum(pilotlight_turns_total)").await;
    if (drawn / counted - 1.0).abs() > 0.2 {
        differ.push(format!("a graph adds up to {drawn} turns of {counted}"));
    }
    differ
}

/// What is wrong with one question: it is an error, has no answer, no number or not the labels that its legend shows.
async fn faults(prometheus: &Prometheus, question: &Question) -> Vec<String> {
    let place = &question.place;
    let expression = filled_in(&question.expression, INTERVAL);
    let samples = match prometheus.ask(&expression).await {
        Ok(samples) => samples,
        Err(error) => return vec![format!("{place}: {error}")],
    };
    let mut faults = Vec::new();
    let may_be_nothing = EMPTY_IN_PEACE.contains(&question.title.as_str());
    if samples.is_empty() && !may_be_nothing {
        faults.push(format!("{place}: no answer: {expression}"));
    }
    if !samples.is_empty() && !may_be_nothing && samples.iter().all(|sample| sample.value.is_nan()) {
        faults.push(format!("{place}: no number: {expression}"));
    }
    let shown = question.legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
    let lacks = |name: &str| samples.iter().any(|sample: &Sample| !sample.labels.contains_key(name));
    let lacking = shown.filter(|(name, _)| lacks(name)).map(|(name, _)| name);
    faults.extend(lacking.map(|name| format!("{place}: its legend shows {name}, which is not there")));
    faults.extend(silent(prometheus, &expression).await.into_iter().map(|fault| format!("{place}: {fault}")));
    faults
}

/// A server that is alone has no metrics of a cluster; `tests/cluster` sees that a node has all of them.
fn is_of_cluster(expression: &str) -> bool {
    expression.contains("pilotlight_cluster_")
}

/// Series that are mentioned and not there: an answer can hide them behind `or vector(0)`.
async fn silent(prometheus: &Prometheus, expression: &str) -> Vec<String> {
    let mut silent = Vec::new();
    for selector in selectors(expression).into_iter().filter(|selector| !is_of_cluster(&selector.metric)) {
        let by_labels: Vec<_> = selector
            .matchers
            .iter()
            .map(|(name, value)| format!("{name}=~\"{}\"", if value == ".*" { ".+" } else { value }))
            .collect();
        let asked = format!("count({}{{{}}})", selector.metric, by_labels.join(","));
        if prometheus.ask(&asked).await.map_or(true, |answer| answer.is_empty()) {
            silent.push(format!("nothing there: {asked}"));
        }
    }
    silent
}

async fn rules_that_fail(prometheus: &Prometheus) -> Vec<String> {
    let mut wrong = Vec::new();
    let rules = prometheus.rules().await;
    if rules.len() < 20 {
        wrong.push(format!("{} rules", rules.len()));
    }
    for rule in rules {
        let (name, expression) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        if rule["health"] != "ok" {
            wrong.push(format!("{name}: {} {}", rule["health"], rule["lastError"]));
        }
        if let Err(error) = prometheus.ask(expression).await {
            wrong.push(format!("{name}: {error}"));
        }
        wrong.extend(unknown(expression).into_iter().map(|fault| format!("{name}: {fault}")));
        wrong
            .extend(silent(prometheus, expression).await.into_iter().map(|fault| format!("{name}: {fault}")));
        // What is recorded has a value by now: all of it has happened.
        if rule["type"] == "recording" && prometheus.ask(name).await.map_or(true, |answer| answer.is_empty())
        {
            wrong.push(format!("{name} records nothing"));
        }
    }
    wrong
}
